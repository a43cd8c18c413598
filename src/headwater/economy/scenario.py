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
from dataclasses import Field, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from headwater.core.canonical import digest_of
from headwater.core.errors import InvalidError
from headwater.core.money import BPS
from headwater.economy.assumptions import (
    EVIDENCE_BITS_MAX,
    SECTIONS,
    Agents,
    Attack,
    Attention,
    Coordinators,
    Demand,
    Evidence,
    Price,
    Rails,
    Run,
    Settle,
    Split,
    Subsidy,
    Supply,
    Sweep,
)
from headwater.economy.money_kernels import INT64_MAX, POOL_UNITS_MAX, SCORE_SUM_MAX
from headwater.splits import Policy
from headwater.splits.measuring import Measuring

ROWS_MAX = 2**31

UNITS_IN_FLIGHT_MAX = 2**61
"""Money a run may move in total, so that no sum of columns can pass 2^63."""


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
            for section, kind in SECTIONS.items()
        }
        for name in ("seed", "seeds", "threads", "guard"):
            del table["run"][name]
        del table["split"]["policy"]  # where it lies; what it says is in its digest
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
            if name in ("policy", "split.policy"):
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
    _known(table, SECTIONS, "section")
    sections: dict[str, Any] = {}
    ranges: tuple[tuple[str, float, float, bool], ...] = ()
    split_table: Mapping[str, Any] = {}
    for section, kind in SECTIONS.items():
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
    for section, kind in SECTIONS.items():
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
        _known([section], SECTIONS, "section")
        _known([key], [f.name for f in fields(SECTIONS[section])], f"key in [{section}]")
        return section, key
    homes = [s for s, kind in SECTIONS.items() if name in {f.name for f in fields(kind)}]
    if "run" in homes:
        return "run", name
    if len(homes) > 1:
        raise _wrong(f"{name} is in several sections", f"write {' or '.join(f'{s}.{name}' for s in homes)}")
    if not homes:
        _known([name], sorted({f.name for kind in SECTIONS.values() for f in fields(kind)}), "assumption")
    return homes[0], name


def _field(section: str, key: str) -> Field[Any]:
    return next(f for f in fields(SECTIONS[section]) if f.name == key)


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
    allowed = Measuring(max_cost_bps=BPS, scored_token_units=1).limit_units(s.price.per_call_nano, s.policy)
    if s.price.attribution_nano > (allowed if s.price.rule == "posted" else 0):
        raise _wrong(
            f"price.attribution_nano is {s.price.attribution_nano} of {s.price.per_call_nano} under price.rule "
            f"{s.price.rule!r}; the policy's cap leaves {allowed if s.price.rule == 'posted' else 0}",
            "measure for less, or raise the policy's take_cap_bps",
        )
    if s.coordinators.compete and not {"coordinator", "platform"} & {line.name for line in s.policy.lines}:
        raise _wrong("coordinators compete, but the policy has no line for them", "add a line coordinator or platform")
    if s.agents.contributors * s.agents.assets_each >= ROWS_MAX:
        raise _wrong(
            f"{s.agents.contributors} contributors with {s.agents.assets_each} contributions each",
            f"keep their product below {ROWS_MAX}: rows are numbered in 32 bits",
        )
    if s.run.mode == "pool" and (s.rails.any or s.coordinators.compete or s.subsidy.share > 0):
        raise _wrong(
            "pool mode has no rails, subsidies or competing coordinators: it pays people at the end of the day",
            'use run.mode = "calls"',
        )
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
