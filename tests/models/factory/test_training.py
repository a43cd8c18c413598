from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from headwater.core.errors import ConflictError, InvalidError, InvariantError, UpstreamError
from headwater.models.adapters import AdapterStore
from headwater.models.factory import Recipe, Row, projections
from headwater.models.lora import PROJECTIONS, heads_of, split_module, stored_rows
from headwater.models.plain import PlainModel
from headwater.models.weights import tiny_weights

from .conftest import RECIPE

torch = pytest.importorskip("torch")

from headwater.models.factory.examples import collate, stretch_sums, tokenise, with_reference, with_states  # noqa: E402
from headwater.models.factory.factory import Reports  # noqa: E402
from headwater.models.factory.network import TopLayers  # noqa: E402
from headwater.models.factory.task import AdapterTask  # noqa: E402
from headwater.models.factory.training import schedule  # noqa: E402

ROW = Row("r", "ctb_x", "answer", "hello", "world")
PAIR = Row("p", "ctb_x", "pair", "who?", "me, I think", "you")


class Stop(Exception):
    """Ends a training in the middle."""


def _merged(weights, lora):
    """The plain model with an adapter's products added to its matrices."""
    plain = PlainModel(weights)
    shape = weights.shape
    kv = shape.kv_heads * shape.head_width
    rows = {"q": (0, shape.width), "k": (shape.width, shape.width + kv), "v": (shape.width + kv, shape.width + 2 * kv)}
    for module, (a, b) in lora.tensors.items():
        layer, projection = split_module(module)
        heads = heads_of(shape, projection)
        delta = lora.scale * (b if heads is None else stored_rows(b, heads)) @ a
        _, _, qkv, out, gate_up, down = plain._layers[layer]
        short = projection.rsplit(".", 1)[1].removesuffix("_proj")
        if short in rows:
            qkv[slice(*rows[short])] += delta
        elif short in ("gate", "up"):
            gate_up[slice(0, shape.hidden) if short == "gate" else slice(shape.hidden, None)] += delta
        else:
            (out if short == "o" else down)[...] += delta
    return plain


def _shaken(model):
    """Factors that are not zero, from a fixed draw."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_the_trained_model_is_the_served_one(base, tmp_path):
    """Log-probabilities with all seven projections adapted equal those of merged matrices in plain numpy."""
    recipe = replace(RECIPE, projections=PROJECTIONS, layers=1)
    model = _shaken(TopLayers(base.weights, recipe))
    examples = with_states(tokenise([ROW, PAIR], base.tokenizer, 128), base.weights, recipe, tmp_path / "s")
    merged = _merged(base.weights, model.lora("x", base.weights.digest))

    batch = collate(examples)
    sums = stretch_sums(batch, model(batch)).detach().numpy()

    for example, row in zip(examples, sums, strict=True):
        for stretch, found in zip(example.stretches, row, strict=False):
            before, after = stretch.tokens[: stretch.learned_from], stretch.tokens[stretch.learned_from :]
            expected = merged.log2_probabilities(before, after).sum() * np.log(2)
            assert found == pytest.approx(expected, abs=2e-4)


def test_an_example_scores_the_same_alone_and_in_a_batch(base, tmp_path):
    """Padding and neighbours change nothing but the last bits."""
    examples = with_states(tokenise([ROW, PAIR], base.tokenizer, 128), base.weights, RECIPE, tmp_path / "s")
    model, task = _shaken(TopLayers(base.weights, RECIPE)), AdapterTask(0.3)

    together = task.losses(model, examples).detach()
    alone = torch.cat([task.losses(model, [example]) for example in examples]).detach()

    assert torch.allclose(together, alone, atol=1e-5)


def test_the_heads_gradient_is_the_true_one(base, tmp_path):
    """The gradient found without keeping logits equals the one autograd finds through them."""
    examples = with_states(tokenise([ROW, PAIR], base.tokenizer, 128), base.weights, RECIPE, tmp_path / "s")
    model, task = _shaken(TopLayers(base.weights, RECIPE)), AdapterTask(0.3)

    found = torch.autograd.grad(task.losses(model, examples).sum(), list(model.parameters()))
    model.twice_differentiable = True
    expected = torch.autograd.grad(task.losses(model, examples).sum(), list(model.parameters()))

    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_a_pairs_loss_is_that_of_its_definition(base, tmp_path):
    """DPO: minus the log of the sigmoid of beta times how much more the chosen answer gained."""
    examples = with_states(tokenise([PAIR], base.tokenizer, 128), base.weights, RECIPE, tmp_path / "s")
    model = TopLayers(base.weights, RECIPE)
    (example,) = with_reference(model, examples)
    untouched = AdapterTask(0.3).losses(model, [example])[0].item()
    _shaken(model)
    batch = collate([example])
    chosen, rejected = stretch_sums(batch, model(batch))[0].tolist()
    margin = 0.3 * ((chosen - example.reference[0]) - (rejected - example.reference[1]))

    assert untouched == pytest.approx(np.log(2), abs=1e-5)
    assert AdapterTask(0.3).losses(model, [example])[0].item() == pytest.approx(np.log1p(np.exp(-margin)), rel=1e-5)


def test_drawn_labels_follow_the_seed_and_the_model(base, tmp_path):
    """Losses of drawn labels repeat with the generator, and their mean gradient tends to zero."""
    examples = with_states(tokenise([ROW], base.tokenizer, 128), base.weights, RECIPE, tmp_path / "s")
    model, task = _shaken(TopLayers(base.weights, RECIPE)), AdapterTask(0.3)

    def gradient(seed: int, label: bool = False):
        generator = torch.Generator().manual_seed(seed)
        loss = task.losses(model, examples) if label else task.sampled_losses(model, examples, generator)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), list(model.parameters()))])

    assert torch.equal(gradient(1), gradient(1))
    mean = torch.stack([gradient(seed) for seed in range(60)]).mean(0)
    assert mean.norm() < 0.35 * gradient(0, label=True).norm()


def test_training_learns_and_is_repeatable_to_the_bit(make, eight, store, tmp_path):
    """Loss falls, the pair is told apart, and a second training elsewhere gives every byte again."""
    recipe = replace(RECIPE, epochs=10)
    first = make("one", eight, recipe)
    again = make("one", eight, recipe, store=AdapterStore(tmp_path / "elsewhere"))

    losses = first.trained.losses
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])
    files = sorted(p.relative_to(first.stored.folder) for p in first.stored.folder.rglob("*") if p.is_file())
    assert [str(f) for f in files].count("lineage.json") == 1
    for file in files:
        assert (first.stored.folder / file).read_bytes() == (again.stored.folder / file).read_bytes()


def test_another_seed_or_order_gives_another_adapter(make, eight):
    """The seed decides initial factors and order."""
    first, second = make("one", eight), make("two", eight, replace(RECIPE, seed=1))

    assert first.stored.lineage.adapter_digest != second.stored.lineage.adapter_digest
    assert first.stored.lineage.order_digest != second.stored.lineage.order_digest


@pytest.mark.parametrize("at", [1, 3, 4, 7])
def test_an_interrupted_training_ends_with_the_same_bits(make, eight, tmp_path, at):
    """Wherever it stops, before or after a durable state, it goes on and nothing shows that it did."""
    whole = make("whole", eight, store=AdapterStore(tmp_path / "whole"))
    store = AdapterStore(tmp_path / "broken")

    def stop(progress):
        if progress.step == at:
            raise Stop

    with pytest.raises(Stop):
        make("whole", eight, store=store, reports=Reports(step=stop))
    assert store.names() == ()
    resumed = make("whole", eight, store=store)

    assert resumed.trained.resumed_at == at // 2 * 2
    assert resumed.stored.lineage == whole.stored.lineage
    assert resumed.trained.losses == whole.trained.losses


def test_a_damaged_state_is_not_built_on(make, eight, store):
    """A state file with one changed byte is refused, not trained on."""

    def stop(progress):
        if progress.step == 5:
            raise Stop

    with pytest.raises(Stop):
        make("one", eight, reports=Reports(step=stop))
    (state,) = store.folder.glob(".one-*/state.npz")
    raw = bytearray(state.read_bytes())
    raw[len(raw) // 2] ^= 1
    state.write_bytes(raw)

    with pytest.raises(InvariantError, match="altered"):
        make("one", eight)


def test_a_full_disk_leaves_nothing_that_is_served(make, eight, store, monkeypatch):
    """Wherever the disk fills up, no adapter appears, and training goes on when there is space again."""
    real = os.fsync
    calls = {"left": 0}

    def full(handle):
        calls["left"] -= 1
        if calls["left"] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    failures = 0
    for allowed in range(1, 60, 4):
        calls["left"] = allowed
        if store.names():
            break
        with contextlib.suppress(UpstreamError):
            make("one", eight)
            break
        failures += 1
        assert store.names() == ()

    assert failures >= 3
    assert store.names() == ("one",)
    store.check(store.get("one"))


def test_a_full_disk_says_so(make, eight, monkeypatch):
    """The error has a code of its own and tells that going on is safe."""

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UpstreamError) as refused:
        make("one", eight)

    assert refused.value.code == "disk_full"


def test_a_name_belongs_to_one_training(make, eight, store):
    """The same command again gives the adapter that is there; other data under its name is a conflict."""
    first = make("one", eight)
    steps = []

    assert make("one", eight, reports=Reports(step=steps.append)).stored.lineage == first.stored.lineage
    with pytest.raises(ConflictError):
        make("one", eight, replace(RECIPE, epochs=1), reports=Reports(step=steps.append))
    assert not steps  # neither was trained again
    assert store.names() == ("one",)


def test_pairs_can_be_learned_on_top_of_an_adapter(make, eight, store, shelf):
    """A second training starts from the first one's factors and names it as its parent."""
    first = make("one", eight)
    rows = [Row("p:1", shelf.add("what is it? it is a test"), "pair", "what?", "yes", "no!")]

    second = make("two", shelf.dataset(rows), parent=store.load("one"))

    assert second.stored.lineage.parent == first.stored.lineage.adapter_digest
    assert second.trained.losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert second.trained.losses[-1] < second.trained.losses[0]


def test_a_parent_of_another_base_is_refused(make, eight, store):
    """An adapter goes on only on the weights it was trained on."""
    make("one", eight)
    other = replace(store.load("one"), base_digest=tiny_weights(4).digest)

    with pytest.raises(InvalidError, match="was trained on"):
        make("two", eight, parent=other)


def test_rows_beyond_the_window_are_named(make, shelf):
    """A prompt with its answer is never cut silently."""
    long = shelf.add("x" * 100)

    with pytest.raises(InvalidError, match=r"r:1.*64") as refused:
        make("one", shelf.dataset([Row("r:1", long, "answer", "x" * 50, "y" * 50)]))

    assert refused.value.code == "row_too_long"


def test_a_loss_that_is_not_finite_stops_training(make, eight, store, monkeypatch):
    """Divergence names the step and the rows, and leaves no adapter."""
    true = AdapterTask.losses
    calls = []

    def diverging(self, model, batch):
        calls.append(batch)
        return true(self, model, batch) * (float("inf") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(AdapterTask, "losses", diverging)
    with pytest.raises(InvalidError, match="step 3") as refused:
        make("one", eight)

    assert refused.value.code == "training_diverged"
    assert all(example.row.where in refused.value.message for example in calls[2])
    assert store.names() == ()


def test_every_example_is_seen_once_an_epoch():
    """The schedule is a permutation an epoch, cut into batches, and `steps_max` ends it early."""
    steps = schedule(7, replace(RECIPE, batch=3, epochs=2))

    assert [len(step) for step in steps] == [3, 3, 1, 3, 3, 1]
    assert sorted(n for step in steps[:3] for n in step) == list(range(7))
    assert sorted(n for step in steps[3:] for n in step) == list(range(7))
    assert schedule(7, replace(RECIPE, batch=3, epochs=2, steps_max=4)) == steps[:4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"learning_rate": float("nan")},
        {"projections": ("lm_head",)},
        {"projections": ()},
        {"frozen": "int4"},
        {"holdout_ppm": 900_000},
        {"tokens_max": 1},
    ],
)
def test_a_recipe_that_cannot_be_cooked_is_refused(wrong):
    """Every hyper-parameter has a range, and the message holds the value."""
    with pytest.raises(InvalidError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_a_recipe_has_one_text():
    """Numbers with a point are strings, so that the record is canonical; short names of projections are read."""
    text = json.dumps(Recipe(learning_rate=1e-3).to_json())

    assert '"learning_rate": "0.001"' in text
    assert projections("q, down") == ("self_attn.q_proj", "mlp.down_proj")
    with pytest.raises(InvalidError):
        projections("q,lm_head")
