"""The seam to a model that answers: tokens in, tokens and text out, one piece at a time."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw an answer; temperature 0 is greedy and repeatable."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many likeliest tokens are named beside each; None: none, and no probabilities
    grammar: str = ""  # a JSON schema the answer must follow; empty for none
    grammar_after: str = ""  # an opening, see `structured`: only what comes after it must; empty: all of the answer


class TokenLogprob(NamedTuple):
    """How likely a token was, and what else might have stood there."""

    text: str
    utf8: tuple[int, ...]  # the token's bytes
    logprob: float  # natural logarithm
    top: tuple[tuple[str, tuple[int, ...], float], ...]  # text, bytes and logarithm of the likeliest, best first


@dataclass(frozen=True, slots=True)
class Piece:
    """A bit of an answer as it is generated. The last piece, and only it, has a finish reason."""

    text: str  # may be empty while a multi-byte character is incomplete
    token_ids: tuple[int, ...]  # the end-of-turn token is not among them
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()  # one a token, if they were asked for
    choice: int = 0  # which of several answers to one prompt it is of
    last: bool = False  # the last piece of the last answer


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
