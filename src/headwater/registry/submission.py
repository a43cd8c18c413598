"""A submission: one thing offered to a datanet, and the states it may go through until it ends.

    waiting ──> accepting ──> accepted        decided for; ends when nobody has appealed in time (refused if somebody
       │    │                                 else registered the same bytes meanwhile)
       │    └─> refusing  ──> refused         decided against, or by the automatic checks; the same
       │            └──────> appealed ──> accepted | refused
       └─ withdrawn by its contributor, from any state that has not ended

Every state that is not an end has a deadline that leads out of it, so nothing waits for ever. Derived rows name the
bytes they were made of and how, and can be made again. Pure.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal, NewType

from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, InvalidError
from headwater.registry.personal_data import without_personal_data

SubmissionId = NewType("SubmissionId", str)

State = Literal["waiting", "accepting", "refusing", "appealed", "accepted", "refused", "withdrawn"]

ENDS: Final[tuple[State, ...]] = ("accepted", "refused", "withdrawn")
"""States that nothing leads out of."""

_NEXT: Final[dict[State, frozenset[State]]] = {
    "waiting": frozenset({"accepting", "refusing", "withdrawn"}),
    "accepting": frozenset({"accepted", "refused", "appealed", "withdrawn"}),
    "refusing": frozenset({"refused", "appealed", "withdrawn"}),
    "appealed": frozenset({"accepted", "refused", "withdrawn"}),
    "accepted": frozenset(),
    "refused": frozenset(),
    "withdrawn": frozenset(),
}

How = Literal["cut", "cleaned"]
"""How a derived row was made: `cut` is a run of its parent's bytes, `cleaned` its text without personal data."""

_ID: Final = re.compile(r"sub_([0-9a-f]{20})([0-9a-f]{12})")


@dataclass(frozen=True, slots=True)
class Derivation:
    """What a derived row was made of. Anybody who has the parent's bytes makes the row again with `derive`."""

    parent_digest: str  # sha256:… of the contributor's own bytes
    how: How
    begin: int  # of the run of bytes, in the parent
    end: int

    def to_text(self) -> str:
        """As it is kept and put into a contribution's metadata."""
        return f"{self.how}:{self.begin}-{self.end}:{self.parent_digest}"


def read_derivation(text: str) -> Derivation:
    """The derivation that `text` says.

    Raises:
        InvalidError: it says none.
    """
    match = re.fullmatch(r"(cut|cleaned):([0-9]{1,12})-([0-9]{1,12}):(sha256:[0-9a-f]{64})", text)
    if match is None:
        raise InvalidError(f"lineage {text[:80]!r}", code="derivation_invalid", fix="use it as it was exported")
    how: How = "cut" if match[1] == "cut" else "cleaned"
    return Derivation(match[4], how, int(match[2]), int(match[3]))


def derive(parent: bytes, derivation: Derivation) -> bytes:
    """The row's bytes, made again from its parent's.

    Raises:
        InvalidError: these are not the parent's bytes, or it has no such run.
    """
    if digest(parent) != derivation.parent_digest or not 0 <= derivation.begin < derivation.end <= len(parent):
        raise InvalidError(
            f"bytes {derivation.begin}-{derivation.end} of {digest(parent)} were asked for",
            code="derivation_differs",
            fix=f"give the bytes of {derivation.parent_digest}",
        )
    run = parent[derivation.begin : derivation.end]
    return run if derivation.how == "cut" else without_personal_data(run.decode("utf-8")).text.encode()


def cut(text: str, chars_max: int) -> tuple[tuple[int, int], ...]:
    """Where to cut a long text: runs of bytes that together are all of it, each of at most `chars_max` characters.

    Cuts are after a blank line where there is one, else after a line, else after a space.
    """
    runs: list[tuple[int, int]] = []
    at = begin = 0
    while at < len(text):
        end = min(len(text), at + chars_max)
        if end < len(text):
            for mark in ("\n\n", "\n", " "):
                found = text.rfind(mark, at + 1, end)
                if found > at:
                    end = found + len(mark)
                    break
        size = len(text[at:end].encode())
        runs.append((begin, begin + size))
        at, begin = end, begin + size
    return tuple(runs)


def batch_id(*parts: str) -> str:
    """The id of a batch: what it is of, from whom and on which terms, so that the same command finds it again."""
    return "bat_" + hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:20]


def submission_id(batch: str, row: int) -> SubmissionId:
    """The id of a batch's row; says where to find it."""
    return SubmissionId(f"sub_{batch.removeprefix('bat_')}{row:012x}")


def read_submission_id(text: str) -> tuple[str, int]:
    """(batch, row) that an id says.

    Raises:
        InvalidError: not a submission's id.
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise InvalidError(
            f"{text[:80]!r} is not a submission", code="submission_id_invalid", fix="give an id such as sub_…"
        )
    return f"bat_{match[1]}", int(match[2], 16)


def check_step(id: str, state: State, to: State) -> None:
    """Refuse a step that no submission may take.

    Raises:
        ConflictError: ``submission_state``.
    """
    if to not in _NEXT[state]:
        raise ConflictError(
            f"{id} is {state} and cannot become {to}",
            code="submission_state",
            fix="it has ended" if state in ENDS else f"from {state} it may become {', '.join(sorted(_NEXT[state]))}",
        )
