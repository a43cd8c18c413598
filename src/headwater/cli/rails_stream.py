"""`headwater rails stream …`: money that becomes a payee's second by second."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import App, Parameter
from rich.table import Column, Table

from headwater.cli.options import HomeOption, JsonOption, outcome
from headwater.cli.output import out, print_json
from headwater.cli.rails_home import KeyFile, OpenRails, open_rails, units_of
from headwater.cli.settling import tokens
from headwater.rails import Flow, Streams

app = App(name="stream", help="Linear vesting, paid for in full beforehand.")


@app.command(name="open")
def open_(
    payee: str,
    amount: str,
    /,
    *,
    days: Annotated[float, Parameter(help="Until everything has vested.")],
    start_in_s: Annotated[int, Parameter(help="Seconds from now until it begins.")] = 60,
    revocable: Annotated[bool, Parameter(negative=(), help="The payer may take back what has not vested.")] = False,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Pay tokens of the acting key in and let them vest.

    Parameters
    ----------
    payee
        Address whose they become.
    amount
        Tokens.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        streams, units = _streams(rails), units_of(amount)
        rails.provide(units)
        start_s = rails.contracts.now_s() + start_in_s
        end_s = start_s + max(1, round(days * 86_400))
        id = streams.open(payee, units, start_s=start_s, end_s=end_s, revocable=revocable)
        _show((streams.flow(id),), json, many=False)
    return result.status


@app.command
def add(id: int, amount: str, /, *, key_file: KeyFile = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """Add tokens to a stream: what has vested stays so, the rest vests by its end.

    Parameters
    ----------
    id
        Of the stream.
    amount
        Tokens.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        streams, units = _streams(rails), units_of(amount)
        rails.provide(units)
        streams.add(id, units, end_s=streams.flow(id).end_s)
        _show((streams.flow(id),), json, many=False)
    return result.status


@app.command
def take(
    id: int,
    /,
    *,
    to: Annotated[str | None, Parameter(help="Another address; the acting key is the payee then.")] = None,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Pay the payee what has vested; anybody may.

    Parameters
    ----------
    id
        Of the stream.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        units = _streams(rails).take(id, to=to)
        if json:
            print_json({"token_units": str(units)})
        else:
            out.print(f"{tokens(units)} tokens paid")
    return result.status


@app.command
def revoke(id: int, /, *, key_file: KeyFile = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """End a revocable stream; the acting key is its payer and gets back what has not vested.

    Parameters
    ----------
    id
        Of the stream.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        units = _streams(rails).revoke(id)
        if json:
            print_json({"returned_token_units": str(units)})
        else:
            out.print(f"{tokens(units)} tokens returned")
    return result.status


@app.command
def show(id: int | None = None, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """One stream, or all of them.

    Parameters
    ----------
    id
        Of the stream.
    """
    with outcome(json) as result, open_rails(home) as rails:
        streams = _streams(rails)
        _show(streams.flows() if id is None else (streams.flow(id),), json, many=id is None)
    return result.status


def _streams(rails: OpenRails) -> Streams:
    return Streams(rails.contracts, rails.address_of("stream"))


def _show(flows: tuple[Flow, ...], json: bool, *, many: bool) -> None:
    if json:
        rows = [
            {
                (f"{name.removesuffix('units')}token_units" if name.endswith("units") else name): (
                    str(value) if name.endswith("units") else value
                )
                for name, value in asdict(one).items()
            }
            for one in flows
        ]
        print_json(rows if many else rows[0])
        return
    amounts = (Column(name, justify="right") for name in ("in all", "vested", "taken"))
    table = Table("stream", "payee", *amounts, "ends", "revocable", box=None)
    for one in flows:
        units = (tokens(value) for value in (one.units, one.vested_units, one.taken_units))
        table.add_row(str(one.id), one.payee, *units, str(one.end_s), "yes" if one.revocable else "no")
    out.print(table if flows else "no streams")
