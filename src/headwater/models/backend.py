"""The seam to a model that answers: tokens in, tokens and text out, one piece at a time."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw an answer; temperature 0 is greedy and repeatable."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A bit of an answer as it is generated. The last piece, and only it, has a finish reason."""

    text: str  # may be empty while a multi-byte character is incomplete
    token_ids: tuple[int, ...]  # the end-of-turn token is not among them
    finish_reason: FinishReason | None = None


class Backend(Protocol):
    """A model that can be asked. One backend serves one model."""

    @property
    def name(self) -> str:
        """The model name callers use."""
        ...

    @property
    def digest(self) -> str:
        """Digest of the weights served, ``sha256:…``."""
        ...

    @property
    def context_tokens_max(self) -> int:
        """The longest prompt and answer together, in tokens."""
        ...

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:
        """Token ids of a piece of prompt; special tokens are honoured only when `control`."""
        ...

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Generator[Piece]:
        """Answer `prompt` (token ids), piece by piece. Closing the iterator stops the model.

        Raises:
            InvalidError: prompt and max_tokens do not fit the context window.
            UpstreamError: the model failed.
        """
        ...
