"""The policy: every cut on one base, under one cap, with a digest that receipts carry.

A policy is written as TOML and identified by the digest of its canonical JSON, so that spacing and
comments do not make another policy. All lines are cut from the same base, the price; their sum may
not pass `take_cap_bps`; what is left is the contributors' pool.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from headwater.core.canonical import Json, digest_of
from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId
from headwater.core.limits import POLICY_LINES_MAX
from headwater.core.money import BPS

SCHEMA = "headwater.policy/1"
GRADES = ("A", "B", "C")
COMMONS = AccountId("commons")
Residual = Literal["base_model", "commons"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_FIELDS = {
    "schema", "name", "version", "currency", "take_cap_bps", "model_weight_ppm",
    "evidence_floor_millibits", "residual", "grade_discount_bps", "lines",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One cut of the price that does not go to contributors."""

    name: str
    account: AccountId
    bps: int  # of the price, 0..10_000
    rule: str  # what it pays for, in words


@dataclass(frozen=True, slots=True)
class Policy:
    """How every price is divided. Build it with `Policy.from_toml`, which checks it."""

    name: str
    version: int
    currency: str
    take_cap_bps: int  # the lines together may not pass it
    model_weight_ppm: int  # millionths: how much one bit of the base model weighs beside one bit of a contribution
    evidence_floor_millibits: int  # contributions that together explain less are noise and are not paid
    residual: Residual  # who gets what nobody registered supplied
    grade_discount_bps: tuple[tuple[str, int], ...]  # part of a share that goes to the commons, by grade
    lines: tuple[Line, ...]

    @classmethod
    def from_toml(cls, text: str) -> Policy:
        """Read and check a policy.

        Raises:
            InvalidError: not TOML, unknown or missing fields, values out of range, lines above the cap.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise _wrong(f"the policy is not TOML: {error}", "mend the line it names") from None
        return cls.from_json(table)

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Policy:
        """The policy that `table`, parsed TOML or JSON, describes; checked like `from_toml`."""
        if unknown := sorted(set(table) - _FIELDS):
            raise _wrong(f"unknown policy fields {unknown}", f"use only {sorted(_FIELDS)}")
        if missing := sorted(_FIELDS - set(table)):
            raise _wrong(f"missing policy fields {missing}", "every field is explained in docs/policy.md")
        if table["schema"] != SCHEMA:
            raise _wrong(f"schema is {table['schema']!r}", f'write schema = "{SCHEMA}"')
        if table["residual"] not in ("base_model", "commons"):
            raise _wrong(f"residual is {table['residual']!r}", 'write "base_model" or "commons"')
        policy = cls(
            name=_text(table, "name"),
            version=_whole(table, "version", 1, 2**31),
            currency=_text(table, "currency"),
            take_cap_bps=_whole(table, "take_cap_bps", 0, BPS),
            model_weight_ppm=_whole(table, "model_weight_ppm", 0, 1_000_000),
            evidence_floor_millibits=_whole(table, "evidence_floor_millibits", 0, 10**9),
            residual=table["residual"],
            grade_discount_bps=_discounts(table["grade_discount_bps"]),
            lines=_lines(table["lines"]),
        )
        if policy.take_bps > policy.take_cap_bps:
            raise _wrong(
                f"the lines take {policy.take_bps} bps together, above take_cap_bps = {policy.take_cap_bps}",
                "lower a line or, openly, raise the cap",
            )
        return policy

    @property
    def take_bps(self) -> int:
        """What all lines take together, in basis points of the price."""
        return sum(line.bps for line in self.lines)

    @property
    def digest(self) -> str:
        """``sha256:…`` of the canonical JSON; receipts name the policy by it."""
        return digest_of(self.to_json())

    def discount_bps(self, grade: str) -> int:
        """The part of a share measured with `grade` that goes to the commons instead."""
        return dict(self.grade_discount_bps)[grade]

    def to_json(self) -> Json:
        """The policy as a JSON object; `Policy.from_json` reads it back."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "version": self.version,
            "currency": self.currency,
            "take_cap_bps": self.take_cap_bps,
            "model_weight_ppm": self.model_weight_ppm,
            "evidence_floor_millibits": self.evidence_floor_millibits,
            "residual": self.residual,
            "grade_discount_bps": dict(self.grade_discount_bps),
            "lines": [
                {"name": line.name, "account": line.account, "bps": line.bps, "rule": line.rule} for line in self.lines
            ],
        }


def _wrong(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="policy_invalid", fix=fix)


def _text(table: Mapping[str, Any], field: str) -> str:
    value = table[field]
    if not isinstance(value, str) or not value.strip() or len(value) > 200:
        raise _wrong(f"{field} is {value!r}", "write a short text")
    return value


def _whole(table: Mapping[str, Any], field: str, low: int, high: int) -> int:
    value = table[field]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(f"{field} is {value!r}", f"write a whole number from {low} to {high}")
    return value


def _discounts(table: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(table, Mapping) or sorted(table) != list(GRADES):
        raise _wrong(f"grade_discount_bps is {table!r}", "give a discount for each of the grades A, B and C")
    return tuple((grade, _whole(table, grade, 0, BPS)) for grade in GRADES)


def _lines(rows: Any) -> tuple[Line, ...]:
    if not isinstance(rows, list) or len(rows) > POLICY_LINES_MAX:
        raise _wrong("lines is not a list of tables", f"write at most {POLICY_LINES_MAX} [[lines]] tables")
    lines = []
    for row in rows:
        if not isinstance(row, Mapping) or set(row) != {"name", "account", "bps", "rule"}:
            raise _wrong(f"a line is {row!r}", "give name, account, bps and rule")
        name, account = _text(row, "name"), _text(row, "account")
        if not _NAME.fullmatch(name) or name in ("attribution", "contributors", "residual", "commons"):
            raise _wrong(f"line name is {name!r}", "use lower-case letters, digits and _, and no reserved word")
        if not (account.startswith(("operator:", "contributor:", "escrow:")) or account == COMMONS):
            raise _wrong(
                f"line {name} pays {account!r}", "pay an operator:, contributor: or escrow: account, or commons"
            )
        lines.append(Line(name, AccountId(account), _whole(row, "bps", 0, BPS), _text(row, "rule")))
    if len({line.name for line in lines}) != len(lines):
        raise _wrong("two lines have one name", "give each line its own name")
    return tuple(lines)
