"""Contributors: who can own a contribution, and the account their money goes to.

Invariant: an enrolled contributor has a payout address, an unenrolled one has none. Knows nothing of
balances: that money waits in escrow under a contributor's name is the ledger's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from headwater.core.address import format_address, parse_address
from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId, ContributorId, contributor_id
from headwater.core.limits import CONTRIBUTOR_NAME_CHARS_MAX

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Contributor:
    """A person or body that can own contributions; `id` follows from namespace and name."""

    id: ContributorId
    name: str  # as it is shown
    namespace: str  # who vouches for the name, e.g. the corpus it was read from
    enrolled: bool
    payout_address: str | None  # checksummed, exactly when enrolled

    def __post_init__(self) -> None:
        if self.enrolled != (self.payout_address is not None):
            state = "enrolled without a payout address" if self.enrolled else "unenrolled but has a payout address"
            raise InvalidError(
                f"contributor {self.name!r} is {state}",
                code="contributor_invalid",
                fix="enrol with an address, or leave both out",
            )


def unenrolled(namespace: str, name: str) -> Contributor:
    """A contributor known by name only; what they earn waits in escrow.

    Raises:
        InvalidError: a name or namespace that is empty, too long or has control characters.
    """
    shown = check_name(name)
    return Contributor(contributor_id(check_namespace(namespace), shown), shown, namespace, False, None)


def enrolled(namespace: str, name: str, payout_address: str) -> Contributor:
    """A contributor who has proved who they are and can be paid at `payout_address`.

    Raises:
        InvalidError: a bad name, namespace or address.
    """
    shown = check_name(name)
    address = checksum_address(payout_address)
    return Contributor(contributor_id(check_namespace(namespace), shown), shown, namespace, True, address)


def account_for(contributor: Contributor) -> AccountId:
    """The account this contributor's earnings are booked to: their own once enrolled, escrow before.

    >>> account_for(unenrolled("demo", "Ada")).startswith("escrow:ctr_")
    True
    """
    return AccountId(f"{'contributor' if contributor.enrolled else 'escrow'}:{contributor.id}")


def check_name(name: str) -> str:
    """`name` with its spacing made plain.

    Raises:
        InvalidError: empty, too long, or with characters that cannot be printed.
    """
    shown = " ".join(name.split())
    if not shown or len(shown) > CONTRIBUTOR_NAME_CHARS_MAX or not shown.isprintable():
        raise InvalidError(
            f"contributor name {name[:80]!r} ({len(shown)} characters) is not usable",
            code="contributor_name_invalid",
            fix=f"give 1 to {CONTRIBUTOR_NAME_CHARS_MAX} printable characters",
        )
    return shown


def check_namespace(namespace: str) -> str:
    """`namespace` if it is one.

    Raises:
        InvalidError: anything but 1 to 64 of a-z, 0-9, dot, dash and underscore.
    """
    if _NAMESPACE.fullmatch(namespace) is None:
        raise InvalidError(
            f"namespace {namespace[:80]!r} is not usable",
            code="namespace_invalid",
            fix="use 1 to 64 of a-z, 0-9, '.', '-' and '_', starting with a letter or digit",
        )
    return namespace


def checksum_address(text: str) -> str:
    """A payout address with the mixed-case checksum of EIP-55.

    One-case input is accepted and checksummed; mixed case must already carry the right checksum, so a
    mistyped address is refused rather than paid.

    Raises:
        InvalidError: not 20 bytes of hex, the zero address, or a wrong checksum.

    >>> checksum_address("0xfb6916095ca1df60bb79ce92ce3ea74c37c5d359")
    '0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359'
    """
    raw = parse_address(text)
    if not any(raw):
        raise InvalidError("the zero address pays nobody", code="address_invalid", fix="give the payee's own address")
    return format_address(raw)
