"""What is served, and what is asked of it: the values that the path of a call runs on.

Three kinds of models: one in process, which is asked with token ids; one that another server answers, with sources
put before its question here; and one that turns texts into vectors. Knows nothing of stores, money or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from headwater.attribution.layout import Layout, Scorer
from headwater.attribution.learned import Influence
from headwater.attribution.reference import Reference
from headwater.core.ids import ContributionId
from headwater.models.backend import Backend, Sampling
from headwater.splits import MEASURING, Measuring, Prices
from headwater.store.call_store import CallRecord

Scores = Callable[[Sequence[int], Sequence[int]], tuple[Sequence[Influence], str, int]]
"""(prompt, answer) to the influence of each training contribution, the index's digest and its seed."""

Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""Texts to vectors, a row each."""


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter on top of a served model."""

    name: str  # as the scorer knows it
    contribution: ContributionId
    digest: str  # of its factors
    trained_on: tuple[ContributionId, ...]
    scores: Scores | None  # None without an influence index: then nobody's part is known
    copy_of: Mapping[str, str] = field(default_factory=dict)  # trained-on contributions that repeat an earlier one


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model name that callers may use, and what stands behind it."""

    name: str
    backend: Backend
    scorer: Scorer
    reference: Reference
    prices: Prices
    base_model: ContributionId | None  # registered base model, for the residual
    prompt: ContributionId | None = None  # registered prompt put before every conversation
    sources: int = 0  # registered passages offered to every answer
    measuring: Measuring = MEASURING  # what attribution of a call may cost
    adapter: ServedAdapter | None = None

    @property
    def digest(self) -> str:
        """Digest of the weights."""
        return self.backend.digest


@dataclass(frozen=True, slots=True)
class OutsideModel:
    """A model that another server answers, as far as its answers are attributed here.

    With a scorer its conversations are laid out as ChatML and measured like our own; without one the texts alone say
    who supplied what.
    """

    name: str
    digest: str  # of what the operator says about it
    prices: Prices
    answer_tokens_max: int
    prompt: ContributionId | None = None
    sources: int = 0
    scorer: Scorer | None = None
    measuring: Measuring = MEASURING
    base_model: ContributionId | None = None

    @property
    def grounded(self) -> bool:
        """Whether every one of its answers is offered sources or a prompt."""
        return bool(self.sources or self.prompt)


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A model that turns texts into vectors. Nobody supplied them but itself."""

    name: str
    digest: str  # of its weights
    dimensions: int
    prices: Prices
    tokenize: Callable[[str], Sequence[int]] = field(repr=False)
    embed: Embed = field(repr=False)
    base_model: ContributionId | None = None


AnyModel = ServedModel | OutsideModel | EmbeddingModel

Parameters = tuple[tuple[str, int | str], ...]
"""Parameters of a receipt, sorted by name."""


class Said(NamedTuple):
    """A stretch of text, and the contribution that the caller says it is from."""

    text: str
    contribution: ContributionId | None = None
    template: bool = False  # words of ours around somebody's, which are nobody's


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str  # system, user or assistant; other servers' models also have tool
    content: str
    said: tuple[Said, ...] = ()  # the content in stretches, where they differ in whose they are; else empty


@dataclass(frozen=True, slots=True)
class CallRequest:
    """What a caller asks, after the wire format has been read."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    body_digest: str  # of the request as sent; the idempotency key is bound to it
    idempotency_key: str | None = None
    sources: int | None = None  # overrides the model's number
    prompt: ContributionId | None = None  # overrides the model's prompt
    contribute: bool | None = None  # whether the caller's words may be registered; None leaves it to the key's consent
    passages: tuple[Said, ...] = ()  # the caller's own, put before the question; no text: all of the contribution
    answers: int = 1  # how many are wanted
    plain: bool = False  # one text to go on with, not a conversation
    opening: str = ""  # how the answer begins, put into the model's mouth
    size_bytes: int = 0  # of a request to another server; no byte makes more than one token
    words_only: bool = True  # nothing but text is asked and wanted: no images, no tools


@dataclass(frozen=True, slots=True)
class Offered:
    """The prompt in parts, and what was put into it that the caller did not send."""

    layout: Layout
    sources: str  # put before the last question
    prompt: str  # the registered prompt's text


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call that was admitted and paid for up to its ceiling."""

    record: CallRecord
    served: ServedModel
    layout: Layout
    prompt: tuple[int, ...]  # token ids, exactly what the model and the scorer read
    sampling: Sampling
    words_license: str | None = None  # under which the caller's words are registered; None for not at all
    answers: int = 1


@dataclass(frozen=True, slots=True)
class OutsideCall:
    """A call that was admitted, and that another server is to answer."""

    record: CallRecord
    served: OutsideModel
    layout: Layout
    offered: Offered
    prompt_tokens_max: int
    answer_tokens_max: int  # of all answers together
    words_license: str | None = None
