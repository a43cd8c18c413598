"""What review and disputes ask of bonds: how much somebody answers with, and a request to slash it.

Two implementations: `ChainBonds` over the Bond contract and `LedgerBonds` over ledger accounts. Both hold the same
promises: a slash freezes its amount at once and cannot be outrun, it can be appealed once, and it ends by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Protocol

from headwater.core.errors import InvalidError
from headwater.rails.digests import digest_bytes


class Role(IntEnum):
    """What a stake answers for. Numbers are on chain: never reuse one."""

    REVIEWER = 1
    CHALLENGER = 2
    POSTER = 3


class SlashState(StrEnum):
    """How far a slash is."""

    OPEN = "open"  # can be appealed
    APPEALED = "appealed"
    DONE = "done"
    DROPPED = "dropped"


SLASH_STATES = (SlashState.OPEN, SlashState.APPEALED, SlashState.DONE, SlashState.DROPPED)
"""In the order of the contract's numbers, which begin at 1."""


@dataclass(frozen=True, slots=True)
class SlashRequest:
    """What a decision asks for."""

    account: str  # whose stake, as the book names people
    role: Role
    units: int  # of the book's currency
    to: str  # who gains, never the account
    reason: str  # digest of the published decision, sha256:…

    def __post_init__(self) -> None:
        if self.units < 1:
            raise InvalidError(f"a slash of {self.units} units", code="slash_invalid", fix="slash at least one unit")
        if self.to == self.account:
            raise InvalidError(f"{self.to} would slash itself", code="slash_invalid", fix="name who gains")
        digest_bytes(self.reason)


@dataclass(frozen=True, slots=True)
class Slash:
    """A slash as a book has it."""

    id: int
    request: SlashRequest
    state: SlashState
    until_s: int  # seconds since 1970: end of the time to appeal, or of the arbiter's


@dataclass(frozen=True, slots=True)
class Stake:
    """What somebody has staked in a role, in the book's units."""

    units: int  # all of it
    frozen_units: int  # under slashes that have not ended
    asked_units: int  # asked back
    due_from_s: int  # when that can be taken

    @property
    def counts_units(self) -> int:
        """What a new slash is sure to find."""
        return max(0, self.units - self.frozen_units - self.asked_units)


class BondBook(Protocol):
    """The seam: review and disputes need no more than this."""

    def staked(self, account: str, role: Role) -> int:
        """Units that `account` is sure to answer with: not frozen, not asked back."""
        ...

    def slash(self, request: SlashRequest) -> Slash:
        """Freeze the amount and start the time to appeal.

        Raises:
            RefusedError: more than is staked and not frozen.
        """
        ...

    def slash_of(self, id: int) -> Slash:
        """A slash, as of now."""
        ...
