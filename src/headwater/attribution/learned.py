"""The learned channel: an adapter's bits, shared among what it was trained on and whoever trained it.

The bit account says how much of an answer the adapter explains, φ. Of that the trainer has a fixed part;
the rest goes to the training contributions in proportion to their influence on this very answer: its
positive part, clipped against outliers, copies counted with their original. Where an influence's interval
includes zero the part is kept in the receipt and paid to nobody, neither to another contributor nor to the
trainer; so a trainer gains nothing by measuring badly, or by not measuring at all.

Whole micro-bits go in and come out, and they are conserved. Knows nothing of models, indexes or money.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from headwater.attribution.bits import MICRO, Attribution, Share, microbits, sure_and_unsure, weigh
from headwater.core.canonical import digest_of
from headwater.core.errors import InvalidError, InvariantError
from headwater.core.money import PPB, allocate
from headwater.registry.near_duplicates import merge_near_duplicates

OUTLIER_SCORES_MIN = 4
"""Fewer sure scores have no middle to measure an outlier against."""

COPIES_COMPARED_MAX = 512
_STEPS = 2**40  # scores are compared in so many steps of the largest


@dataclass(frozen=True, slots=True)
class LearnedRules:
    """How an adapter's bits are shared; the digest stands in every receipt that uses them."""

    trainer_ppm: int = 200_000  # millionths of φ that are the trainer's
    outlier_times: int = 8  # a score counts at most so many times the median of the sure ones
    contributions_max: int = 256  # the others' parts are too small to pay
    interval_millisigmas: int = 1_960  # half the width of a score's interval, in thousandths of its standard deviation
    copy_resemblance_ppm: int = 800_000  # texts that share so many of their word runs are one contribution's

    def __post_init__(self) -> None:
        least = min(self.outlier_times, self.contributions_max, self.interval_millisigmas)
        if not 0 <= self.trainer_ppm <= 1_000_000 or least < 1 or not 0 < self.copy_resemblance_ppm <= 1_000_000:
            raise InvalidError(f"{self} cannot be followed", code="learned_rules_invalid", fix="use the defaults")

    @property
    def digest(self) -> str:
        """SHA-256 of the rules' canonical form."""
        return digest_of(
            {
                "version": 2,
                # What a score's standard deviation is: see `models.factory.credit`.
                "interval": "1.4826 x median absolute deviation of all rows x root of the contribution's rows",
                "interval_millisigmas": self.interval_millisigmas,
                "copy_resemblance_ppm": self.copy_resemblance_ppm,
                "trainer_ppm": self.trainer_ppm,
                "outlier_times": self.outlier_times,
                "contributions_max": self.contributions_max,
            }
        )


@dataclass(frozen=True, slots=True)
class Influence:
    """How much one training contribution did for an answer, as an influence index sees it."""

    contribution: str
    score: float  # any unit; positive: training on it lowered the answer's loss
    low: float  # of an interval for the score
    high: float


@dataclass(frozen=True, slots=True)
class LearnedPart:
    """One contribution's part of an adapter's bits."""

    contribution: str
    microbits: int
    low_microbits: int
    high_microbits: int


def copies_among(texts: Sequence[tuple[str, str]], rules: LearnedRules) -> dict[str, str]:
    """Which training contributions nearly repeat an earlier one: copy -> original.

    Args:
        texts: (contribution, what it says), the one registered first first. Beyond `COPIES_COMPARED_MAX` of them
            only equal texts are found, since near-duplicates are compared in pairs.
    """
    found: dict[str, str] = {}
    if len(texts) > COPIES_COMPARED_MAX:
        first: dict[str, str] = {}
        for name, text in texts:
            if first.setdefault(" ".join(text.split()).casefold(), name) != name:
                found[name] = first[" ".join(text.split()).casefold()]
        return found
    for group in merge_near_duplicates([text for _, text in texts], rules.copy_resemblance_ppm / 1e6):
        for copy in sorted(group)[1:]:
            found[texts[copy][0]] = texts[min(group)][0]
    return found


def share_learned(
    phi: tuple[int, int, int],
    adapter: str,
    influences: Sequence[Influence],
    rules: LearnedRules,
    *,
    measured: bool = True,
    copy_of: Mapping[str, str] | None = None,
) -> tuple[LearnedPart, ...]:
    """Parts of φ: the adapter's own, which is its trainer's, then the training contributions, largest first.

    Args:
        phi: (micro-bits, low, high) of the adapter in the bit account.
        adapter: the adapter's contribution.
        influences: of its training contributions on this answer.
        measured: False when there is no index: nobody's part is known then, so nobody's is paid.
        copy_of: contributions that copy an earlier one; their scores count for that one.

    Returns:
        Parts whose micro-bits sum to φ. A part whose ``low_microbits`` is not positive is not to be paid.

    Raises:
        InvalidError: a score that is not finite, outside its interval, or of a contribution named twice.

    >>> share_learned((10, 10, 10), "a", [Influence("x", 3, 2, 4), Influence("y", 1, 0.5, 2)], LearnedRules())
    (LearnedPart(contribution='a', microbits=2, low_microbits=2, high_microbits=2), \
LearnedPart(contribution='x', microbits=6, low_microbits=4, high_microbits=8), \
LearnedPart(contribution='y', microbits=2, low_microbits=1, high_microbits=4))
    """
    bits, low, high = phi
    if not low <= bits <= high:
        raise InvalidError(
            f"φ of {bits} micro-bits lies outside {low} to {high}", code="phi_invalid", fix="measure it again"
        )
    _check(influences)
    merged = _originals(influences, copy_of or {})
    if bits <= 0 or not merged:
        return (LearnedPart(adapter, bits, low, high),)
    trainer = bits * rules.trainer_ppm // 1_000_000
    weights = _weights(merged, rules) if measured else {}
    if not weights:  # nobody is known to have helped: an equal part each, of which none is sure
        named = [one.contribution for one in merged[: rules.contributions_max]]
        parts = allocate(bits - trainer, [1] * len(named))
        rest = [LearnedPart(name, part, min(0, low), part) for name, part in zip(named, parts, strict=True)]
    else:
        parts = allocate(bits - trainer, list(weights.values()))
        by_name = {one.contribution: one for one in merged}
        rest = [_part(by_name[name], part, phi) for name, part in zip(weights, parts, strict=True)]
    own = LearnedPart(adapter, trainer, _scaled(trainer, low, bits), _scaled(trainer, high, bits))
    return (own, *(part for part in rest if part.microbits))


def spread_learned(
    found: Attribution,
    adapter: str,
    influences: Sequence[Influence],
    rules: LearnedRules,
    *,
    model_weight_ppm: int,
    evidence_floor_millibits: int,
    measured: bool = True,
    copy_of: Mapping[str, str] | None = None,
) -> Attribution:
    """The bit account with the adapter's share replaced by learned ones, and all weights found anew.

    Args:
        found: an account in which `adapter` is a player.
        model_weight_ppm: as the account was weighed with; so is `evidence_floor_millibits`.

    Raises:
        InvariantError: the account has no such player.
    """
    whole = next((share for share in found.shares if share.part_id == adapter and share.channel == "grounded"), None)
    if whole is None:
        raise InvariantError(f"the account has no player {adapter}", code="adapter_not_played")
    phi = (microbits(whole.bits), microbits(whole.low_bits), microbits(whole.high_bits))
    parts = share_learned(phi, adapter, influences, rules, measured=measured, copy_of=copy_of)
    learned = [
        Share(
            part.contribution,
            whole.owner if part.contribution == adapter else "",
            "learned",
            0,
            part.microbits / MICRO,
            part.low_microbits / MICRO,
            part.high_microbits / MICRO,
            whole.token_bits * (part.microbits / phi[0] if phi[0] else 0.0),
        )
        for part in parts
    ]
    players = [share for share in found.shares if share.channel != "reproduced" and share is not whole] + learned
    reproduced = [share for share in found.shares if share.channel == "reproduced"]
    sure, unsure = sure_and_unsure(
        [(microbits(share.bits), microbits(share.low_bits)) for share in players],
        [share.owner if share.channel == "grounded" else None for share in players],
    )
    weights, residual = weigh(
        sure,
        [microbits(share.bits) for share in reproduced],
        microbits(found.base_bits),
        model_weight_ppm=model_weight_ppm,
        evidence_floor_millibits=evidence_floor_millibits,
        unsure=unsure,
    )
    shares = tuple(
        replace(share, weight_ppb=weight) for share, weight in zip((*players, *reproduced), weights, strict=True)
    )
    if sum(share.weight_ppb for share in shares) + residual != PPB:
        raise InvariantError("learned weights and residual do not sum to 10^9", code="weights_unequal")
    return replace(found, shares=shares, residual_ppb=residual)


def _check(influences: Sequence[Influence]) -> None:
    names = [one.contribution for one in influences]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InvalidError(f"{twice[0]} has two scores", code="influence_invalid", fix="give each contribution once")
    for one in influences:
        if not all(map(math.isfinite, (one.score, one.low, one.high))) or not one.low <= one.score <= one.high:
            raise InvalidError(
                f"{one.contribution} has score {one.score} in {one.low} to {one.high}",
                code="influence_invalid",
                fix="build the influence index again",
            )


def _originals(influences: Sequence[Influence], copy_of: Mapping[str, str]) -> tuple[Influence, ...]:
    """Scores of copies added to those of their originals."""
    summed: dict[str, Influence] = {}
    for one in influences:
        name = copy_of.get(one.contribution, one.contribution)
        other = summed.get(name, Influence(name, 0.0, 0.0, 0.0))
        summed[name] = Influence(name, other.score + one.score, other.low + one.low, other.high + one.high)
    return tuple(summed.values())


def _weights(influences: Sequence[Influence], rules: LearnedRules) -> dict[str, int]:
    """Whole weights of the positive scores, clipped, largest first; ties by name."""
    positive = {one.contribution: one.score for one in influences if one.score > 0}
    if not positive:
        return {}
    most = max(positive.values())
    sure = [one.score for one in influences if one.low > 0]
    if len(sure) >= OUTLIER_SCORES_MIN:  # noise has no say in what an outlier is
        most = min(most, rules.outlier_times * median(sure))
    ranked = sorted(positive, key=lambda name: (-positive[name], name))[: rules.contributions_max]
    whole = {name: round(min(positive[name], most) / most * _STEPS) for name in ranked}
    return {name: weight for name, weight in whole.items() if weight}


def _part(one: Influence, part: int, phi: tuple[int, int, int]) -> LearnedPart:
    """A part with an interval as wide as that of its score, and of φ."""
    bits, low, high = phi
    down = math.floor(part * max(one.low, 0.0) / one.score) * max(low, 0) // bits
    up = -(-math.ceil(part * min(one.high / one.score, 1e6)) * high // bits)
    return LearnedPart(one.contribution, part, min(part, down), max(part, up))


def _scaled(part: int, end: int, bits: int) -> int:
    return part * end // bits
