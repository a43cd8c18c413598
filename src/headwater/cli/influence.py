"""`headwater influence …`: build an influence index, ask it, and hold estimators against retraining.

`build` and `score` take a loader, ``module:function``: a function without arguments that gives a `Material` or
anything with its fields. Exit status: 0 done, 1 refused (with `eval`: also when the index is unfit), 2 wrong usage.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from headwater.attribution.influence import InfluenceIndex
from headwater.attribution.influence.evaluation import INDEX, evaluate
from headwater.attribution.influence.report import as_values, page, verdict
from headwater.attribution.influence.small_tasks import small_tasks
from headwater.cli.options import JsonOption, outcome
from headwater.cli.output import err, out, print_json
from headwater.core.errors import InvalidError

app = App(name="influence", help="Which training examples, and whose, lowered the loss of an answer.")

Loader = Annotated[
    str, Parameter(help="module:function that gives model, task, examples, queries and contributors as attributes.")
]


@app.command
def build(
    index: Path,
    /,
    *,
    loader: Loader,
    damping: float | None = None,
    bits: int = 8,
    seed: int = 0,
    json: JsonOption = False,
) -> int:
    """Build an index; a build that was stopped goes on where it was.

    Parameters
    ----------
    index
        Folder to make.
    damping
        Times the mean curvature of a layer; by default by the number of labels.
    bits
        Most bits of a stored number.
    seed
        Of drawn labels.
    """
    with outcome(json) as result:
        material = _material(loader)
        with _bar("examples", quiet=json) as progress:
            made = InfluenceIndex.build(
                material.model,
                material.examples,
                material.task,
                index,
                contributors=getattr(material, "contributors", None),
                damping="auto" if damping is None else damping,
                bits=bits,
                seed=seed,
                progress=progress,
            )
        manifest = made.manifest
        value = {
            "digest": manifest.digest,
            "examples": manifest.examples,
            "contributors": len(manifest.contributors),
            "row_bytes": manifest.row_bytes,
        }
        if json:
            print_json(value)
        else:
            out.print(
                f"{manifest.examples:,} examples of {len(manifest.contributors):,} contributors, "
                f"{manifest.row_bytes:,} bytes each\n[dim]{manifest.digest}[/]"
            )
    return result.status


@app.command
def score(index: Path, /, *, loader: Loader, level: float = 0.9, json: JsonOption = False) -> int:
    """Show each contributor's mean score over the loader's queries, with its interval.

    Parameters
    ----------
    index
        Its folder.
    level
        Of the intervals.
    """
    with outcome(json) as result:
        material = _material(loader)
        opened = InfluenceIndex.open(index, model=material.model, task=material.task)
        found = opened.intervals(material.queries, level)
        order = found.estimate.argsort()[::-1]
        rows = [
            {
                "contributor": found.contributors[k],
                "score": float(found.estimate[k]),
                "low": float(found.low[k]),
                "high": float(found.high[k]),
                "sure": bool(found.sure[k]),
            }
            for k in order
        ]
        if json:
            print_json({"manifest": opened.manifest.digest, "level": level, "contributors": rows})
        else:
            table = Table("contributor", "score", "low", "high", "", box=None, header_style="bold")
            for row in rows:
                sure = "" if row["sure"] else "may be zero"
                table.add_row(str(row["contributor"]), *(f"{row[key]:.4g}" for key in ("score", "low", "high")), sure)
            out.print(table)
    return result.status


@app.command(name="eval")
def evaluate_(
    tasks: tuple[str, ...] = (),
    /,
    *,
    subsets: int = 24,
    seeds: int = 2,
    seed: int = 0,
    report: Path | None = None,
    json: JsonOption = False,
) -> int:
    """Retrain on halves of the data and see which estimator foresaw the losses.

    Parameters
    ----------
    tasks
        Names of small tasks that ship; all by default.
    subsets
        Halves of examples, and as many of contributors.
    seeds
        Trainings of each half.
    seed
        Of data, halves and trainings.
    report
        HTML page to write.
    """
    with outcome(json) as result:
        torch.set_num_threads(1)  # tiny matrices: threads only wait for one another
        known = small_tasks(seed)
        for name in tasks:
            if name not in known:
                raise InvalidError(f"no task {name!r}", code="task_unknown", fix=f"use {', '.join(known)}")
        done = []
        for name in tasks or tuple(known):
            small = known[name]()
            with _bar(name, quiet=json) as progress:
                done.append(
                    evaluate(
                        small.train,
                        small.examples,
                        small.queries,
                        small.contributors,
                        small.task,
                        name=name,
                        subsets=subsets,
                        seeds=seeds,
                        seed=seed,
                        mislabelled=small.mislabelled,
                        clock=time.process_time,
                        progress=progress,
                    )
                )
        if report is not None:
            report.write_text(page(done), encoding="utf-8")
        if json:
            print_json(as_values(done))
        for evaluation in () if json else done:
            table = Table(
                evaluation.task,
                "by example",
                "by contributor",
                "summed",
                "CPU s",
                "payout",
                box=None,
                header_style="bold",
            )
            for row in evaluation.rows:
                cells = (f"{m.value:.3f} ± {m.error:.3f}" for m in (row.example, row.contributor))
                fit = "fit" if verdict(evaluation, row.name) is None else "no"
                table.add_row(row.name, *cells, f"{row.aggregate:.2f}", f"{row.cpu_s:.1f}", fit)
            table.add_row("ceiling", f"{evaluation.example_ceiling:.3f}", f"{evaluation.contributor_ceiling:.3f}")
            out.print(table)
            out.print(f"90 % intervals hold {evaluation.coverage:.0%} of measured effects\n")
        result.status = 1 if any(verdict(e, INDEX) is not None for e in done) else 0
    return result.status


def _material(loader: str) -> Any:
    """What the loader gives.

    Raises:
        InvalidError: no such function, or fields are missing.
    """
    module, _, name = loader.partition(":")
    try:
        found = getattr(import_module(module), name)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InvalidError(
            f"{loader!r} cannot be loaded: {error}",
            code="loader_invalid",
            fix="give module:function, without arguments",
        ) from None
    missing = [field for field in ("model", "task", "examples", "queries") if not hasattr(found, field)]
    if missing:
        raise InvalidError(
            f"what {loader!r} gives has no {', '.join(missing)}",
            code="loader_invalid",
            fix="give an object that has them",
        )
    return found


@contextmanager
def _bar(text: str, *, quiet: bool) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=quiet, transient=True) as bars:
        task = bars.add_task(text, total=None)

        def progress(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield progress
