"""`headwater audit …`: the trail of what operators did."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.core.canonical import canonical
from headwater.core.errors import HeadwaterError
from headwater.core.instants import format_instant
from headwater.store.audit_trail import AuditTrail

app = App(name="audit", help="Who did what: keys, credit, reloads, policies; append-only and chained.")


@app.command(name="list")
def list_(
    *,
    limit: Annotated[int, Parameter(help="How many, at most 1,000.")] = 50,
    before: Annotated[int | None, Parameter(help="Only entries with a smaller number.")] = None,
    subject: Annotated[str | None, Parameter(help="Only acts on this key, contribution or file.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Acts, newest first: a line for each, and one of what it said."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        rows = AuditTrail(opened.db).entries(before=before, limit=limit, subject=subject)
        if json:
            print_json([row.to_json() for row in rows])
        elif not rows:
            out.print("nothing has been done yet")
        else:
            for row in rows:
                when = format_instant(row.at_ns)[:19] + "Z"
                out.print(
                    f"{row.number:>5}  {when}  {row.action:<16} {row.subject}  by {row.actor}",
                    markup=False,
                    soft_wrap=True,
                )
                if row.detail:
                    out.print(f"       {canonical(dict(row.detail)).decode()}", markup=False, soft_wrap=True)
    return result.status


@app.command
def check(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """Whether any entry was changed or taken out, and the head to publish. Status 1 when one was."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        trail = AuditTrail(opened.db)
        problems, (entries, head) = trail.check(), trail.head()
        if json:
            print_json({"entries": entries, "head": head.hex(), "problems": [str(problem) for problem in problems]})
        else:
            out.print(f"{entries} entries, head {head.hex() or 'none'}", soft_wrap=True)
        if problems:
            raise HeadwaterError(str(problems[0]), code=problems[0].code, fix=problems[0].fix)
    return result.status
