"""`headwater attribution …`: who supplied an answer, for files of cases; evaluation is mounted beside it."""

from __future__ import annotations

import hashlib
import json as json_text
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from headwater.attribution.account import Rules, attribute
from headwater.attribution.budget import PASSES_DEFAULT, Budget
from headwater.attribution.cases import Case, case_result, read_case
from headwater.attribution.evidence import layout_bytes
from headwater.cli.options import JsonOption, outcome
from headwater.cli.output import err, out, print_json, progress
from headwater.core.canonical import canonical
from headwater.core.errors import HeadwaterError, InvalidError, MissingError, Problem
from headwater.models import Precision, load_scorer, shipped_reference

app = App(name="attribution", help="Measure who supplied an answer, in bits.")
app.command("headwater.cli.attribution_eval:app", name="eval")  # imported when it is used: peers load slowly


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a file of cases, or what is wrong with it."""

    number: int
    case: Case | None
    problem: Problem | None


@app.command
def context(
    *,
    cases: Annotated[Path, Parameter(help="JSON lines: id, parts (id, owner, text, fixed) and answer.")],
    out_file: Annotated[Path, Parameter(name="--out", help="Where the accounts go, one JSON line a case.")],
    passes: Annotated[int, Parameter(help="Prompts scored for one answer, at most.")] = PASSES_DEFAULT,
    tolerance_bits: Annotated[float, Parameter(help="Stop when every share is known to so many bits; 0: never.")] = 0.0,
    precision: Annotated[Precision, Parameter(help="Arithmetic of the scorer.")] = "float32",
    seed: Annotated[int, Parameter(help="Of what a sampled account draws.")] = 0,
    keep_copies: Annotated[
        bool, Parameter(negative=(), help="Measure near-copies and parts of one owner each by itself.")
    ] = False,
    apart: Annotated[
        bool, Parameter(negative=(), help="Tokenise part by part, as the gateway serves; default: as one text.")
    ] = False,
    per_token: Annotated[
        bool, Parameter(negative=(), help="Write every part's bits at every answer token too.")
    ] = False,
    resume: Annotated[
        bool,
        Parameter(negative=(), help="Keep the accounts of the same texts and settings that --out has; do the rest."),
    ] = False,
    json: JsonOption = False,
) -> int:
    """Attribute the answers of a file of cases to the parts of their prompts.

    Texts are what the model sees, chat template included. A line that cannot be read or measured is reported with its
    number and the rest is done; the status is then 1.
    """
    with outcome(json) as result:
        budget = Budget(passes, tolerance_bits)
        lines = _read(cases, joined=not apart)
        _check_places(cases, out_file)
        asked = {"budget": asdict(budget), "precision": precision, "seed": seed, "merge": not keep_copies}
        asked |= {"joined": not apart, "per_token": per_token}
        digests = {line.case.id: _digest(line.case, asked) for line in lines if line.case is not None}
        partial = out_file.with_name(out_file.name + ".partial")
        done = _done(out_file, partial, digests) if resume else {}
        problems = [line.problem for line in lines if line.problem is not None]
        waiting = [line for line in lines if line.case is not None and line.case.id not in done]
        rows = dict(done)
        _replace(partial, done.values())
        with partial.open("a", encoding="utf-8") as kept, progress(quiet=json) as bars:
            task = bars.add_task("cases", total=len(waiting))
            if waiting:
                scorer, reference = load_scorer(precision=precision), shipped_reference()
                scorer.score([(1,)], (1,))  # compiled code is loaded here, not in the first case
            for line in waiting:
                assert line.case is not None
                start = time.process_time()
                try:
                    found = attribute(
                        scorer,
                        line.case.layout,
                        line.case.answer,
                        budget=budget,
                        seed=seed,
                        reference=reference,
                        rules=Rules(merge=not keep_copies),
                    )
                except HeadwaterError as error:
                    problems.append(Problem(f"line {line.number}", error.code, error.message, error.fix or ""))
                else:
                    extra: dict[str, Any] = {
                        "precision": precision,
                        "scorer": scorer.digest,
                        "measured": digests[line.case.id],
                        "cpu_s": round(time.process_time() - start, 3),
                    }
                    if per_token:
                        extra["token_bits"] = {
                            share.part_id: [round(float(b), 9) for b in share.token_bits] for share in found.shares
                        }
                    bits = float(reference.bits(scorer.tokenize(line.case.answer, control=False)).sum())
                    row = case_result(line.case, found, bits, extra)
                    rows[line.case.id] = row
                    _write(kept, row)
                bars.advance(task)
        _finish(partial, out_file, lines, rows)
        _report(rows, problems, len(done), as_json=json)
        result.status = 1 if problems else 0
    return result.status


def _read(path: Path, *, joined: bool) -> tuple[_Line, ...]:
    """Every line of a file of cases; blank ones are passed over."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise MissingError(
            f"{path} cannot be read: {error.strerror}", code="cases_missing", fix="give a file of JSON lines"
        ) from None
    seen: dict[str, int] = {}

    def each() -> Iterator[_Line]:
        for number, line in enumerate(raw.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                case = read_case(line.decode("utf-8"), joined=joined)
                if case.id in seen:
                    raise InvalidError(
                        f"case {case.id!r} is on line {seen[case.id]} too",
                        code="case_repeated",
                        fix="give it its own id",
                    )
            except UnicodeDecodeError as error:
                yield _Line(number, None, Problem(f"line {number}", "case_invalid", str(error), "write UTF-8"))
            except HeadwaterError as error:
                yield _Line(number, None, Problem(f"line {number}", error.code, error.message, error.fix or ""))
            else:
                seen[case.id] = number
                yield _Line(number, case, None)

    return tuple(each())


def _digest(case: Case, asked: dict[str, Any]) -> str:
    """What was measured and how: an account is kept by --resume only for the same texts and settings."""
    said = layout_bytes(case.layout, b"") + canonical([case.answer, json_text.dumps(asked, sort_keys=True)])
    return "sha256:" + hashlib.sha256(said).hexdigest()


def _done(out_file: Path, partial: Path, digests: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Accounts of an earlier run, finished or cut short, whose texts and settings are these; a torn line is not."""
    rows: dict[str, dict[str, Any]] = {}
    for path in (out_file, partial):
        if not path.exists():
            continue
        for line in path.read_bytes().split(b"\n"):  # JSON may hold characters that other readers end a line at
            try:
                row = json_text.loads(line)
            except ValueError:
                continue
            name = row.get("id") if isinstance(row, dict) else None
            if isinstance(name, str) and row.get("measured") == digests.get(name, row.get("measured")):
                rows[name] = row
    return rows


def _check_places(cases: Path, out_file: Path) -> None:
    if not out_file.parent.is_dir():
        raise MissingError(f"there is no folder {out_file.parent}", code="folder_missing", fix="make it first")
    if out_file.is_dir():
        raise InvalidError(f"{out_file} is a folder", code="out_invalid", fix="give the name of a file")
    if out_file.exists() and out_file.samefile(cases):
        raise InvalidError(f"{out_file} is the file of cases", code="out_invalid", fix="give another file to write")


def _write(stream: Any, row: dict[str, Any]) -> None:
    text = json_text.dumps(row, ensure_ascii=False)
    for end in "\u0085\u2028\u2029":  # characters at which some readers end a line; only ever inside a string
        text = text.replace(end, f"\\u{ord(end):04x}")
    stream.write(text + "\n")
    stream.flush()


def _replace(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file beside its place and put it there whole: a run that is killed here loses nothing."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as stream:
        for row in rows:
            _write(stream, row)
        os.fsync(stream.fileno())
    os.replace(beside, path)


def _finish(partial: Path, out_file: Path, lines: tuple[_Line, ...], rows: dict[str, dict[str, Any]]) -> None:
    """Put the accounts in the order of the cases and the file in its place, whole."""
    order = {line.case.id: line.number for line in lines if line.case is not None}
    _replace(out_file, sorted(rows.values(), key=lambda row: order.get(row["id"], -1)))
    partial.unlink(missing_ok=True)


def _report(rows: dict[str, dict[str, Any]], problems: list[Problem], kept: int, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "cases": len(rows),
                "kept": kept,
                "cpu_s": round(sum(row.get("cpu_s", 0.0) for row in rows.values()), 3),
                "problems": [{"where": p.where, "code": p.code, "message": p.message, "fix": p.fix} for p in problems],
            }
        )
        return
    table = Table(box=None)
    for heading in ("case", "grade", "players", "passes", "context bits", "residual", "CPU-s"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for row in rows.values():
        table.add_row(
            str(row["id"])[:40],
            row["grade"],
            str(row["players"]),
            str(row["passes"]),
            f"{row['total_bits'] - row['base_bits']:.1f}",
            f"{row['residual_ppb'] / 1e7:.1f} %",
            f"{row.get('cpu_s', 0.0):.1f}",
        )
    out.print(table)
    for problem in problems:
        err.print(str(problem), markup=False)
