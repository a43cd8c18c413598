"""The bit account of an answer token by token: what a receipt sums up and does not hold, for whoever may read the text.

Whole micro-bits, as canonical bytes that are kept beside the evidence of a call and erased with it. Of many shares (an
adapter's training examples) the largest are kept one by one and the rest as one row, so that rows always sum to
what the receipt says, but for rounding. Pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from headwater.attribution.bits import MICRO, Attribution, Share
from headwater.core.errors import InvariantError

ROWS_MAX: Final = 32
"""Shares that are kept one by one."""
REST: Final = "rest"
"""Stands in the place of a contribution for the shares that are kept as one."""

_SIZE_BYTES_MAX: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class TokenRow:
    """What one contribution gave to each token."""

    contribution: str  # or `REST`
    channel: str  # grounded, learned or reproduced
    microbits: tuple[int, ...]  # (tokens,)


@dataclass(frozen=True, slots=True)
class TokenAccount:
    """What everybody gave to each token of the answer, the answers in turn where there are several."""

    base: tuple[int, ...]  # (tokens,) micro-bits of the base model alone; reproduced rows are part of it
    rows: tuple[TokenRow, ...]

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.base)

    def to_bytes(self) -> bytes:
        """The account as it is kept; `from_bytes` reads it back."""
        value = {"base": self.base, "rows": [[row.contribution, row.channel, row.microbits] for row in self.rows]}
        return zlib.compress(msgspec.json.encode(value), 6)

    @classmethod
    def from_bytes(cls, raw: bytes) -> TokenAccount:
        """The account that `to_bytes` wrote.

        Raises:
            InvariantError: what we wrote ourselves is damaged.
        """
        try:
            inflate = zlib.decompressobj()
            value: dict[str, Any] = msgspec.json.decode(inflate.decompress(raw, _SIZE_BYTES_MAX))
            if not inflate.eof:
                raise ValueError("it ends too early, or is too large")
            rows = tuple(TokenRow(name, channel, tuple(bits)) for name, channel, bits in value["rows"])
            return cls(tuple(value["base"]), rows)
        except (zlib.error, msgspec.DecodeError, KeyError, ValueError, TypeError) as error:
            raise InvariantError(f"this is no account of tokens: {error!r}", code="evidence_damaged") from None


def token_account(found: Attribution) -> TokenAccount:
    """The account of a measured answer, token by token."""
    ranked = sorted(range(len(found.shares)), key=lambda i: (-abs(found.shares[i].bits), i))
    kept, rest = sorted(ranked[:ROWS_MAX]), [found.shares[i] for i in ranked[ROWS_MAX:]]
    rows = [_row(share) for share in (found.shares[i] for i in kept)]
    for channel in sorted({share.channel for share in rest}):
        together = _sum(share for share in rest if share.channel == channel)
        rows.append(TokenRow(REST, channel, _micro(together)))
    return TokenAccount(_micro(found.base_token_bits), tuple(rows))


def _row(share: Share) -> TokenRow:
    return TokenRow(share.part_id, share.channel, _micro(share.token_bits))


def _sum(shares: Iterable[Share]) -> NDArray[np.float64]:
    together: NDArray[np.float64] = np.sum([share.token_bits for share in shares], axis=0, dtype=np.float64)
    return together


def _micro(token_bits: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(np.rint(token_bits * MICRO).astype(np.int64).tolist())
