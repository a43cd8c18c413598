"""Per-example gradients of linear layers from one backward pass of a whole batch.

A linear layer's weight gradient is the sum over positions of (gradient at its output) ⊗ (its input), so inputs
are kept by a forward hook and only the gradients at the outputs are asked of autograd: no weight gradient is
formed, nothing is repeated per example. Which rows of a layer's input belong to which example is found out by
differentiating one loss of a small batch, so flattened, repeated and transposed batches work; a model whose
examples influence one another is refused. Knows nothing of curvature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from headwater.core.errors import InvalidError, MissingError

Signals = dict[str, list[tuple[Tensor, Tensor]]]
"""Module name -> for each run: inputs (b, t, in), a one appended where there is a bias; gradients (b, t, out)."""

PROBE_EXAMPLES = 3
HALF_WIDTH_MIN = 512


def trainable_linears(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Linear]:
    """The linear layers to follow, in the model's order.

    Args:
        model: any module.
        names: module names; by default every linear layer whose weight is trainable.

    Raises:
        MissingError: a name that the model does not have.
        InvalidError: not a linear layer, weights shared by two layers, or nothing to follow.
    """
    found = dict(model.named_modules(remove_duplicate=False))
    if names is None:
        chosen = {name: m for name, m in found.items() if isinstance(m, nn.Linear) and m.weight.requires_grad}
    else:
        chosen = {}
        for name in names:
            if name not in found:
                raise MissingError(
                    f"the model has no module {name!r}", code="module_missing", fix="take a name of named_modules()"
                )
            module = found[name]
            if not isinstance(module, nn.Linear):
                raise InvalidError(
                    f"module {name!r} is a {type(module).__name__}, not a Linear",
                    code="module_not_linear",
                    fix="name Linear layers",
                )
            chosen[name] = module
    if not chosen:
        raise InvalidError(
            "no Linear layer of the model is trainable",
            code="modules_empty",
            fix="name the layers with modules=(…), or set requires_grad",
        )
    owners = {id(parameter): name for name, parameter in reversed(list(_all_parameters(model)))}
    seen: dict[int, str] = {}
    for name, module in chosen.items():
        key = id(module.weight)
        first = owners[key]
        if key in seen or first != f"{name}.weight":
            raise InvalidError(
                f"the weight of {name!r} is also {seen.get(key, first)!r}",
                code="weights_tied",
                fix="leave tied layers out with modules=(…): their gradient is not that of one layer",
            )
        seen[key] = f"{name}.weight"
    return chosen


def _all_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a probe learns of a model and a task; good for every batch that is laid out alike."""

    inner: dict[tuple[str, int], int]  # rows in a row that are of one example; 0: those of one entry of the batch
    each: dict[tuple[str, int], int]  # rows of an example
    pairs: dict[str, str]  # second layer of a low-rank pair -> the first


def half_is_faster(modules: dict[str, nn.Linear]) -> bool:
    """Whether products of layers this wide are faster in bfloat16 on this machine."""
    wide = max(max(module.in_features, module.out_features) for module in modules.values())
    return wide >= HALF_WIDTH_MIN and bool(torch.cpu._is_avx512_bf16_supported())


class Capture:
    """Watches linear layers of a model while it is open."""

    def __init__(
        self, model: nn.Module, modules: dict[str, nn.Linear], *, merge: bool = False, half: bool = False
    ) -> None:
        """Watch nothing yet.

        Args:
            model: that the losses are called with.
            modules: of it, to be followed.
            merge: follow a low-rank pair as the one layer that it stands for; see `Layout.pairs`.
            half: run the model's products in bfloat16; signals are float32 in any case.
        """
        self._model, self._modules, self._merge, self._half = model, modules, merge, half
        self._inputs: dict[str, list[Tensor]] = {}
        self._edges: dict[str, list[Any]] = {}
        self.layout = Layout({}, {}, {})
        self._outputs: list[tuple[str, Tensor, int]] | None = None  # of a forward pass that looks for pairs
        self._fed: dict[str, str] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Capture:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inputs.clear()
        self._edges.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def remember(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                self._inputs.setdefault(name, []).append(inputs[0].detach())
                # An edge, not the tensor: it stays right when the output is changed in place afterwards.
                self._edges.setdefault(name, []).append(torch.autograd.graph.get_gradient_edge(output))
                if self._outputs is not None:
                    for first, other, version in self._outputs:
                        # An output that was changed in place, by an activation, is another value under the same name.
                        if other is inputs[0] and other._version == version:
                            self._fed[name] = first
                    self._outputs.append((name, output, output._version))

        return remember

    def losses(self, losses: Callable[[Any, list[Any]], Tensor], batch: list[Any]) -> Tensor:
        """(b,) what the task says, checked for its shape."""
        self._inputs, self._edges = {}, {}
        with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._half):
            value = losses(self._model, batch)
        if not isinstance(value, Tensor) or value.shape != (len(batch),):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InvalidError(
                f"the task gave losses of shape {shape} for {len(batch)} items",
                code="losses_shape",
                fix="return one loss for each item: (b,)",
            )
        return value

    def _differentiate(self, value: Tensor) -> list[tuple[str, int, Tensor, Tensor | None]]:
        pairs = self.layout.pairs
        firsts = set(pairs.values())
        keys = [(n, call) for n, edges in self._edges.items() if n not in firsts for call in range(len(edges))]
        if not keys or not value.requires_grad:
            return []
        found = torch.autograd.grad(value, [self._edges[n][c] for n, c in keys], allow_unused=True)
        inputs = self._inputs
        return [(n, c, inputs[pairs.get(n, n)][c], gradient) for (n, c), gradient in zip(keys, found, strict=True)]

    def probe(self, losses: Callable[[Any, list[Any]], Tensor], examples: Sequence[Any]) -> tuple[str, ...]:
        """Learn how examples are laid out in each layer's input; run once before `signals`.

        Returns:
            Names of the layers that the losses do not depend on.

        Raises:
            InvalidError: the loss of one example depends on another example.
        """
        batch = [examples[i] for i in range(min(PROBE_EXAMPLES, len(examples)))]
        size, at = len(batch), len(batch) // 2
        self.layout, self._fed = Layout({}, {}, {}), {}
        self._outputs = [] if self._merge else None
        try:
            value = self.losses(losses, batch)
        finally:
            self._outputs = None
        used: set[str] = set()
        for name, call, inputs, gradient in self._differentiate(value[at]):
            rows = inputs.numel() // inputs.shape[-1]
            if rows % size:
                raise InvalidError(
                    f"layer {name!r} sees {rows} rows for {size} examples",
                    code="rows_unassigned",
                    fix="give every example the same number of rows: pad in the task",
                )
            each = rows // size
            natural = rows // inputs.shape[0] if inputs.shape[0] % size == 0 else each
            plain = inputs.shape[0] % size == 0
            self.layout.inner[name, call], self.layout.each[name, call] = 0 if plain else natural, each
            live = None if gradient is None else gradient.reshape(rows, -1).abs().sum(1) > 0
            if live is None or not bool(live.any()):
                continue
            used.add(name)
            others = torch.arange(size) != at
            for inner in (natural, *(n for n in range(each, 0, -1) if each % n == 0)):
                if not bool(live.reshape(-1, size, inner)[:, others].any()):
                    if not plain or inner != natural:
                        self.layout.inner[name, call] = inner
                    break
            else:
                raise InvalidError(
                    f"in layer {name!r} the loss of one example depends on another example",
                    code="examples_entangled",
                    fix="leave out layers that mix a batch, such as batch normalisation in training mode",
                )
        self.layout.pairs.update(self._low_rank_pairs(used))
        used |= set(self.layout.pairs.values())
        return tuple(name for name in self._modules if name not in used)

    def _low_rank_pairs(self, used: set[str]) -> dict[str, str]:
        """Pairs of layers without biases, the second fed by the first alone, through fewer numbers than either side."""
        found: dict[str, str] = {}
        for second, first in self._fed.items():
            a, b = self._modules[first], self._modules[second]
            narrow = a.out_features < min(a.in_features, b.out_features)
            alone = list(self._fed.values()).count(first) == 1
            once = all(len(self._inputs.get(name, ())) == 1 for name in (first, second))
            if narrow and alone and once and a.bias is None and b.bias is None and second in used:
                found[second] = first
        return found

    def signals(self, losses: Callable[[Any, list[Any]], Tensor], batch: list[Any]) -> Signals:
        """Inputs and output gradients of each layer that ran, for one batch.

        Raises:
            InvalidError: losses of another shape, or rows that cannot be assigned to examples.
        """
        found: Signals = {}
        size = len(batch)
        for name, call, inputs, gradient in self._differentiate(self.losses(losses, batch).sum()):
            if gradient is None:
                continue
            module = self._modules[name]
            rows, layout = inputs.numel() // inputs.shape[-1], self.layout
            inner = layout.inner.get((name, call), -1)
            plain = inner == 0 and inputs.shape[0] % size == 0
            if rows % size or not (plain or (inner > 0 and rows == size * layout.each[name, call])):
                raise InvalidError(
                    f"layer {name!r} sees {rows} rows for {size} examples in its run {call}",
                    code="rows_unassigned",
                    fix="run each layer equally often for every batch, with as many rows for every example",
                )
            a, g = inputs.reshape(rows, -1).float(), gradient.reshape(rows, -1).float()
            if module.bias is not None and module.bias.requires_grad:
                a = torch.cat((a, a.new_ones(rows, 1)), dim=1)
            inner = rows // inputs.shape[0] if plain else inner
            a, g = (_by_example(x, size, inner) for x in (a, g))
            found.setdefault(name, []).append((a, g))
        return found


def _by_example(rows: Tensor, size: int, inner: int) -> Tensor:
    """(rows, d) to (size, rows / size, d), where `inner` rows in a row belong to one example."""
    if rows.shape[0] == size * inner:
        return rows.reshape(size, inner, -1)
    return rows.reshape(-1, size, inner, rows.shape[-1]).transpose(0, 1).flatten(1, 2)


def outer(signal: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Per-example gradients (b, out, in) of one layer."""
    parts = [torch.bmm(g.transpose(1, 2), a) for a, g in signal]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
