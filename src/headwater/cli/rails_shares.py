"""`headwater rails shares …`: who holds a part of what a datanet or an adapter earns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.options import HomeOption, JsonOption, outcome
from headwater.cli.output import out, print_json
from headwater.cli.rails_home import KeyFile, OpenRails, open_rails
from headwater.cli.settling import tokens
from headwater.core.canonical import digest
from headwater.core.errors import MissingError
from headwater.rails import Backing, RevenueShares

app = App(name="shares", help="Revenue shares: an ERC-20 whose address is the payee of a datanet or an adapter.")


@app.command
def issue(
    subject: str,
    /,
    *,
    supply: Annotated[int, Parameter(help="Whole shares; there will never be more.")],
    name: Annotated[str, Parameter(help="Of the shares, at most 64 bytes.")],
    symbol: Annotated[str, Parameter(help="At most 12 bytes.")] = "SHARE",
    terms: Annotated[
        Path | None, Parameter(help="What holders are promised; its digest is bound to the shares.")
    ] = None,
    to: Annotated[str | None, Parameter(help="Who has them at first; the acting key by default.")] = None,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Make all shares of what a subject will earn. Enrol its owner with the address that is printed.

    Parameters
    ----------
    subject
        Id of a datanet, an adapter or a contributor.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        if terms is not None and not terms.is_file():
            raise MissingError(f"no terms at {terms.name}", code="terms_missing", fix="give their file")
        manifest = rails.manifest_or_new()
        shares = RevenueShares.issue(
            rails.contracts,
            subject=subject,
            name=name,
            symbol=symbol,
            supply=supply,
            terms="" if terms is None else digest(terms.read_bytes()),
            to=to or "",
        )
        manifest.with_share(shares.issued).save(rails.path)
        if json:
            print_json(brief(shares))
        else:
            out.print(f"{supply} shares of {escape(subject)} at {shares.issued.address}")
            out.print(f"next: headwater contributor enroll <owner> {shares.issued.address}")
    return result.status


@app.command
def show(subject: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Who stands behind a payee: holders, their parts, what came in and what they can collect.

    Parameters
    ----------
    subject
        Its id, or the shares' address.
    """
    with outcome(json) as result, open_rails(home) as rails:
        backing = _shares(rails, subject).backing()
        if json:
            print_json(backing.as_json())
        else:
            print_backing(backing)
    return result.status


@app.command
def transfer(
    subject: str,
    to: str,
    shares: int,
    /,
    *,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Give shares of the acting key away; what they have earned stays its own.

    Parameters
    ----------
    subject
        Its id, or the shares' address.
    to
        Address.
    shares
        Whole shares.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        one = _shares(rails, subject)
        one.transfer(to, shares)
        left = one.balance(rails.contracts.me)
        if json:
            print_json({"to": to, "shares": shares, "left": left})
        else:
            out.print(f"{shares} shares to {to}, {left} left")
    return result.status


@app.command
def collect(
    subject: str,
    /,
    *,
    holder: Annotated[str | None, Parameter(help="Whose income; the acting key's by default.")] = None,
    to: Annotated[str | None, Parameter(help="Send the acting key's income to another address.")] = None,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Pay a holder what its shares have earned; anybody may, only the holder gains.

    Parameters
    ----------
    subject
        Its id, or the shares' address.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        units = _shares(rails, subject).collect(holder, to=to)
        who = holder or rails.contracts.me
        if json:
            print_json({"holder": who, "to": to or who, "token_units": str(units)})
        else:
            out.print(f"{tokens(units)} tokens to {to or who}")
    return result.status


def brief(shares: RevenueShares) -> dict[str, Any]:
    """What was issued, as JSON."""
    one = shares.issued
    return {
        "subject": one.subject,
        "address": one.address,
        "name": one.name,
        "symbol": one.symbol,
        "supply": one.supply,
        "terms": one.terms or None,
    }


def print_backing(backing: Backing) -> None:
    """The share-holders' line of a statement, for people."""
    out.print(
        f"{escape(backing.subject)} is paid to {backing.address}: {tokens(backing.received_units)} tokens arrived, "
        f"{tokens(backing.collected_units)} collected",
        soft_wrap=True,
    )
    amounts = (Column(name, justify="right") for name in ("shares", "part", "can collect"))
    table = Table("holder", *amounts, box=None)
    for one in backing.holders:
        part = f"{100 * one.shares / backing.supply:.2f} %"
        table.add_row(one.holder, str(one.shares), part, tokens(one.collectable_units))
    out.print(table)


def _shares(rails: OpenRails, subject: str) -> RevenueShares:
    manifest = rails.manifest
    return RevenueShares(rails.contracts, manifest.share_of(subject), manifest.start_block)
