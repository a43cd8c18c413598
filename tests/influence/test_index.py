from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import headwater as hw
from headwater.attribution.influence import build as build_module
from headwater.attribution.influence import files
from headwater.attribution.influence.rows import RowLayout
from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, MissingError

from .conftest import CLASSIFIER, blobs, cross_entropy, perceptron, train


def gradients(model, losses, items):
    """(n, parameters) by one backward pass each, in the order of the modules, bias as last column of its weight."""
    rows = []
    for item in items:
        model.zero_grad()
        losses(model, [item]).sum().backward()
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        rows.append(torch.cat([torch.cat((m.weight.grad, m.bias.grad[:, None]), 1).flatten() for m in linears]))
    model.zero_grad()
    return torch.stack(rows).double().numpy()


def test_scores_are_the_ridge_solve_of_the_examples(small, tmp_path):
    """With damping that makes whitening uniform, scores equal a dense solve over the examples' own gradients."""
    ridge = 0.02
    index = hw.InfluenceIndex.build(
        small.model,
        small.examples,
        small.task,
        tmp_path / "i",
        bits=32,
        row_bytes=10**6,
        damping=1e9,
        ridge=ridge,
        clip=0,
    )
    scores = index.scores(small.queries)

    g, q = (gradients(small.model, cross_entropy, x) for x in (small.examples, small.queries))
    # Damping is relative to each layer, so a layer's gradients are divided by the root of its mean curvature.
    basis = torch.load(tmp_path / "i/checkpoint-0/basis.pt", weights_only=True)["bases"]
    weight = np.concatenate([np.full(i.shape[0] * o.shape[0], float(w.mean())) for _, i, o, _, w, _, _ in basis])
    g, q = g * weight, q * weight
    metric = g.T @ g + ridge * np.trace(g @ g.T) * np.eye(g.shape[1])
    expected = ridge * np.trace(g @ g.T) * q @ np.linalg.solve(metric, g.T)
    np.testing.assert_allclose(scores, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_positive_scores_are_examples_whose_training_lowered_the_loss(small, tmp_path):
    """A small step along an example's own training gradient lowers the query's loss where its score is high."""
    index = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path, damping=1e6, ridge=1e6, clip=0)
    losses = [cross_entropy(small.model, [query]).item() for query in small.queries]
    query = [small.queries[int(np.argmax(losses))]]
    order = np.argsort(index.scores(query)[0])
    change = []
    for place in (order[-1], order[0]):
        model = perceptron()
        model.load_state_dict(small.model.state_dict())
        before = cross_entropy(model, query).item()
        loss = cross_entropy(model, [small.examples[int(place)]]).sum()
        for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
            parameter.data.sub_(0.01 * gradient)
        change.append(cross_entropy(model, query).item() - before)

    assert change[0] < 0 < change[1]


def test_contributor_scores_are_sums_of_example_scores(small, tmp_path):
    """Rows summed beforehand lose nothing; a mapping of places says the same as a name for each example."""
    index = hw.InfluenceIndex.build(
        small.model, small.examples, small.task, tmp_path / "a", contributors=small.contributors
    )
    by_name = {
        name: [i for i, n in enumerate(small.contributors) if n == name] for name in dict.fromkeys(small.contributors)
    }
    other = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "b", contributors=by_name)
    examples = index.scores(small.queries)

    totals = index.contributor_scores(small.queries)

    assert index.contributors == other.contributors == tuple(by_name)
    expected = np.stack([examples[:, places].sum(1) for places in by_name.values()], axis=1)
    np.testing.assert_allclose(totals, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(totals, other.contributor_scores(small.queries))


def test_more_examples_than_the_solve_takes_give_nearly_the_same(small, tmp_path, monkeypatch):
    """The second stage may be made from a sample of the rows."""
    whole = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "a", small.contributors)
    monkeypatch.setattr("headwater.attribution.influence.ridge.RIDGE_ROWS_MAX", 64)
    part = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "b", small.contributors)

    a, b = whole.scores(small.queries), part.scores(small.queries)

    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9
    sums = np.stack([b[:, [n == name for n in small.contributors]].sum(1) for name in part.contributors], axis=1)
    np.testing.assert_allclose(part.contributor_scores(small.queries), sums, rtol=1e-3, atol=1e-4 * np.abs(sums).max())


def test_small_integers_change_little(small, tmp_path):
    """Eight bits and a row budget keep the scores' order; four bits nearly."""
    exact = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "x", bits=32, row_bytes=10**6)
    for bits, least in ((8, 0.998), (4, 0.95), (2, 0.8)):
        index = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / str(bits), bits=bits)
        a, b = exact.scores(small.queries), index.scores(small.queries)
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > least


def test_checkpoints_are_averaged_and_the_model_is_given_back(small, tmp_path):
    """Scores of two checkpoints are the mean of the scores of each; weights and modes stay what they were."""
    states = [train(perceptron(seed), small.examples).state_dict() for seed in (1, 2)]
    small.model.train()
    before = {name: value.clone() for name, value in small.model.state_dict().items()}
    both = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "both", checkpoints=states)
    alone = []
    for number, state in enumerate(states):
        model = perceptron()
        model.load_state_dict(state)
        alone.append(
            hw.InfluenceIndex.build(model, small.examples, small.task, tmp_path / str(number), seed=number).scores(
                small.queries
            )
        )

    np.testing.assert_allclose(both.scores(small.queries), np.mean(alone, axis=0), rtol=1e-4, atol=1e-4)
    assert small.model.training
    for name, value in small.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_opened_index_gives_the_same_scores(small, tmp_path):
    """What is on disk is all that is needed, checkpoints included."""
    states = [train(perceptron(1), small.examples).state_dict()]
    built = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "i", checkpoints=states)

    opened = hw.InfluenceIndex.open(tmp_path / "i", model=small.model, task=small.task)

    np.testing.assert_array_equal(opened.scores(small.queries), built.scores(small.queries))
    assert opened.manifest.digest == built.manifest.digest
    assert opened.verify() == ()


def test_the_same_inputs_give_the_same_bytes(small, tmp_path):
    """Two builds have one digest; another seed has another."""
    digests = [
        hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / str(k), seed=seed).manifest.digest
        for k, seed in enumerate((3, 3, 4))
    ]

    assert digests[0] == digests[1] != digests[2]


def test_changed_model_is_refused(small, tmp_path):
    """An index of other weights, even of a frozen or later changed part, does not answer."""
    index = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "i")
    with torch.no_grad():
        small.model[0].bias[0] += 1e-3

    for ask in (
        lambda: index.scores(small.queries),
        lambda: hw.InfluenceIndex.open(tmp_path / "i", model=small.model, task=small.task),
    ):
        with pytest.raises(ConflictError) as caught:
            ask()
        assert caught.value.code == "model_changed"


def test_changed_byte_is_found(small, tmp_path):
    """`verify` names the file; a changed manifest does not open."""
    index = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "i", small.contributors)
    shard = tmp_path / "i" / index.manifest.checkpoints[0].shards[0].file.name
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)

    assert [(p.where, p.code) for p in index.verify()] == [(str(shard.relative_to(tmp_path / "i")), "file_changed")]
    manifest = tmp_path / "i" / "MANIFEST.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"seed":0', b'"seed":1'))
    with pytest.raises(InvalidError) as caught:
        hw.InfluenceIndex.open(tmp_path / "i", model=small.model, task=small.task)
    assert caught.value.code == "manifest_invalid"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"examples": []}, "examples_empty"),
        ({"contributors": ["a"]}, "contributor_examples"),
        ({"contributors": {"a": list(range(96)), "b": []}}, "contributor_empty"),
        ({"contributors": {"a": list(range(95))}}, "contributor_examples"),
        ({"bits": 3}, "bits_unknown"),
        ({"damping": -1.0}, "damping_invalid"),
        ({"damping": "none"}, "damping_invalid"),
        ({"modules": ["7"]}, "module_missing"),
        ({"checkpoints": [{"0.weight": torch.zeros(3)}]}, "checkpoint_mismatch"),
        ({"row_bytes": 1}, "row_bytes_invalid"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(small, tmp_path, changes, code):
    """Each has its code and a fix, and no index is left to open."""
    arguments = {"examples": small.examples, "task": small.task, "path": tmp_path / "i"} | changes
    with pytest.raises(HeadwaterError) as caught:
        hw.InfluenceIndex.build(small.model, **arguments)

    assert caught.value.code == code
    assert caught.value.fix
    with pytest.raises(MissingError):
        hw.InfluenceIndex.open(tmp_path / "i", model=small.model, task=small.task)


def test_gradient_that_is_not_a_number_names_the_example(small, tmp_path):
    """One poisoned row stops the build, and nothing half-built is served."""
    small.examples[17] = (torch.full((12,), float("nan")), 0)

    with pytest.raises(InvalidError) as caught:
        hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "i", batch=8)

    assert caught.value.code == "gradient_not_finite"
    assert "17" in caught.value.message
    with pytest.raises(MissingError):
        hw.InfluenceIndex.open(tmp_path / "i", model=small.model, task=small.task)


def test_layer_that_is_never_used(small, tmp_path):
    """By default it is left out and listed; asked for by name it is an error."""

    class Idle(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.idle = inner, nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(x)

    model = Idle(small.model)
    index = hw.InfluenceIndex.build(model, small.examples, small.task, tmp_path / "i")
    assert index.manifest.checkpoints[0].modules_unused == ("idle",)

    with pytest.raises(InvalidError) as caught:
        hw.InfluenceIndex.build(model, small.examples, small.task, tmp_path / "j", modules=["idle"])
    assert caught.value.code == "module_unused"


def test_full_disk_leaves_nothing_to_open_and_the_build_goes_on_later(small, tmp_path, monkeypatch):
    """The error says that space is missing; with space the same call ends."""
    real, calls = files.HashedFile.write, []

    def full(self, raw):
        calls.append(len(raw))
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, raw)

    monkeypatch.setattr(files.HashedFile, "write", full)
    with pytest.raises(HeadwaterError) as caught:
        hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "i")
    assert caught.value.code == "disk_full"
    with pytest.raises(MissingError):
        hw.InfluenceIndex.open(tmp_path / "i", model=small.model, task=small.task)
    assert not list((tmp_path / "i").rglob("*.partial"))

    monkeypatch.undo()
    again = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "i")
    fresh = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "j")
    assert again.manifest.digest == fresh.manifest.digest


def test_other_build_in_the_same_folder_is_refused(small, tmp_path):
    """A finished index is not overwritten; the same call again returns it."""
    first = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "i")
    again = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "i")
    assert again.manifest.digest == first.manifest.digest

    with pytest.raises(ConflictError) as caught:
        hw.InfluenceIndex.build(small.model, small.examples[:-1], small.task, tmp_path / "i")
    assert caught.value.code == "index_exists"


KILLED = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    import torch; torch.set_num_threads(1)
    import headwater as hw
    from headwater.attribution.influence import build
    from influence.conftest import CLASSIFIER, blobs, perceptron, train
    build.SHARD_BYTES = 4000
    real = build.write_shard
    seen = []
    def write(*arguments):
        real(*arguments)
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    build.write_shard = write
    examples = blobs(96, 1)
    hw.InfluenceIndex.build(train(perceptron(), examples), examples, CLASSIFIER, sys.argv[2], seed=5)
"""


def test_killed_build_goes_on_where_it_was(tmp_path, monkeypatch):
    """After kill -9 nothing is served; the next build keeps whole shards and ends with the same digest."""
    tests = Path(__file__).parents[1]
    code = textwrap.dedent(KILLED)
    done = subprocess.run([sys.executable, "-c", code, str(tests), str(tmp_path / "i")], check=False)
    assert done.returncode == -signal.SIGKILL
    monkeypatch.setattr(build_module, "SHARD_BYTES", 4000)
    examples = blobs(96, 1)
    model = train(perceptron(), examples)
    with pytest.raises(MissingError):
        hw.InfluenceIndex.open(tmp_path / "i", model=model, task=CLASSIFIER)
    kept = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "i").rglob("rows-*.bin")}
    assert len(kept) == 3

    resumed = hw.InfluenceIndex.build(model, examples, CLASSIFIER, tmp_path / "i", seed=5)
    fresh = hw.InfluenceIndex.build(model, examples, CLASSIFIER, tmp_path / "j", seed=5)

    assert all(os.stat(path).st_mtime_ns == at for path, at in kept.items())
    assert len(resumed.manifest.checkpoints[0].shards) > 3
    assert resumed.manifest.digest == fresh.manifest.digest


def test_intervals_hold_the_scores_of_other_queries(small, tmp_path):
    """The interval from 40 queries covers what 1,000 others give, about as often as it says."""
    index = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "i", small.contributors)
    truth = index.contributor_scores(blobs(1000, 50)).mean(0)
    inside = []
    for seed in range(10):
        found = index.intervals(blobs(40, 100 + seed), level=0.9, seed=seed)
        assert (found.low <= found.estimate).all()
        assert (found.estimate <= found.high).all()
        inside.append((found.low <= truth) & (truth <= found.high))

    assert np.mean(inside) >= 0.8


def test_rows_stay_within_their_budget(small, tmp_path):
    """The bytes of an example are at most what was asked for."""
    index = hw.InfluenceIndex.build(small.model, small.examples, small.task, tmp_path / "i", row_bytes=100)

    assert index.manifest.row_bytes <= 100
    assert RowLayout(index.manifest.checkpoints[0].widths, 8).width >= 80


def test_preference_pairs_work_without_drawn_labels(small, tmp_path):
    """A task may leave out drawn labels; pairs that run together in one batch are told apart."""

    def losses(model, batch):
        both = torch.stack([a for a, _ in batch] + [b for _, b in batch])
        value = model(both)[:, 0]
        return torch.nn.functional.softplus(value[len(batch) :] - value[: len(batch)])

    pairs = [(a[0], b[0]) for a, b in zip(blobs(20, 5), blobs(20, 6), strict=True)]
    index = hw.InfluenceIndex.build(small.model, pairs, hw.Task(losses), tmp_path / "i")

    assert index.scores(pairs).shape == (20, 20)
    assert (np.diag(index.scores(pairs)) > 0).all()


def test_relative_folder_is_as_good(small, tmp_path, monkeypatch):
    """The index may be named relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    index = hw.InfluenceIndex.build(small.model, small.examples, small.task, "here/i")

    assert index.verify() == ()
    assert hw.InfluenceIndex.open("here/i", model=small.model, task=small.task).manifest == index.manifest
