"""How fast and in how much memory an adapter of the demo model is trained: one thread, proposals of the demo corpus.

    python -m bench.adapters.training [--frozen bfloat16] [--documents 8] [--epochs 1]

Prints CPU seconds of each phase, tokens a CPU second, and the peak of the process' memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from headwater.core.ids import contributor_id
from headwater.models.adapters import AdapterStore
from headwater.models.factory import Recipe, Row, assemble
from headwater.models.factory.credit import AdapterCredit, build_index
from headwater.models.factory.factory import Base, Reports, make
from headwater.models.gguf_file import open_gguf
from headwater.models.smollm import MODEL_NAME, file_digest, smollm_path
from headwater.models.tokenizer import load_tokenizer
from headwater.models.weights import load_weights
from headwater.receipts.signing import KeySigner
from headwater.registry import License, contribute, owned_equally
from headwater.retrieval.demo_corpus import proposals_folder


def main() -> None:
    """Train once and print the figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--frozen", default="float32")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    known, content, rows = {}, {}, []
    for file in sorted(proposals_folder().iterdir())[200 : 200 + options.documents]:
        text = " ".join(file.read_text("utf-8")[2_000:5_500].split())
        one = contribute(
            "document",
            text.encode(),
            title=file.name,
            owners=owned_equally([contributor_id("bench", file.name)]),
            license=License("CC0-1.0", frozenset({"train"})),
            registered_at_ns=1,
            source="bench",
        )
        known[one.id], content[one.id] = one, text.encode()
        rows.append(Row(file.name, one.id, "text", "", text))
    recipe = Recipe(
        tokens_max=97, epochs=options.epochs, layers=options.layers, frozen=options.frozen, learning_rate=6e-3,
        holdout_ppm=0,
    )  # fmt: skip
    data = assemble(
        rows,
        lookup=lambda ids: [known[i] for i in ids],
        content=content.__getitem__,
        withdrawn=lambda _: {},
        now_ns=2,
        holdout_ppm=0,
        seed=0,
    )
    started = time.process_time()
    path = smollm_path()
    file = open_gguf(path)
    base = Base(MODEL_NAME, load_weights(file, file_digest(path)), load_tokenizer(file))
    marks: dict[str, float] = {}
    seen: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        made = make(
            "bench",
            data,
            base,
            recipe,
            AdapterStore(Path(folder)),
            KeySigner(b"\x01" * 32),
            reports=Reports(
                lambda done, total: marks.__setitem__("states" if done == total else "below", time.process_time()),
                lambda at: seen.append((time.process_time(), at.tokens)),
            ),
        )
        trained_s = time.process_time()
        build_index(made.stored, data, base, None)
        built_s = time.process_time()
        credit = AdapterCredit(made.stored, base)
        prompt = base.tokenizer.tokenize("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", control=True)
        answer = base.tokenizer.tokenize(" ".join(["Because it is simpler."] * 8), control=False)
        asked_s = time.process_time()
        credit.score(prompt, answer)
        scored_s = time.process_time()
        files = {p.name: p.stat().st_size for p in made.stored.folder.iterdir() if p.is_file()}
    training_s = seen[-1][0] - seen[0][0]
    tokens = sum(count for _, count in seen[1:])
    print(
        json.dumps(
            {
                "frozen": options.frozen,
                "layers": options.layers,
                "tokens_an_epoch": made.training_tokens,
                "frozen_layers_tokens_per_cpu_s": round(made.training_tokens / (marks["states"] - started)),
                "training_tokens_per_cpu_s": round(tokens / training_s),
                "steps": made.trained.steps,
                "loss_first_last": [round(made.trained.losses[0], 3), round(made.trained.losses[-1], 3)],
                "train_cpu_s": round(trained_s - started, 1),
                "influence_index_cpu_s": round(built_s - trained_s, 1),
                "influence_of_one_answer_cpu_s": round(scored_s - asked_s, 2),
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "adapter_digest": made.stored.lineage.adapter_digest,
                "files": files,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
