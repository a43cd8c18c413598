from __future__ import annotations

import numpy as np
import pytest
import torch

from headwater.attribution.influence.measures import rank_correlation
from headwater.attribution.influence.unroll import AdamW, Sgd, TrainRecord, audit_influence, replay
from headwater.core.errors import ConflictError, InvalidError

from .conftest import CLASSIFIER, blobs, cross_entropy, perceptron


def recorded(optimiser, seed=0, epochs=4, size=8):
    """A run by torch's own optimiser, with tanh so that the loss is smooth."""
    examples = blobs(64, 1)
    model = perceptron(seed)
    model[1] = torch.nn.Tanh()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    if isinstance(optimiser, Sgd):
        stepper = torch.optim.SGD(
            model.parameters(), lr=optimiser.rate, momentum=optimiser.momentum, weight_decay=optimiser.decay
        )
    else:
        stepper = torch.optim.AdamW(model.parameters(), lr=optimiser.rate, weight_decay=optimiser.decay)
    rng = np.random.default_rng(seed)
    batches = [
        tuple(int(i) for i in rng.permutation(64)[k : k + size]) for _ in range(epochs) for k in range(0, 64, size)
    ]
    for batch in batches:
        stepper.zero_grad()
        (cross_entropy(model, [examples[i] for i in batch]).sum() / len(batch)).backward()
        stepper.step()
    end = {name: p.detach().clone() for name, p in model.named_parameters()}
    return TrainRecord(model, start, end, examples, batches, CLASSIFIER, optimiser)


OPTIMISERS = [Sgd(0.03, momentum=0.9, decay=1e-3), AdamW(0.01)]


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=["sgd", "adamw"])
def test_replay_ends_where_torch_ended(optimiser):
    """Our steps are those of torch's optimisers."""
    record = recorded(optimiser)
    final = replay(record)[-1][0]

    torch.testing.assert_close(final, torch.cat([p.flatten() for p in record.end.values()]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=["sgd", "adamw"])
def test_leaving_examples_out_of_the_same_run_is_foreseen(optimiser):
    """Same seed and order, 4 % left out: the audit puts the losses in the right order."""
    record = recorded(optimiser)
    queries = blobs(24, 2)
    scores = audit_influence(record, lambda model: cross_entropy(model, queries).mean())
    rng = np.random.default_rng(3)
    losses, foreseen = [], []
    for _ in range(30):
        out = rng.permutation(64)[:3]
        weights = np.ones(64, dtype=np.float32)
        weights[out] = 0
        final = replay(record, weights)[-1][0]
        torch.nn.utils.vector_to_parameters(final, record.model.parameters())
        losses.append(cross_entropy(record.model, queries).mean().item())
        foreseen.append(scores[out].sum())

    correlation = rank_correlation(np.array(foreseen)[:, None], np.array(losses)[:, None])[0]
    assert correlation >= 0.95


def test_record_of_another_run_is_refused():
    """A replay that ends elsewhere audits nothing."""
    record = recorded(OPTIMISERS[0])
    record.end["0.bias"] += 0.5

    with pytest.raises(ConflictError) as caught:
        audit_influence(record, lambda model: cross_entropy(model, blobs(4, 2)).mean())

    assert caught.value.code == "replay_differs"


def test_loss_that_is_not_one_number_is_refused():
    """The audit carries one adjoint, for one loss."""
    with pytest.raises(InvalidError) as caught:
        audit_influence(recorded(OPTIMISERS[0]), lambda model: cross_entropy(model, blobs(4, 2)))

    assert caught.value.code == "loss_invalid"
