"""`headwater review …`: who looks at what is submitted to a datanet, and how well.

Exit status: 0 all well, 1 refused or failed.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.contribution_files import files_in, parse_owner
from headwater.cli.datanet import submission_json
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.cli.review_drawing import public_value
from headwater.core.errors import InvalidError, RefusedError
from headwater.core.instants import format_instant
from headwater.core.money import PPB
from headwater.registry import account_for
from headwater.registry.review import REASONS, Reason, Verdict, Vote
from headwater.registry.review_pay import Work, share_line
from headwater.registry.review_scores import TASKS_MIN, measure
from headwater.store.audit_trail import AuditTrail
from headwater.store.datanet_store import DatanetStore
from headwater.store.review_settling import Reviewing, Settled

app = App(name="review", help="Who looks at what is submitted to a datanet, and how well.")

Namespace = Annotated[str, Parameter(help="Who vouches for names.")]
By = Annotated[str, Parameter(help="Who you are: a name, or an id ctr_….")]
Value = Annotated[str, Parameter(help="Public value to draw reviewers by [default: the head of the receipts' log].")]
ValueSource = Annotated[str, Parameter(help="Where that value can be looked up.")]
TEXT_SHOWN_CHARS = 4_000


@app.command
def reviewers(
    datanet: str,
    /,
    *,
    add: Annotated[tuple[str, ...], Parameter(negative=(), help="Name or id; once for each.")] = (),
    remove: Annotated[tuple[str, ...], Parameter(negative=(), help="Name or id; once for each.")] = (),
    namespace: Namespace = "local",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Who may be drawn to review for a datanet; add and remove some.

    Parameters
    ----------
    datanet
        Its name or id.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        kept, reviewing = DatanetStore(opened.db).get(datanet), Reviewing(opened.db, opened.registry)
        known = {one.id for one in opened.registry.contributors()}
        for text in add:
            named = parse_owner(text, namespace)
            if named.contributor is not None and named.id not in known:
                opened.registry.add_contributor(named.contributor)
            opened.registry.contributor(named.id)
            if named.id == kept.datanet.owner:
                raise InvalidError(
                    f"{text} owns {kept.datanet.name}", code="reviewer_is_owner", fix="let somebody else review"
                )
            reviewing.reviews.add_reviewer(kept.number, named.id, time.time_ns())
        for text in remove:
            reviewing.reviews.remove_reviewer(kept.number, parse_owner(text, namespace).id, time.time_ns())
        names = {one: opened.registry.contributor(one).name for one in reviewing.reviews.reviewers(kept.number)}
        if json:
            print_json({"reviewers": [{"id": one, "name": name} for one, name in names.items()]})
        else:
            for one, name in names.items():
                out.print(f"{one}  {name}", markup=False)
            out.print(f"{len(names)} reviewers")
    return result.status


@app.command
def gold(
    datanet: str,
    path: Path,
    /,
    *,
    verdict: Annotated[Verdict, Parameter(help="The right answer for these items.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Add text files whose right answer is known: 5 to 10 % of what reviewers see, and looking like the rest.

    Parameters
    ----------
    datanet
        Its name or id.
    path
        File or folder of .txt and .md files.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        kept, reviewing = DatanetStore(opened.db).get(datanet), Reviewing(opened.db, opened.registry)
        now = time.time_ns()
        added = [
            reviewing.reviews.add_gold(kept.number, file.stem, file.read_bytes(), verdict, now)
            for file in files_in(path)
        ]
        total = reviewing.reviews.gold_count(kept.number)
        if json:
            print_json({"added": sum(added), "gold": total, "commitment": reviewing.reviews.commitment(kept.number)})
        else:
            out.print(f"{sum(added)} added, {total} gold items")
    return result.status


@app.command
def settle(
    *,
    value: Value = "",
    source: ValueSource = "",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Do what is due: draw reviewers, replace those who did not answer, decide, end what nobody appealed."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        done = _settle(opened, value, source)
        if json:
            print_json(asdict(done))
        else:
            out.print(", ".join(f"{count} {name}" for name, count in asdict(done).items()))
    return result.status


@app.command(name="next")
def next_(
    *,
    by: By,
    datanet: Annotated[str, Parameter(help="Only of this datanet.")] = "",
    limit: int = 1,
    namespace: Namespace = "local",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """What you are asked to look at."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _settle(opened)
        reviewing = Reviewing(opened.db, opened.registry)
        number = DatanetStore(opened.db).get(datanet).number if datanet else None
        tasks = reviewing.reviews.next(parse_owner(by, namespace).id, number, limit)
        shown = [reviewing.question(task) for task in tasks]
        if json:
            print_json({"tasks": [asdict(one) for one in shown]})
        elif not shown:
            out.print("nothing to look at now")
        for one in [] if json else shown:
            out.print(f"[bold]{one.task}[/] {escape(one.datanet)}: {escape(one.title)}")
            out.print(one.text[:TEXT_SHOWN_CHARS], markup=False)
            if one.notes:
                out.print(f"[yellow]look at[/] {escape(', '.join(one.notes))}")
    return result.status


@app.command
def decide(
    task: str,
    verdict: Verdict,
    /,
    *,
    by: By,
    reason: Annotated[tuple[Reason, ...], Parameter(negative=(), help="Why it is refused; once for each.")] = (),
    note: str = "",
    namespace: Namespace = "local",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Vote on a task: accept, or refuse with a reason. A vote stays.

    Parameters
    ----------
    task
        Its id, rvt_….
    verdict
        accept or refuse.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        vote = Vote(parse_owner(by, namespace).id, verdict, reason, note)
        reviewing = Reviewing(opened.db, opened.registry)
        slashed = reviewing.vote(task, vote, time.time_ns())
        _settle(opened)
        if json:
            print_json({"task": task, "verdict": verdict, "slashed": None if slashed is None else asdict(slashed)})
        else:
            out.print(f"{verdict}: {task}")
            if slashed is not None:
                out.print(f"right on {slashed.right} of {slashed.answered} known answers: you review no more")
    return result.status


@app.command
def appeal(
    submission: str,
    /,
    *,
    by: By,
    reason: Annotated[str, Parameter(help="Why the decision is wrong.")],
    value: Value = "",
    source: ValueSource = "",
    namespace: Namespace = "local",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Appeal a decision once: reviewers who were not asked before decide, and that is final.

    Parameters
    ----------
    submission
        Its id, sub_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _settle(opened)
        drawn_by, words = public_value(opened, value, source)
        found = Reviewing(opened.db, opened.registry).appeal(
            submission,
            parse_owner(by, namespace).id,
            reason,
            time.time_ns(),
            public_value=drawn_by,
            source=words,
        )
        if json:
            print_json(submission_json(found))
        else:
            out.print(f"{found.id} is {found.state}", markup=False)
    return result.status


@app.command
def accuracy(
    *,
    datanet: Annotated[str, Parameter(help="Measure agreement in this datanet alone.")] = "",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """How well each reviewer does: on known answers, with outcomes, and beside the others; and what that pays."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        reviews = Reviewing(opened.db, opened.registry).reviews
        number = DatanetStore(opened.db).get(datanet).number if datanet else None
        reports = reviews.reports(number)
        rows = []
        for one in reviews.ever_reviewed():
            measured, record = measure(one, reports), reviews.gold_record(one)
            right, answered = reviews.agreement(one)
            slashes = [{**asdict(slash), "at": format_instant(at)} for slash, at in reviews.slashes(one)]
            rows.append(
                {
                    "reviewer": one,
                    "name": opened.registry.contributor(one).name,
                    "gold": {"answered": record.answered, "right": record.right, "accuracy_ppm": record.accuracy_ppm},
                    "outcomes": {"answered": answered, "as_decided": right},
                    "shared_tasks": measured.shared_tasks,
                    "agreement_ppm": measured.agreement_ppm,
                    "determinant_ppm": measured.determinant_ppm,
                    "multiplier_ppm": measured.multiplier_ppm,
                    "unpaid_tasks": reviews.unpaid(number).get(one, 0),
                    "slashes": slashes,
                }
            )
        if json:
            print_json({"reviewers": rows, "reasons": list(REASONS)})
        else:
            out.print(_accuracy_table(rows) if rows else "nobody reviews yet")
    return result.status


@app.command
def pay(
    *,
    line: Annotated[str, Parameter(help="Line of the policy that reviewers share.")] = "reviewers",
    datanet: Annotated[str, Parameter(help="Count the work for this datanet alone.")] = "",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Share the policy's reviewers' line by the work done since the last time: tasks, times what they were worth.

    Writes the next version of the policy; from the server's next start or reload on, every receipt pays the line to
    these people. Who is not measured yet keeps their tasks for the next time.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        reviews = Reviewing(opened.db, opened.registry).reviews
        number = DatanetStore(opened.db).get(datanet).number if datanet else None
        reports = reviews.reports(number)
        shared = share_line(
            Work(one, tasks, measure(one, reports).multiplier_ppm, bool(reviews.slashes(one)))
            for one, tasks in reviews.unpaid(number).items()
        )
        if not shared.shares:
            raise RefusedError(
                f"none of {len(shared.waiting)} reviewers can be paid yet",
                code="reviewers_unmeasured",
                fix=f"a reviewer is paid once {TASKS_MIN} of their tasks were decided together with others",
            )
        payees = tuple((account_for(opened.registry.contributor(one)), share) for one, share in shared.shares)
        path = Path(opened.settings.policy) if opened.settings.policy else opened.path / "policy.toml"
        policy = opened.policy.with_payees(line, payees)
        now = time.time_ns()
        with opened.db.transaction():
            reviews.add_share(number, shared.shares, shared.counted, policy.digest, now)
            AuditTrail(opened.db).record(
                now, "cli", "policy.share", policy.digest, {"line": line, "payees": len(payees)}
            )
            draft = path.with_name(f".{path.name}.draft")
            draft.write_text(policy.to_toml(), "utf-8")
            draft.replace(path)
        value = {
            "policy": policy.digest,
            "version": policy.version,
            "line": line,
            "payees": [{"account": account, "share_ppb": share} for account, share in payees],
            "waiting": list(shared.waiting),
        }
        if json:
            print_json(value)
        else:
            for account, share in payees:
                out.print(f"{account}  {share / PPB:.2%} of {line}", markup=False)
            out.print(f"{len(shared.waiting)} wait; policy version {policy.version} is in {path.name}")
    return result.status


@app.command
def check(datanet: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Draw all reviewers again by the public values that were kept; whether they are who was asked.

    Parameters
    ----------
    datanet
        Its name or id.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        reviewing = Reviewing(opened.db, opened.registry)
        problems = reviewing.recheck(DatanetStore(opened.db).get(datanet))
        if json:
            print_json({"problems": [asdict(problem) for problem in problems]})
        else:
            for problem in problems:
                out.print(escape(str(problem)))
            out.print("everybody was drawn by the public values" if not problems else f"{len(problems)} problems")
        result.status = 1 if problems else 0
    return result.status


def _settle(home: Home, value: str = "", source: str = "") -> Settled:
    drawn_by, words = public_value(home, value, source)
    return Reviewing(home.db, home.registry).settle(time.time_ns(), public_value=drawn_by, source=words)


def _accuracy_table(rows: list[dict[str, Any]]) -> Table:
    right = [Column(name, justify="right") for name in ("known answers", "as decided", "agreement", "pays", "unpaid")]
    table = Table("reviewer", *right, "", box=None)
    for row in rows:
        known, decided = row["gold"], row["outcomes"]
        multiplier = row["multiplier_ppm"]
        table.add_row(
            escape(row["name"]),
            f"{known['right']}/{known['answered']}",
            f"{decided['as_decided']}/{decided['answered']}",
            f"{min(row['agreement_ppm'], row['determinant_ppm']) / 10**6:.2f}",
            "not yet" if multiplier is None else f"x {multiplier / 10**6:.2f}",
            str(row["unpaid_tasks"]),
            "slashed" if row["slashes"] else "",
        )
    return table
