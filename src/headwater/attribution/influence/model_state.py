"""The identity of a model, and models put back as they were after checkpoints have been loaded into them.

A digest covers every parameter and buffer by name, kind, shape and bytes. Knows nothing of gradients.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.core.errors import InvalidError

State = Mapping[str, Tensor]


def model_digest(model: nn.Module) -> str:
    """``sha256:…`` of all parameters and buffers."""
    hasher = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            hasher.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            hasher.update(_bytes(value))
    return f"sha256:{hasher.hexdigest()}"


def _bytes(value: Tensor) -> Any:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def as_before(model: nn.Module, states: Sequence[State]) -> Iterator[None]:
    """Evaluation mode inside; afterwards the entries that `states` name, and all modes, are what they were."""
    named = {name for state in states for name in state}
    kept = {name: value.detach().clone() for name, value in model.state_dict().items() if name in named}
    try:
        with as_evaluated(model):
            yield
    finally:
        _assign(model, kept)


def load_state(model: nn.Module, state: State) -> None:
    """Copy tensors into a model by name; names that the state leaves out stay.

    Raises:
        InvalidError: a name or a shape that the model does not have.
    """
    own = model.state_dict()
    for name, value in state.items():
        if name not in own or own[name].shape != value.shape:
            raise InvalidError(
                f"checkpoint entry {name!r} of shape {tuple(value.shape)} does not fit the model",
                code="checkpoint_mismatch",
                fix="give state dicts of this model",
            )
    _assign(model, state)


def _assign(model: nn.Module, state: State) -> None:
    own = model.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if not torch.equal(own[name], value):
                own[name].copy_(value)


def entries_to_keep(model: nn.Module, state: State) -> dict[str, Tensor]:
    """The entries of `state` that are trained, or that differ from what the model holds now."""
    own, trained = model.state_dict(), {name for name, p in model.named_parameters() if p.requires_grad}
    return {
        name: value.detach().clone()
        for name, value in state.items()
        if name in trained or name not in own or own[name].shape != value.shape or not torch.equal(own[name], value)
    }


def examples_digest(examples: Sequence[Any]) -> str:
    """``sha256:…`` of the examples in their order.

    Raises:
        InvalidError: an example that can be neither read as an array nor pickled.
    """
    hasher = hashlib.sha256()
    for position in range(len(examples)):
        try:
            _feed(hasher, examples[position])
        except (TypeError, pickle.PicklingError, AttributeError) as error:
            raise InvalidError(
                f"example {position} cannot be hashed: {error}",
                code="example_unhashable",
                fix="use tensors, arrays, text, numbers, or tuples and dicts of them",
            ) from None
    return f"sha256:{hasher.hexdigest()}"


def _feed(hasher: Any, item: Any) -> None:
    """One item, with its kind and size in front so that no two items share bytes."""
    if isinstance(item, Tensor):
        hasher.update(f"tensor {item.dtype} {tuple(item.shape)};".encode())
        hasher.update(_bytes(item))
    elif isinstance(item, np.ndarray) and item.dtype != object:
        hasher.update(f"array {item.dtype} {item.shape};".encode())
        hasher.update(np.ascontiguousarray(item).tobytes())
    elif isinstance(item, str | bytes):
        raw = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item
        hasher.update(f"{type(item).__name__} {len(raw)};".encode())
        hasher.update(raw)
    elif isinstance(item, tuple | list):
        hasher.update(f"row {len(item)};".encode())
        for part in item:
            _feed(hasher, part)
    elif isinstance(item, dict):
        hasher.update(f"map {len(item)};".encode())
        for key in sorted(item, key=repr):
            _feed(hasher, key)
            _feed(hasher, item[key])
    elif item is None or isinstance(item, bool | int | float | np.generic):
        hasher.update(f"{type(item).__name__} {item!r};".encode())
    else:
        raw = pickle.dumps(item, protocol=4)
        hasher.update(f"{type(item).__name__} {len(raw)};".encode())
        hasher.update(raw)
