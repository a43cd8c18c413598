"""Different adapters in one batch of the torch path, beside the same calls in turn; ``python -m bench.adapters.mixed``.

Random adapters of rank 8 on q, k, v and o of the last four layers of SmolLM2, one thread, medians of interleaved
rounds: CPU milliseconds a generated token. Both kernels are forced in turn, and the choice that was measured is shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict

import numpy as np
import torch

from headwater.models.gguf_file import open_gguf
from headwater.models.lora import Lora, projection_shape
from headwater.models.mixed_adapters import MixedAdapters, complete_batch, loader_of
from headwater.models.smollm import file_digest, smollm_path
from headwater.models.torch_weights import llama_module
from headwater.models.weights import LlamaShape, load_weights

PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


def _random(name: str, base: str, shape: LlamaShape, layers: range, seed: int) -> Lora:
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in layers:
        for part in PARTS:
            outputs, inputs = projection_shape(shape, part)
            pair = (rng.normal(0, 0.02, (8, inputs)), rng.normal(0, 0.02, (outputs, 8)))
            tensors[f"model.layers.{layer}.{part}"] = tuple(x.astype(np.float32) for x in pair)
    return Lora(name, base, 8, 16.0, tensors, 2.0)  # type: ignore[arg-type]


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = smollm_path()
    base = file_digest(path)
    weights = load_weights(open_gguf(path), base)
    shape, module = weights.shape, llama_module(weights)
    layers = range(shape.layers - 4, shape.layers)
    loras = {f"a{k}": _random(f"a{k}", base, shape, layers, k) for k in range(options.batch)}
    adapters = MixedAdapters(module, loader_of(loras), rank_max=8, layers=layers, batch=options.batch)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(100, 40_000, 12).tolist() for _ in range(options.batch)]

    def together(count: int, forced: bool | None) -> None:
        adapters._forced = forced
        names = [f"a{k % count}" if count else None for k in range(options.batch)]
        complete_batch(module, adapters, prompts, names, options.tokens)
        adapters._forced = None

    def in_turn() -> None:
        for k, prompt in enumerate(prompts):
            complete_batch(module, adapters, [prompt], [f"a{k}"], options.tokens)

    kinds = {"base, one batch": lambda: together(0, None), "each call alone, in turn": in_turn}
    for count in (1, 2, 4, 8):
        if count <= options.batch:
            for label, forced in (("grouped", True), ("gathered", False), ("chosen", None)):
                kinds[f"{count} adapters, {label}"] = lambda count=count, forced=forced: together(count, forced)  # type: ignore[misc]
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, run in kinds.items():
            started = time.process_time()
            run()
            taken[kind].append((time.process_time() - started) / (options.batch * options.tokens) * 1000)
    report = {kind: round(statistics.median(values), 2) for kind, values in taken.items()}
    print(
        json.dumps(
            {"cpu_ms_a_token": report, "crossover": asdict(adapters.crossover), "slots": adapters.slots}, indent=1
        )
    )


if __name__ == "__main__":
    main()
