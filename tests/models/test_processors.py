"""A receipt replayed on another processor gives the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import hashlib
import numpy as np
from headwater.models import LocalScorer, Tokenizer, tiny_weights
from headwater.models.tokenizer import byte_alphabet

rng = np.random.default_rng(0)
contexts = [tuple(rng.integers(0, 300, size).tolist()) for size in (5, 60, 100)]
for heads in (3, 4):
    weights = tiny_weights(7, width=32 * heads, heads=heads, kv_heads=1)
    for precision in ("int16", "float32", "int8"):
        scorer = LocalScorer(weights, Tokenizer(byte_alphabet(), (), ()), precision=precision)
        print(hashlib.sha256(scorer.score(contexts, (1, 2, 3, 4, 5)).tobytes()).hexdigest())
"""
PROCESSORS = {"haswell": "+avx2,+fma,+avx,+sse4.2,+bmi,+bmi2,+f16c,+popcnt", "x86-64": ""}


@pytest.mark.slow
def test_scores_are_the_same_bits_on_older_processors(tmp_path: Path) -> None:
    """Compiled for this machine, for 256-bit vectors and without fused instructions, scores are the same."""
    if os.uname().machine != "x86_64":
        pytest.skip("the other processors are of the x86-64 kind")
    seen = set()
    for name, features in (("", ""), *PROCESSORS.items()):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / f"cache-{name}")}
        if name:
            environment |= {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
        run = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, check=True, text=True)
        seen.add(run.stdout)

    assert len(seen) == 1
    assert len(seen.pop().split()) == 6
