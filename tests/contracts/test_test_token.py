"""The test dollar's signed approvals and transfers: each counts once, for whom and when it was signed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from eth_account import Account
from eth_utils import to_checksum_address
from tests.contracts.bare_evm import Bare, Contract, Refused

from headwater.chain import Chain, EmbeddedChain
from headwater.chain.evm import CHAIN_ID

PAYER = Account.from_key(b"\x07" * 32)
OTHER = Account.from_key(b"\x08" * 32)
ME = "0x" + "0a" * 20
TO = "0x" + "0b" * 20
NONCE = b"\x01" * 32
HALF = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.fixture
def token() -> Iterator[Contract]:
    """The token of a deployment, with 1,000 units of the payer."""
    with EmbeddedChain(seed=b"\x11" * 32, clock_ns=lambda: 1_700_000_000 * 10**9) as embedded:
        chain = Chain(embedded.provider(), embedded.accounts[0])
        manifest = chain.deploy(guardian=embedded.accounts[1].address, cap=10**9, delay_s=60)
        chain.mint(PAYER.address, 1_000)
        yield Contract(Bare(embedded), "TestToken", manifest.token)


def signed(token: Contract, kind: str, fields: dict[str, Any], signer: Any = PAYER) -> tuple[int, bytes, bytes]:
    """A signature as a wallet makes it."""
    kinds = {int: "uint256", str: "address", bytes: "bytes32"}
    domain = {
        "name": "Headwater test dollar",
        "version": "1",
        "chainId": CHAIN_ID,
        "verifyingContract": to_checksum_address(token.address),
    }
    types = {kind: [{"name": name, "type": kinds[type(value)]} for name, value in fields.items()]}
    made = Account.sign_typed_data(signer.key, domain, types, fields)
    return made.v, made.r.to_bytes(32, "big"), made.s.to_bytes(32, "big")


def transfer(
    token: Contract, kind: str = "TransferWithAuthorization", signer: Any = PAYER, **changes: Any
) -> list[Any]:
    """Arguments of a signed transfer of 300 units that counts now; `changes` are made before it is signed."""
    fields = {
        "from": PAYER.address,
        "to": to_checksum_address(TO),
        "value": 300,
        "validAfter": token.bare.now_s - 10,
        "validBefore": token.bare.now_s + 10,
        "nonce": NONCE,
        **changes,
    }
    return [*fields.values(), *signed(token, kind, fields)]


def refusal(token: Contract, name: str, arguments: list[Any], sender: str = ME) -> str:
    """The contract's word when it refuses."""
    with pytest.raises(Refused) as refused:
        token.send(sender, name, *arguments)
    return str(refused.value)


def test_a_signed_transfer_moves_once(token: Contract) -> None:
    """Anyone may bring it; brought again it is refused."""
    arguments = transfer(token)
    token.send(ME, "transferWithAuthorization", *arguments)

    assert (token.read("balanceOf", TO), token.read("balanceOf", PAYER.address)) == (300, 700)
    assert token.read("authorizationState", PAYER.address, NONCE)
    assert refusal(token, "transferWithAuthorization", arguments) == "TestToken: authorization used"


@pytest.mark.parametrize(("place", "value"), [(0, OTHER.address), (1, ME), (2, 301), (5, b"\x02" * 32)])
def test_nothing_signed_can_be_changed(token: Contract, place: int, value: Any) -> None:
    """Another sender, receiver, amount or nonce is not what was signed."""
    arguments = transfer(token)
    arguments[place] = value

    assert refusal(token, "transferWithAuthorization", arguments) == "TestToken: bad signature"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"validAfter": 2**40}, "TestToken: not yet valid"),
        ({"validBefore": 5}, "TestToken: expired"),
        ({"value": 1_001}, "TestToken: balance too low"),
    ],
)
def test_time_and_balance_hold(token: Contract, changes: dict[str, int], word: str) -> None:
    """A transfer counts within its time and for what is there."""
    assert refusal(token, "transferWithAuthorization", transfer(token, **changes)) == word


def test_a_mirrored_signature_is_refused(token: Contract) -> None:
    """The other form of a signature is not taken, so one transfer has one signature."""
    *fields, v, r, s = transfer(token)
    mirrored = (ORDER - int.from_bytes(s, "big")).to_bytes(32, "big")

    assert int.from_bytes(s, "big") <= HALF
    assert refusal(token, "transferWithAuthorization", [*fields, 55 - v, r, mirrored]) == "TestToken: bad signature"


def test_only_the_receiver_brings_what_is_signed_for_receiving(token: Contract) -> None:
    """A stranger cannot bring it, and a signature for transfers does not do."""
    arguments = transfer(token, "ReceiveWithAuthorization")

    assert refusal(token, "receiveWithAuthorization", arguments) == "TestToken: not the receiver"
    assert refusal(token, "transferWithAuthorization", arguments) == "TestToken: bad signature"
    token.send(TO, "receiveWithAuthorization", *arguments)
    assert token.read("balanceOf", TO) == 300


def test_a_cancelled_transfer_never_counts(token: Contract) -> None:
    """The signer ends it; nobody else can."""
    fields = {"authorizer": PAYER.address, "nonce": NONCE}
    wrong = signed(token, "CancelAuthorization", fields, OTHER)
    assert refusal(token, "cancelAuthorization", [*fields.values(), *wrong]) == "TestToken: bad signature"
    token.send(ME, "cancelAuthorization", *fields.values(), *signed(token, "CancelAuthorization", fields))

    assert refusal(token, "transferWithAuthorization", transfer(token)) == "TestToken: authorization used"


def test_a_signed_approval_counts_once_and_in_time(token: Contract) -> None:
    """The spender may move what was signed for; the signature is used up, and an old one is too late."""
    fields = {
        "owner": PAYER.address,
        "spender": to_checksum_address(ME),
        "value": 500,
        "nonce": 0,
        "deadline": token.bare.now_s + 5,
    }
    arguments = [fields["owner"], fields["spender"], 500, fields["deadline"], *signed(token, "Permit", fields)]
    token.send(TO, "permit", *arguments)
    token.send(ME, "transferFrom", PAYER.address, TO, 500)

    assert (token.read("balanceOf", TO), token.read("nonces", PAYER.address)) == (500, 1)
    assert refusal(token, "permit", arguments) == "TestToken: bad signature"
    token.bare.jump(10)
    assert refusal(token, "permit", arguments) == "TestToken: expired"
