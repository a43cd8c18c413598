"""From rows to an adapter that may be served: prepare, measure, train, measure again, sign, publish.

The work lies in a folder beside the adapters whose name holds the digest of the plan, so the same
command goes on where it was interrupted and another plan never meets its state. Nothing has the
adapter's name until it is finished. Registering it is the caller's.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from headwater.core.canonical import Json, canonical, digest, digest_of
from headwater.core.errors import ConflictError, InvalidError, InvariantError, UpstreamError
from headwater.models.adapters import CHECKPOINTS, GGUF_FILE, AdapterStore, StoredAdapter, check_name
from headwater.models.factory.examples import Example, tokenise, with_reference, with_states
from headwater.models.factory.network import TopLayers
from headwater.models.factory.recipe import Recipe
from headwater.models.factory.rows import Dataset, Row
from headwater.models.factory.task import AdapterTask
from headwater.models.factory.training import (
    Measured,
    Progress,
    Trained,
    checkpoint_name,
    held,
    measure,
    one_thread,
    schedule,
    train,
    write_whole,
)
from headwater.models.lora import CONFIG_FILE, WEIGHTS_FILE, Lora, check_fit, peft_bytes
from headwater.models.lora_gguf import gguf_bytes
from headwater.models.tokenizer import Tokenizer
from headwater.models.weights import LlamaWeights
from headwater.receipts.signing import Signer
from headwater.registry.lineage import HeldOut, Lineage, TrainedOn, signing_digest


@dataclass(frozen=True, slots=True)
class Base:
    """The model an adapter is trained on."""

    name: str
    weights: LlamaWeights
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True)
class Made:
    """A finished adapter."""

    stored: StoredAdapter
    trained: Trained
    before: Measured
    after: Measured
    training_tokens: int  # of one epoch


@dataclass(frozen=True, slots=True)
class Reports:
    """Who is told how far it is; each is called with done and total."""

    states: Callable[[int, int], None] | None = None
    step: Callable[[Progress], None] | None = None


def make(
    name: str,
    dataset: Dataset,
    base: Base,
    recipe: Recipe,
    store: AdapterStore,
    signer: Signer,
    *,
    parent: Lora | None = None,
    reports: Reports | None = None,
) -> Made:
    """Train an adapter and publish it; doing it again with the same arguments gives the same bits.

    Args:
        parent: an adapter to go on from; preference pairs are then relative to it.

    Raises:
        InvalidError: rows too long, no examples, a parent of another base or shape, or a loss that diverges.
        ConflictError: the name belongs to another training, or a process is at work on this one.
        UpstreamError: the disk is full.
    """
    check_name(name)
    reports = reports or Reports()
    there = _there(name, dataset, base, recipe, store, signer, parent)
    if there is not None:
        return there
    with one_thread():
        model = TopLayers(base.weights, recipe)
        if parent is not None:
            check_fit(parent, base.weights.shape, base.weights.digest)
            model.load(parent)
        training = tokenise(dataset.training, base.tokenizer, recipe.tokens_max)
        held_out = tokenise(dataset.held_out, base.tokenizer, recipe.tokens_max)
        if not training:
            raise InvalidError(
                "there are 0 examples to train on", code="dataset_empty", fix="give longer texts or more"
            )
        plan = {
            "name": name,
            "base": base.weights.digest,
            "parent": parent.digest if parent else None,
            "recipe": recipe.to_json(),
            "data": dataset.digest,
            "code": code_digest(),
            "operator": signer.address,
        }
        folder = _work_folder(store.folder, name, digest_of(plan))
        with held(folder):
            made = _run(model, training, held_out, base, folder, reports)
            before, after, trained = made
            lora = model.lora(name, base.weights.digest)
            lineage_of = _Record(name, base, recipe, dataset, training, parent, signer)
            files = {
                GGUF_FILE: gguf_bytes(lora, base.weights.shape),
                **dict(zip((WEIGHTS_FILE, CONFIG_FILE), peft_bytes(lora, base.name), strict=True)),
            }
            lineage = lineage_of(lora, files, trained, before, after)
            signature = signer.sign(signing_digest(lineage.to_bytes()))
            stored = store.publish(_draft(folder, trained), lineage, signature, files)
        shutil.rmtree(folder, ignore_errors=True)
    return Made(stored, trained, before, after, sum(example.tokens for example in training))


def _there(
    name: str,
    dataset: Dataset,
    base: Base,
    recipe: Recipe,
    store: AdapterStore,
    signer: Signer,
    parent: Lora | None,
) -> Made | None:
    """The adapter that this training would make, if it was made before; the check comes before the work.

    Raises:
        ConflictError: the name belongs to another training.
    """
    if name not in store.names():
        return None
    stored = store.get(name)
    found = stored.lineage
    plan = (base.weights.digest, parent.digest if parent else None, recipe.to_json(), dataset.digest, signer.address)
    if (found.base_digest, found.parent, found.recipe, found.data_digest, found.operator) != plan:
        raise ConflictError(
            f"an adapter {name!r} exists, made from other data or with another recipe",
            code="adapter_exists",
            fix="choose another name",
        )
    store.check(stored)
    trained = Trained(found.steps, (), found.checkpoints, found.steps)
    tokens = sum(one.tokens for one in found.trained_on)
    return Made(stored, trained, _measured(found.before), _measured(found.after), tokens)


def evaluate(
    rows: Sequence[Row],
    base: Base,
    adapter: Lora,
    recipe: Mapping[str, Json],
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[HeldOut, HeldOut]:
    """Losses of the base and of an adapter on rows.

    Args:
        recipe: of the adapter's lineage record.
        folder: where the frozen layers' output is kept while it is needed.

    Raises:
        InvalidError: rows too long, or an adapter of other weights.
    """
    check_fit(adapter, base.weights.shape, base.weights.digest)
    cooked = recipe_of(recipe)
    with one_thread(), TemporaryDirectory(dir=folder, prefix=".eval-") as temporary:
        model, task = TopLayers(base.weights, cooked), AdapterTask(cooked.beta)
        examples = tokenise(rows, base.tokenizer, cooked.tokens_max)
        ready = with_states(examples, base.weights, cooked, Path(temporary) / "states", progress)
        ready = with_reference(model, ready)
        before = measure(model, ready, task)
        model.load(adapter)
        return _held_out(before), _held_out(measure(model, ready, task))


def _run(
    model: TopLayers,
    training: tuple[Example, ...],
    held_out: tuple[Example, ...],
    base: Base,
    folder: Path,
    reports: Reports,
) -> tuple[Measured, Measured, Trained]:
    recipe, task = model.recipe, AdapterTask(model.recipe.beta)
    ready = with_states((*training, *held_out), base.weights, recipe, folder / "states", reports.states)
    ready = with_reference(model, ready)  # under the weights that training starts from
    learned, kept = ready[: len(training)], ready[len(training) :]
    before = measure(model, kept, task)
    trained = train(model, learned, task, folder, reports.step)
    return before, measure(model, kept, task), trained


def _work_folder(adapters: Path, name: str, plan: str) -> Path:
    folder = adapters / f".{name}-{plan.removeprefix('sha256:')[:24]}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UpstreamError(
            f"{folder} cannot be made: {error.strerror}", code="disk_failed", fix="check the folder and its disk"
        ) from error
    return folder


def _draft(folder: Path, trained: Trained) -> Path:
    """A fresh folder with copies of the checkpoints, to become the adapter's."""
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        (draft / CHECKPOINTS).mkdir(parents=True)
    except OSError as error:
        raise UpstreamError(
            f"{draft} cannot be made: {error.strerror}", code="disk_failed", fix="check the folder and its disk"
        ) from error
    for step, expected in trained.checkpoints:
        raw = (folder / checkpoint_name(step)).read_bytes()
        if digest(raw) != expected:
            raise InvariantError(
                f"{checkpoint_name(step)} was altered during training",
                code="training_state_damaged",
                fix=f"delete {folder.name} and begin anew",
            )
        write_whole(draft / CHECKPOINTS / checkpoint_name(step), raw)
    return draft


@dataclass(frozen=True, slots=True)
class _Record:
    """Writes the lineage."""

    name: str
    base: Base
    recipe: Recipe
    dataset: Dataset
    training: tuple[Example, ...]
    parent: Lora | None
    signer: Signer

    def __call__(
        self, lora: Lora, files: dict[str, bytes], trained: Trained, before: Measured, after: Measured
    ) -> Lineage:
        rows = Counter(row.contribution for row in self.dataset.training)
        tokens: Counter[str] = Counter()
        for example in self.training:
            tokens[example.row.contribution] += example.tokens
        return Lineage(
            name=self.name,
            base_name=self.base.name,
            base_digest=self.base.weights.digest,
            parent=self.parent.digest if self.parent else None,
            adapter_digest=lora.digest,
            files=tuple(sorted((name, digest(raw)) for name, raw in files.items())),
            recipe=self.recipe.to_json(),
            code_version=f"torch {torch.__version__}",
            code_digest=code_digest(),
            data_digest=self.dataset.digest,
            order_digest=digest_of([list(step) for step in schedule(len(self.training), self.recipe)]),
            trained_on=tuple(
                TrainedOn(c.id, c.content_digest, rows[c.id], tokens[c.id]) for c in self.dataset.contributions
            ),
            left_out=len(self.dataset.repeated),
            steps=trained.steps,
            checkpoints=trained.checkpoints,
            before=_held_out(before),
            after=_held_out(after),
            operator=self.signer.address,
        )


def recipe_of(record: Mapping[str, Json]) -> Recipe:
    """The recipe that a lineage record holds.

    Raises:
        InvalidError: it is not one.
    """
    try:
        defaults: dict[str, Any] = {field.name: field.default for field in fields(Recipe)}
        typed = {name: type(default)(record[name]) for name, default in defaults.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidError(
            f"the record holds no recipe: {error}", code="recipe_invalid", fix="train the adapter again"
        ) from None
    return Recipe(**typed)


def code_digest() -> str:
    """Digest of the sources that decide an adapter's bits: this package and the weights it reads."""
    state = hashlib.sha256()
    for package, names in (
        ("headwater.models.factory", ("examples", "network", "recipe", "rows", "task", "training")),
        ("headwater.models", ("chatml", "gguf_file", "tokenizer", "weights")),
    ):
        for name in names:
            raw = resources.files(package).joinpath(f"{name}.py").read_bytes()
            state.update(canonical([package, name, digest(raw)]))
    return "sha256:" + state.hexdigest()


def _held_out(found: Measured) -> HeldOut:
    return HeldOut(found.rows, round(found.loss * 1e6), found.pairs, round(found.pair_loss * 1e6), found.pairs_right)


def _measured(held_out: HeldOut) -> Measured:
    return Measured(
        held_out.rows,
        held_out.loss_micronats / 1e6,
        held_out.pairs,
        held_out.pair_loss_micronats / 1e6,
        held_out.pairs_right,
    )
