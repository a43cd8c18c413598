"""What is put before a model: the caller's words, and registered contributions, as the parts of one prompt.

A contribution comes into a prompt in five ways: found by our retriever, given by the caller with its id, marked by the
caller in a message or in a tool's result, as the registered prompt, or in an earlier answer of ours to the same key.
Each of the first four passes the gate of licence and consent. What a caller says is from a contribution must stand in
it, word for word, unless the contribution is a tool, whose results are its own. Text makes nothing a source: only
ids in the fields for them do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from headwater.attribution.layout import Layout, Part, PartKind, part_id
from headwater.core.errors import InvalidError, RefusedError
from headwater.core.ids import CallId, ContributionId
from headwater.core.limits import (
    CHUNK_TOKENS_MAX,
    CONTRIBUTION_TITLE_CHARS_MAX,
    MARKED_CHARS_MAX,
    MARKED_MAX,
    SOURCES_MAX,
    TURNS_MAX,
)
from headwater.models.chatml import render_chat
from headwater.registry import Contribution, Refusal
from headwater.registry.consent import IN_FORCE, usable
from headwater.retrieval import Passage
from headwater.retrieval.passages import PASSAGE_CHARS_PER_TOKEN_MAX
from headwater.serving import CallRequest, Message, Offered, OutsideModel, Said, ServedAdapter, ServedModel
from headwater.store.consent_store import ConsentStore
from headwater.store.registry_store import RegistryStore

_SPACE: Final = re.compile(r"\s+")
_CHATML: Final = {"tool": "user"}  # the template has no such role: a result is told by whoever asks
_KINDS: Final[dict[str, PartKind]] = {"tool": "tool", "prompt": "prompt"}

Earlier = Callable[[str], "tuple[CallId, int] | None"]
"""The call that an earlier answer's text is from, and when that was; None for a text that is no answer of ours."""


_TITLE_BYTES: Final = 4 * CONTRIBUTION_TITLE_CHARS_MAX + 4
_PASSAGE_BYTES: Final = 4 * CHUNK_TOKENS_MAX * PASSAGE_CHARS_PER_TOKEN_MAX


def added_bytes_max(registry: RegistryStore, request: CallRequest, served: OutsideModel) -> int:
    """The most that sources and a registered prompt can add to a request, whatever is found.

    Raises:
        MissingError: no such contribution.
    """
    wanted = served.sources if request.sources is None else request.sources
    named = [one.contribution for one in request.passages if one.contribution is not None and not one.text]
    prompt = request.prompt or served.prompt
    whole = sum(registry.get(one).size_bytes for one in (*named, *((prompt,) if prompt else ())))
    given = sum(len(one.text.encode("utf-8", "replace")) for one in request.passages)
    return whole + given + len(request.passages) * _TITLE_BYTES + wanted * (_TITLE_BYTES + _PASSAGE_BYTES)


class Passages(Protocol):
    """Finds what registered documents have to say to a question."""

    def search(self, question: str, wanted: int, /, *, now_ns: int, offer_units: int) -> Sequence[Passage]:
        """The best passages first, of documents whose licence permits it at this price."""
        ...


@dataclass(slots=True)
class Offering:
    """Lays out one request.

    Args:
        passages: the retriever; without it nothing is found.
        earlier: knows our own answers to the caller again.
        consents: what was withdrawn, erased or taken down; without it nothing was.
    """

    registry: RegistryStore
    passages: Passages | None
    now_ns: int
    offer_units: int  # the least that the call will cost, which licences may ask for
    earlier: Earlier
    consents: ConsentStore | None = None
    _used: dict[str, int] = field(default_factory=dict)  # parts so far, by contribution or call
    _fixed: int = 0

    def lay_out(self, request: CallRequest, served: ServedModel | OutsideModel) -> Offered:
        """The prompt in parts: template and caller's words are fixed, whatever is registered is a player.

        Raises:
            MissingError: no such contribution.
            RefusedError: a licence does not permit it.
            InvalidError: too many sources, or a passage that is not its contribution's.
        """
        wanted = served.sources if request.sources is None else request.sources
        if wanted > SOURCES_MAX:
            raise InvalidError(
                f"{wanted} sources asked for", code="sources_too_many", fix=f"ask for at most {SOURCES_MAX}"
            )
        marks = len(request.passages) + sum(one.contribution is not None for m in request.messages for one in m.said)
        if marks > MARKED_MAX:
            raise InvalidError(
                f"{marks} passages are marked", code="sources_too_many", fix=f"mark at most {MARKED_MAX}"
            )
        prompt_id = request.prompt or served.prompt
        prompt = "" if prompt_id is None else self._prompt_text(prompt_id)
        parts = [] if not isinstance(served, ServedModel) or served.adapter is None else [self._adapter(served.adapter)]
        messages = list(request.messages)
        if prompt_id is not None:
            messages.insert(0, Message("system", prompt))
        asked = max((i for i, message in enumerate(messages) if message.role == "user"), default=len(messages) - 1)
        sources = self._sources(messages[asked].content if messages else "", wanted, request.passages)
        chatml = not request.plain and (isinstance(served, ServedModel) or served.scorer is not None)
        if chatml and request.words_only:
            for piece in render_chat([(_CHATML.get(m.role, m.role), m.content) for m in messages], system_default=None):
                if piece.message is None:
                    parts.append(self._caller(piece.text, control=True))
                    continue
                parts += sources if piece.message == asked else ()
                parts += self._message(messages, piece.message, prompt_id)
        else:
            for number in range(len(messages)):
                parts += sources if number == asked else ()
                parts += self._message(messages, number, prompt_id)
        if request.opening:
            parts.append(self._caller(request.opening, control=True))
        return Offered(Layout(tuple(parts)), "".join(part.text for part in sources), prompt)

    def _message(self, messages: Sequence[Message], number: int, prompt_id: ContributionId | None) -> list[Part]:
        """What is said in one message; the first is the registered prompt, if there is one."""
        message = messages[number]
        if number == 0 and prompt_id is not None:
            return [self._player(prompt_id, message.content)] if message.content else []
        recent = sum(later.role == "assistant" for later in messages[number:]) <= TURNS_MAX
        if message.role == "assistant" and message.content and recent and not message.said:
            found = self.earlier(message.content)
            if found is not None:
                return [self._turn(*found, message.content)]
        return [
            self._caller(one.text, control=one.template)
            if one.contribution is None
            else self._player(one.contribution, self._own_words(one.contribution, one.text))
            for one in message.said or (Said(message.content),)
            if one.text
        ]

    def _caller(self, text: str, *, control: bool = False) -> Part:
        self._fixed += 1
        return Part(f"fixed-{self._fixed}", "", text, fixed=True, control=control)

    def _turn(self, call: CallId, at_ns: int, text: str) -> Part:
        return Part(self._name(f"turn:{call}"), call, text, registered_at_ns=at_ns, kind="turn")

    def _sources(self, question: str, wanted: int, given: Sequence[Said]) -> list[Part]:
        """What is put before the question: the caller's passages, then ours; each headed by its title."""
        parts = []
        for one in given:
            assert one.contribution is not None
            text = self._own_words(one.contribution, one.text or self.registry.text(one.contribution).strip())
            parts.append(self._headed(one.contribution, text))
        if not wanted or self.passages is None:
            return parts
        there = {one.contribution for one in given}
        found = self.passages.search(question, wanted, now_ns=self.now_ns, offer_units=self.offer_units)
        known = {one.id: one for one in self.registry.get_many([p.contribution_id for p in found])}
        return parts + [
            self._headed(p.contribution_id, p.text)
            for p in found
            # The index is a snapshot; consent is asked for at the instant of the call.
            if p.contribution_id not in there and self._refusal(known[p.contribution_id]) is None
        ]

    def _headed(self, contribution_id: ContributionId, text: str) -> Part:
        return self._player(contribution_id, f"{self.registry.get(contribution_id).title}: {text.strip()}\n\n")

    def _prompt_text(self, prompt_id: ContributionId) -> str:
        kind = self.registry.get(prompt_id).kind
        if kind != "prompt":
            raise InvalidError(
                f"{prompt_id} is a {kind}", code="prompt_invalid", fix="give the id of a contribution of kind prompt"
            )
        return self.registry.text(prompt_id).strip()

    def _own_words(self, contribution_id: ContributionId, text: str) -> str:
        """The text, when it is the contribution's to supply."""
        kind = self.registry.get(contribution_id).kind
        if kind in ("adapter", "base_model"):
            raise InvalidError(
                f"{contribution_id} is a {kind}", code="source_invalid", fix="mark documents, prompts and tools"
            )
        if len(text) > MARKED_CHARS_MAX:
            raise InvalidError(
                f"{len(text)} characters of {contribution_id}",
                code="source_too_long",
                fix=f"send passages of at most {MARKED_CHARS_MAX} characters",
            )
        if kind != "tool" and _plain(text) not in _plain(self.registry.text(contribution_id)):
            raise InvalidError(
                f"a passage marked as {contribution_id} does not stand in it",
                code="source_not_found",
                fix="send its words as they are registered, or leave the mark out",
            )
        return text

    def _player(self, contribution_id: ContributionId, text: str) -> Part:
        contribution = self.registry.get(contribution_id)
        refusal = self._refusal(contribution)
        if refusal is not None:
            raise RefusedError(str(refusal), code=refusal.code, fix="use a contribution whose licence permits it")
        owner = "+".join(sorted(o.contributor_id for o in contribution.owners))
        return Part(
            self._name(contribution.id),
            owner,
            text,
            registered_at_ns=contribution.registered_at_ns,
            kind=_KINDS.get(contribution.kind, "source"),
        )

    def _refusal(self, contribution: Contribution) -> Refusal | None:
        """Why a contribution may not be put before a model now; None when it may."""
        standings = {} if self.consents is None else self.consents.standing([contribution.id])
        standing = standings.get(contribution.id, IN_FORCE)
        return usable(contribution, "ground", self.now_ns, standing, self.offer_units)

    def _adapter(self, adapter: ServedAdapter) -> Part:
        """The adapter as a player: weights that are there or not."""
        return replace(self._player(adapter.contribution, ""), kind="adapter", adapter=adapter.name)

    def _name(self, name: str) -> str:
        number = self._used.get(name, 0)
        self._used[name] = number + 1
        return part_id(name, number)


def _plain(text: str) -> str:
    """Words with one blank between them: how a passage was wrapped or indented is nobody's."""
    return _SPACE.sub(" ", text).strip()
