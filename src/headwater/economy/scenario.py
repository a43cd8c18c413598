"""A scenario: everything a run assumes, as checked values read from TOML.

Every field has a range and a sentence; an unknown key is refused with the nearest known one, because a
misspelt assumption that is silently ignored is worse than an error. Money is in nano units, time in days.
The policy is the product's own `Policy`, so a cap that is exceeded is refused by the product's own check.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from headwater.core.canonical import digest_of
from headwater.core.errors import InvalidError
from headwater.core.money import BPS
from headwater.economy.money_kernels import INT64_MAX, POOL_UNITS_MAX, SCORE_SUM_MAX
from headwater.economy.split_rules import RULES
from headwater.splits import Policy

SOURCES_MAX = 16
"""Sources a simulated call may have; scratch space of the kernels."""

EVIDENCE_BITS_MAX = 400.0
"""A simulated source explains at most this; draws beyond it are cut, so that no row of scores overflows."""

UNITS_IN_FLIGHT_MAX = 2**61
"""Money a run may move in total, so that no sum of columns can pass 2^63."""


def _number(default: float, low: float, high: float, about: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "about": about})


def _choice(default: str, choices: tuple[str, ...], about: str) -> Any:
    return field(default=default, metadata={"choices": choices, "about": about})


def _flag(default: bool, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True, slots=True)
class Run:
    """How long, how often and how a run is made."""

    days: int = _number(180, 1, 36_500, "days simulated, one step a day")
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
    misattributed: float = _number(0.0, 0.0, 1.0, "chance that a source's bits are credited to somebody else")
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


_SECTIONS: dict[str, type[Any]] = {
    "run": Run, "agents": Agents, "price": Price, "demand": Demand, "attention": Attention, "evidence": Evidence,
    "split": Split, "settle": Settle, "supply": Supply, "coordinators": Coordinators, "subsidy": Subsidy,
    "rails": Rails, "attack": Attack, "sweep": Sweep,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scenario:
    """All assumptions of a run. `policy` is what `split.policy` and `split.takes` name, already read."""

    run: Run
    agents: Agents
    price: Price
    demand: Demand
    attention: Attention
    evidence: Evidence
    split: Split
    settle: Settle
    supply: Supply
    coordinators: Coordinators
    subsidy: Subsidy
    rails: Rails
    attack: Attack
    sweep: Sweep
    policy: Policy
    ranges: tuple[tuple[str, float, float, bool], ...] = ()  # (section.key, low, high, logarithmic) of a sweep

    @property
    def digest(self) -> str:
        """``sha256:…`` of every assumption but the seeds and the threads: it names the scenario."""
        return digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Every assumption; numbers as text, because canonical JSON refuses floats."""
        table: dict[str, Any] = {
            section: {f.name: repr(getattr(getattr(self, section), f.name)) for f in fields(kind)}
            for section, kind in _SECTIONS.items()
        }
        for name in ("seed", "seeds", "threads", "guard"):
            del table["run"][name]
        return {
            **table,
            "policy": self.policy.digest,
            "ranges": [[n, repr(a), repr(b), g] for n, a, b, g in self.ranges],
        }

    def value(self, name: str) -> Any:
        """The value of ``section.key``, or of a key; `run` comes first, else only one section may have it."""
        section, key = _locate(name)
        return getattr(getattr(self, section), key)

    def with_values(self, values: Mapping[str, Any]) -> Scenario:
        """A scenario with some assumptions replaced, checked like one from a file.

        Raises:
            InvalidError: an unknown name or an impossible value.
        """
        changed: dict[str, dict[str, Any]] = {}
        policy = self.policy
        for name, value in values.items():
            if name == "policy":
                policy = value if isinstance(value, Policy) else _policy({"policy": value}, None)
                continue
            section, key = _locate(name)
            changed.setdefault(section, {})[key] = _typed(section, _field(section, key), value)
        sections = {section: replace(getattr(self, section), **keys) for section, keys in changed.items()}
        scenario = replace(self, policy=policy, **sections)
        _check(scenario)
        return scenario


def default_scenario() -> Scenario:
    """The scenario of an empty file: every assumption at its default, under the shipped policy."""
    return scenario_from({})


def load_scenario(path: Path) -> Scenario:
    """Read a scenario from a TOML file; a policy path in it is relative to that file.

    Raises:
        InvalidError: not TOML, an unknown key, or an impossible value.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise _wrong(f"there is no scenario {path}", "give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _wrong(f"{path} is not TOML: {error}", "mend the line it names") from None
    return scenario_from(table, folder=path.parent)


def scenario_from(table: Mapping[str, Any], *, folder: Path | None = None) -> Scenario:
    """The scenario that a parsed TOML table describes.

    Raises:
        InvalidError: an unknown section or key (with the nearest name), or an impossible value.
    """
    _known(table, _SECTIONS, "section")
    sections: dict[str, Any] = {}
    ranges: tuple[tuple[str, float, float, bool], ...] = ()
    split_table: Mapping[str, Any] = {}
    for section, kind in _SECTIONS.items():
        given = table.get(section, {})
        if not isinstance(given, Mapping):
            raise _wrong(f"{section} is {given!r}", f"write a table [{section}]")
        given = dict(given)
        if section == "split":
            split_table = dict(given)
            given.pop("takes", None)
            given.pop("take_cap_bps", None)
        if section == "sweep":
            ranges = _ranges(given.pop("params", {}))
        names = {f.name: f for f in fields(kind)}
        extra = {"split": ("takes", "take_cap_bps"), "sweep": ("params",)}.get(section, ())
        _known(given, (*names, *extra), f"key in [{section}]")
        sections[section] = kind(**{key: _typed(section, names[key], value) for key, value in given.items()})
    scenario = Scenario(policy=_policy(split_table, folder), ranges=ranges, **sections)
    _check(scenario)
    return scenario


def describe() -> Iterator[tuple[str, Any, str]]:
    """Every assumption as (section.key, default, what it means), in file order."""
    for section, kind in _SECTIONS.items():
        for entry in fields(kind):
            yield f"{section}.{entry.name}", entry.default, entry.metadata["about"]


def _policy(table: Mapping[str, Any], folder: Path | None) -> Policy:
    """The product's policy: shipped, from a file, or from a table of takes in bps or parts of one."""
    takes = table.get("takes")
    if takes is None:
        name = table.get("policy", "default")
        if name == "default":
            return Policy.from_toml(files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8"))
        path = (folder or Path()) / str(name)
        try:
            return Policy.from_toml(path.read_text("utf-8"))
        except FileNotFoundError:
            raise _wrong(f"there is no policy {path}", "give the path of a policy TOML") from None
    if not isinstance(takes, Mapping) or not all(
        not isinstance(v, bool) and _finite(v) and 0 <= v <= 1 for v in takes.values()
    ):
        raise _wrong(f"takes is {takes!r}", "give each line a part of the price from 0 to 1")
    return policy_of(takes, cap_bps=table.get("take_cap_bps"))


def policy_of(takes: Mapping[str, float], *, cap_bps: int | None = None) -> Policy:
    """A policy with the shipped measurement rules and its own lines, each a part of the price from 0 to 1."""
    shipped = _policy({}, None)
    lines: list[dict[str, Any]] = [
        {"name": name, "account": f"operator:{name}", "bps": round(part * BPS), "rule": f"{name} of the scenario"}
        for name, part in takes.items()
    ]
    total = sum(line["bps"] for line in lines)
    return Policy.from_json(
        {**shipped.to_json(), "name": "scenario", "lines": lines, "take_cap_bps": total if cap_bps is None else cap_bps}
    )


def _ranges(params: Any) -> tuple[tuple[str, float, float, bool], ...]:
    if not isinstance(params, Mapping):
        raise _wrong(f"sweep.params is {params!r}", 'write a table like {fee_nano = [1e6, 1e9, "log"]}')
    rows = []
    for name, row in params.items():
        section, key = _locate(name)
        entry = _field(section, key)
        if (
            not isinstance(row, list)
            or len(row) not in (2, 3)
            or not all(_finite(x) for x in row[:2])
            or row[0] >= row[1]
            or (len(row) == 3 and (row[2] != "log" or row[0] <= 0))
        ):
            raise _wrong(
                f"sweep range of {name} is {row!r}", 'write [low, high] or [low, high, "log"] with 0 < low < high'
            )
        if "low" not in entry.metadata:
            raise _wrong(f"{name} is not a number", "vary a number")
        for bound in row[:2]:
            _typed(section, entry, int(bound) if isinstance(entry.default, int) else float(bound))
        rows.append((f"{section}.{key}", float(row[0]), float(row[1]), len(row) == 3))
    return tuple(rows)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _locate(name: str) -> tuple[str, str]:
    """(section, key) of ``section.key`` or of a key that is in one section only."""
    section, dot, key = name.partition(".")
    if dot:
        _known([section], _SECTIONS, "section")
        _known([key], [f.name for f in fields(_SECTIONS[section])], f"key in [{section}]")
        return section, key
    homes = [s for s, kind in _SECTIONS.items() if name in {f.name for f in fields(kind)}]
    if "run" in homes:
        return "run", name
    if len(homes) > 1:
        raise _wrong(f"{name} is in several sections", f"write {' or '.join(f'{s}.{name}' for s in homes)}")
    if not homes:
        _known([name], sorted({f.name for kind in _SECTIONS.values() for f in fields(kind)}), "assumption")
    return homes[0], name


def _field(section: str, key: str) -> Field[Any]:
    return next(f for f in fields(_SECTIONS[section]) if f.name == key)


def _known(given: Any, known: Any, what: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.4)
            fix = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
            raise InvalidError(f"unknown {what}: {name!r}", code="scenario_unknown_key", fix=fix)


def _typed(section: str, entry: Field[Any], value: Any) -> Any:
    where, meta = f"{section}.{entry.name}", entry.metadata
    if isinstance(entry.default, bool):
        if not isinstance(value, bool):
            raise _wrong(f"{where} is {value!r}", "write true or false")
        return value
    if isinstance(entry.default, str):
        if not isinstance(value, str) or ("choices" in meta and value not in meta["choices"]):
            raise _wrong(f"{where} is {value!r}", f"use one of {', '.join(meta.get('choices', ('a text',)))}")
        return value
    whole = isinstance(entry.default, int)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(f"{where} is {value!r}", "write a number")
    if whole and value != int(value):
        raise _wrong(f"{where} is {value!r}", "write a whole number")
    if not meta["low"] <= value <= meta["high"]:
        raise _wrong(f"{where} is {value!r}", f"use a number from {meta['low']} to {meta['high']}")
    return int(value) if whole else float(value)


def _check(s: Scenario) -> None:
    """What no single field can see: overflow, and settings that contradict each other."""
    if s.settle.maturity_days not in (0, s.settle.epoch_days):
        raise _wrong(
            f"settle.maturity_days is {s.settle.maturity_days} with epochs of {s.settle.epoch_days} days",
            "use 0, or the length of an epoch: a root then holds what had matured when it was closed",
        )
    paid = s.price.per_call_nano * s.agents.users * s.demand.calls_per_day * math.exp(s.demand.activity_spread**2 / 2)
    if s.price.rule == "subscription":
        paid = s.price.subscription_day_nano * s.agents.users
    paid *= s.run.days * max(1.0, (1 + s.demand.growth_day) ** s.run.days) * (2 + s.subsidy.share + s.attack.subsidy)
    paid += s.attack.payers * s.attack.intensity * s.price.per_call_nano * s.run.days
    if paid > UNITS_IN_FLIGHT_MAX:
        raise InvalidError(
            f"the run would move about {paid:.3g} nano, above 2^61",
            code="overflow_risk",
            fix="lower the price, the days, the users or the growth, or count in a larger unit",
        )
    price_max = s.price.per_call_nano + (s.demand.value_nano * 2 if s.price.markup_layers else 0)
    if price_max > min(POOL_UNITS_MAX, INT64_MAX // BPS):
        raise InvalidError(
            f"a call of {price_max} nano times a weight of 10^9 passes 2^63",
            code="overflow_risk",
            fix=f"keep a call at or below {POOL_UNITS_MAX} nano",
        )
    bits_max = (s.evidence.sources + 1) * EVIDENCE_BITS_MAX + s.evidence.base_bits * s.policy.model_weight_ppm / 1e6
    if bits_max > SCORE_SUM_MAX:
        raise InvalidError(
            f"the bits of a call could sum to {bits_max:.0f}, above {SCORE_SUM_MAX:.0f}",
            code="overflow_risk",
            fix="lower evidence.base_bits or evidence.sources",
        )
    if s.coordinators.compete and not {"coordinator", "platform"} & {line.name for line in s.policy.lines}:
        raise _wrong("coordinators compete, but the policy has no line for them", "add a line coordinator or platform")
    if s.run.mode == "pool" and (s.attack.kind != "none" or s.agents.assets_each != 1 or s.price.rule != "posted"):
        raise _wrong(
            "pool mode pays everybody's expected share: it has no attackers, subscriptions or further assets",
            'use run.mode = "calls"',
        )
    if s.attack.accounts >= s.agents.contributors:
        raise _wrong(
            f"attack.accounts is {s.attack.accounts} of {s.agents.contributors} contributor rows",
            "leave some rows to honest people",
        )
    if s.attack.payers >= s.agents.users:
        raise _wrong(f"attack.payers is {s.attack.payers} of {s.agents.users} users", "leave some users honest")
    if s.attack.kind == "wash" and (s.agents.apps < 2 or s.attack.payers < 1):
        raise _wrong(
            f"a wash attack with {s.attack.payers} payers and {s.agents.apps} apps",
            "give it payers and an app of its own",
        )
    if (s.attack.kind == "none") != (s.attack.accounts == 0):
        raise _wrong(
            f"attack.kind is {s.attack.kind!r} with {s.attack.accounts} accounts",
            "give the attacker accounts, or no attack at all",
        )
    if s.price.rule == "subscription" and s.attention.mode == "prompt":
        raise _wrong("a flat fee with a question before every call", "there is no price to ask about: use a mandate")
    if s.price.rule == "subscription" and s.split.rule not in ("user-centric", "pooled", "sqrt", "quadratic"):
        raise _wrong(
            f"split.rule is {s.split.rule!r} under a subscription",
            "a flat fee is divided by use: choose user-centric, pooled, sqrt or quadratic",
        )


def _wrong(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="scenario_invalid", fix=fix)
