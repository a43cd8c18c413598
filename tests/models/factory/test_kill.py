"""A training killed without warning goes on from its last durable state and ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headwater.models.adapters import AdapterStore

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from pathlib import Path
from headwater.models.adapters import AdapterStore
from headwater.models.factory import Recipe, Row, assemble
from headwater.models.factory.factory import Base, make
from headwater.models.tokenizer import Tokenizer, byte_alphabet
from headwater.models.weights import tiny_weights
from headwater.core.ids import contributor_id
from headwater.receipts.signing import KeySigner
from headwater.registry import License, contribute, owned_equally

known, content, rows = {}, {}, []
for n in range(40):
    text = f"line {n}: " + "abcdefgh"[n % 8] * 20
    one = contribute("document", text.encode(), title=text, owners=owned_equally([contributor_id("t", "a")]),
                     license=License("CC0-1.0", frozenset({"train"})), registered_at_ns=1, source="t")
    known[one.id], content[one.id] = one, text.encode()
    rows.append(Row(str(n), one.id, "text", "", text))
data = assemble(rows, lookup=lambda ids: [known[i] for i in ids], content=content.__getitem__,
                withdrawn=lambda _: {}, now_ns=2, holdout_ppm=0, seed=0)
tokenizer = Tokenizer((*byte_alphabet(), "<|im_start|>", "<|im_end|>"), (), (256, 257))
recipe = Recipe(rank=2, layers=1, batch=2, epochs=int(sys.argv[2]), tokens_max=64, checkpoint_steps=1)
made = make("one", data, Base("tiny", tiny_weights(3), tokenizer), recipe, AdapterStore(Path(sys.argv[1])),
            KeySigner(b"\\x07" * 32))
print(made.trained.resumed_at, made.stored.lineage.digest)
"""


def train(folder: Path, epochs: int = 12) -> subprocess.Popen[str]:
    """Starts a training in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(epochs)], stdout=subprocess.PIPE, text=True, env=os.environ
    )


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    """kill -9 in the middle, several times: no adapter appears before the end, and its record is the whole run's."""
    whole = train(tmp_path / "whole").communicate(timeout=240)[0].split()
    folder = tmp_path / "killed"
    kills = 0
    for _ in range(2):
        process = train(folder)
        before = _step(folder)
        until = time.monotonic() + 120
        while process.poll() is None and _step(folder) == before and time.monotonic() < until:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            assert AdapterStore(folder).names() == ()
    resumed = train(folder).communicate(timeout=240)[0].split()

    assert kills == 2
    assert int(resumed[0]) > 0
    assert resumed[1] == whole[1]


def _step(folder: Path) -> tuple[float, ...]:
    return tuple(sorted(state.stat().st_mtime_ns for state in folder.glob(".one-*/state.npz")))
