"""`headwater rails advance …`: money now against income that is accruing, repaid first from claims."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import App, Parameter

from headwater.cli.options import HomeOption, JsonOption, outcome
from headwater.cli.output import out, print_json
from headwater.cli.rails_home import KeyFile, OpenRails, open_rails, units_of
from headwater.cli.settling import tokens
from headwater.core.errors import RefusedError
from headwater.core.ids import AccountId, ContributorId
from headwater.core.money import format_units
from headwater.rails import AdvancePool, LaneState

app = App(name="advance", help="A pool (ERC-4626) that advances money against accruing income.")


@app.command
def deposit(amount: str, /, *, key_file: KeyFile = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """Lend tokens of the acting key to the pool.

    Parameters
    ----------
    amount
        Tokens.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        units, pool = units_of(amount), _pool(rails)
        rails.provide(units)
        shares = pool.deposit(units)
        if json:
            print_json({"token_units": str(units), "shares": str(shares)})
        else:
            out.print(f"{tokens(units)} tokens for {shares} shares of the pool")
    return result.status


@app.command
def redeem(
    shares: Annotated[str, Parameter(help="Shares in their smallest unit, or `all`.")] = "all",
    /,
    *,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Take money out of the pool, as far as it is not lent."""
    with outcome(json) as result, open_rails(home, key_file) as rails:
        pool = _pool(rails)
        units = pool.redeem(pool.shares(rails.contracts.me) if shares == "all" else int(shares))
        _say("taken out", units, json)
    return result.status


@app.command(name="open")
def open_(borrower: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Make a borrower's lane: the address to enrol it with, so that its income repays what is due first.

    Parameters
    ----------
    borrower
        Address that draws, and receives the rest of its income.
    """
    with outcome(json) as result, open_rails(home) as rails:
        lane = _pool(rails).open_lane(borrower)
        if json:
            print_json({"borrower": borrower, "lane": lane})
        else:
            out.print(f"lane {lane}; next: headwater contributor enroll <contributor> {lane}")
    return result.status


@app.command
def attest(
    lane: str,
    contributor: str,
    /,
    *,
    risk_bps: Annotated[int, Parameter(help="Added to the price of its advances.")] = 100,
    hours: Annotated[int, Parameter(help="How long the word counts.")] = 24,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """State what the ledger holds for a contributor who is paid through a lane; the operator is the assessor.

    Parameters
    ----------
    lane
        Its payee address.
    contributor
        Its id, `ctr_…`: what is due or claimable to it is the income.
    """
    with outcome(json) as result, open_rails(home) as rails:
        payee = rails.home.registry.contributor(ContributorId(contributor)).payout_address
        if payee is None or payee.lower() != lane.lower():
            raise RefusedError(
                f"{contributor} is paid to {payee or 'nobody'}, not to {lane}: its income would not repay an advance",
                code="lane_not_payee",
                fix=f"enrol it with the lane first: headwater contributor enroll {contributor} {lane}",
            )
        ledger, asset = rails.home.ledger, rails.home.policy.currency
        due = AccountId(f"contributor:{contributor}")
        nano = sum(ledger.balance(account, asset).balance_units for account in (due, f"claimable:{due}"))
        units, pool = nano // 1_000, _pool(rails)  # the rest is below a millionth of the token
        until_s = rails.contracts.now_s() + hours * 3_600
        pool.attest(lane, income_units=units, risk_bps=risk_bps, until_s=until_s)
        if not json:
            out.print(f"{format_units(nano)} {asset} are accruing to {contributor}")
        _show(pool.lane(lane), json)
    return result.status


@app.command
def draw(
    lane: str,
    amount: str,
    /,
    *,
    fee_max: Annotated[str | None, Parameter(help="Tokens of fee agreed to; what it costs now by default.")] = None,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Take an advance; the acting key is the lane's borrower.

    Parameters
    ----------
    lane
        The borrower's.
    amount
        Tokens.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        pool, units = _pool(rails), units_of(amount)
        agreed = pool.price(lane, units) if fee_max is None else units_of(fee_max, "fee_max")
        fee = pool.draw(lane, units, fee_max_units=agreed)
        if json:
            print_json({"token_units": str(units), "fee_token_units": str(fee), "due_s": pool.lane(lane).due_s})
        else:
            out.print(f"{tokens(units)} tokens now for a fee of {tokens(fee)}, due by {pool.lane(lane).due_s}")
    return result.status


@app.command
def collect(lane: str, /, *, key_file: KeyFile = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """Divide what has reached a lane: the pool first, then its borrower. Anybody may.

    Parameters
    ----------
    lane
        The borrower's.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        repaid, passed_on = _pool(rails).collect(lane)
        if json:
            print_json({"repaid_token_units": str(repaid), "passed_on_token_units": str(passed_on)})
        else:
            out.print(f"{tokens(repaid)} tokens to the pool, {tokens(passed_on)} to the borrower")
    return result.status


@app.command(name="loss")
def loss(lane: str, /, *, key_file: KeyFile = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """State the loss of an overdue advance: the only way a share of the pool gets cheaper.

    Parameters
    ----------
    lane
        The borrower's.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        _say("lost", _pool(rails).state_loss(lane), json)
    return result.status


@app.command
def show(lane: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """What a borrower has, may draw and owes.

    Parameters
    ----------
    lane
        The borrower's.
    """
    with outcome(json) as result, open_rails(home) as rails:
        _show(_pool(rails).lane(lane), json)
    return result.status


def _pool(rails: OpenRails) -> AdvancePool:
    return AdvancePool(rails.contracts, rails.address_of("advance"))


def _show(lane: LaneState, json: bool) -> None:
    value: dict[str, Any] = {
        (f"{name.removesuffix('_units')}_token_units" if name.endswith("_units") else name): (
            str(amount) if name.endswith("_units") else amount
        )
        for name, amount in asdict(lane).items()
    }
    if json:
        print_json(value)
        return
    for name, shown in value.items():
        if name.endswith("_token_units"):
            name, shown = name.removesuffix("_token_units"), f"{tokens(int(shown))} tokens"
        out.print(f"{name.replace('_', ' '):12} {shown}")


def _say(what: str, units: int, json: bool) -> None:
    if json:
        print_json({"token_units": str(units)})
    else:
        out.print(f"{tokens(units)} tokens {what}")
