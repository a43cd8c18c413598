"""What a contributor could try in order to look more influential than its data is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import headwater as hw

from .conftest import CLASSIFIER, blobs, cross_entropy, perceptron, train

INFLATION_MAX = 2.0  # of a contributor's positive total, relative to before; published attacks reach 2.85 to 7.43


def positive_totals(examples, owners, queries, folder, seed=0):
    """(c,) positive part of each contributor's score over all queries, as a part of the whole."""
    model = train(perceptron(seed), examples)
    index = hw.InfluenceIndex.build(model, examples, CLASSIFIER, folder, owners)
    totals = np.maximum(index.contributor_scores(queries).sum(0), 0)
    return dict(zip(index.contributors, totals / totals.sum(), strict=True))


@pytest.fixture(scope="module")
def market():
    """192 examples of 6 contributors and the queries that pay."""
    examples = blobs(192, 1)
    return examples, [f"ctr_{i % 6}" for i in range(192)], blobs(64, 2)


def test_copies_of_a_row_gain_little(market, tmp_path):
    """Handing in the best row 8 more times raises a contributor's part of the whole by less than the bound."""
    examples, owners, queries = market
    honest = positive_totals(examples, owners, queries, tmp_path / "a")
    index = hw.InfluenceIndex.build(train(perceptron(), examples), examples, CLASSIFIER, tmp_path / "s")
    own = [i for i, owner in enumerate(owners) if owner == "ctr_0"]
    best = max(own, key=lambda i: index.scores(queries)[:, i].sum())

    copied = positive_totals([*examples, *[examples[best]] * 8], [*owners, *["ctr_0"] * 8], queries, tmp_path / "b")

    assert copied["ctr_0"] <= INFLATION_MAX * max(honest["ctr_0"], 1 / 6)


@pytest.mark.parametrize("size", [10.0, 1000.0])
def test_rows_made_large_are_clipped(market, tmp_path, size):
    """A row scaled up for a huge gradient counts no more than a usual row: its score is bounded by the clip."""
    examples, owners, queries = market
    model = train(perceptron(), examples)
    crafted = [(x * size, y) for x, y in examples[:6]]
    index = hw.InfluenceIndex.build(model, [*examples, *crafted], CLASSIFIER, tmp_path / "i", [*owners, *["spam"] * 6])
    scores = np.abs(index.scores(queries)).sum(0)

    usual = np.quantile(scores[: len(examples)], 0.99)
    assert (scores[len(examples) :] <= 2 * usual).all()


def test_flipped_labels_score_negative(market, tmp_path):
    """A contributor that hands in wrong labels harms its queries, and its total says so."""
    examples, owners, queries = market
    poisoned = [
        (x, (y + 1) % 4) if owner == "ctr_3" else (x, y) for (x, y), owner in zip(examples, owners, strict=True)
    ]
    model = train(perceptron(), poisoned)
    index = hw.InfluenceIndex.build(model, poisoned, CLASSIFIER, tmp_path / "i", owners)
    totals = dict(zip(index.contributors, index.contributor_scores(queries).sum(0), strict=True))

    assert totals["ctr_3"] < 0
    assert all(value > totals["ctr_3"] for name, value in totals.items() if name != "ctr_3")


def test_shadow_models_gain_less_than_the_bound(market, tmp_path):
    """An attacker trains shadow models on data like ours and perturbs its rows to raise their influence there.

    Its gain does not carry over to the real run by more than the bound, averaged over three real runs.
    """
    examples, owners, queries = market
    shadow_data, shadow_queries = blobs(192, 11), blobs(64, 12)
    shadows = [train(perceptron(20 + k), shadow_data) for k in range(3)]
    targets = []
    for model in shadows:
        loss = cross_entropy(model, shadow_queries).sum()
        targets.append([g.detach() for g in torch.autograd.grad(loss, list(model.parameters()))])
    attacked = list(examples)
    own = [i for i, owner in enumerate(owners) if owner == "ctr_0"]
    for place in own:
        x, y = examples[place]
        moved = x.clone().requires_grad_(True)
        for _ in range(8):
            value = torch.zeros(())
            for model, target in zip(shadows, targets, strict=True):
                gradients = torch.autograd.grad(
                    cross_entropy(model, [(moved, y)]).sum(), list(model.parameters()), create_graph=True
                )
                value = value + sum((g * t).sum() for g, t in zip(gradients, target, strict=True))
            (direction,) = torch.autograd.grad(value, moved)
            moved = (moved + 0.1 * direction.sign()).detach().requires_grad_(True)
        attacked[place] = (moved.detach(), y)

    gains = []
    for seed in range(3):
        before = positive_totals(examples, owners, queries, tmp_path / f"a{seed}", seed)["ctr_0"]
        after = positive_totals(attacked, owners, queries, tmp_path / f"b{seed}", seed)["ctr_0"]
        gains.append(after / max(before, 1 / 6))

    assert np.mean(gains) <= INFLATION_MAX
