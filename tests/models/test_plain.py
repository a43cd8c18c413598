"""The ground truth has properties of its own to hold."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.models.plain import PlainModel
from headwater.models.weights import LlamaWeights, tiny_weights

WEIGHTS: LlamaWeights = tiny_weights(5)


def test_next_token_probabilities_sum_to_one() -> None:
    """All continuations of one token cover everything once."""
    model = PlainModel(WEIGHTS)

    assert abs(sum(2 ** model.log2_probabilities((4, 9), (token,))[0] for token in range(300)) - 1) < 1e-9


def test_scores_chain() -> None:
    """Scoring an answer whole equals scoring it token by token: nothing later is seen."""
    model, context, answer = PlainModel(WEIGHTS), (1, 2, 3), (4, 5, 6, 7)
    stepwise = [model.log2_probabilities((*context, *answer[:at]), answer[at : at + 1])[0] for at in range(4)]

    assert np.allclose(model.log2_probabilities(context, answer), stepwise, rtol=0, atol=1e-9)


def test_float32_is_close_to_float64() -> None:
    """The float type changes the precision, not the model."""
    wide, narrow = (
        PlainModel(WEIGHTS, dtype).log2_probabilities((1, 2, 3), (4, 5)) for dtype in (np.float64, np.float32)
    )

    assert 0 < np.abs(wide - narrow).max() < 1e-4


def test_order_matters() -> None:
    """Positions are read: the same tokens in another order score otherwise."""
    model = PlainModel(WEIGHTS)

    assert abs(model.log2_probabilities((1, 2, 3), (4,)) - model.log2_probabilities((2, 1, 3), (4,)))[0] > 1e-3


@pytest.mark.model
def test_it_is_the_served_model(backend) -> None:
    """The plain pass finds the served greedy answer likely: far more so than another answer of the same tokens."""
    from headwater.models.backend import Sampling
    from headwater.models.gguf_file import open_gguf
    from headwater.models.smollm import smollm_path
    from headwater.models.weights import load_weights

    prompt = backend.tokenize("The capital of France is Paris. The capital of Italy is", control=False)
    said = tuple(token for piece in backend.generate(prompt, Sampling(6)) for token in piece.token_ids)
    model = PlainModel(load_weights(open_gguf(smollm_path()), "sha256:none"), np.float32)

    assert model.log2_probabilities(prompt, said).sum() > -12
    assert model.log2_probabilities(prompt, said[::-1]).sum() < -40
