"""The policy: every cut on one base, under one cap, with a digest that receipts carry.

A policy is written as TOML and identified by the digest of its canonical JSON, so that spacing and
comments do not make another policy. All lines are cut from the same base, the price; their sum may
not pass `take_cap_bps`; what is left is the contributors' pool.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from headwater.core.canonical import Json, digest_of
from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId
from headwater.core.limits import POLICY_LINES_MAX, POLICY_PAYEES_MAX
from headwater.core.money import BPS, PPB

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
    payees: tuple[tuple[AccountId, int], ...] = ()  # (account, ppb), summing to 10^9: who shares it, if not `account`


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
            "lines": [_line_json(line) for line in self.lines],
        }

    def with_payees(self, name: str, payees: tuple[tuple[AccountId, int], ...]) -> Policy:
        """The next version of the policy, in which the line `name` is shared by `payees`.

        Raises:
            InvalidError: no such line, or payees that cannot be paid.
        """
        if name not in {line.name for line in self.lines}:
            raise _wrong(f"no line {name!r}", f"add it to the policy's lines; there are {[o.name for o in self.lines]}")
        lines = [replace(line, payees=payees) if line.name == name else line for line in self.lines]
        return Policy.from_json(replace(self, version=self.version + 1, lines=tuple(lines)).to_json())

    def to_toml(self) -> str:
        """The policy as TOML that `from_toml` reads back."""
        table = self.to_json()
        lines, discounts = table.pop("lines"), table.pop("grade_discount_bps")
        parts = [f"{name} = {_toml(value)}" for name, value in table.items()]
        parts += ["", "[grade_discount_bps]", *(f"{name} = {value}" for name, value in discounts.items())]
        for line in lines:
            payees = line.pop("payees", [])
            parts += ["", "[[lines]]", *(f"{name} = {_toml(value)}" for name, value in line.items())]
            rows = [f"  {{ account = {_toml(one['account'])}, share_ppb = {one['share_ppb']} }}," for one in payees]
            parts += ["payees = [", *rows, "]"] if rows else []
        return "\n".join(parts) + "\n"


def _line_json(line: Line) -> Json:
    value: dict[str, Json] = {"name": line.name, "account": line.account, "bps": line.bps, "rule": line.rule}
    if line.payees:  # only then, so that policies without them keep their digest
        value["payees"] = [{"account": account, "share_ppb": share} for account, share in line.payees]
    return value


def _payees(name: str, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The payees of a line, checked: all different, each with a share, and nothing left over."""
    rows = row.get("payees", [])
    if not isinstance(rows, list) or len(rows) > POLICY_PAYEES_MAX:
        raise _wrong(f"payees of line {name}", f"write a list of at most {POLICY_PAYEES_MAX} tables")
    for payee in rows:
        if not isinstance(payee, Mapping) or set(payee) != {"account", "share_ppb"}:
            raise _wrong(f"a payee of line {name} is {payee!r}", "give account and share_ppb")
        _text(payee, "account")
        _whole(payee, "share_ppb", 1, PPB)
    if rows and sum(payee["share_ppb"] for payee in rows) != PPB:
        raise _wrong(f"shares of line {name} that do not sum to a whole", f"make share_ppb sum to {PPB}")
    if len({payee["account"] for payee in rows}) != len(rows):
        raise _wrong(f"a payee of line {name} twice", "name each account once")
    return rows


def _toml(value: Any) -> str:
    """A whole number, or a TOML basic string."""
    if not isinstance(value, str):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'


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
        if not isinstance(row, Mapping) or set(row) - {"payees"} != {"name", "account", "bps", "rule"}:
            raise _wrong(f"a line is {row!r}", "give name, account, bps and rule, and payees if several share it")
        name, account = _text(row, "name"), _text(row, "account")
        if not _NAME.fullmatch(name) or name in ("attribution", "contributors", "residual", "commons"):
            raise _wrong(f"line name is {name!r}", "use lower-case letters, digits and _, and no reserved word")
        for paid in (account, *(payee["account"] for payee in _payees(name, row))):
            if not (paid.startswith(("operator:", "contributor:", "escrow:")) or paid == COMMONS):
                raise _wrong(
                    f"line {name} pays {paid!r}", "pay an operator:, contributor: or escrow: account, or commons"
                )
        payees = tuple((AccountId(payee["account"]), payee["share_ppb"]) for payee in _payees(name, row))
        lines.append(Line(name, AccountId(account), _whole(row, "bps", 0, BPS), _text(row, "rule"), payees))
    if len({line.name for line in lines}) != len(lines):
        raise _wrong("two lines have one name", "give each line its own name")
    return tuple(lines)
