"""Low-rank pairs: followed as the layer they stand for, whatever directions their training began with."""

from __future__ import annotations

import numpy as np
import pytest

import headwater as hw
from headwater.attribution.influence.capture import Capture, trainable_linears
from headwater.attribution.influence.estimators import gradient_rows
from headwater.core.errors import ConflictError

from .conftest import CLASSIFIER, blobs, cross_entropy

torch = pytest.importorskip("torch", exc_type=ImportError)
nn = torch.nn


class Adapted(nn.Module):
    """A frozen layer with a trained low-rank product beside it, then a frozen head."""

    def __init__(self, rank=3, wide=12, hidden=10, between=None, zero=False):
        super().__init__()
        torch.manual_seed(5)
        self.base, self.head = nn.Linear(wide, hidden).requires_grad_(False), nn.Linear(hidden, 4).requires_grad_(False)
        self.a, self.b = nn.Linear(wide, rank, bias=False), nn.Linear(rank, hidden, bias=False)
        self.between = between or nn.Identity()
        if zero:
            nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.head(torch.tanh(self.base(x) + self.b(self.between(self.a(x)))))


def followed(model, items):
    """Pairs, and the signals of the layers that are followed."""
    with Capture(model, trainable_linears(model), merge=True) as capture:
        capture.probe(cross_entropy, items)
        return capture.layout.pairs, capture.signals(cross_entropy, items)


def test_a_pair_gives_the_gradient_of_the_layer_it_stands_for():
    """The signal of a pair is the gradient of the frozen layer's weight, which autograd gives when it is trainable."""
    model, items = Adapted(), blobs(6, 1)
    pairs, signals = followed(model, items)
    assert pairs == {"b": "a"}
    [(a, g)] = signals["b"]
    found = torch.bmm(g.transpose(1, 2), a)
    model.base.weight.requires_grad_(True)
    for place, item in enumerate(items):
        (expected,) = torch.autograd.grad(cross_entropy(model, [item]).sum(), model.base.weight)
        np.testing.assert_allclose(found[place], expected, atol=1e-5)


@pytest.mark.parametrize("between", [nn.ReLU(), nn.ReLU(inplace=True), nn.LayerNorm(3, elementwise_affine=False)])
def test_layers_with_something_between_them_are_no_pair(between):
    """A bottleneck with an activation, in place or not, or a normalisation is two layers and is followed as such."""
    pairs, signals = followed(Adapted(between=between), blobs(6, 1))
    assert pairs == {}
    assert set(signals) == {"a", "b"}


def test_an_adapter_that_has_not_learned_yet_can_be_asked(tmp_path):
    """At the start the second factor is zero and the first has no gradient; the layer they stand for has one."""
    model, examples = Adapted(zero=True), blobs(24, 1)
    index = hw.InfluenceIndex.build(model, examples, CLASSIFIER, tmp_path / "i", contributors=["x", "y"] * 12)
    scores = index.scores(blobs(4, 2))
    assert index.manifest.checkpoints[0].modules_unused == ()
    assert np.isfinite(scores).all()
    assert np.abs(scores).min(0).max() > 0


def test_contributors_sums_take_more_numbers_and_scores_add_up_to_them(tmp_path):
    """Rows of examples are folded to their budget; scores still add up to those of the contributors, nearly exact."""
    model, examples, queries = Adapted(wide=40, hidden=30), blobs(48, 1, wide=40), blobs(12, 2, wide=40)
    names = [f"c{k % 6}" for k in range(48)]
    made = {}
    for name, row_bytes in (("small", 64), ("large", 10**6)):
        index = hw.InfluenceIndex.build(
            model, examples, CLASSIFIER, tmp_path / name, contributors=names, row_bytes=row_bytes, bits=32, clip=0
        )
        scores, sums = index.scores(queries), index.contributor_scores(queries)
        own = np.stack([scores[:, [n == c for n in names]].sum(1) for c in index.contributors], axis=1)
        np.testing.assert_allclose(own, sums, atol=1e-3 * np.abs(sums).max())
        made[name] = index, sums
    assert made["small"][0].manifest.row_bytes <= 64
    assert np.corrcoef(made["small"][1].ravel(), made["large"][1].ravel())[0, 1] > 0.8


def test_a_row_made_large_counts_no_more_than_a_usual_one(tmp_path):
    """An example whose gradient is a thousand times that of labels the model draws is scaled down to them."""

    def losses(model, batch):
        return cross_entropy(model, [(x, y) for x, y, _ in batch]) * torch.tensor([size for _, _, size in batch])

    def drawn(model, batch, generator):
        return CLASSIFIER.sampled_losses(model, [(x, y) for x, y, _ in batch], generator)

    examples = [(x, y, 1000.0 if k == 5 else 1.0) for k, (x, y) in enumerate(blobs(24, 1))]
    index = hw.InfluenceIndex.build(Adapted(), examples, hw.Task(losses, drawn), tmp_path / "i")
    factors = index.clipping()
    assert factors[5] < 0.05
    assert np.median(np.delete(factors, 5)) > 0.3


def test_other_estimators_see_the_factors_themselves():
    """A plain product of gradients is that of the trained parameters, pair or not."""
    model, items = Adapted(), blobs(5, 1)
    rows = gradient_rows(model, items, CLASSIFIER)
    assert rows.shape == (5, model.a.weight.numel() + model.b.weight.numel())


def test_a_killed_build_of_an_adapter_goes_on_to_the_same_scores(tmp_path, monkeypatch):
    """Sums of contributors are kept with each shard, so a build that goes on ends with the same bytes."""
    from headwater.attribution.influence import build as builder

    monkeypatch.setattr(builder, "SHARD_BYTES", 2_000)
    model, examples = Adapted(), blobs(40, 1)
    names = [f"c{k % 4}" for k in range(40)]
    whole = hw.InfluenceIndex.build(model, examples, CLASSIFIER, tmp_path / "whole", contributors=names)
    written, plain = [], builder.write_shard

    def stops(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(1)
        plain(*arguments)

    monkeypatch.setattr(builder, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        hw.InfluenceIndex.build(model, examples, CLASSIFIER, tmp_path / "killed", contributors=names)
    monkeypatch.setattr(builder, "write_shard", plain)
    again = hw.InfluenceIndex.build(model, examples, CLASSIFIER, tmp_path / "killed", contributors=names)
    assert len(whole.manifest.checkpoints[0].shards) > 2
    assert again.manifest.digest == whole.manifest.digest
    assert again.verify() == ()


def test_the_same_queries_again_are_a_product(tmp_path, monkeypatch):
    """Asking about the last queries once more differentiates nothing; other queries, and a changed model, do."""
    model, examples, queries = Adapted(), blobs(24, 1), blobs(6, 2)
    index = hw.InfluenceIndex.build(model, examples, CLASSIFIER, tmp_path / "i", contributors=["x", "y"] * 12)
    first, calls = index.scores(queries), []
    plain = Capture.signals
    monkeypatch.setattr(Capture, "signals", lambda *a: calls.append(1) or plain(*a))
    np.testing.assert_array_equal(index.scores(queries), first)
    index.contributor_scores(queries)
    assert not calls
    np.testing.assert_allclose(index.scores(queries[::-1])[::-1], first, rtol=1e-4, atol=1e-6)
    assert calls
    with torch.no_grad():
        model.b.weight += 1
    with pytest.raises(ConflictError):
        index.scores(queries)
