"""`headwater feedback …`: look at the feedback that callers gave, and decide what may be trained on."""

from __future__ import annotations

import time
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.core.ids import ContributionId
from headwater.core.instants import format_instant
from headwater.registry.feedback import Review, read_feedback
from headwater.store.consent_store import ConsentStore
from headwater.store.feedback_store import FeedbackRecord, FeedbackStore

app = App(name="feedback", help="Feedback of callers: look at it, accept or decline it, withdraw it.")

_SHOWN_CHARS = 60


@app.command(name="list")
def list_feedback(
    *,
    review: Annotated[Review | None, Parameter(help="Only in this state of review.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """What callers said of answers, oldest first."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        found = [_described(opened, record) for record in FeedbackStore(opened.db, opened.registry).list(review)]
        if json:
            print_json({"feedback": found})
        elif not found:
            out.print("no feedback yet")
        else:
            whole = Column("contribution", no_wrap=True, min_width=36)
            table = Table(whole, "review", "rating", "prompt", "better answer", box=None)
            for one in found:
                texts = (_brief(one["prompt"]), _brief(one["chosen"]))
                table.add_row(one["contribution"], one["review"], one["rating"] or "", *map(escape, texts))
            out.print(table)
    return result.status


@app.command
def accept(
    *contributions: str,
    by: Annotated[str, Parameter(help="Who decides; kept on record.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Let feedback be trained on.

    Parameters
    ----------
    contributions
        Its ids, ctb_….
    """
    return _reviewed(contributions, "accepted", by, home, json)


@app.command
def decline(
    *contributions: str,
    by: Annotated[str, Parameter(help="Who decides; kept on record.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Keep feedback from being trained on.

    Parameters
    ----------
    contributions
        Its ids, ctb_….
    """
    return _reviewed(contributions, "declined", by, home, json)


@app.command
def withdraw(
    contribution: str,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; kept on record.")] = "",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Record that a contribution was withdrawn: it is never trained on again.

    Parameters
    ----------
    contribution
        Its id, ctb_…; of any kind.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        found = opened.registry.get(ContributionId(contribution))
        new = ConsentStore(opened.db).withdraw(found.id, "operator", reason, time.time_ns())
        if json:
            print_json({"contribution": found.id, "withdrawn": True, "new": new})
        else:
            out.print(f"{found.id} is withdrawn")
    return result.status


def _reviewed(contributions: tuple[str, ...], verdict: Review, by: str, home: HomeOption, json: bool) -> int:
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        store = FeedbackStore(opened.db, opened.registry)
        with opened.db.transaction():
            records = [store.review(ContributionId(one), verdict, by, time.time_ns()) for one in contributions]
        if json:
            print_json({"feedback": [_described(opened, record) for record in records]})
        else:
            out.print(f"{len(records)} {verdict}")
    return result.status


def _described(home: Home, record: FeedbackRecord) -> dict[str, Any]:
    said = read_feedback(home.registry.content(record.contribution))
    return {
        "contribution": record.contribution,
        "receipt": record.receipt,
        "key": record.key_id,
        "given_at": format_instant(record.given_at_ns),
        "review": record.review,
        "copied_from": record.copied_from,
        "rating": said.rating,
        "prompt": said.prompt,
        "chosen": said.chosen,
        "rejected": said.rejected,
        "comment": said.comment,
        "trainable": said.trainable and record.review == "accepted",
    }


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else line[: _SHOWN_CHARS - 1] + "…"
