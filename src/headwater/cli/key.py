"""`headwater key …`: API keys, what each may do, and their prepaid credit."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape

from headwater.cli.home import Home
from headwater.cli.operations import administration
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.core.errors import InvalidError
from headwater.core.instants import SECOND_NS, format_instant, parse_instant
from headwater.core.money import format_units, parse_units
from headwater.gateway.administration import limits_json
from headwater.store.key_limits import NO_LIMITS, KeyLimits

app = App(name="key", help="API keys, what each may do, and their prepaid credit.")

_SPAN = re.compile(r"(\d{1,6})([smhd])")
_SPAN_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@Parameter(name="*")
@dataclass(frozen=True)
class LimitFlags:
    """What a key may do; a flag that is not given changes nothing, `none` takes the limit away."""

    budget: Annotated[str | None, Parameter(help="Most that its calls may cost in all, in the currency.")] = None
    budget_day: Annotated[str | None, Parameter(help="Most that the calls of one UTC day may cost.")] = None
    budget_month: Annotated[str | None, Parameter(help="Most that the calls of one UTC month may cost.")] = None
    requests_per_minute: Annotated[str | None, Parameter(help="Calls a minute.")] = None
    tokens_per_minute: Annotated[str | None, Parameter(help="Tokens a minute, of prompts and answers.")] = None
    money_per_minute: Annotated[str | None, Parameter(help="Currency a minute.")] = None
    model: Annotated[tuple[str, ...], Parameter(help="A model it may ask for; may be repeated.", negative=())] = ()
    route: Annotated[
        tuple[str, ...],
        Parameter(help="What it is for: chat, embeddings, receipts, feedback, admin; may be repeated.", negative=()),
    ] = ()
    expires: Annotated[str | None, Parameter(help="When it ends: an instant, or a span such as 30d.")] = None

    def limits(self, before: KeyLimits, now_ns: int) -> KeyLimits:
        """`before` with what the flags say."""
        changes: dict[str, Any] = {
            name: None if text == "none" else read(text, name)
            for name, text, read in (
                ("budget_day_units", self.budget_day, _units),
                ("budget_month_units", self.budget_month, _units),
                ("requests_per_minute", self.requests_per_minute, _whole),
                ("tokens_per_minute", self.tokens_per_minute, _whole),
                ("units_per_minute", self.money_per_minute, _units),
                ("expires_at_ns", self.expires, lambda text, _: _instant(text, now_ns)),
            )
            if text is not None
        }
        for field, names in (("models", self.model), ("routes", self.route)):
            if names:
                changes[field] = () if names == ("none",) else names
        return before.changed(**changes)

    def whole_budget(self, before: int | None) -> int | None:
        """The budget over the key's life, nano units."""
        if self.budget is None:
            return before
        return None if self.budget == "none" else _units(self.budget, "budget")


_NO_FLAGS = LimitFlags()


def _units(text: str, where: str) -> int:
    return parse_units(text, where=where)


def _whole(text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,13}", text):
        raise InvalidError(f"{where} is {text[:80]!r}", code="limits_invalid", fix="give a whole number, or none")
    return int(text)


def _span_ns(text: str) -> int | None:
    match = _SPAN.fullmatch(text)
    return None if match is None else int(match[1]) * _SPAN_S[match[2]] * SECOND_NS


def _instant(text: str, now_ns: int) -> int:
    span_ns = _span_ns(text)
    if span_ns is not None:
        return now_ns + span_ns
    try:
        return parse_instant(text)
    except InvalidError as error:
        fix = "give an instant such as 2026-11-22T14:00:00Z, a span such as 30d, or none"
        raise InvalidError(error.message, code=error.code, fix=fix) from None


@app.command
def create(
    label: str,
    /,
    *,
    limits: LimitFlags = _NO_FLAGS,
    live: bool = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Make an API key. Its secret is shown once.

    Parameters
    ----------
    label
        Whom or what the key is for.
    live
        Mark it as a key for real money; the default is a test key.
    """
    with outcome(json) as result, Home(settings(home)) as opened:
        now_ns = time.time_ns()
        wanted = limits.limits(NO_LIMITS, now_ns)
        if wanted.expires_at_ns is not None and wanted.expires_at_ns <= now_ns:
            raise InvalidError(
                f"a key that ends at {format_instant(wanted.expires_at_ns)} has ended already",
                code="expires_invalid",
                fix="give an instant that is to come, or a span such as 30d",
            )
        secret, record = administration(opened).create(
            "cli",
            label,
            mode="live" if live else "test",
            budget_units=limits.whole_budget(None),
            limits=wanted,
        )
        if json:
            print_json({"key_id": record.key_id, "secret": secret, "label": record.label, "mode": record.mode})
        else:
            out.print(f"[bold]{secret}[/]  (shown once)\nkey id {record.key_id}")
            out.print(f"give it credit: headwater key deposit {record.key_id} 5.00 --reference …", soft_wrap=True)
    return result.status


@app.command
def deposit(
    key_id: str,
    amount: str,
    /,
    *,
    reference: Annotated[str, Parameter(help="The payment it is for; the same reference is never booked twice.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Book money that a payer has sent as credit of its key.

    Parameters
    ----------
    key_id
        The key, `key_…`.
    amount
        In the currency, such as 5.00.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        asset = opened.policy.currency
        posted, credit = administration(opened).deposit("cli", key_id, amount, reference)
        units = parse_units(amount)
        if json:
            print_json({"key_id": key_id, "replayed": posted.replayed, "available_units": str(credit)})
        else:
            seen = " (was booked before)" if posted.replayed else ""
            out.print(f"booked {format_units(units, places=2)} {asset}{seen}; credit {format_units(credit, places=4)}")
    return result.status


@app.command(name="list")
def list_(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """All keys with their state and credit, and below each what limits it has."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        asset, now_ns = opened.policy.currency, time.time_ns()
        rows = [(key, opened.ledger.available(key.account, asset)) for key in opened.keys.list()]
        if json:
            print_json(
                [
                    {
                        "key_id": k.key_id,
                        "label": k.label,
                        "mode": k.mode,
                        "revoked": k.revoked,
                        "available_units": str(a),
                        **limits_json(opened.keys, k, now_ns),
                    }
                    for k, a in rows
                ]
            )
        else:
            for key, available in rows:
                expires = key.limits.expires_at_ns
                state = "revoked" if key.revoked else "expired" if expires and now_ns >= expires else key.mode
                told = limits_json(opened.keys, key, now_ns)
                shown = ", ".join(
                    f"{name} {' '.join(value) if isinstance(value, list) else value}"
                    for name, value in told.items()
                    if value and not name.startswith("committed")
                )
                credit = f"{format_units(available, places=4):>14} {asset}"
                out.print(f"{key.key_id}  {state:<7} {credit}  {key.label}", markup=False, soft_wrap=True)
                if shown:
                    out.print(f"    {shown}", markup=False, soft_wrap=True)
            if not rows:
                out.print("no keys yet: headwater key create LABEL")
    return result.status


@app.command
def limit(key_id: str, /, *, limits: LimitFlags = _NO_FLAGS, home: HomeOption = None, json: JsonOption = False) -> int:
    """Change what a key may do; limits that are not named stay, `none` takes one away.

    Parameters
    ----------
    key_id
        The key, `key_…`.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        now_ns = time.time_ns()
        before = opened.keys.get(key_id)
        key = administration(opened).limit(
            "cli", key_id, limits.limits(before.limits, now_ns), limits.whole_budget(before.budget_units)
        )
        told = limits_json(opened.keys, key, now_ns)
        if json:
            print_json({"key_id": key_id, **told})
        else:
            for name, value in told.items():
                if value not in (None, []):
                    out.print(f"{name:20} {escape(' '.join(value) if isinstance(value, list) else str(value))}")
    return result.status


@app.command
def rotate(key_id: str, /, *, grace: str = "24h", home: HomeOption = None, json: JsonOption = False) -> int:
    """Give a key a new secret, shown once; the old one works on for a while.

    Parameters
    ----------
    key_id
        The key, `key_…`.
    grace
        How long the old secret works, such as 30m, 24h or 7d; 0s ends it at once.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        grace_ns = _span_ns(grace)
        if grace_ns is None:
            raise InvalidError(f"a grace of {grace[:80]!r}", code="grace_invalid", fix="give a span such as 24h or 7d")
        secret, _, ends_ns = administration(opened).rotate("cli", key_id, grace_ns=grace_ns)
        ends = format_instant(ends_ns)
        if json:
            print_json({"key_id": key_id, "secret": secret, "old_secret_ends_at": ends})
        else:
            out.print(f"[bold]{secret}[/]  (shown once)\nthe old secret of {key_id} works until {ends}")
    return result.status


@app.command
def revoke(key_id: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Withdraw a key for good; its record and credit stay."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        administration(opened).revoke("cli", key_id)
        print_json({"key_id": key_id, "revoked": True}) if json else out.print(f"{key_id} is revoked")
    return result.status
