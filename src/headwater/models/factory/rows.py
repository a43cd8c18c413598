"""Training rows: read from files, checked against the registry, cut into pieces, deduplicated, split.

A row names the contribution it is from; who wrote that contribution is paid if the row turns out to
matter. So rows are held to it: a text must stand in its contribution, a feedback pair must be the one
that was registered, and of equal rows only the one registered first is trained on. Every fault names
its file and line. Knows nothing of torch or tokens.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headwater.core.canonical import digest_of, refuse_deep
from headwater.core.errors import HeadwaterError, InvalidError, MissingError, Problem, RefusedError
from headwater.core.ids import ContributionId
from headwater.registry import Contribution, permits
from headwater.registry.feedback import read_feedback

FILE_SIZE_BYTES_MAX = 256 * 2**20
ROWS_MAX = 1_000_000
FIELD_CHARS_MAX = 200_000
PROBLEMS_MAX = 50
RowKind = Literal["text", "answer", "pair"]

_FIELDS: dict[RowKind, tuple[str, ...]] = {
    "pair": ("prompt", "chosen", "rejected"),
    "answer": ("prompt", "completion"),
    "text": ("text",),
}
_IGNORED = ("contribution", "title")


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to learn from. A text has no prompt; only a pair has something rejected."""

    where: str  # file and line, or the contribution
    contribution: ContributionId
    kind: RowKind
    prompt: str
    chosen: str  # the text, the completion or the preferred answer
    rejected: str = ""

    @property
    def digest(self) -> str:
        """Of what is learned and from whom, not of where it stood."""
        return digest_of([self.contribution, self.kind, self.prompt, self.chosen, self.rejected])

    @property
    def sameness(self) -> str:
        """Equal for rows that teach the same: case, spacing and Unicode form do not count."""
        parts = (self.kind, *map(_plain, (self.prompt, self.chosen, self.rejected)))
        return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows that may be trained on, and what was left out of them."""

    training: tuple[Row, ...]
    held_out: tuple[Row, ...]
    repeated: tuple[tuple[str, str], ...]  # (row left out, earlier row it repeats), by place
    contributions: tuple[Contribution, ...]  # of the training rows, by id

    @property
    def digest(self) -> str:
        """Of every row in its order, and of which are held out."""
        return digest_of([[row.digest for row in self.training], [row.digest for row in self.held_out]])


def read_rows(path: Path, *, default: ContributionId | None = None, pairs_only: bool = False) -> tuple[Row, ...]:
    """The rows of a JSONL file.

    Args:
        path: a line is ``{"text"}``, ``{"prompt", "completion"}`` or ``{"prompt", "chosen", "rejected"}``,
            each with its ``"contribution"``.
        default: contribution of rows that name none.
        pairs_only: whether every row must be a preference pair.

    Raises:
        MissingError: no such file.
        InvalidError: too large, empty, or rows that cannot be used; the message lists them by line.
    """
    try:
        size_bytes = path.stat().st_size
    except OSError:
        raise MissingError(f"no file at {path}", code="dataset_missing", fix="give a JSONL file of rows") from None
    if size_bytes > FILE_SIZE_BYTES_MAX or not path.is_file():
        raise InvalidError(
            f"{path} has {size_bytes} bytes", code="dataset_invalid", fix=f"give a file of 1 to {FILE_SIZE_BYTES_MAX}"
        )
    rows: list[Row] = []
    problems: list[Problem] = []
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            read = _row(line, f"{path.name}:{number}", default, pairs_only)
            if isinstance(read, Row):
                rows.append(read)
            else:
                problems.append(read)
            if len(rows) > ROWS_MAX:
                raise InvalidError(f"{path.name} has more than {ROWS_MAX} rows", code="dataset_invalid", fix="split it")
    refuse(problems)
    if not rows:
        raise InvalidError(f"{path.name} has 0 rows", code="dataset_empty", fix="give at least one row")
    return tuple(rows)


def rows_of(contribution: Contribution, content: bytes, *, chars_max: int = 4_000) -> Iterator[Row]:
    """The rows a whole contribution gives: a feedback's own pair or answer, any other text in pieces.

    Pieces end at a blank line or a line where there is one, so that they stay readable.
    """
    if contribution.kind == "feedback":
        given = read_feedback(content)
        if given.chosen and given.rejected:
            yield Row(contribution.id, contribution.id, "pair", given.prompt, given.chosen, given.rejected)
        elif given.chosen:
            yield Row(contribution.id, contribution.id, "answer", given.prompt, given.chosen)
        return
    text = content.decode("utf-8")
    number = 0
    while text.strip():
        piece, text = _cut(text, chars_max)
        if piece.strip():
            number += 1
            yield Row(f"{contribution.id}#{number}", contribution.id, "text", "", piece.strip("\n"))


def assemble(
    rows: Sequence[Row],
    *,
    lookup: Callable[[Sequence[ContributionId]], Iterable[Contribution]],
    content: Callable[[ContributionId], bytes],
    withdrawn: Callable[[Sequence[ContributionId]], Mapping[ContributionId, str]],
    now_ns: int,
    holdout_ppm: int,
    seed: int,
) -> Dataset:
    """Check rows against the registry, leave repetitions out, and keep some for measuring.

    Args:
        lookup: the registered contributions among some ids.
        content: the bytes of one.
        withdrawn: which of some ids were withdrawn, and why.
        holdout_ppm: millionths of the rows to hold out; at least one of five or more when positive.

    Raises:
        RefusedError: ``training_refused``, with the ids that are withdrawn or whose licence forbids it.
        InvalidError: unknown contributions, rows that are not their contribution's, or pairs that contradict.
    """
    ids = list(dict.fromkeys(row.contribution for row in rows))
    known = {contribution.id: contribution for contribution in lookup(ids)}
    first_place = {row.contribution: row.where for row in reversed(rows)}
    refuse(
        Problem(first_place[i], "contribution_missing", f"no contribution {i}", "register it, or leave the row out")
        for i in ids
        if i not in known
    )
    _refuse_terms(ids, known, withdrawn(ids), now_ns)
    refuse(_strangers(rows, known, content))
    kept, repeated = _first_of_equals(rows, known)
    refuse(_contradictions(kept))
    training, held_out = _split(kept, holdout_ppm, seed)
    used = sorted({row.contribution for row in training})
    return Dataset(training, held_out, repeated, tuple(known[i] for i in used))


def refuse(problems: Iterable[Problem]) -> None:
    """Raise one error for all problems, if there are any.

    Raises:
        InvalidError: with the code of the first, and every place.
    """
    found = list(problems)
    if not found:
        return
    shown = "\n".join(f"  {problem.where}: {problem.message} [{problem.code}]" for problem in found[:PROBLEMS_MAX])
    more = f"\n  and {len(found) - PROBLEMS_MAX} more" if len(found) > PROBLEMS_MAX else ""
    raise InvalidError(
        f"{len(found)} row{'s' if len(found) > 1 else ''} cannot be trained on:\n{shown}{more}",
        code=found[0].code,
        fix=found[0].fix,
    )


def _refuse_terms(
    ids: Sequence[ContributionId],
    known: Mapping[ContributionId, Contribution],
    gone: Mapping[ContributionId, str],
    now_ns: int,
) -> None:
    reasons = [f"{i}: withdrawn ({gone[i]})" for i in ids if i in gone]
    for i in ids:
        refusal = permits(known[i], "train", now_ns)
        if refusal is not None and i not in gone:
            reasons.append(str(refusal))
    if reasons:
        raise RefusedError(
            f"{len(reasons)} of {len(ids)} contributions may not be trained on:\n  " + "\n  ".join(reasons),
            code="training_refused",
            fix="leave their rows out, or have their owners permit the use `train`",
        )


def _strangers(
    rows: Sequence[Row], known: Mapping[ContributionId, Contribution], content: Callable[[ContributionId], bytes]
) -> Iterator[Problem]:
    """Rows that are not what their contribution says; their credit would go to the wrong people."""
    texts: dict[ContributionId, str] = {}
    given: dict[ContributionId, Any] = {}
    for row in rows:
        if known[row.contribution].kind == "feedback":
            if row.contribution not in given:
                given[row.contribution] = read_feedback(content(row.contribution))
            own = given[row.contribution]
            if (row.prompt, row.chosen, row.rejected) != (own.prompt, own.chosen, own.rejected):
                yield Problem(
                    row.where,
                    "row_not_of_contribution",
                    f"the row is not the feedback registered as {row.contribution}",
                    "train on feedback as it was registered",
                )
        elif row.kind == "text":
            if row.contribution not in texts:
                texts[row.contribution] = _plain(content(row.contribution).decode("utf-8"))
            if _plain(row.chosen) not in texts[row.contribution]:
                yield Problem(
                    row.where,
                    "row_not_of_contribution",
                    f"the text does not stand in {row.contribution}",
                    "name the contribution the text is from",
                )


def _first_of_equals(
    rows: Sequence[Row], known: Mapping[ContributionId, Contribution]
) -> tuple[tuple[Row, ...], tuple[tuple[str, str], ...]]:
    """Of rows that teach the same, the one registered first; the others earn nothing and are not trained on."""
    best: dict[str, int] = {}
    for number, row in enumerate(rows):
        other = best.get(row.sameness)
        if other is None or (_registered(row, known) < _registered(rows[other], known)):
            best[row.sameness] = number
    kept = set(best.values())
    left_out = [(row.where, rows[best[row.sameness]].where) for n, row in enumerate(rows) if n not in kept]
    return tuple(row for number, row in enumerate(rows) if number in kept), tuple(left_out)


def _registered(row: Row, known: Mapping[ContributionId, Contribution]) -> tuple[int, str]:
    return known[row.contribution].registered_at_ns, row.contribution


def _contradictions(rows: Sequence[Row]) -> Iterator[Problem]:
    """Pairs of which one prefers what the other rejects, word for word: at least one of them is poisoned."""
    seen: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if row.kind != "pair":
            continue
        prompt, chosen, rejected = map(_plain, (row.prompt, row.chosen, row.rejected))
        other = seen.get((prompt, rejected, chosen))
        if other is not None:
            yield Problem(
                row.where,
                "pair_contradicted",
                f"it prefers what {other.where} rejects, for the same prompt",
                "decide which of the two holds and leave the other out",
            )
        seen.setdefault((prompt, chosen, rejected), row)


def _split(rows: Sequence[Row], holdout_ppm: int, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows held out are those whose digest with the seed comes first: adding a row moves few others."""
    count = round(len(rows) * holdout_ppm / 1_000_000)
    if holdout_ppm and len(rows) >= 5:
        count = max(1, count)
    ranked = sorted(
        range(len(rows)), key=lambda n: hashlib.sha256(f"held out {seed} {rows[n].digest}".encode()).digest()
    )
    held = set(ranked[: min(count, len(rows) - 1)])
    return (
        tuple(row for n, row in enumerate(rows) if n not in held),
        tuple(row for n, row in enumerate(rows) if n in held),
    )


def _row(line: bytes, where: str, default: ContributionId | None, pairs_only: bool) -> Row | Problem:
    try:
        refuse_deep(line)
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError, HeadwaterError) as error:
        return Problem(where, "row_invalid", f"not a JSON object: {error}", "write one object a line, in UTF-8")
    if not isinstance(value, dict):
        return Problem(where, "row_invalid", f"a {type(value).__name__}, not an object", "write one object a line")
    kind = next((kind for kind, names in _FIELDS.items() if set(names) <= value.keys()), None)
    strange = sorted(value.keys() - set(_FIELDS[kind] if kind else ()) - set(_IGNORED))
    if kind is None or strange:
        return Problem(
            where,
            "row_invalid",
            f"its fields are {', '.join(sorted(map(str, value)))[:200]}",
            "give text, or prompt and completion, or prompt, chosen and rejected, and the contribution",
        )
    if pairs_only and kind != "pair":
        return Problem(where, "row_not_a_pair", f"a row of kind {kind}", "give prompt, chosen and rejected")
    for name in _FIELDS[kind]:
        text = value[name]
        if not isinstance(text, str) or not text.strip() or len(text) > FIELD_CHARS_MAX or not _clean(text):
            size = f"{len(text)} characters" if isinstance(text, str) else f"a {type(text).__name__}"
            return Problem(
                where, "row_invalid", f"{name} is {size}, empty or holds control characters", "give plain text"
            )
    contribution = value.get("contribution", default)
    if not isinstance(contribution, str) or not contribution.startswith("ctb_"):
        return Problem(
            where, "row_without_contribution", f"contribution is {str(contribution)[:60]!r}", "name it as ctb_…"
        )
    if kind == "pair" and _plain(value["chosen"]) == _plain(value["rejected"]):
        return Problem(where, "pair_without_preference", "chosen and rejected are the same text", "leave the pair out")
    prompt, *rest = (value[name] for name in _FIELDS[kind]) if kind != "text" else ("", value["text"])
    return Row(where, ContributionId(contribution), kind, prompt, rest[0], rest[1] if kind == "pair" else "")


def _clean(text: str) -> bool:
    """Whether a text has only characters that people write: no control characters, no half code points."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r\f" for c in text)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _cut(text: str, chars_max: int) -> tuple[str, str]:
    if len(text) <= chars_max:
        return text, ""
    for mark in ("\n\n", "\n", " "):
        at = text.rfind(mark, chars_max // 4, chars_max)
        if at > 0:
            return text[:at], text[at:]
    return text[:chars_max], text[chars_max:]
