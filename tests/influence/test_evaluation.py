from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from headwater.attribution.influence.estimators import grad_dot, input_similarity, trak
from headwater.attribution.influence.evaluation import evaluate, fit_for_payout, index_estimator
from headwater.attribution.influence.measures import (
    area_under_curve,
    bootstrap_scores,
    datamodeling_score,
    half_subsets,
    noise_ceiling,
    ranks,
)
from headwater.attribution.influence.report import as_values, page
from headwater.attribution.influence.small_tasks import pictures
from headwater.core.errors import InvalidError, RefusedError

from .conftest import CLASSIFIER, blobs, perceptron, train


def linear_world(noise, seed=0, subsets=60, seeds=2):
    """Losses that fall by a known amount for each example in the subset, plus noise of training."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(5, 40))
    masks = half_subsets(np.arange(40), subsets, seed)
    losses = -(masks @ effects.T)[:, None, :] + noise * rng.normal(size=(subsets, seeds, 5))
    return effects.astype(np.float32), masks, losses


def test_the_truth_scores_one_without_noise_and_the_ceiling_with_it():
    """An oracle's score is what the noise ceiling says, within the error of 60 subsets."""
    effects, masks, losses = linear_world(0.0)
    assert datamodeling_score(effects, masks, losses.mean(1)) == pytest.approx(1.0)

    effects, masks, losses = linear_world(4.0, subsets=300)
    assert datamodeling_score(effects, masks, losses.mean(1)) == pytest.approx(noise_ceiling(losses), abs=0.05)


def test_bootstrap_error_is_that_of_fresh_subsets():
    """The error of one evaluation is about the spread over many."""
    values = [linear_world(4.0, seed) for seed in range(25)]
    spread = np.std([datamodeling_score(effects, masks, losses.mean(1)) for effects, masks, losses in values])
    effects, masks, losses = values[0]
    measured, _ = bootstrap_scores({"truth": effects}, masks, losses.mean(1), seed=0)

    assert 0.4 * spread < measured["truth"].error < 2.5 * spread


def test_equal_values_share_their_rank():
    """Ties do not depend on order."""
    np.testing.assert_array_equal(ranks(np.array([[3.0], [1.0], [3.0], [0.0]]))[:, 0], [2.5, 1, 2.5, 0])


def test_area_under_curve_counts_pairs():
    """It equals the part of (positive, negative) pairs that are in the right order, ties half."""
    values, positive = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
    pairs = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]

    assert area_under_curve(values, positive) == pytest.approx(np.mean(pairs))


def test_projection_as_wide_as_the_data_needs_a_ridge():
    """Without one it fits noise, so it is refused."""
    examples = blobs(16, 1)
    with pytest.raises(InvalidError) as caught:
        trak(16, ridge=0.0)(perceptron(), examples, examples, CLASSIFIER)

    assert caught.value.code == "projection_too_wide"


@pytest.fixture(scope="module")
def evaluation():
    examples, queries = blobs(60, 1), blobs(12, 2)

    def fit(places, seed):
        return train(perceptron(seed), [examples[i] for i in places], steps=40)

    return evaluate(
        fit,
        examples,
        queries,
        [f"c{i % 10}" for i in range(60)],
        CLASSIFIER,
        {
            "index": index_estimator(),
            "noise": lambda _m, e, q, _t: np.random.default_rng(0).normal(size=(len(q), len(e))).astype(np.float32),
            "similarity": input_similarity(lambda item: item[0]),
        },
        subsets=10,
        seeds=2,
    )


def test_noise_is_refused_for_payout(evaluation):
    """An estimator that foresees nothing must not move money; the baseline is always among the rows."""
    assert {row.name for row in evaluation.rows} == {"index", "noise", "similarity", "grad-dot"}
    with pytest.raises(RefusedError) as caught:
        fit_for_payout(evaluation, "noise")

    assert caught.value.code == "estimator_unfit"
    with pytest.raises(InvalidError):
        fit_for_payout(evaluation, "unknown")


def test_report_names_every_estimator_and_needs_nothing_else(evaluation):
    """The page has no links to load, and the values are plain JSON."""
    text = page([evaluation])

    assert "<svg" in text
    assert "http" not in text
    assert all(row.name in text for row in evaluation.rows)
    assert json.loads(json.dumps(as_values([evaluation])))[0]["payout"]["noise"] != "fit"


def test_evaluation_without_seeds_is_refused():
    """One seed has no ceiling."""
    with pytest.raises(InvalidError) as caught:
        evaluate(lambda _p, _s: perceptron(), [], [], [], CLASSIFIER, seeds=1)

    assert caught.value.code == "evaluation_small"


@pytest.mark.slow
def test_index_beats_gradient_products_on_pictures():
    """On the small network the index foresees retraining better than a plain product, at both levels."""
    torch.set_num_threads(1)
    task = pictures(3, deep=True)
    found = evaluate(
        task.train,
        task.examples,
        task.queries,
        task.contributors,
        task.task,
        {"index": index_estimator(), "grad-dot": grad_dot},
        subsets=16,
        mislabelled=task.mislabelled,
    )
    index, plain = found.row("index"), found.row("grad-dot")

    assert index.example.value > plain.example.value
    assert index.contributor.value > plain.contributor.value
    assert index.mislabelled_auc > 0.75
    assert fit_for_payout(found, "index") == index
