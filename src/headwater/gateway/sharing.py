"""What the processes of one gateway share beside the database: rates per minute, and idempotency keys at work.

A process by itself has both in memory. Several have them in a private folder, which is made for one life of the gateway
and holds nothing that is missed after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.gateway.keeping import Claims, OwnClaims, SharedClaims
from headwater.gateway.limits import OwnRates, Rates
from headwater.gateway.shared_rates import SharedRates


@dataclass(frozen=True, slots=True)
class Sharing:
    """Where rates and claims are."""

    rates: Rates
    claims: Claims

    @classmethod
    def alone(cls) -> Sharing:
        """Of one process."""
        return cls(OwnRates(), OwnClaims())

    @classmethod
    def over(cls, folder: Path) -> Sharing:
        """Of all processes that are given `folder`, which is its owner's alone.

        Raises:
            UpstreamError: ``rates_unopenable``.
        """
        return cls(SharedRates(folder / "rates"), SharedClaims(folder / "claims"))

    def sweep(self) -> int:
        """Clear away what processes left that died; how many claims that were."""
        return self.claims.sweep() if isinstance(self.claims, SharedClaims) else 0

    def close(self) -> None:
        """Let go of files."""
        if isinstance(self.rates, SharedRates):
            self.rates.close()
