"""Rules for the fields of a record: each is a function that accepts a JSON value or says what is wrong and where.

A record's rule is the one statement of its form; reading and writing both pass through it. Knows
nothing of what the fields mean: sums and orders are checked where the record is defined.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from headwater.core.canonical import Json
from headwater.core.errors import InvalidError
from headwater.core.instants import parse_instant
from headwater.core.limits import RECEIPT_TEXT_CHARS_MAX
from headwater.core.money import AMOUNT_MAX

Where = str | tuple["Where", str | int]
"""A place in a record, such as ``$.attribution.shares[2].kind``: a text, or a place and a step from it. Steps
are put into words only when something is wrong, which is what makes a rule cheap where nothing is."""

Rule = Callable[[Json, Where], None]
"""Accepts the value found at a place or raises InvalidError."""

INTEGER_MAX: Final = 2**53 - 1


def matching(pattern: str, meaning: str) -> Rule:
    """Strings that match `pattern` from end to end; `meaning` says it in words."""
    compiled = re.compile(pattern)

    def rule(value: Json, where: Where) -> None:
        if type(value) is not str or compiled.fullmatch(value) is None:
            raise wrong(value, where, meaning)

    return rule


def integer(low: int, high: int = INTEGER_MAX) -> Rule:
    """Integers from `low` to `high`; booleans are not integers."""

    def rule(value: Json, where: Where) -> None:
        if type(value) is not int or not low <= value <= high:
            raise wrong(value, where, f"an integer from {low} to {high}")

    return rule


def one_of(*allowed: str) -> Rule:
    """One of a few words."""

    def rule(value: Json, where: Where) -> None:
        if type(value) is not str or value not in allowed:
            raise wrong(value, where, " or ".join(allowed))

    return rule


def null_or(inner: Rule) -> Rule:
    """Null, or what `inner` accepts."""

    def rule(value: Json, where: Where) -> None:
        if value is not None:
            inner(value, where)

    return rule


def rows(inner: Rule, low: int, high: int) -> Rule:
    """A list of `low` to `high` items, each accepted by `inner`."""

    def rule(value: Json, where: Where) -> None:
        if type(value) is not list or not low <= len(value) <= high:
            raise wrong(value, where, f"a list of {low} to {high} items")
        for i, item in enumerate(value):
            inner(item, (where, i))

    return rule


def record(fields: dict[str, Rule], *, open_ended: bool = False) -> Rule:
    """An object with exactly these fields, or with others beside them when `open_ended`."""
    names = fields.keys()
    rules = tuple(fields.items())

    def rule(value: Json, where: Where) -> None:
        if type(value) is not dict:
            raise wrong(value, where, "an object")
        if value.keys() != names:
            for name in names:
                if name not in value:
                    place = _said((where, name))
                    raise InvalidError(f"{place} is missing", code="field_missing", fix=f"give {place}")
            if not open_ended:
                unknown = min(value.keys() - names)
                raise InvalidError(
                    f"{_said((where, unknown[:80]))} is not a field of this version",
                    code="field_unknown",
                    fix="leave it out, or read it with the version that knows it",
                )
        for name, inner in rules:
            inner(value[name], (where, name))

    return rule


def mapping(key_pattern: str, inner: Rule, high: int) -> Rule:
    """An object of at most `high` entries with free names of one form."""
    compiled = re.compile(key_pattern)

    def rule(value: Json, where: Where) -> None:
        if type(value) is not dict or len(value) > high:
            raise wrong(value, where, f"an object of at most {high} entries")
        for name, item in value.items():
            if compiled.fullmatch(name) is None:
                raise wrong(name, where, f"a name like {key_pattern}")
            inner(item, (where, name))

    return rule


def either(first: Rule, second: Rule) -> Rule:
    """What `first` accepts, else what `second` accepts; the second one's complaint is shown."""

    def rule(value: Json, where: Where) -> None:
        try:
            first(value, where)
        except InvalidError:
            second(value, where)

    return rule


def amount(value: Json, where: Where) -> None:
    """An amount in nano units as a decimal string: no sign, no leading zero, at most 38 digits."""
    _amount_form(value, where)
    if int(value) > AMOUNT_MAX:
        raise wrong(value, where, f"at most {AMOUNT_MAX} nano units")


def instant(value: Json, where: Where) -> None:
    """RFC 3339 in UTC with nine decimals, 1970 or later: the one text each instant has."""
    _instant_form(value, where)
    try:
        early = parse_instant(value) < 0
    except InvalidError:
        early = True
    if early:
        raise wrong(value, where, "an instant like 2026-11-22T14:00:00.000000000Z")


def _said(where: Where) -> str:
    if isinstance(where, str):
        return where
    before, step = where
    return f"{_said(before)}[{step}]" if isinstance(step, int) else f"{_said(before)}.{step}"


def wrong(value: Json, where: Where, meaning: str) -> InvalidError:
    """The error of a field whose value has another form than `meaning` says."""
    shown, place = repr(value), _said(where)
    return InvalidError(
        f"{place} is {shown if len(shown) <= 80 else shown[:77] + '...'}, not {meaning}",
        code="field_invalid",
        fix=f"give {place} as {meaning}",
    )


_amount_form = matching(r"0|[1-9][0-9]{0,37}", "a decimal string of nano units, such as '12500000'")
_instant_form = matching(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z",
    "an instant like 2026-11-22T14:00:00.000000000Z",
)
text = matching(
    rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{RECEIPT_TEXT_CHARS_MAX}}}",
    f"text of 1 to {RECEIPT_TEXT_CHARS_MAX} characters without control characters",
)
token = matching(r"[!-~]{1,100}", "1 to 100 printable ASCII characters without spaces")
digest = matching(r"sha256:[0-9a-f]{64}", "a digest like sha256:<64 hex digits>")
hash32 = matching(r"[0-9a-f]{64}", "64 lower-case hex digits")
address = matching(r"0x[0-9a-f]{40}", "an address of 40 lower-case hex digits after 0x")
account = matching(r"[a-z][a-z_]{0,31}(:[!-~]{1,150})?", "an account id like commons or contributor:ctr_…")
