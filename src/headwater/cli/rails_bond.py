"""`headwater rails bond …`: what reviewers, challengers and posters answer with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.table import Column, Table

from headwater.cli.options import HomeOption, JsonOption, outcome
from headwater.cli.output import out, print_json
from headwater.cli.rails_home import KeyFile, OpenRails, open_rails, units_of
from headwater.cli.settling import tokens
from headwater.core.canonical import digest
from headwater.core.errors import MissingError
from headwater.rails import ChainBonds, Role, Slash, SlashRequest, Stake

app = App(name="bond", help="Stakes of reviewers, challengers and posters: slashed after a delay and an appeal.")

RoleName = Literal["reviewer", "challenger", "poster"]
RoleOption = Annotated[RoleName, Parameter(name="--role", help="What the stake answers for.")]


@app.command
def stake(
    amount: str,
    /,
    *,
    role: RoleOption,
    account: Annotated[str | None, Parameter(help="Whose stake; the acting key's by default.")] = None,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Stake tokens of the acting key, for itself or for somebody.

    Parameters
    ----------
    amount
        Tokens, such as 25.00.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        units, book = units_of(amount), _book(rails)
        who = account or rails.contracts.me
        rails.provide(units)
        book.stake(who, _role(role), units)
        _show_stake(who, role, book.stake_of(who, _role(role)), json)
    return result.status


@app.command
def unbond(
    amount: str,
    /,
    *,
    role: RoleOption,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Announce that the acting key takes a stake back; 0 withdraws that. It answers for it until `take`.

    Parameters
    ----------
    amount
        Tokens.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        book = _book(rails)
        book.ask_back(_role(role), units_of(amount))
        _show_stake(rails.contracts.me, role, book.stake_of(rails.contracts.me, _role(role)), json)
    return result.status


@app.command
def take(*, role: RoleOption, key_file: KeyFile = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """Take what was asked back and no slash has frozen."""
    with outcome(json) as result, open_rails(home, key_file) as rails:
        _say_units("taken back", _book(rails).take_back(_role(role)), json)
    return result.status


@app.command
def slash(
    account: str,
    amount: str,
    /,
    *,
    role: RoleOption,
    to: Annotated[str, Parameter(help="Who gains; never the account.")],
    decision: Annotated[Path, Parameter(help="The published decision; its digest is the reason.")],
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Freeze a part of somebody's stake and start its time to appeal; the acting key is the slasher.

    Parameters
    ----------
    account
        Address whose stake it is.
    amount
        Tokens.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        if not decision.is_file():
            raise MissingError(f"no decision at {decision.name}", code="decision_missing", fix="give its file")
        request = SlashRequest(account, _role(role), units_of(amount), to, digest(decision.read_bytes()))
        _show_slashes((_book(rails).slash(request),), json, many=False)
    return result.status


@app.command
def appeal(slash: int, /, *, key_file: KeyFile = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """Take a slash of the acting key's stake to the arbiter.

    Parameters
    ----------
    slash
        Its number.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        book = _book(rails)
        book.appeal(slash)
        _show_slashes((book.slash_of(slash),), json, many=False)
    return result.status


@app.command
def decide(
    slash: int,
    /,
    *,
    uphold: Annotated[bool, Parameter(negative="--drop", help="Carry it out, or drop it.")],
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """End an appeal; the acting key is the arbiter.

    Parameters
    ----------
    slash
        Its number.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        book = _book(rails)
        book.decide(slash, upheld=uphold)
        _show_slashes((book.slash_of(slash),), json, many=False)
    return result.status


@app.command
def finish(slash: int, /, *, key_file: KeyFile = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """End a slash whose time is over: carried out when nobody appealed, dropped when nobody decided.

    Parameters
    ----------
    slash
        Its number.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        _show_slashes((_book(rails).finish(slash),), json, many=False)
    return result.status


@app.command
def withdraw(*, key_file: KeyFile = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """Withdraw what slashes have brought the acting key."""
    with outcome(json) as result, open_rails(home, key_file) as rails:
        book = _book(rails)
        owed = book.owed(rails.contracts.me)
        book.withdraw()
        _say_units("withdrawn", owed, json)
    return result.status


@app.command
def show(
    account: str | None = None,
    /,
    *,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Every slash there was, or what one account has staked in each role.

    Parameters
    ----------
    account
        An address; without one, the slashes.
    """
    with outcome(json) as result, open_rails(home) as rails:
        book = _book(rails)
        if account is None:
            _show_slashes(book.slashes(), json, many=True)
        else:
            stakes = {role.name.lower(): book.stake_of(account, role) for role in Role}
            if json:
                print_json({name: _stake_json(account, name, one) for name, one in stakes.items()})
            else:
                for name, one in stakes.items():
                    _show_stake(account, name, one, False)
    return result.status


def _book(rails: OpenRails) -> ChainBonds:
    return ChainBonds(rails.contracts, rails.address_of("bond"))


def _role(name: str) -> Role:
    return Role[name.upper()]


def _stake_json(account: str, role: str, one: Stake) -> dict[str, Any]:
    return {
        "account": account,
        "role": role,
        "staked_token_units": str(one.units),
        "frozen_token_units": str(one.frozen_units),
        "asked_back_token_units": str(one.asked_units),
        "due_from_s": one.due_from_s,
        "counts_token_units": str(one.counts_units),
    }


def _show_stake(account: str, role: str, one: Stake, json: bool) -> None:
    if json:
        print_json(_stake_json(account, role, one))
        return
    out.print(
        f"{account} as {role}: {tokens(one.units)} staked, {tokens(one.frozen_units)} frozen, "
        f"{tokens(one.asked_units)} asked back" + (f", due from {one.due_from_s}" if one.asked_units else ""),
        soft_wrap=True,
    )


def _show_slashes(slashes: tuple[Slash, ...], json: bool, *, many: bool) -> None:
    rows = [
        {
            "id": one.id,
            "account": one.request.account,
            "role": one.request.role.name.lower(),
            "token_units": str(one.request.units),
            "to": one.request.to,
            "reason": one.request.reason,
            "state": str(one.state),
            "until_s": one.until_s,
        }
        for one in slashes
    ]
    if json:
        print_json(rows if many else rows[0])
        return
    table = Table("slash", "account", "role", Column("tokens", justify="right"), "state", "until", box=None)
    for one in slashes:
        table.add_row(
            str(one.id),
            one.request.account,
            one.request.role.name.lower(),
            tokens(one.request.units),
            str(one.state),
            str(one.until_s),
        )
    out.print(table if rows else "nothing was slashed")


def _say_units(what: str, units: int, json: bool) -> None:
    if json:
        print_json({"token_units": str(units)})
    else:
        out.print(f"{tokens(units)} tokens {what}")
