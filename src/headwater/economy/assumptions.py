"""The assumptions of a scenario: every field with its default, its range and a sentence.

Money is in nano units, time in days. `scenario` reads and checks them; this module is only the list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headwater.core.money import BPS
from headwater.economy.money_kernels import POOL_UNITS_MAX
from headwater.economy.split_rules import RULES

SOURCES_MAX = 16
"""Sources a simulated call may have; scratch space of the kernels."""

EVIDENCE_BITS_MAX = 400.0
"""A simulated source explains at most this; draws beyond it are cut, so that no row of scores overflows."""


def _number(default: float, low: float, high: float, about: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "about": about})


def _choice(default: str, choices: tuple[str, ...], about: str) -> Any:
    return field(default=default, metadata={"choices": choices, "about": about})


def _flag(default: bool, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True, slots=True)
class Run:
    """How long, how often and how a run is made."""

    days: int = _number(180, 1, 32_000, "days simulated, one step a day")
    seed: int = _number(1, 0, 2**53 - 1, "first seed; the same seed is the same luck in every scenario")
    seeds: int = _number(3, 1, 10_000, "runs, with seeds seed, seed + 1, …")
    threads: int = _number(1, 1, 64, "threads of one run; the result does not depend on it")
    mode: str = _choice("calls", ("calls", "pool"), "single paid calls, or the expected pay of a day at once")
    record_every: int = _number(7, 1, 36_500, "days between rows of the time series")
    sequential: bool = _flag(False, "behaviours of a phase see each other's writes; off: all see the state before it")
    guard: str = _choice(
        "plug-ins", ("plug-ins", "all", "off"), "whose writes are compared with what they declared, after each act"
    )


@dataclass(frozen=True, slots=True)
class Agents:
    """How many there are of each kind."""

    contributors: int = _number(20_000, 1, 50_000_000, "rows for contributors, newcomers included")
    assets_each: int = _number(1, 1, 1_000, "contributions of each contributor")
    users: int = _number(20_000, 1, 100_000_000, "people who call")
    apps: int = _number(200, 1, 1_000_000, "builders whose apps people call")
    coordinators: int = _number(1, 1, 1_000, "platforms that meter calls and keep the registry")
    newcomers: float = _number(0.1, 0.0, 0.95, "part of the contributor rows that is empty on day 0")


@dataclass(frozen=True, slots=True)
class Price:
    """What a call costs its user."""

    rule: str = _choice("posted", ("posted", "subscription"), "a price per call, or a flat fee with free calls")
    per_call_nano: int = _number(5_000_000, 0, POOL_UNITS_MAX, "base price of a call")
    attribution_nano: int = _number(
        0, 0, POOL_UNITS_MAX, "what measuring a call costs, off its price before the policy divides; under its cap"
    )
    subscription_day_nano: int = _number(300_000_000, 0, POOL_UNITS_MAX, "flat fee of a user per day")
    markup_layers: int = _number(0, 0, 8, "independent sellers who each set their own mark-up on the price before")


@dataclass(frozen=True, slots=True)
class Demand:
    """Why and how often people call."""

    calls_per_day: float = _number(1.0, 0.0, 1_000.0, "calls a user would make on an average day")
    activity_spread: float = _number(1.0, 0.0, 3.0, "standard deviation of the logarithm of a user's rate")
    shape: str = _choice("exponential", ("exponential", "linear", "always"), "law of what a call is worth to its user")
    value_nano: int = _number(20_000_000, 1, 10**15, "mean worth of a call; under linear demand half the largest worth")
    budget_month_nano: int = _number(5_000_000_000, 0, 10**15, "what a user spends at most in 30 days")
    loyalty: float = _number(0.8, 0.0, 1.0, "part of calls that go to the user's own app")
    growth_day: float = _number(0.0, -0.5, 0.5, "growth of calls per day, compounded")
    quality_pull: float = _number(0.0, 0.0, 5.0, "elasticity of calls to the quality on offer")


@dataclass(frozen=True, slots=True)
class Attention:
    """What deciding costs a person."""

    mode: str = _choice("mandate", ("mandate", "prompt"), "one budget for all calls, or a question before spending")
    decision_seconds: float = _number(2.0, 0.0, 3_600.0, "seconds a visible decision takes")
    wage: float = _number(15.0, 0.0, 1_000.0, "worth of an hour of attention, in currency")
    prompts_per_day: float = _number(5.0, 0.1, 10_000.0, "decisions a day after which people stop deciding")
    calls_per_prompt: int = _number(1, 1, 100_000, "calls that one question covers")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Who can supply how much of an answer, and how well that is measured."""

    sources: int = _number(8, 1, SOURCES_MAX, "sources offered to a call")
    bits: float = _number(15.0, 0.0, 100.0, "mean bits that a source explains")
    base_bits: float = _number(340.0, 0.0, 5_000.0, "bits of an answer that the base model explains by itself")
    generic_share: float = _number(0.3, 0.0, 1.0, "part of calls that no source improves")
    overlap: float = _number(0.0, 0.0, 1.0, "part of a source's bits that any other would have supplied")
    law: str = _choice("pareto", ("pareto", "lognormal"), "law of how much contributions are drawn on")
    tail: float = _number(1.12, 1.01, 5.0, "Pareto exponent of how much contributions are drawn on")
    spread: float = _number(2.9, 0.0, 6.0, "under the lognormal law, standard deviation of the logarithm")
    niche: float = _number(
        0.2, 0.0, 1.0, "part of sources drawn from the app's own list instead of the whole catalogue"
    )
    noise: float = _number(0.0, 0.0, 3.0, "standard deviation of the logarithm of the measured bits")
    noise_correlation: float = _number(
        0.0, 0.0, 1.0, "part of that noise's variance that is the same at every call of a contribution"
    )
    misattributed: float = _number(0.0, 0.0, 1.0, "chance that a source's bits are credited to somebody else")
    misattributed_always: bool = _flag(
        False, "a source is credited to one and the same other name at every call, or never"
    )
    index_lag_days: int = _number(0, 0, 3_650, "days before a new contribution can be credited")
    grade: str = _choice("A", ("A", "B", "C"), "grade of the measurement, for the policy's discount")
    derived_share: float = _number(0.2, 0.0, 1.0, "part of contributions that are made from another one")
    parent_share: float = _number(0.25, 0.0, 1.0, "share of a derived contribution that its parent's owner holds")


@dataclass(frozen=True, slots=True)
class Settle:
    """How money that is due reaches people."""

    token_decimals: int = _number(6, 0, 9, "decimals of the token that is paid out")
    epoch_days: int = _number(7, 1, 365, "days between roots")
    maturity_days: int = _number(7, 0, 365, "0, or one epoch: how long a payout may be disputed before it settles")
    mode: str = _choice(
        "cumulative", ("cumulative", "threshold"), "claim any time and push when it pays, or pay only above a threshold"
    )
    fee_nano: int = _number(2_000_000, 0, 10**12, "cost of one payment")
    fee_payer: str = _choice("line", ("line", "payee"), "who bears the cost of a push; a claim is borne by who claims")
    threshold_nano: int = _number(0, 0, 10**15, "smallest payment; 0 for the larger of 20 fees and the best threshold")
    claim_week: float = _number(0.15, 0.0, 1.0, "chance that an enrolled person with enough due claims in a week")
    enrolled_share: float = _number(0.5, 0.0, 1.0, "part of contributors that can be paid on day 0")
    enrol_week: float = _number(0.05, 0.0, 1.0, "chance a week that someone with a dollar waiting enrols")
    lost_year: float = _number(0.1, 0.0, 0.99, "part of owners who become unreachable in a year")
    expiry_days: int = _number(
        0, 0, 36_500, "days after which unclaimed money of the unreachable goes to the commons; 0: never"
    )


@dataclass(frozen=True, slots=True)
class Supply:
    """How contributors respond to pay."""

    elasticity: float = _number(0.3, 0.0, 5.0, "per cent more effort for a per cent more noticed pay")
    salience_month_nano: int = _number(1_000_000_000, 0, 10**15, "monthly pay below which money is not noticed")
    crowding: float = _number(0.0, -1.0, 1.0, "change of intrinsic effort once pay is noticed; negative crowds out")
    cost_day_nano: int = _number(3_000_000, 0, 10**13, "what a day of full effort costs a median contributor")
    intrinsic_day_nano: int = _number(3_000_000, 0, 10**13, "what contributing is worth to them without pay")
    memory_days: float = _number(60.0, 1.0, 3_650.0, "days over which pay is averaged")
    exit_day: float = _number(0.01, 0.0, 1.0, "chance a day that somebody who loses by it stops")
    return_day: float = _number(0.002, 0.0, 1.0, "chance a day that somebody who stopped and would gain comes back")
    entry_day: float = _number(0.001, 0.0, 1.0, "part of the empty rows filled a day when pay is worth it")
    churn_day: float = _number(0.0005, 0.0, 1.0, "chance a day to stop for reasons that are not money")


@dataclass(frozen=True, slots=True)
class Coordinators:
    """How platforms compete."""

    compete: bool = _flag(False, "platforms set their own take between 0 and what the cap leaves")
    portability: bool = _flag(True, "apps may move with their registry and records")
    review_days: int = _number(30, 1, 3_650, "days between two settings of takes and two chances to move")
    take_step_bps: int = _number(50, 1, BPS, "how far a take is moved at a time")
    network: float = _number(0.3, 0.0, 3.0, "weight of a platform's size in an app's choice")
    take_weight: float = _number(20.0, 0.0, 1_000.0, "weight of a platform's take in an app's choice")
    switch_cost: float = _number(3.0, 0.0, 100.0, "what moving costs without portability, in units of choice utility")


@dataclass(frozen=True, slots=True)
class Subsidy:
    """Money from outside, beside what callers pay."""

    share: float = _number(0.0, 0.0, 5.0, "paid to contributors on top of what they earn, per unit earned")
    days: int = _number(0, 0, 36_500, "days it lasts")


@dataclass(frozen=True, slots=True)
class Rails:
    """Finance built on the stream of pay; each part can be switched on alone."""

    stream: bool = _flag(False, "pay arrives daily without threshold, at a cost a day")
    stream_fee_nano: int = _number(10_000, 0, 10**12, "cost of one day of one stream")
    stake: bool = _flag(False, "stakers receive a part of contributors' pay for vouching")
    stake_share: float = _number(0.2, 0.0, 1.0, "part of contributors' pay that goes to stakers")
    revenue_share: bool = _flag(False, "contributors sell part of their future pay for a price now")
    sold_share: float = _number(0.3, 0.0, 1.0, "part of pay that is sold")
    discount_year: float = _number(0.4, 0.0, 10.0, "yearly discount that buyers apply")
    amm: bool = _flag(False, "pay arrives in a token that is sold to a constant-product pool")
    pool_nano: int = _number(10_000_000_000_000, 10**6, 2**58, "currency in the pool on day 0")
    pool_fee_bps: int = _number(30, 0, BPS, "fee of the pool")
    noise_day: float = _number(0.03, 0.0, 1.0, "daily trade of speculators, as part of the pool")
    run_drop: float = _number(0.25, 0.01, 1.0, "fall of the token's price in a week that makes speculators run")
    audit: bool = _flag(False, "hidden gold and audits find attackers' accounts, which then earn nothing more")
    audit_day: float = _number(0.01, 0.0, 1.0, "chance a day that an attacker's account is found")
    audit_false_day: float = _number(0.0002, 0.0, 1.0, "chance a day that somebody honest is found wrongly")
    appeal_won: float = _number(0.8, 0.0, 1.0, "part of those found wrongly who win their appeal")
    bond: bool = _flag(False, "the first pay of an account is its stake, slashed when it is found")
    bond_nano: int = _number(500_000_000, 0, 10**15, "stake of an account")
    vest: bool = _flag(False, "pay vests in a line; what has not vested of a found account is lost to it")
    vest_days: int = _number(30, 1, 3650, "days until pay has vested")
    advance: bool = _flag(False, "a pool advances money against income that waits and is repaid first")
    advance_part: float = _number(0.7, 0.0, 0.9, "part of waiting income that may be drawn")
    advance_days: int = _number(30, 1, 365, "days of pay that are lent against at most")
    advance_min_nano: int = _number(1_000_000_000, 0, 10**15, "smallest advance somebody asks for")
    advance_base: float = _number(0.005, 0.0, 0.2, "price of an advance, part of it")
    advance_slope: float = _number(0.02, 0.0, 0.2, "added when all of the pool is lent")
    advance_risk: float = _number(0.01, 0.0, 0.2, "added for the borrower's risk")
    lenders_nano: int = _number(10_000_000_000_000, 1, 2**58, "money in the pool")
    lent_max: float = _number(0.8, 0.0, 1.0, "part of the pool that may be lent")
    line_max: float = _number(0.1, 0.0, 1.0, "part of the pool for one borrower")
    govern: str = _choice(
        "fixed", ("fixed", "none", "stake", "account", "cluster"), "who decides when operators ask for a higher take"
    )
    take_start: float = _number(0.0, 0.0, 1.0, "operators' take of pay beside the policy's lines, at first")
    take_step: float = _number(0.02, 0.0, 1.0, "rise that operators ask for each month")
    take_max: float = _number(0.3, 0.0, 1.0, "take beyond which they ask for no more")
    turnout: float = _number(0.05, 0.0, 1.0, "part of contributors, or of their stake, that votes")
    operator_people: int = _number(5, 0, 10**6, "people on the operators' side")
    operator_accounts: int = _number(1_000, 0, 10**7, "accounts they open where accounts vote")
    operator_stake: float = _number(0.3, 0.0, 0.99, "part of all stake they hold where stake votes")

    @property
    def audited(self) -> bool:
        """Whether accounts are found: on by itself, or because a rail needs it."""
        return self.audit or self.bond or self.vest or self.advance

    @property
    def any(self) -> bool:
        """Whether something acts between earning and booking."""
        return self.audited or self.stream or self.stake or self.revenue_share or self.amm or self.govern != "fixed"


@dataclass(frozen=True, slots=True)
class Attack:
    """What attackers do; zero accounts is nobody."""

    kind: str = _choice(
        "none",
        ("none", "wash", "sybil", "duplicate", "spam", "stuffing", "collusion"),
        "self-calls, split accounts, copies, worthless contributions, retrieval bait, bribed reviewers",
    )
    accounts: int = _number(0, 0, 5_000_000, "contributor rows the attacker holds")
    payers: int = _number(0, 0, 5_000_000, "payer accounts the attacker runs (wash)")
    intensity: float = _number(10.0, 0.0, 10_000.0, "calls a day of each such payer, or bait per contribution")
    subsidy: float = _number(0.0, 0.0, 10.0, "tokens, points or matching received per unit paid for calls")
    detection: float = _number(0.9, 0.0, 1.0, "part of copies or worthless contributions that is recognised")
    account_cost_nano: int = _number(0, 0, 10**13, "what one account costs the attacker")
    check_cost_nano: int = _number(100_000, 0, 10**13, "what checking one contribution costs the platform")


@dataclass(frozen=True, slots=True)
class Split:
    """The rule that shares the pool and the policy that cuts it."""

    rule: str = _choice("dedup-shapley", tuple(RULES), "how a payment is shared among sources")
    policy: str = field(default="default", metadata={"about": "`default`, or the path of a policy TOML"})
    pool_days: int = _number(30, 1, 366, "days of a pool, for pooled rules")


@dataclass(frozen=True, slots=True)
class Sweep:
    """Which assumptions to vary, and how."""

    method: str = _choice("morris+sobol", ("morris", "sobol", "morris+sobol"), "screen, decompose, or both")
    paths: int = _number(20, 2, 10_000, "Morris trajectories")
    samples: int = _number(256, 8, 2**16, "Sobol base samples, a power of two")
    best: int = _number(5, 1, 64, "parameters kept after Morris")
    output: str = field(default="contributors_received_share", metadata={"about": "figure of a run to explain"})


SECTIONS: dict[str, type[Any]] = {
    "run": Run, "agents": Agents, "price": Price, "demand": Demand, "attention": Attention, "evidence": Evidence,
    "split": Split, "settle": Settle, "supply": Supply, "coordinators": Coordinators, "subsidy": Subsidy,
    "rails": Rails, "attack": Attack, "sweep": Sweep,
}  # fmt: skip
