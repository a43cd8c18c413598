"""`headwater dispute …`: say what is wrong, give evidence, decide, appeal; and settle what time has brought about."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.markup import escape

from headwater.cli.disputing import case_json, case_text, disputes_of, owners_of, settle_matters
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.core.ids import AccountId, ContributionId, ContributorId
from headwater.registry.dispute import Case, Claim, Kind, Side
from headwater.store.dispute_store import DisputeStore

app = App(name="dispute", help="Dispute a registration, a share or a receipt; judge, appeal, settle.")
reviewer_app = App(name="reviewer", help="Who may be drawn to judge disputes and to vouch for enrolments.")
app.command(reviewer_app)

By = Annotated[str, Parameter(help="Contributor, ctr_….")]
Account = Annotated[str, Parameter(help="Prepaid credit that stakes and is paid back: payer:key_….")]


@app.command(name="open")
def open_dispute(
    kind: Kind,
    contribution: str,
    /,
    *,
    by: By,
    account: Account,
    statement: Annotated[str, Parameter(help="What is wrong, and how that is known; kept on record.")],
    owner: Annotated[
        tuple[str, ...], Parameter(negative=(), help="Rightful owner: ctr_…, or ctr_…=PPB, repeated; none: nobody's.")
    ] = (),
    receipt: Annotated[str | None, Parameter(help="With kind receipt: its id.")] = None,
    replacement: Annotated[
        str | None, Parameter(help="With kind receipt: the contribution whose share it is; none: nobody's.")
    ] = None,
    notice: Annotated[str | None, Parameter(help="The countered takedown notice that this is about.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Open a dispute: a bond is staked, and what is disputed is held back until it is decided.

    Parameters
    ----------
    kind
        registration, share or receipt.
    contribution
        Its id, ctb_…: the one whose owners or share are wrong.
    """
    with outcome(json) as result, Home(settings(home), writer=True, create=False) as opened:
        claim = Claim(
            kind,
            ContributionId(contribution),
            owners_of(owner) if owner else (),
            receipt,
            None if replacement is None else ContributionId(replacement),
        )
        case = disputes_of(opened).open(claim, ContributorId(by), AccountId(account), statement, notice=notice)
        _print(case, opened, json)
    return result.status


@app.command
def answer(
    dispute: str, /, *, account: Account, statement: str, home: HomeOption = None, json: JsonOption = False
) -> int:
    """Answer as the other side, with a bond as large as the challenger's: the loser's bond pays the winner.

    Parameters
    ----------
    dispute
        Its id, dsp_….
    statement
        Why the claim is wrong; kept on record.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print(disputes_of(opened).answer(dispute, AccountId(account), statement), opened, json)
    return result.status


@app.command
def evidence(dispute: str, text: str, /, *, by: str, home: HomeOption = None, json: JsonOption = False) -> int:
    """Add a piece of evidence, before a panel is drawn.

    Parameters
    ----------
    dispute
        Its id, dsp_….
    text
        What it is and where it can be seen.
    by
        Who gives it.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print(disputes_of(opened).evidence(dispute, by, text), opened, json)
    return result.status


@app.command
def decide(
    dispute: str,
    verdict: Literal["uphold", "reject"],
    /,
    *,
    by: By,
    reason: Annotated[str, Parameter(help="Kept on record.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Vote as a member of the panel that sits; more than half of a panel decide.

    Parameters
    ----------
    dispute
        Its id, dsp_….
    verdict
        uphold: the challenger is right; reject: everything stays as it was.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print(disputes_of(opened).vote(dispute, ContributorId(by), verdict == "uphold", reason), opened, json)
    return result.status


@app.command
def appeal(dispute: str, side: Side, /, *, statement: str, home: HomeOption = None, json: JsonOption = False) -> int:
    """Appeal once, as the side that lost, with a further bond: a larger panel of others decides for good.

    Parameters
    ----------
    dispute
        Its id, dsp_….
    side
        challenger or respondent.
    statement
        What the first panel did not see.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print(disputes_of(opened).appeal(dispute, side, statement), opened, json)
    return result.status


@app.command
def withdraw(dispute: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Give up a dispute before a panel is drawn. Needs the home to itself: stop the server first.

    Parameters
    ----------
    dispute
        Its id, dsp_….
    """
    with outcome(json) as result, Home(settings(home), writer=True, create=False) as opened:
        _print(disputes_of(opened).withdraw(dispute), opened, json)
    return result.status


@app.command
def settle(
    *,
    public_value: Annotated[
        str | None,
        Parameter(help="What panels are drawn by: a block hash or a beacon's value [default: the log's root]."),
    ] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Do what is due: hold, draw, decide, carry out. Needs the home to itself; `epoch close` does it too."""
    with outcome(json) as result, Home(settings(home), writer=True, create=False) as opened:
        if public_value is None:
            done = settle_matters(opened)
        else:
            told = disputes_of(opened, public_value=public_value).settle_due()
            done = {"held": told.held, "drawn": told.drawn, "decided": told.decided, "closed": told.closed}
        if json:
            print_json(done)
        else:
            out.print(", ".join(f"{count} {name}" for name, count in done.items()))
    return result.status


@app.command
def show(dispute: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """A dispute: claim, evidence, panels, votes, verdict, and what is held.

    Parameters
    ----------
    dispute
        Its id, dsp_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print(DisputeStore(opened.db).get(dispute), opened, json)
    return result.status


@app.command(name="list")
def list_disputes(
    *,
    open_only: Annotated[bool, Parameter(name="--open", negative=(), help="Only those that are not closed.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Disputes, oldest first."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        found = DisputeStore(opened.db).cases(open_only=open_only)
        if json:
            print_json({"disputes": [case_json(case, opened) for case in found]})
        else:
            for case in found:
                out.print(escape("\n".join(case_text(case, opened)[:3])), soft_wrap=True)
            if not found:
                out.print("nothing is disputed")
    return result.status


@reviewer_app.command(name="add")
def add_reviewer(contributor: str, /, *, account: Account, home: HomeOption = None, json: JsonOption = False) -> int:
    """Let a contributor be drawn; its fees go to prepaid credit of its own.

    Parameters
    ----------
    contributor
        Its id, ctr_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        known = opened.registry.contributor(ContributorId(contributor))
        DisputeStore(opened.db).add_reviewer(known.id, AccountId(account), time.time_ns())
        _print_reviewers(opened, json)
    return result.status


@reviewer_app.command(name="remove")
def remove_reviewer(contributor: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Draw a contributor no more; panels that sit are not changed.

    Parameters
    ----------
    contributor
        Its id, ctr_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        DisputeStore(opened.db).remove_reviewer(ContributorId(contributor), time.time_ns())
        _print_reviewers(opened, json)
    return result.status


@reviewer_app.command(name="list")
def list_reviewers(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """Who may be drawn."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print_reviewers(opened, json)
    return result.status


def _print_reviewers(home: Home, as_json: bool) -> None:
    found = DisputeStore(home.db).reviewers()
    if as_json:
        print_json({"reviewers": list(found)})
    else:
        out.print("\n".join(found) or "nobody may be drawn")


def _print(case: Case, home: Home, as_json: bool) -> None:
    if as_json:
        print_json(case_json(case, home))
    else:
        out.print(escape("\n".join(case_text(case, home))), soft_wrap=True)
