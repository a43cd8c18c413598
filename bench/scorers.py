"""Scoring engines side by side: tokens per CPU-second, cost of a whole game, error against float64.

One game: a chat with N sources of about 100 tokens, an answer of 48 tokens, all 2**N subsets of the
sources. Our scorer plays whole games over its prefix tree. The others make one full pass a subset, so
they are given 8 subsets and the game's cost is worked out from their rate (marked ~). Rounds alternate
between engines; figures are medians of CPU-seconds of this process, one thread. torch and CTranslate2
take part when they are installed; the served engine reads the prompts but cannot score a given answer.

    OMP_NUM_THREADS=1 python bench/scorers.py [--rounds 3] [--players 5 6] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.models.backend import Sampling
from headwater.models.chatml import render_chat
from headwater.models.gguf_file import open_gguf
from headwater.models.llama import LlamaBackend
from headwater.models.plain import PlainModel
from headwater.models.prefix_tree import build_tree
from headwater.models.scorer import load_scorer
from headwater.models.smollm import file_digest, smollm_path
from headwater.models.tokenizer import Tokenizer, load_tokenizer
from headwater.models.weights import LlamaWeights, load_weights

Tokens = tuple[int, ...]
Score = Callable[[Sequence[Tokens], Tokens], NDArray[np.float64] | None]

SOURCES = ("assert", "break", "class", "lambda", "with", "global", "import", "raise")
SOURCE_TOKENS, ANSWER_TOKENS, SAMPLE = 100, 48, 8
ANSWER = (
    'The "with" statement is a built-in Python feature that allows you to wrap a block of code with a context '
    "manager. It is used to run methods defined by the context manager on entry and on exit, so that resources are "
    "released whatever happens inside the block."
)


@dataclass(frozen=True, slots=True)
class Engine:
    """Something that reads contexts and, most of them, scores an answer."""

    name: str
    score: Score
    tree: bool  # whole games; else full passes, of which a few are made


def game(tokenizer: Tokenizer, players: int) -> tuple[list[Tokens], Tokens]:
    """All subsets of the sources between the template's two halves, and the answer."""
    sources = [tokenizer.tokenize("\n\n" + topics[name], control=False)[:SOURCE_TOKENS] for name in SOURCES[:players]]
    chat = render_chat(
        [("system", "Answer from the sources."), ("user", "What does the with statement do in Python, and why?")]
    )
    pieces = [tokenizer.tokenize(piece.text, control=piece.control) for piece in chat]
    head, tail = sum(pieces[:2], ()), sum(pieces[2:], ())
    contexts = [
        head + tuple(token for place, source in enumerate(sources) if subset >> place & 1 for token in source) + tail
        for subset in range(2**players)
    ]
    return contexts, tokenizer.tokenize(ANSWER, control=False)[:ANSWER_TOKENS]


def main() -> None:
    """Run all engines in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--players", type=int, nargs="+", default=[5, 6], choices=range(3, len(SOURCES) + 1))
    parser.add_argument("--only", nargs="+", default=None, help="engines whose name starts with one of these")
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1 before python starts: one thread is what is compared")
    file = open_gguf(smollm_path())
    tokenizer, weights = load_tokenizer(file), load_weights(file, file_digest(smollm_path()))
    games = {players: game(tokenizer, players) for players in arguments.players}
    sample, answer = game(tokenizer, max(arguments.players))
    sample = sample[:: len(sample) // SAMPLE][: SAMPLE - 1] + sample[-1:]
    truth_model = PlainModel(weights)
    truth = np.array([truth_model.log2_probabilities(context, answer) for context in sample])
    del truth_model
    with tempfile.TemporaryDirectory() as folder:
        engines = all_engines(tokenizer, weights, Path(folder))  # each has read its files when this returns
    if arguments.only:
        engines = [engine for engine in engines if engine.name.startswith(tuple(arguments.only))]
    for engine in engines:  # compile, fault pages in, and see the error
        engine.score(sample[:1], answer[:2])
    errors = {engine.name: worst(engine, sample, answer, truth) for engine in engines}
    seconds: dict[tuple[str, int], list[float]] = {}
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        for engine in engines:
            for players in arguments.players if engine.tree else (0,):
                contexts = games[players][0] if players else sample
                start = time.process_time()
                engine.score(contexts, answer)
                seconds.setdefault((engine.name, players), []).append(time.process_time() - start)
    print_table(
        engines, games, sample, answer, errors, {key: statistics.median(taken) for key, taken in seconds.items()}
    )


def worst(engine: Engine, sample: Sequence[Tokens], answer: Tokens, truth: NDArray[np.float64]) -> float | None:
    """Largest error of a whole answer's log-probability over the sample, in bits; None where nothing is scored."""
    scored = engine.score(sample, answer)
    return None if scored is None else float(np.abs(scored.sum(axis=1) - truth.sum(axis=1)).max())


def print_table(
    engines: Sequence[Engine],
    games: dict[int, tuple[list[Tokens], Tokens]],
    sample: Sequence[Tokens],
    answer: Tokens,
    errors: dict[str, float | None],
    seconds: dict[tuple[str, int], float],
) -> None:
    """One row an engine; a rate counts the tokens the engine really read."""
    naive = {
        players: sum(len(context) + len(answer) - 1 for context in contexts) for players, (contexts, _) in games.items()
    }
    shared = {
        players: build_tree([(*context, *answer[:-1]) for context in contexts]).token_count
        for players, (contexts, _) in games.items()
    }
    for players in games:
        counts = f"{naive[players]:,} tokens one by one, {shared[players]:,} as a tree"
        print(f"{players} players: {2**players} subsets, {counts}")
    print(f"\n| engine | tok/CPU-s |{''.join(f' {players} players, CPU-s |' for players in games)} max error, bits |")
    print("|---|---|" + "---|" * len(games) + "---|")
    for engine in engines:
        if engine.tree:
            largest = max(games)
            rate = shared[largest] / seconds[engine.name, largest]
            costs = [f"{seconds[engine.name, players]:.1f}" for players in games]
        else:
            rate = sum(len(context) + len(answer) - 1 for context in sample) / seconds[engine.name, 0]
            costs = [f"~{naive[players] / rate:.0f}" for players in games]
        error = errors[engine.name]
        print(f"| {engine.name} | {rate:.0f} | {' | '.join(costs)} | {'—' if error is None else f'{error:.5f}'} |")


def all_engines(tokenizer: Tokenizer, weights: LlamaWeights, folder: Path) -> list[Engine]:
    """Every engine that is installed."""
    engines = [
        Engine("headwater int16, tree", load_scorer(precision="int16", tokenizer=tokenizer).score, tree=True),
        Engine("headwater int8, tree", load_scorer(precision="int8", tokenizer=tokenizer).score, tree=True),
        Engine("headwater float32, tree", load_scorer(precision="float32", tokenizer=tokenizer).score, tree=True),
        Engine(
            "numpy float32, full passes", full_passes(PlainModel(weights, np.float32).log2_probabilities), tree=False
        ),
        Engine("llama.cpp Q4_1, reading only", reading(LlamaBackend(tokenizer=tokenizer, parallel=1)), tree=False),
    ]
    if importlib.util.find_spec("torch"):
        engines += [
            Engine(f"torch {name}, full passes", full_passes(torch_model(weights, name)), tree=False)
            for name in ("float32", "bfloat16")
        ]
    if importlib.util.find_spec("ctranslate2"):
        convert_to_ctranslate2(weights, tokenizer, folder)
        engines += [
            Engine(f"CTranslate2 {name}, full passes", ctranslate2_model(folder, name), tree=False)
            for name in ("float32", "int8")
        ]
    missing = [name for name in ("torch", "ctranslate2") if not importlib.util.find_spec(name)]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    return engines


def full_passes(one: Callable[[Tokens, Tokens], NDArray[np.float64]]) -> Score:
    """A scorer that makes one pass a context."""
    return lambda contexts, answer: np.array([one(context, answer) for context in contexts])


def reading(backend: LlamaBackend) -> Score:
    """The served engine reads context and answer as a prompt and makes one token."""

    def score(contexts: Sequence[Tokens], answer: Tokens) -> None:
        for context in contexts:
            list(backend.generate((*context, *answer), Sampling(1)))

    return score


def torch_model(weights: LlamaWeights, dtype_name: str) -> Callable[[Tokens, Tokens], NDArray[np.float64]]:
    """A full pass in torch, answer positions only."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    dtype, shape = getattr(torch, dtype_name), weights.shape

    def tensor(array: NDArray[np.float32]) -> Any:
        return torch.from_numpy(np.array(array)).to(dtype)

    embedding, final_norm, layers = tensor(weights.embedding.dense()), tensor(weights.final_norm), []
    for index in range(shape.layers):
        layer = weights.layer(index)
        matrices = (layer.query_key_value, layer.attention_output, layer.gate_up, layer.down)
        layers.append(
            (tensor(layer.attention_norm), tensor(layer.ffn_norm), *(tensor(matrix.dense()) for matrix in matrices))
        )

    def one(context: Tokens, answer: Tokens) -> NDArray[np.float64]:
        with torch.inference_mode():
            tokens = torch.tensor([*context, *answer[:-1]])
            count, half = len(tokens), shape.head_width // 2
            angle = torch.arange(count)[:, None] * torch.tensor(shape.rope_base) ** (-torch.arange(half) / half)
            cosine, sine = angle.cos().to(dtype)[:, None], angle.sin().to(dtype)[:, None]

            def turned(part: Any) -> Any:
                pairs = part.reshape(count, -1, half, 2)
                a, b = pairs[..., 0], pairs[..., 1]
                return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).reshape(count, -1, 2 * half)

            def norm(x: Any, gain: Any) -> Any:
                return functional.rms_norm(x, (shape.width,), gain, shape.norm_epsilon)

            x = embedding[tokens]
            for attention_norm, ffn_norm, query_key_value, attention_output, gate_up, down in layers:
                q, k, v = functional.linear(norm(x, attention_norm), query_key_value).split(
                    [shape.heads * shape.head_width] + 2 * [shape.kv_heads * shape.head_width], dim=1
                )
                rows = (turned(q), turned(k), v.reshape(count, shape.kv_heads, -1))
                heads = functional.scaled_dot_product_attention(
                    *(row.transpose(0, 1)[None] for row in rows), is_causal=True, enable_gqa=True
                )
                x = x + functional.linear(heads[0].transpose(0, 1).reshape(count, -1), attention_output)
                gate, up = functional.linear(norm(x, ffn_norm), gate_up).chunk(2, dim=1)
                x = x + functional.linear(functional.silu(gate) * up, down)
            logits = functional.linear(norm(x[len(context) - 1 :], final_norm), embedding).float()
            picked = torch.log_softmax(logits, dim=1)[torch.arange(len(answer)), torch.tensor(answer)]
            result: NDArray[np.float64] = picked.double().numpy() / np.log(2)
            return result

    return one


def convert_to_ctranslate2(weights: LlamaWeights, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the dense weights as a CTranslate2 model. Its vocabulary is the token ids as text."""
    from ctranslate2 import specs

    shape = weights.shape
    spec = specs.TransformerDecoderModelSpec.from_config(
        shape.layers, shape.heads, activation=specs.Activation.SWISH, pre_norm=True, ffn_glu=True, rms_norm=True,
        rotary_dim=shape.head_width, rotary_interleave=True, rotary_base=shape.rope_base, num_heads_kv=shape.kv_heads,
    )  # fmt: skip
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = weights.embedding.dense()
    decoder.layer_norm.gamma = weights.final_norm
    for index, target in enumerate(decoder.layer):
        layer = weights.layer(index)
        target.self_attention.layer_norm.gamma, target.ffn.layer_norm.gamma = layer.attention_norm, layer.ffn_norm
        target.self_attention.linear[0].weight = layer.query_key_value.dense()
        target.self_attention.linear[1].weight = layer.attention_output.dense()
        target.ffn.linear_0.weight, target.ffn.linear_0_noact.weight = np.split(layer.gate_up.dense(), 2)
        target.ffn.linear_1.weight = layer.down.dense()
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "1", "2", "0"
    spec.config.layer_norm_epsilon = shape.norm_epsilon
    spec.register_vocabulary([str(token) for token in range(tokenizer.vocabulary_size)])
    spec.validate()
    spec.save(str(folder))


def ctranslate2_model(folder: Path, compute_type: str) -> Score:
    """CTranslate2's `score_batch`, which gives every token's log-probability, cut to the answer."""
    import ctranslate2

    generator = ctranslate2.Generator(str(folder), compute_type=compute_type, inter_threads=1, intra_threads=1)

    def score(contexts: Sequence[Tokens], answer: Tokens) -> NDArray[np.float64]:
        texts = [[str(token) for token in (*context, *answer)] for context in contexts]
        results = [generator.score_batch([text])[0] for text in texts]
        return np.array([result.log_probs[-len(answer) :] for result in results]) / np.log(2)

    return score


if __name__ == "__main__":
    main()
