"""`headwater adapter …`: train low-rank adapters on registered contributions, look at them, measure and export them.

Training may be interrupted and given again: it goes on from its last durable state. Exit status: 0 all
well, 1 refused or failed.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.adapter_progress import ProgressFile
from headwater.cli.datanet_use import contributions_of, version_name
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json, progress
from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.core.ids import ContributionId
from headwater.core.money import parse_units
from headwater.models.adapters import CHECKPOINTS, GGUF_FILE, StoredAdapter
from headwater.models.factory import Dataset, Recipe, Row, assemble, projections, read_rows, rows_of
from headwater.models.lora import CONFIG_FILE, WEIGHTS_FILE
from headwater.registry import Ownership, parse_expression, unenrolled
from headwater.registry.intake import Candidate
from headwater.registry.lineage import HeldOut, Lineage
from headwater.store.consent_store import ConsentStore
from headwater.store.feedback_store import FeedbackStore

if TYPE_CHECKING:
    from headwater.models.factory.factory import Base, Made

app = App(name="adapter", help="Train adapters on registered contributions, measure and serve them.")

_DEFAULT = Recipe()
_UNREGISTERED = ContributionId("ctb_" + "0" * 32)  # of rows that only measure
_WHOLE_PPB = 10**9

Dataset_ = Annotated[
    tuple[Path, ...],
    Parameter(negative=(), help="JSONL of rows: text, or prompt and completion, or pairs; each with its contribution."),
]
Pairs_ = Annotated[
    tuple[Path, ...], Parameter(negative=(), help="JSONL of preference pairs: prompt, chosen, rejected, contribution.")
]
BaseOption = Annotated[Path | None, Parameter(help="GGUF file of the base model [default: the demo model].")]


@app.command
def train(
    name: str,
    /,
    *,
    owner: Annotated[str, Parameter(help="Who trains it and will own it.")],
    dataset: Dataset_ = (),
    pairs: Pairs_ = (),
    contribution: Annotated[
        tuple[str, ...], Parameter(negative=(), help="Train on the whole of this contribution, ctb_…; once for each.")
    ] = (),
    datanet: Annotated[
        tuple[str, ...], Parameter(negative=(), help="Train on this version of a datanet, NAME@VERSION; once for each.")
    ] = (),
    feedback: Annotated[bool, Parameter(negative=(), help="Train on all accepted feedback as well.")] = False,
    base: BaseOption = None,
    parent: Annotated[str, Parameter(help="Adapter to go on from.")] = "",
    license: Annotated[str, Parameter(help="Licence of the adapter.")] = "Apache-2.0",
    namespace: Annotated[str, Parameter(help="Who vouches for the owner's name.")] = "local",
    price_floor: Annotated[str, Parameter(help="Least price of a call that may use it, in the currency.")] = "0",
    rank: int = _DEFAULT.rank,
    alpha: float = _DEFAULT.alpha,
    projection: Annotated[str, Parameter(help="What is adapted: q, k, v, o, gate, up, down.")] = "q,k,v,o",
    layers: Annotated[int, Parameter(help="How many of the last layers.")] = _DEFAULT.layers,
    learning_rate: float = _DEFAULT.learning_rate,
    batch: Annotated[int, Parameter(help="Rows a step.")] = _DEFAULT.batch,
    epochs: int = _DEFAULT.epochs,
    steps: Annotated[int, Parameter(help="Stop after so many steps; 0 for all epochs.")] = _DEFAULT.steps_max,
    beta: Annotated[float, Parameter(help="How far preference pairs may move it.")] = _DEFAULT.beta,
    tokens_max: Annotated[int, Parameter(help="Longest row; longer texts are cut.")] = _DEFAULT.tokens_max,
    holdout: Annotated[float, Parameter(help="Part of the rows kept out, to measure it.")] = 0.1,
    credit: Annotated[bool, Parameter(help="Build the influence index that shares its earnings.")] = True,
    checkpoints: Annotated[int, Parameter(help="Checkpoints that the index averages.")] = 1,
    frozen: Annotated[str, Parameter(help="Arithmetic of the base: float32 or bfloat16.")] = "float32",
    seed: int = _DEFAULT.seed,
    progress_file: Annotated[
        Path | None, Parameter(help="Write how far it is to this file, for others to read.")
    ] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Train an adapter, measure it on held-out rows, sign its lineage and register it.

    The same command gives the same bits, and goes on where it was interrupted. When it is finished the
    adapter is served as MODEL+NAME. Without --credit what it earns beyond the trainer's part is paid to nobody.

    Parameters
    ----------
    name
        Name of the adapter: a-z, 0-9, dot, dash and underscore.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        recipe = Recipe(
            rank=rank,
            alpha=alpha,
            projections=projections(projection),
            layers=layers,
            learning_rate=learning_rate,
            batch=batch,
            epochs=epochs,
            steps_max=steps,
            beta=beta,
            tokens_max=tokens_max,
            holdout_ppm=_ppm(holdout),
            frozen=frozen,  # type: ignore[arg-type]  # checked by the recipe
            seed=seed,
        )
        parse_expression(license)
        floor_units = parse_units(price_floor, where="price_floor")
        if floor_units < 0:
            raise InvalidError(f"price_floor is {price_floor}", code="amount_out_of_range", fix="give 0 or more")
        pooled = [one for reference in datanet for one in contributions_of(opened, reference, "train")]
        versions = " ".join(version_name(opened, reference) for reference in datanet)
        rows = _rows(opened, dataset, pairs, (*contribution, *pooled), feedback)
        data = _assembled(opened, rows, recipe)
        told = ProgressFile(progress_file)
        made = _train(opened, name, data, recipe, base, parent, told, quiet=json)
        if credit:
            _credit(opened, made.stored, data, base, parent, checkpoints, told, quiet=json)
        registered = register(opened, made.stored.lineage, owner, namespace, license, floor_units, datanets=versions)
        if json:
            print_json(
                {**_described(made.stored), "resumed_at_step": made.trained.resumed_at, "registered": registered}
            )
        else:
            _print_made(made, data)
    return result.status


@app.command(name="list")
def list_adapters(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """The adapters of a home."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        stored = [opened.adapters.get(name) for name in opened.adapters.names()]
        if json:
            print_json({"adapters": [_described(one) for one in stored]})
        elif not stored:
            out.print("no adapter yet; train one with [bold]headwater adapter train[/]")
        else:
            whole = Column("contribution", no_wrap=True, min_width=36)
            table = Table("name", whole, "steps", "trained on", "held-out loss", "served as", box=None)
            for one in stored:
                lineage = one.lineage
                served = f"{opened.settings.model_name}+{one.name}"
                table.add_row(
                    one.name,
                    one.contribution,
                    str(lineage.steps),
                    str(len(lineage.trained_on)),
                    _change(lineage.before, lineage.after),
                    served,
                )
            out.print(table)
    return result.status


@app.command
def show(adapter: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """One adapter: its lineage, what it was trained on, and whether its files are those of its record.

    Parameters
    ----------
    adapter
        Its name, or the id of its contribution.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        stored = opened.adapters.get(adapter)
        opened.adapters.check(stored)
        gone = ConsentStore(opened.db).stopped([one.contribution for one in stored.lineage.trained_on], time.time_ns())
        if json:
            print_json({**_described(stored), "withdrawn": sorted(gone)})
            return 0
        lineage = stored.lineage
        table = Table("", "", box=None, show_header=False)
        for label, value in (
            ("name", stored.name),
            ("contribution", stored.contribution),
            ("adapter digest", lineage.adapter_digest),
            ("base", f"{lineage.base_name}  {lineage.base_digest}"),
            ("parent", lineage.parent or "none"),
            ("recipe", ", ".join(f"{name} {value}" for name, value in sorted(lineage.recipe.items()))),
            ("data", f"{lineage.data_digest}, order {lineage.order_digest}"),
            ("code", f"{lineage.code_version}, {lineage.code_digest}"),
            ("held-out loss", _change(lineage.before, lineage.after)),
            ("signed by", lineage.operator),
            ("files", "as recorded"),
        ):
            table.add_row(label, escape(value))
        for one in lineage.trained_on:
            state = f"  withdrawn: {gone[one.contribution]}" if one.contribution in gone else ""
            table.add_row("trained on", escape(f"{one.contribution}  {one.rows} rows, {one.tokens} tokens{state}"))
        out.print(table)
    return result.status


@app.command(name="eval")
def evaluate(
    adapter: str,
    /,
    *,
    dataset: Dataset_ = (),
    pairs: Pairs_ = (),
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Losses of the base and of an adapter on rows of your own; they need not be registered.

    Parameters
    ----------
    adapter
        Its name, or the id of its contribution.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _need_torch()
        from headwater.models.factory.factory import evaluate as measured

        rows = _from_files(dataset, pairs, default=_UNREGISTERED)
        stored = opened.adapters.get(adapter)
        with progress(quiet=json) as bars:
            task = bars.add_task("frozen layers", total=None)
            before, after = measured(
                rows,
                _base(None, stored.lineage.base_name),
                opened.adapters.load(stored.name),
                stored.lineage.recipe,
                opened.adapters.folder,
                lambda done, total: bars.update(task, completed=done, total=total),
            )
        if json:
            print_json({"adapter": stored.name, "base": _held(before), "with_adapter": _held(after)})
        else:
            out.print(f"base {_losses(before)}\nwith {stored.name} {_losses(after)}", markup=False)
    return result.status


@app.command
def export(
    adapter: str,
    folder: Path,
    /,
    *,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Copy an adapter out: PEFT's two files, the GGUF file, and its signed lineage.

    Parameters
    ----------
    adapter
        Its name, or the id of its contribution.
    folder
        Where to; it is made, and must not hold an adapter yet.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        stored = opened.adapters.get(adapter)
        opened.adapters.check(stored)
        if (folder / WEIGHTS_FILE).exists():
            raise InvalidError(f"{folder} holds an adapter already", code="folder_taken", fix="give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        names = [WEIGHTS_FILE, CONFIG_FILE, GGUF_FILE, "lineage.json", "lineage.sig"]
        for each in names:
            shutil.copyfile(stored.folder / each, folder / each)
        if json:
            print_json({"adapter": stored.name, "folder": str(folder), "files": names})
        else:
            out.print(f"{stored.name}: {', '.join(names)} in {folder}", markup=False)
    return result.status


def register(
    home: Home,
    lineage: Lineage,
    owner: str,
    namespace: str,
    license_expression: str,
    price_floor_units: int = 0,
    *,
    datanets: str = "",
) -> bool:
    """Register a finished adapter under its trainer; whether it was not registered before."""
    trainer = unenrolled(namespace, owner)
    known = {one.id: one for one in home.registry.contributors()}
    intake = home.registry.admit(
        [
            Candidate(
                where=lineage.name,
                kind="adapter",
                title=f"adapter {lineage.name}",
                content=lineage.to_bytes(),
                owners=(Ownership(trainer.id, _WHOLE_PPB),),
                license_expression=license_expression,
                uses=frozenset({"ground"}),
                registered_at_ns=time.time_ns(),
                source="adapter train",
                price_floor_units=price_floor_units,
                metadata=(
                    ("adapter_digest", lineage.adapter_digest),
                    ("base_digest", lineage.base_digest),
                    *((("datanets", datanets),) if datanets else ()),
                ),
            )
        ],
        [known.get(trainer.id, trainer)],
    )
    if intake.problems:
        problem = intake.problems[0]
        raise RefusedError(problem.message, code=problem.code, fix=problem.fix)
    return bool(intake.accepted)


def _rows(
    home: Home, dataset: tuple[Path, ...], pairs: tuple[Path, ...], contributions: tuple[str, ...], feedback: bool
) -> tuple[Row, ...]:
    rows = list(_from_files(dataset, pairs)) if dataset or pairs else []
    wanted = [ContributionId(each) for each in dict.fromkeys(contributions)]
    if feedback:
        gone = ConsentStore(home.db)
        accepted = [one.contribution for one in FeedbackStore(home.db, home.registry).list("accepted")]
        left = gone.stopped(accepted, time.time_ns())
        wanted += [each for each in accepted if each not in left and each not in wanted]
    for each in wanted:
        rows += rows_of(home.registry.get(each), home.registry.content(each))
    if not rows:
        raise InvalidError(
            "there are 0 rows to train on",
            code="dataset_empty",
            fix="give --dataset, --pairs, --contribution or --datanet, or --feedback once there is accepted feedback",
        )
    return tuple(rows)


def _from_files(
    dataset: tuple[Path, ...], pairs: tuple[Path, ...], default: ContributionId | None = None
) -> tuple[Row, ...]:
    rows = [row for path in dataset for row in read_rows(path, default=default)]
    rows += [row for path in pairs for row in read_rows(path, default=default, pairs_only=True)]
    if not rows:
        raise InvalidError("there are 0 rows", code="dataset_empty", fix="give --dataset or --pairs")
    return tuple(rows)


def _assembled(home: Home, rows: tuple[Row, ...], recipe: Recipe) -> Dataset:
    return assemble(
        rows,
        lookup=home.registry.get_many,
        content=home.registry.content,
        withdrawn=lambda ids: ConsentStore(home.db).stopped(ids, time.time_ns()),
        now_ns=time.time_ns(),
        holdout_ppm=recipe.holdout_ppm,
        seed=recipe.seed,
    )


def _train(
    home: Home,
    name: str,
    data: Dataset,
    recipe: Recipe,
    base: Path | None,
    parent: str,
    told: ProgressFile,
    *,
    quiet: bool,
) -> Made:
    _need_torch()
    from headwater.models.factory.factory import Reports, make
    from headwater.models.factory.training import Progress

    start = home.adapters.load(parent) if parent else None
    with progress(quiet=quiet) as bars:
        frozen = bars.add_task("frozen layers", total=None)
        steps = bars.add_task("training", total=None, visible=False)

        def on_states(done: int, total: int) -> None:
            bars.update(frozen, completed=done, total=total)
            told.at("frozen", done, total)

        def on_step(at: Progress) -> None:
            bars.update(frozen, visible=False)
            bars.update(
                steps, description=f"training, loss {at.loss:.3f}", completed=at.step, total=at.steps, visible=True
            )
            told.step(at.step, at.steps, at.loss, at.tokens)

        return make(
            name,
            data,
            _base(base, home.settings.model_name),
            recipe,
            home.adapters,
            home.signer,
            parent=start,
            reports=Reports(on_states, on_step),
        )


def _credit(
    home: Home,
    stored: StoredAdapter,
    data: Dataset,
    base: Path | None,
    parent: str,
    checkpoints: int,
    told: ProgressFile,
    *,
    quiet: bool,
) -> None:
    """Build the index before the adapter is registered, so that its first answer is credited already."""
    from headwater.models.factory.credit import build_index

    with progress(quiet=quiet) as bars:
        task = bars.add_task("influence index", total=None)

        def on_rows(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)
            told.at("index", done, total)

        build_index(
            stored,
            data,
            _base(base, home.settings.model_name),
            home.adapters.load(parent) if parent else None,
            checkpoints=checkpoints,
            progress=on_rows,
        )


def _base(path: Path | None, name: str) -> Base:
    from headwater.models.factory.factory import Base
    from headwater.models.gguf_file import open_gguf
    from headwater.models.smollm import file_digest, smollm_path
    from headwater.models.tokenizer import load_tokenizer
    from headwater.models.weights import load_weights

    path = path or smollm_path()
    file = open_gguf(path)
    return Base(name, load_weights(file, file_digest(path)), load_tokenizer(file))


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise MissingError("torch is not installed", code="torch_missing", fix="pip install 'headwater[torch]'")


def _ppm(part: float) -> int:
    if not 0.0 <= part <= 0.5:
        raise InvalidError(f"holdout is {part}", code="recipe_invalid", fix="use 0 to 0.5")
    return round(part * 1_000_000)


def _described(stored: StoredAdapter) -> dict[str, Any]:
    lineage = stored.lineage
    return {
        "name": stored.name,
        "contribution": stored.contribution,
        "adapter_digest": lineage.adapter_digest,
        "base": {"name": lineage.base_name, "digest": lineage.base_digest},
        "parent": lineage.parent,
        "recipe": lineage.recipe,
        "code": {"version": lineage.code_version, "digest": lineage.code_digest},
        "data": {
            "digest": lineage.data_digest,
            "order_digest": lineage.order_digest,
            "left_out": lineage.left_out,
            "contributions": [
                {"id": one.contribution, "rows": one.rows, "tokens": one.tokens} for one in lineage.trained_on
            ],
        },
        "steps": lineage.steps,
        "checkpoints": [
            {"step": step, "digest": text, "file": f"{CHECKPOINTS}/step-{step:07d}.npz"}
            for step, text in lineage.checkpoints
        ],
        "held_out": {"before": _held(lineage.before), "after": _held(lineage.after)},
        "operator": lineage.operator,
    }


def _held(held: HeldOut) -> dict[str, Any]:
    return {
        "rows": held.rows,
        "loss_nats_per_token": held.loss_micronats / 1e6,
        "pairs": held.pairs,
        "pair_loss_nats": held.pair_loss_micronats / 1e6,
        "pairs_right": held.pairs_right,
    }


def _losses(held: HeldOut) -> str:
    parts = []
    if held.rows:
        parts.append(f"{held.loss_micronats / 1e6:.4f} nats a token on {held.rows} rows")
    if held.pairs:
        parts.append(f"{held.pair_loss_micronats / 1e6:.4f} nats a pair, {held.pairs_right} of {held.pairs} right")
    return "; ".join(parts) or "nothing held out"


def _change(before: HeldOut, after: HeldOut) -> str:
    if not before.rows and not before.pairs:
        return "nothing held out"
    parts = []
    if before.rows:
        parts.append(f"{before.loss_micronats / 1e6:.3f} to {after.loss_micronats / 1e6:.3f}")
    if before.pairs:
        parts.append(f"pairs right {before.pairs_right} to {after.pairs_right} of {after.pairs}")
    return "; ".join(parts)


def _print_made(made: Made, data: Dataset) -> None:
    lineage = made.stored.lineage
    for left_out, earlier in data.repeated:
        out.print(f"[yellow]left out[/] {escape(left_out)} repeats {escape(earlier)}")
    if made.trained.resumed_at and made.trained.losses:
        out.print(f"went on from step {made.trained.resumed_at}")
    word = "trained" if made.trained.losses else "trained before"
    out.print(
        f"[green]{word}[/] {made.stored.name}  {made.stored.contribution}\n"
        f"{lineage.steps} steps on {len(data.training)} rows of {len(lineage.trained_on)} contributions; "
        f"held out {len(data.held_out)}: {_change(lineage.before, lineage.after)}"
    )
