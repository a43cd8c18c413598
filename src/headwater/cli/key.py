"""`headwater key …`: API keys and their prepaid credit."""

from __future__ import annotations

import os
import time
from typing import Annotated

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater import ledger
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.core.canonical import digest_of
from headwater.core.errors import InvalidError
from headwater.core.money import format_units, parse_units

app = App(name="key", help="API keys and their prepaid credit.")


@app.command
def create(
    label: str, /, *, budget: str | None = None, live: bool = False, home: HomeOption = None, json: JsonOption = False
) -> int:
    """Make an API key. Its secret is shown once.

    Parameters
    ----------
    label
        Whom or what the key is for.
    budget
        Most that its calls may cost in all, in the currency.
    live
        Mark it as a key for real money; the default is a test key.
    """
    with outcome(json) as result, Home(settings(home)) as opened:
        secret, record = opened.keys.create(
            label,
            os.urandom(32),
            time.time_ns(),
            mode="live" if live else "test",
            budget_units=None if budget is None else parse_units(budget, where="budget"),
        )
        if json:
            print_json({"key_id": record.key_id, "secret": secret, "label": record.label, "mode": record.mode})
        else:
            out.print(f"[bold]{secret}[/]  (shown once)\nkey id {record.key_id}")
            out.print(f"give it credit: headwater key deposit {record.key_id} 5.00 --reference …")
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
        record = opened.keys.get(key_id)
        units = parse_units(amount)
        if units <= 0:
            raise InvalidError(f"a deposit of {amount}", code="amount_out_of_range", fix="deposit more than 0")
        asset = opened.policy.currency
        cause = "deposit:" + digest_of([record.key_id, reference]).removeprefix("sha256:")[:32]
        draft = ledger.deposit(record.account, units, asset=asset, cause=cause)
        posted = opened.ledger.post([draft], key=cause, at_ns=time.time_ns())
        credit = opened.ledger.available(record.account, asset)
        if json:
            print_json({"key_id": key_id, "replayed": posted.replayed, "available_units": str(credit)})
        else:
            seen = " (was booked before)" if posted.replayed else ""
            out.print(f"booked {format_units(units, places=2)} {asset}{seen}; credit {format_units(credit, places=4)}")
    return result.status


@app.command(name="list")
def list_(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """All keys with their credit."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        asset = opened.policy.currency
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
                    }
                    for k, a in rows
                ]
            )
        else:
            table = Table("key", "label", "mode", Column(f"credit {asset}", justify="right"), box=None)
            for key, available in rows:
                state = "revoked" if key.revoked else key.mode
                table.add_row(key.key_id, escape(key.label), state, format_units(available, places=4))
            out.print(table if rows else "no keys yet: headwater key create LABEL")
    return result.status


@app.command
def revoke(key_id: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Withdraw a key for good; its record and credit stay."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        opened.keys.revoke(key_id, time.time_ns())
        print_json({"key_id": key_id, "revoked": True}) if json else out.print(f"{key_id} is revoked")
    return result.status
