"""The licence gate: what may not be used for something is refused before it is fetched, read or learned from.

Pure: the licence, the use, the instant and the price offered decide. Knows nothing of who asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headwater.core.ids import ContributionId
from headwater.core.instants import format_instant
from headwater.core.money import format_units
from headwater.registry.contribution import Contribution
from headwater.registry.license import Use


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a contribution may not be used."""

    contribution_id: ContributionId
    use: Use
    code: str  # use_not_permitted, license_expired or price_below_floor
    message: str

    def __str__(self) -> str:
        return f"{self.contribution_id}: {self.message} [{self.code}]"


def permits(contribution: Contribution, use: Use, now_ns: int, offer_units: int | None = None) -> Refusal | None:
    """Nothing when `contribution` may be put to `use` at `now_ns`; otherwise why not.

    Args:
        contribution: what is wanted.
        use: what for.
        now_ns: the instant of use.
        offer_units: the price of the call in nano units; None while no call is at hand (an index
            being built), and then the price floor is left to the call.
    """
    terms = contribution.license
    if use not in terms.uses:
        allowed = ", ".join(sorted(terms.uses)) or "nothing"
        return Refusal(
            contribution.id, use, "use_not_permitted", f"licence {terms.expression} permits {allowed}, not {use}"
        )
    if terms.expires_at_ns is not None and now_ns >= terms.expires_at_ns:
        ended = format_instant(terms.expires_at_ns)
        return Refusal(contribution.id, use, "license_expired", f"licence {terms.expression} ended at {ended}")
    if offer_units is not None and offer_units < terms.price_floor_units:
        floor, offer = format_units(terms.price_floor_units, places=4), format_units(offer_units, places=4)
        return Refusal(
            contribution.id, use, "price_below_floor", f"the call offers {offer}, the licence asks for {floor}"
        )
    return None


def permitted(
    contributions: Iterable[Contribution], use: Use, now_ns: int, offer_units: int | None = None
) -> tuple[tuple[Contribution, ...], tuple[Refusal, ...]]:
    """Those of `contributions` that may be put to `use`, and why the others may not, each in the order given."""
    allowed: list[Contribution] = []
    refused: list[Refusal] = []
    for contribution in contributions:
        refusal = permits(contribution, use, now_ns, offer_units)
        if refusal is None:
            allowed.append(contribution)
        else:
            refused.append(refusal)
    return tuple(allowed), tuple(refused)
