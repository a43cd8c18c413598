"""Contributors, their addresses and the account their money goes to."""

from __future__ import annotations

import pytest

from headwater.core.errors import InvalidError
from headwater.core.ids import ContributorId
from headwater.registry import Contributor, account_for, checksum_address, enrolled, unenrolled

# Published in EIP-55.
CHECKSUMMED = (
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0x27b1fdb04752bbc536007a920d24acb045561c26",
)


@pytest.mark.parametrize("address", CHECKSUMMED)
def test_addresses_carry_the_published_checksum(address: str) -> None:
    """One-case spellings of an address gain the mixed case that EIP-55 publishes for it."""
    assert checksum_address(address) == address
    assert checksum_address(address.lower()) == address
    assert checksum_address("0x" + address[2:].upper()) == address


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("0xFb6916095ca1df60bB79Ce92cE3Ea74c37c5d359", "address_checksum_wrong"),
        ("fB6916095ca1df60bB79Ce92cE3Ea74c37c5d359", "address_invalid"),
        ("0x" + "0" * 40, "address_invalid"),
        ("0x" + "g" * 40, "address_invalid"),
        ("0x" + "a" * 39, "address_invalid"),
        ("", "address_invalid"),
    ],
)
def test_a_mistyped_address_is_refused(address: str, code: str) -> None:
    """Nobody can be enrolled at an address that is not one, or whose checksum says a character is wrong."""
    with pytest.raises(InvalidError) as caught:
        enrolled("local", "Ada", address)

    assert caught.value.code == code
    assert caught.value.fix


def test_unenrolled_earnings_go_to_escrow_and_enrolled_ones_to_the_contributor() -> None:
    """The same person has the same id before and after enrolling; only the account changes."""
    before, after = unenrolled("local", "Ada"), enrolled("local", "Ada", CHECKSUMMED[0])

    assert before.id == after.id
    assert account_for(before) == f"escrow:{before.id}"
    assert account_for(after) == f"contributor:{after.id}"


@pytest.mark.parametrize(("state", "address"), [(True, None), (False, CHECKSUMMED[0])])
def test_enrolled_means_having_an_address(state: bool, address: str | None) -> None:
    """Neither an enrolled contributor without an address nor the reverse can be made."""
    with pytest.raises(InvalidError, match="contributor"):
        Contributor(ContributorId("ctr_x"), "Ada", "local", state, address)


@pytest.mark.parametrize("name", ["", "  ", "a\x00b", "x" * 201])
def test_a_name_that_cannot_be_shown_is_refused(name: str) -> None:
    """Names are 1 to 200 printable characters."""
    with pytest.raises(InvalidError):
        unenrolled("local", name)


@pytest.mark.parametrize("namespace", ["", "Local", "a b", "-x", "x" * 65])
def test_a_namespace_is_a_short_plain_word(namespace: str) -> None:
    """Namespaces are lower case, so that one cannot pose as another."""
    with pytest.raises(InvalidError):
        unenrolled(namespace, "Ada")
