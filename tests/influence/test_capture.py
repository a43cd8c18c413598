from __future__ import annotations

import pytest
import torch
from torch import nn

from headwater.attribution.influence.capture import Capture, outer, trainable_linears
from headwater.core.errors import InvalidError, MissingError


def per_example_gradients(model, losses, batch, names):
    """The slow truth: one backward pass for each example; weight gradient with the bias gradient as last column."""
    found = {name: [] for name in names}
    for item in batch:
        model.zero_grad()
        losses(model, [item]).sum().backward()
        for name, module in names.items():
            gradient = module.weight.grad
            if module.bias is not None and module.bias.requires_grad:
                gradient = torch.cat((gradient, module.bias.grad[:, None]), dim=1)
            found[name].append(gradient.clone())
    return {name: torch.stack(rows) for name, rows in found.items()}


class Sequences(nn.Module):
    """Runs one layer on (b, t, d), one on flattened rows, one on (t, b, d), one twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 5)
        self.twice = nn.Linear(5, 5)
        self.a.bias.requires_grad_(False)

    def forward(self, x):
        size, steps, wide = x.shape
        x = torch.tanh(self.a(x))
        x = torch.relu_(self.b(x.reshape(size * steps, wide))).reshape(size, steps, wide)
        x = torch.tanh(self.c(x.transpose(0, 1))).transpose(0, 1)
        return self.twice(torch.sin(self.twice(x)))


def sequence_losses(model, batch):
    return model(torch.stack(batch)).square().sum((1, 2))


def pair_losses(model, batch):
    """Both halves of each pair in one run of the model, as preference losses often do."""
    left, right = torch.stack([a for a, _ in batch]), torch.stack([b for _, b in batch])
    values = model(torch.cat((left, right))).square().sum((1, 2))
    return torch.nn.functional.softplus(values[: len(batch)] - values[len(batch) :])


@pytest.mark.parametrize("kind", ["sequences", "pairs"])
def test_gradients_are_those_of_one_backward_pass_for_each_example(kind):
    """However a model lays out its batch, hooks give what differentiating each example alone gives."""
    torch.manual_seed(0)
    model = Sequences()
    if kind == "sequences":
        losses, batch = sequence_losses, [torch.randn(3, 5) for _ in range(7)]
    else:
        losses, batch = pair_losses, [(torch.randn(3, 5), torch.randn(3, 5)) for _ in range(7)]
    modules = trainable_linears(model)
    expected = per_example_gradients(model, losses, batch, modules)

    with Capture(model, modules) as capture:
        unused = capture.probe(losses, batch)
        signals = capture.signals(losses, batch)

    assert unused == ()
    for name in modules:
        torch.testing.assert_close(outer(signals[name]), expected[name], rtol=1e-4, atol=1e-5)


def test_layer_the_losses_do_not_use_is_named():
    """A layer that never runs, or whose output is dropped, is reported."""
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)})

    with Capture(model, trainable_linears(model)) as capture:
        unused = capture.probe(lambda m, b: m["used"](torch.stack(b)).sum(1), list(torch.randn(4, 3)))

    assert unused == ("idle",)


def test_batch_normalisation_is_refused():
    """When one example's loss depends on another, per-example influence has no meaning."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()

    with Capture(model, trainable_linears(model)) as capture, pytest.raises(InvalidError) as caught:
        capture.probe(lambda m, b: m(torch.stack(b)).square().sum(1), list(torch.randn(4, 3)))

    assert caught.value.code == "examples_entangled"


def test_tied_weights_are_refused():
    """A weight that two layers share has no gradient of one layer."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight

    with pytest.raises(InvalidError) as caught:
        trainable_linears(model)

    assert caught.value.code == "weights_tied"


def test_head_tied_to_an_embedding_is_refused():
    """The usual tie of output layer and embedding is found as well."""
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 4), "head": nn.Linear(4, 4, bias=False)})
    model["head"].weight = model["embedding"].weight

    with pytest.raises(InvalidError) as caught:
        trainable_linears(model)

    assert caught.value.code == "weights_tied"


@pytest.mark.parametrize(("names", "code"), [(("none",), "module_missing"), (("1",), "module_not_linear")])
def test_modules_that_cannot_be_followed_are_refused(names, code):
    """Names must be of linear layers of the model."""
    with pytest.raises((InvalidError, MissingError)) as caught:
        trainable_linears(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), names)

    assert caught.value.code == code


def test_frozen_model_is_refused():
    """Without a trainable layer there is nothing that training changed."""
    with pytest.raises(InvalidError) as caught:
        trainable_linears(nn.Linear(2, 2).requires_grad_(False))

    assert caught.value.code == "modules_empty"
