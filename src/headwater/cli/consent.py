"""`headwater consent …`: withdraw, erase, take down and counter; and what becomes of adapters trained on it."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import App, Parameter
from rich.markup import escape

from headwater.cli.disputing import consent_json, places_of
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.core.ids import ContributionId
from headwater.registry.consent import AdapterRule, adapter_standing
from headwater.store.consent_store import ConsentStore
from headwater.store.erasure import erase as erase_bytes

app = App(name="consent", help="Take consent back: withdraw, erase, take down, counter.")

By = Annotated[str, Parameter(help="Who asks; kept on record.")]
Reason = Annotated[str, Parameter(help="Why; kept on record.")]


@app.command
def withdraw(
    contribution: str, /, *, by: By = "operator", reason: Reason = "", home: HomeOption = None, json: JsonOption = False
) -> int:
    """End every use of a contribution: neither served, trained on nor paid from now on. Its bytes stay.

    Parameters
    ----------
    contribution
        Its id, ctb_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        found = opened.registry.get(ContributionId(contribution))
        ConsentStore(opened.db).withdraw(found.id, by, reason, time.time_ns())
        _print(opened, found.id, json)
    return result.status


@app.command
def erase(
    contribution: str, /, *, by: By = "operator", reason: Reason = "", home: HomeOption = None, json: JsonOption = False
) -> int:
    """Withdraw a contribution and erase its bytes everywhere; digests stay, and past receipts still verify.

    Calls that held it lose prompt and answer. Run it again when some were still waiting for their receipt.

    Parameters
    ----------
    contribution
        Its id, ctb_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        done = erase_bytes(
            places_of(opened), ContributionId(contribution), by_whom=by, reason=reason, now_ns=time.time_ns()
        )
        if json:
            print_json(
                {
                    "contributions": list(done.contributions),
                    "new": done.new,
                    "calls": done.calls_count,
                    "calls_waiting": done.waiting_count,
                    "indexes": done.indexes_count,
                    "spans": done.spans_count,
                }
            )
        else:
            out.print(
                f"erased {', '.join(done.contributions)}: the text of {done.calls_count} calls, "
                f"{done.indexes_count} retrieval indexes, {done.spans_count} entries of the span index"
            )
            if done.waiting_count:
                out.print(f"{done.waiting_count} calls wait for their receipt: erase again when they have it")
    return result.status


@app.command
def takedown(
    contribution: str,
    /,
    *,
    claimant: Annotated[str, Parameter(help="Who complains; shown to the owner.")],
    reason: Annotated[str, Parameter(help="Of what; shown to the owner.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """File a notice: the contribution is suspended at once, and for good unless its owner counters in time.

    Parameters
    ----------
    contribution
        Its id, ctb_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        found = opened.registry.get(ContributionId(contribution))
        ConsentStore(opened.db).file_takedown(found.id, claimant, reason, time.time_ns())
        _print(opened, found.id, json)
    return result.status


@app.command
def counter(notice: str, statement: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Counter a notice as the owner: unless the claimant opens a dispute in time, the contribution is restored.

    Parameters
    ----------
    notice
        Its id, td_….
    statement
        Why it is wrong; kept on record.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        one = ConsentStore(opened.db).counter(notice, statement, time.time_ns())
        _print(opened, one.contribution, json)
    return result.status


@app.command
def retract(notice: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Take a notice back as its claimant.

    Parameters
    ----------
    notice
        Its id, td_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        one = ConsentStore(opened.db).retract(notice, time.time_ns())
        _print(opened, one.contribution, json)
    return result.status


@app.command
def show(contribution: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """What was said about a contribution since it was registered, and who has owned it.

    Parameters
    ----------
    contribution
        Its id, ctb_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print(opened, opened.registry.get(ContributionId(contribution)).id, json)
    return result.status


@app.command
def adapters(
    rule: AdapterRule | None = None, /, *, by: By = "operator", home: HomeOption = None, json: JsonOption = False
) -> int:
    """Adapters that learned from something taken back, and what becomes of them; with a rule, decide that.

    Parameters
    ----------
    rule
        stop: not served (the default); flag: served, on record, unless it was erased or taken down; serve: served.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        consents, now = ConsentStore(opened.db), time.time_ns()
        if rule is not None:
            consents.set_adapter_rule(rule, by, now)
        in_force, rows = consents.adapter_rule(), []
        for name in opened.adapters.names():
            trained_on = [one.contribution for one in opened.adapters.get(name).lineage.trained_on]
            found = adapter_standing(trained_on, consents.standing(trained_on), now, in_force)
            rows.append({"adapter": name, "serves": found.serves, "flagged": [list(one) for one in found.flagged]})
        if json:
            print_json({"rule": in_force, "adapters": rows})
        else:
            out.print(f"rule: {in_force}")
            for row in rows:
                out.print(escape(f"{row['adapter']}: {'served' if row['serves'] else 'not served'}, {row['flagged']}"))
    return result.status


def _print(home: Home, contribution: ContributionId, as_json: bool) -> None:
    found = consent_json(home, contribution)
    if as_json:
        print_json(found)
        return
    out.print(f"{contribution}: {'in use' if found['usable'] else escape(found['why']['message'])}", soft_wrap=True)
    for one in found["takedowns"]:
        until = f" until {one['deadline']}" if one["deadline"] else ""
        out.print(escape(f"  notice {one['notice']} of {one['claimant']}: {one['state']}{until}"), soft_wrap=True)
    for one in found["owners"]:
        names = ", ".join(f"{o['contributor']} {o['share_ppb']} ppb" for o in one["owners"])
        out.print(escape(f"  {one['at']} {one['cause']}: {names}"), soft_wrap=True)
