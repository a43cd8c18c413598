"""What adapters cost when they are served: load time, and answers of one, of several in turn and of several at once.

    python -m bench.adapters.serving [--adapters 8] [--tokens 48]

The adapters are random, rank 8 on q, k, v and o of the last four layers. Rounds of every kind are
interleaved and medians are printed: CPU seconds of the process a generated token, and wall seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from headwater.core.canonical import digest
from headwater.models.adapters import GGUF_FILE, AdapterStore
from headwater.models.backend import Backend, Sampling
from headwater.models.factory import Recipe
from headwater.models.gguf_file import open_gguf
from headwater.models.llama import LlamaBackend
from headwater.models.lora import CONFIG_FILE, PROJECTIONS, WEIGHTS_FILE, Lora, peft_bytes, projection_shape
from headwater.models.lora_gguf import gguf_bytes
from headwater.models.smollm import file_digest, smollm_path
from headwater.models.weights import LlamaShape, load_weights
from headwater.receipts.signing import KeySigner
from headwater.registry.lineage import HeldOut, Lineage, signing_digest

ROUNDS = 5
SIGNER = KeySigner(b"\x02" * 32)


def main() -> None:
    """Serve, measure and print the figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    path = smollm_path()
    shape, base = load_weights(open_gguf(path), file_digest(path)).shape, file_digest(path)
    with tempfile.TemporaryDirectory() as folder:
        store = AdapterStore(Path(folder))
        for number in range(options.adapters):
            _publish(store, _random(f"a{number}", base, shape, number), shape)
        started = _now()
        with LlamaBackend(context_tokens_max=1024, parallel=4) as alone:
            plain_start = _since(started)
            started = _now()
            with LlamaBackend(context_tokens_max=1024, parallel=4, adapters=store) as served:
                report = {
                    "start_base_wall_cpu_s": plain_start,
                    f"start_with_{options.adapters}_adapters_wall_cpu_s": _since(started),
                    **_answers(alone, served, options.adapters, options.tokens),
                }
        later = AdapterStore(Path(folder) / "later")
        with LlamaBackend(context_tokens_max=1024, parallel=4, adapters=later) as serving:
            _publish(later, _random("a0", base, shape, 0), shape)  # trained while it serves
            started = _now()
            _answer(serving.with_adapter("a0"), 1)
            report["first_answer_of_an_adapter_not_loaded_wall_cpu_s"] = _since(started)
            started = _now()
            _answer(serving.with_adapter("a0"), 1)
            report["second_answer_wall_cpu_s"] = _since(started)
        report["adapter_size_bytes"] = store.get("a0").gguf.stat().st_size
        report["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(report, indent=1))


def _answers(alone: LlamaBackend, served: LlamaBackend, count: int, tokens: int) -> dict[str, object]:
    adapters = [served.with_adapter(f"a{number}") for number in range(count)]
    kinds: dict[str, Callable[[], object]] = {
        "base, no adapters loaded": lambda: _answer(alone, tokens),
        f"base, {count} adapters loaded": lambda: _answer(served, tokens),
        "one adapter": lambda: _answer(adapters[0], tokens),
        "4 at once, base": lambda: _at_once([served] * 4, tokens),
        "4 at once, one adapter": lambda: _at_once([adapters[0]] * 4, tokens),
        "4 at once, 4 adapters": lambda: _at_once(adapters[:4], tokens),
    }
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, run in kinds.items():
            started = _now()
            run()
            wall, cpu = _since(started)
            answers = 4 if kind.startswith("4") else 1
            found[kind].append((1e3 * cpu / (answers * tokens), wall))
    return {
        kind: {
            "cpu_ms_per_token": round(statistics.median(cpu for cpu, _ in runs), 2),
            "wall_s": round(statistics.median(wall for _, wall in runs), 2),
        }
        for kind, runs in found.items()
    }


def _answer(backend: Backend, tokens: int) -> int:
    prompt = backend.tokenize("<|im_start|>user\nTell me a long story about a river.<|im_end|>\n", control=True)
    prompt += backend.tokenize("<|im_start|>assistant\n", control=True)
    return sum(len(piece.token_ids) for piece in backend.generate(prompt, Sampling(tokens)))


def _at_once(backends: list[Backend], tokens: int) -> None:
    threads = [threading.Thread(target=_answer, args=(backend, tokens)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _random(name: str, base: str, shape: LlamaShape, seed: int) -> Lora:
    rng, recipe = np.random.default_rng(seed), Recipe()
    tensors = {}
    for layer in range(shape.layers - recipe.layers, shape.layers):
        for projection in PROJECTIONS[:4]:
            outputs, inputs = projection_shape(shape, projection)
            a, b = (rng.normal(0, 0.02, size).astype(np.float32) for size in ((8, inputs), (outputs, 8)))
            tensors[f"model.layers.{layer}.{projection}"] = (a, b)
    return Lora(name, base, 8, 16.0, tensors, 2.0)


def _publish(store: AdapterStore, lora: Lora, shape: LlamaShape) -> None:
    files = dict(zip((WEIGHTS_FILE, CONFIG_FILE), peft_bytes(lora, "base"), strict=True))
    files[GGUF_FILE] = gguf_bytes(lora, shape)
    nothing, none = HeldOut(0, 0, 0, 0, 0), "sha256:" + "0" * 64
    lineage = Lineage(
        lora.name, "base", lora.base_digest, None, lora.digest,
        tuple(sorted((name, digest(raw)) for name, raw in files.items())),
        Recipe().to_json(), "bench", none, none, none, (), 0, 0, (), nothing, nothing, SIGNER.address,
    )  # fmt: skip
    draft = store.folder / f".{lora.name}"
    draft.mkdir(parents=True)
    store.publish(draft, lineage, SIGNER.sign(signing_digest(lineage.to_bytes())), files)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(started: tuple[float, float]) -> tuple[float, float]:
    return round(time.perf_counter() - started[0], 3), round(time.process_time() - started[1], 3)


if __name__ == "__main__":
    main()
