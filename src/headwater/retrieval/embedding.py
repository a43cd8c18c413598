"""Static word embeddings, if they are installed: a second opinion on what a passage is about.

The weights come with the `wordllama` package; nothing is downloaded. Without it retrieval goes by words
alone, and says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import UpstreamError

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Embedder:
    """Turns texts into vectors of length 1; two embedders with one digest agree."""

    digest: str  # sha256:… of the weights
    embed: Callable[[Sequence[str]], Vectors]  # (n,) texts -> (n, dimensions), rows of length 1 or 0
    tokenize: Callable[[str], Sequence[int]] = lambda text: range(len(text.split()))  # ids, for those who count them


ABSENT = "static embeddings are not installed: retrieval goes by words alone (pip install wordllama)"
"""What to tell the reader when `load_embedder` gives nothing."""


def load_embedder() -> Embedder | None:
    """The installed static embeddings, or nothing when the package is absent.

    Raises:
        UpstreamError: the package is there but its weights cannot be read.
    """
    found = importlib.util.find_spec("wordllama")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    weights = sorted(folder.glob("weights/*.safetensors"))
    try:
        from wordllama import WordLlama

        model = WordLlama.load(cache_dir=folder, disable_download=True)
        state = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    except (OSError, ValueError, ImportError) as error:
        raise UpstreamError(
            f"static embeddings in {folder.name} cannot be read: {error}",
            code="embeddings_unreadable",
            fix="install the wordllama package again, or remove it",
        ) from error

    def embed(texts: Sequence[str]) -> Vectors:
        vectors: Vectors = np.asarray(model.embed(list(texts), norm=False), dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        scaled: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        return scaled

    def tokenize(text: str) -> Sequence[int]:
        ids: list[int] = model.tokenizer.encode(text).ids
        return ids

    return Embedder(f"sha256:{state}", embed, tokenize)
