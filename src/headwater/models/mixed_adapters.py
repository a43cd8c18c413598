"""Requests of different adapters in one batch of a torch model, with the adapters' factors in slots under a cap.

The base layers run once for the whole batch. What the adapters add is computed in one of two ways:

* *grouped*: the rows of each adapter together, one small pair of products for each adapter in the batch;
* *gathered*: every row picks its factors, and two batched products do all rows at once, however many adapters.

Which is faster depends on the machine, the model and how many adapters meet in a batch, so it is measured when
the slots are made, for one token a row and for many, and the winner is taken from then on. The slot used longest
ago gives way to an adapter that is not loaded. Knows nothing of files, receipts or who may call.
"""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headwater.core.errors import InvalidError, MissingError
from headwater.models.lora import PROJECTIONS, RANK_MAX, Lora

MEMORY_BYTES_MAX = 256 * 2**20
SLOTS_MAX = 1024
MANY_TOKENS = 16
_ROUNDS = 7

Load = Callable[[str], Lora]
"""The factors of an adapter by name; raises MissingError where there is none."""


@dataclass(frozen=True, slots=True)
class Crossover:
    """Up to how many different adapters in a batch grouping was not slower than gathering."""

    one_token: int
    many_tokens: int
    batch: int  # rows of the batch that was measured

    def grouped(self, adapters: int, rows: int, tokens: int) -> bool:
        """Whether a batch of so many rows, tokens each and adapters is to be grouped."""
        most = self.one_token if tokens < MANY_TOKENS else self.many_tokens
        return adapters * self.batch <= most * rows


class MixedAdapters:
    """A torch llama whose rows may each use an adapter of their own. For one thread at a time."""

    def __init__(
        self,
        module: nn.Module,
        load: Load,
        *,
        rank_max: int,
        projections: Sequence[str] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        layers: Sequence[int] | None = None,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
        batch: int = 8,
        crossover: Crossover | None = None,
    ) -> None:
        """Reserve the slots and measure.

        Args:
            module: a llama as `transformers` names its parts, in evaluation mode.
            load: gives an adapter's factors.
            rank_max: of any adapter; smaller ones are filled up with zeros.
            projections: that adapters may adapt.
            layers: by number; all by default.
            memory_bytes_max: of all slots.
            batch: rows of the batch to measure with.
            crossover: of an earlier measurement, instead of a new one.

        Raises:
            InvalidError: no such layers, or a cap under the size of one adapter.
        """
        if not 1 <= rank_max <= RANK_MAX or any(name not in PROJECTIONS for name in projections):
            raise InvalidError(
                f"rank {rank_max} or projections {', '.join(projections)} are not usable",
                code="adapter_slots_invalid",
                fix=f"use a rank of 1 to {RANK_MAX} and projections among {', '.join(PROJECTIONS)}",
            )
        self._load, self._rank = load, rank_max
        wanted = tuple(projections)
        self._linears = {
            name: part
            for name, part in module.named_modules()
            if isinstance(part, nn.Linear)
            and name.endswith(wanted)
            and (layers is None or int(name.split("layers.")[1].split(".")[0]) in layers)
        }
        each = 4 * rank_max * sum(part.in_features + part.out_features for part in self._linears.values())
        slots = min(memory_bytes_max // each, SLOTS_MAX) if each else 0
        if slots < 1:
            raise InvalidError(
                f"{memory_bytes_max} bytes hold no adapter of {each} bytes in {len(self._linears)} layers",
                code="adapter_slots_invalid",
                fix="raise the cap, or name layers that the model has",
            )
        self.slots, self.slot_bytes = slots, each
        self._a = {n: torch.zeros(slots, rank_max, part.in_features) for n, part in self._linears.items()}
        self._b = {n: torch.zeros(slots, part.out_features, rank_max) for n, part in self._linears.items()}
        self._places: OrderedDict[str, tuple[int, str]] = OrderedDict()  # name -> (slot, digest of the factors)
        self._rows: Tensor | None = None  # (b,) slot of each row, -1 for the base alone
        self._handles = [part.register_forward_hook(partial(self._add, name)) for name, part in self._linears.items()]
        self._forced: bool | None = None
        self.crossover = crossover or self._measure(batch)

    def close(self) -> None:
        """Take the hooks off; the model is what it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def resident(self) -> tuple[str, ...]:
        """Names of the adapters in slots, the one used longest ago first."""
        return tuple(self._places)

    @contextmanager
    def using(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside, row i of every batch runs with the adapter `names[i]`, or with the base alone.

        Raises:
            MissingError: no such adapter.
            InvalidError: more adapters in one batch than there are slots, or one that does not fit the slots.
        """
        distinct = dict.fromkeys(name for name in names if name is not None)
        if len(distinct) > self.slots:
            raise InvalidError(
                f"{len(distinct)} adapters in one batch, {self.slots} slots",
                code="adapter_slots_few",
                fix="send fewer adapters at once, or raise the memory cap",
            )
        for name in distinct:  # those that are here first, so that none of them gives way to another of this batch
            if name in self._places:
                self._places.move_to_end(name)
        for name in distinct:
            self._ensure(name)
        self._rows = torch.tensor([-1 if name is None else self._places[name][0] for name in names])
        try:
            yield
        finally:
            self._rows = None

    def _ensure(self, name: str) -> None:
        lora = self._load(name)
        known = self._places.get(name)
        if known is not None and known[1] == lora.digest:
            self._places.move_to_end(name)
            return
        misfits = [m for m, (a, b) in lora.tensors.items() if not self._fits(m, a.shape, b.shape)]
        if misfits:
            raise InvalidError(
                f"adapter {name!r} adapts {misfits[0]!r} with rank {lora.rank}, which these slots do not hold",
                code="adapter_slots_misfit",
                fix="make slots for its rank, layers and projections",
            )
        if known is not None:
            slot = known[0]
        elif len(self._places) < self.slots:
            slot = len(self._places)
        else:
            slot = self._places.popitem(last=False)[1][0]
        for module in self._linears:
            self._a[module][slot].zero_()
            self._b[module][slot].zero_()
            if module in lora.tensors:
                a, b = (torch.from_numpy(part) for part in lora.tensors[module])
                self._a[module][slot, : lora.rank] = a
                self._b[module][slot, :, : lora.rank] = b * lora.scale
        self._places[name] = (slot, lora.digest)

    def _fits(self, module: str, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        part = self._linears.get(module)
        return part is not None and a[0] <= self._rank and a[1] == part.in_features and b == (part.out_features, a[0])

    def _add(self, name: str, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        rows = self._rows
        if rows is None or not bool((rows >= 0).any()):
            return output
        x: Tensor = inputs[0]
        if len(x) != len(rows):
            raise InvalidError(
                f"a batch of {len(x)} rows, adapters of {len(rows)}",
                code="adapter_rows_differ",
                fix="name one adapter, or none, for each row",
            )
        flat = x.reshape(len(x), -1, x.shape[-1])
        distinct = len(set(rows[rows >= 0].tolist()))
        grouped = self.crossover.grouped(distinct, len(x), flat.shape[1]) if self._forced is None else self._forced
        kernel = added_grouped if grouped else added_gathered
        return output + kernel(flat, rows, self._a[name], self._b[name]).view(output.shape).to(output.dtype)

    @torch.no_grad()
    def _measure(self, batch: int) -> Crossover:
        """Time both ways on the first adapted layer, with random numbers in place of states."""
        name = next(iter(self._linears))
        a, b = self._a[name], self._b[name]
        most = min(batch, self.slots)
        counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= most]
        found = []
        for tokens in (1, MANY_TOKENS):
            x, best = torch.randn(batch, tokens, a.shape[2]), 0
            for count in counts:
                rows = torch.arange(batch) % count
                times: dict[Any, list[float]] = {added_grouped: [], added_gathered: []}
                for _ in range(_ROUNDS):
                    for kernel, taken in times.items():
                        started = time.perf_counter()
                        kernel(x, rows, a, b)
                        taken.append(time.perf_counter() - started)
                if statistics.median(times[added_grouped]) <= statistics.median(times[added_gathered]):
                    best = count
            found.append(best)
        return Crossover(found[0], found[1], batch)


def added_grouped(x: Tensor, rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """What the adapters add to a layer's output, adapter by adapter.

    Args:
        x: (b, t, in) inputs of the layer.
        rows: (b,) slot of each row; -1 adds nothing.
        a: (slots, rank, in).
        b: (slots, out, rank), scale included.

    Returns:
        (b, t, out).
    """
    found = x.new_zeros(*x.shape[:2], b.shape[1])
    for slot in sorted(set(rows.tolist())):
        if slot >= 0:
            own = (rows == slot).nonzero()[:, 0]
            found[own] = (x[own] @ a[slot].T) @ b[slot].T
    return found


def added_gathered(x: Tensor, rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same by two batched products; see `added_grouped`."""
    live = rows.clamp_min(0)
    found = torch.bmm(torch.bmm(x, a[live].transpose(1, 2)), b[live].transpose(1, 2))
    return found * (rows >= 0).view(-1, 1, 1)


@torch.no_grad()
def complete_batch(
    module: Any, adapters: MixedAdapters, prompts: Sequence[Sequence[int]], names: Sequence[str | None], tokens_max: int
) -> list[list[int]]:
    """Greedy answers of `tokens_max` tokens, all prompts in one batch, each with its own adapter.

    Args:
        module: the causal language model that `adapters` watches.
        prompts: token ids, none empty; padded on the left.
        names: an adapter, or none, for each prompt.

    Raises:
        InvalidError: no prompts, an empty one, or not one name for each.
        MissingError: no such adapter.
    """
    if not prompts or len(names) != len(prompts) or not all(prompts) or tokens_max < 1:
        raise InvalidError(
            f"{len(prompts)} prompts, {len(names)} adapters, {tokens_max} tokens",
            code="batch_invalid",
            fix="give at least one prompt, none empty, an adapter or none for each, and at least one token",
        )
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    past, answers = None, torch.zeros(len(prompts), 0, dtype=torch.long)
    with adapters.using(names):
        fresh = ids
        for _ in range(tokens_max):
            places = (mask.cumsum(1) - 1).clamp_min(0)[:, -fresh.shape[1] :]
            out = module(
                input_ids=fresh, attention_mask=mask, position_ids=places, past_key_values=past, use_cache=True
            )
            past = out.past_key_values
            fresh = out.logits[:, -1].argmax(-1, keepdim=True)
            answers = torch.cat((answers, fresh), 1)
            mask = torch.cat((mask, torch.ones_like(fresh)), 1)
    found: list[list[int]] = answers.tolist()
    return found


def loader_of(loras: dict[str, Lora]) -> Load:
    """A loader over adapters that are in memory."""

    def load(name: str) -> Lora:
        if name not in loras:
            raise MissingError(f"no adapter {name[:80]!r}", code="adapter_missing", fix="see `headwater adapter list`")
        return loras[name]

    return load
