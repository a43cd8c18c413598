"""The scorer: how likely an answer is after each of many prompts, on the very weights that are served.

In process, one thread a call, no torch. Three arithmetics (see `linear`): ``int16``, the default, ``float32``
and ``int8``. Each gives the same bits for a context whatever is scored beside it, so a receipt can be
replayed one subset at a time. Adapters are scored beside the base on the same packed weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError, InvariantError
from headwater.models.gguf_file import open_gguf
from headwater.models.linear import Precision
from headwater.models.lora import Lora, check_fit
from headwater.models.network import Network
from headwater.models.smollm import file_digest, smollm_path
from headwater.models.tokenizer import Tokenizer, load_tokenizer
from headwater.models.weights import LlamaWeights, load_weights
from headwater.models.window import check_window

ARITHMETIC_VERSION = 1  # raised when a change alters the bits of a result
CONTEXT_TOKENS_MAX = 4096


class LocalScorer:
    """Scores answers with one model in process. Safe for concurrent calls; each runs on its caller's thread."""

    def __init__(
        self,
        weights: LlamaWeights,
        tokenizer: Tokenizer,
        *,
        precision: Precision = "int16",
        context_tokens_max: int = CONTEXT_TOKENS_MAX,
    ) -> None:
        """Pack `weights` for `precision`.

        Raises:
            InvalidError: the window is larger than the model's.
        """
        if not 1 <= context_tokens_max <= weights.shape.context_tokens_max:
            raise InvalidError(
                f"context_tokens_max is {context_tokens_max}, the model's window is {weights.shape.context_tokens_max}",
                code="context_window_invalid",
                fix=f"use at most {weights.shape.context_tokens_max}",
            )
        self._network = Network(weights, precision, context_tokens_max)
        self._tokenizer, self._context_tokens_max, self.precision = tokenizer, context_tokens_max, precision
        self._base_digest = weights.digest
        self._adapters: dict[str, Lora] = {}
        self._adapted: dict[tuple[str, ...], Network] = {(): self._network}

    def with_adapter(self, lora: Lora) -> LocalScorer:
        """A scorer that knows `lora` by its name too; `score` is still the base's, `score_with` names adapters.

        Raises:
            InvalidError: the adapter was made for other weights or shapes, or its name is taken.
        """
        check_fit(lora, self._network.shape, self._base_digest)
        if lora.name in self._adapters:
            raise InvalidError(f"an adapter {lora.name!r} is there already", code="adapter_repeated", fix="rename one")
        wider = copy(self)
        wider._adapters = {**self._adapters, lora.name: lora}
        wider._adapted = dict(self._adapted)
        return wider

    @property
    def digest(self) -> str:
        """Digest of the weights' own digest, the arithmetic and its version, and of adapters where there are any."""
        said = f"headwater scorer {ARITHMETIC_VERSION} {self.precision} {self._base_digest}"
        for name, lora in sorted(self._adapters.items()):
            said += f" {name} {lora.digest}"
        return "sha256:" + hashlib.sha256(said.encode()).hexdigest()

    @property
    def context_tokens_max(self) -> int:
        """The longest prompt and answer together, in tokens."""
        return self._context_tokens_max

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:
        """Token ids of one part; special tokens are honoured only when `control`."""
        return self._tokenizer.tokenize(text, control=control)

    def score(self, contexts: Sequence[Sequence[int]], answer: Sequence[int]) -> NDArray[np.float64]:
        """log2 p(answer token | context, earlier answer tokens): (contexts, answer tokens), all <= 0 and finite.

        No contexts give shape (0, T); an answer of no tokens gives (n, 0).

        Raises:
            InvalidError: an empty context, an unknown token, or context and answer beyond the window.
            InvariantError: the model gave a number that is not finite.
        """
        return self._score(self._network, contexts, answer)

    def score_with(
        self, contexts: Sequence[Sequence[int]], answer: Sequence[int], adapters: Sequence[tuple[str, ...]]
    ) -> NDArray[np.float64]:
        """As `score`, each context with the adapters named for it, applied in that order.

        Raises:
            InvalidError: as `score`, or an adapter that this scorer was not given.
        """
        rows = np.zeros((len(contexts), len(answer)), dtype=np.float64)
        for names in dict.fromkeys(adapters):
            places = [place for place, named in enumerate(adapters) if named == names]
            rows[places] = self._score(self._with(names), [contexts[place] for place in places], answer)
        return rows

    def _with(self, names: tuple[str, ...]) -> Network:
        """The network with these adapters, made when first asked for."""
        if names not in self._adapted:
            lora = self._adapters.get(names[-1])
            if lora is None:
                raise InvalidError(
                    f"no adapter {names[-1]!r} here",
                    code="adapter_unknown",
                    fix=f"use one of {', '.join(sorted(self._adapters)) or 'none: give it to with_adapter first'}",
                )
            self._adapted[names] = self._with(names[:-1]).with_adapter(lora)
        return self._adapted[names]

    def _score(self, network: Network, contexts: Sequence[Sequence[int]], answer: Sequence[int]) -> NDArray[np.float64]:
        target = self._tokens(answer, "the answer")
        read = [self._tokens(context, f"context {index}") for index, context in enumerate(contexts)]
        check_window(read, target, self._context_tokens_max)
        if not read or not target:
            return np.zeros((len(read), len(target)), dtype=np.float64)
        distinct = {context: index for index, context in enumerate(dict.fromkeys(read))}
        scored = np.minimum(network.score(tuple(distinct), target), 0.0)
        if not np.isfinite(scored).all():
            raise InvariantError(
                "the model gave a log-probability that is not finite",
                code="score_not_finite",
                fix="check the model file's digest",
            )
        return scored[[distinct[context] for context in read]]

    def _tokens(self, ids: Sequence[int], where: str) -> tuple[int, ...]:
        tokens = tuple(int(token) for token in ids)
        size = self._network.shape.vocabulary
        for token in tokens:
            if not 0 <= token < size:
                raise InvalidError(
                    f"{where} holds token id {token}, outside 0..{size - 1}",
                    code="token_unknown",
                    fix="use ids of this model's tokenizer",
                )
        return tokens


def load_scorer(
    path: Path | None = None,
    *,
    precision: Precision = "int16",
    context_tokens_max: int = CONTEXT_TOKENS_MAX,
    tokenizer: Tokenizer | None = None,
) -> LocalScorer:
    """A scorer on the weights of a GGUF file, by default the demo model's.

    Args:
        path: GGUF file of the llama architecture, quantised in blocks of 32.
        precision: ``int16`` (fast, about 1e-3 bits an answer), ``float32`` (1e-5 bits) or ``int8`` (fastest, a
            tenth or two of a bit: prompts are read with 8 bits, answers with 16).
        context_tokens_max: longest prompt and answer together.
        tokenizer: one already loaded from the same file.
    """
    path = smollm_path() if path is None else path
    file = open_gguf(path)
    weights = load_weights(file, file_digest(path))
    return LocalScorer(
        weights,
        load_tokenizer(file) if tokenizer is None else tokenizer,
        precision=precision,
        context_tokens_max=context_tokens_max,
    )
