"""The automatic checks of a submission: what a person need not look at, and what one should look at closely.

A *fault* is a fact about bytes (not text, too large, registered by somebody else, submitted already, refused before):
the row is refused for good. A *ground* is a judgement (a near-copy, another language, personal data, an installed
screen's word): the row is refused unless its contributor appeals, and then people decide. Duplicates are found in the
datanet and in the whole registry. Knows nothing of reviewers or of states after the checks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from itertools import islice
from typing import Final

from headwater.attribution.spans.sketch_table import SketchTable, nearly_repeats, sketches_of
from headwater.core.errors import MissingError
from headwater.core.ids import ContributorId
from headwater.core.limits import CONTRIBUTION_SIZE_BYTES_MAX, CONTRIBUTION_TITLE_CHARS_MAX
from headwater.registry.datanet import Datanet
from headwater.registry.personal_data import without_personal_data
from headwater.registry.submission import Derivation, cut
from headwater.store.registry_store import RegistryStore
from headwater.store.submission_store import Batch, Submission, SubmissionStore, Taken

Screen = Callable[[str], str | None]
"""Looks at a text and gives a word on why it should not be taken, or nothing."""

SCREENS_GROUP: Final = "headwater.screens"
"""Entry points of this group are screens: a toxicity model, a list of words, whatever a pool wants."""

LANGUAGE_CHARS_MIN: Final = 40
"""Shorter texts say too little of their language."""

_LANGUAGE_CHARS_READ = 2_000
_LOADED_ROWS = 20_000
_SCREEN_WORD = re.compile(r"[^a-z0-9_]+")
_LIVE = ("waiting", "accepting", "appealed", "accepted")


@dataclass(frozen=True, slots=True)
class Item:
    """One row as it was read."""

    title: str
    content: bytes
    lineage: Derivation | None = None  # when it was cut out of something larger


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of some rows."""

    rows: tuple[Taken, ...]
    unchanged: int  # rows of the same owners that are in the datanet's hands already; not taken again


def find_screens(names: Sequence[str]) -> dict[str, Screen]:
    """The installed screens called `names`.

    Raises:
        MissingError: ``screen_missing``.
    """
    installed = {one.name: one for one in entry_points(group=SCREENS_GROUP)}
    for name in names:
        if name not in installed:
            raise MissingError(
                f"no screen {name[:60]!r} is installed",
                code="screen_missing",
                fix=f"install a package with an entry point {name!r} in the group {SCREENS_GROUP}, or change the rules",
            )
    return {name: installed[name].load() for name in names}


@cache
def _identify() -> Callable[[str], tuple[str, float]]:
    """The language identifier; its tables are read when they are first needed."""
    from py3langid import classify

    return classify  # type: ignore[no-any-return]


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's language, as n-grams tell; None for what is too short to tell."""
    return _identify()(text[:_LANGUAGE_CHARS_READ])[0] if len(text) >= LANGUAGE_CHARS_MIN else None


class Checks:
    """Checks rows for the datanets of one home; remembers the sketches it has read."""

    def __init__(self, submissions: SubmissionStore, registry: RegistryStore) -> None:
        self._submissions, self._registry = submissions, registry
        self._tables: dict[int, _Seen] = {}

    def check(
        self,
        datanet: Datanet,
        batch: Batch,
        items: Sequence[Item],
        screens: Mapping[str, Screen],
        *,
        appeal_until_ns: int,
    ) -> Checked:
        """What becomes of rows, in order. Of two of the same bytes the earlier one stands."""
        prepared = [self._prepared(datanet, item) for item in items]
        contents = [content for content, _, _ in prepared]
        digests = [hashlib.sha256(content).digest() for content in contents]
        faults = [_fault(content) for content in contents]
        known = self._submissions.same_bytes(batch.offered.datanet, digests)
        elsewhere = self._registry.by_content(["sha256:" + one.hex() for one in dict.fromkeys(digests)])
        mine = {owner.contributor_id for owner in batch.offered.owners}
        refused = self._submissions.refused_by_people(batch.offered.datanet, digests)
        fresh: dict[bytes, int] = {}
        wanted: list[int] = []
        unchanged = 0
        for place, name in enumerate(digests):
            if faults[place] is None and (name in known or name in fresh):
                if name in fresh or mine == self._owners(known[name]):
                    unchanged += 1
                    continue
                faults[place] = "duplicate"
            others = elsewhere.get("sha256:" + name.hex(), ())
            if faults[place] is None and any({o.contributor_id for o in one.owners} != mine for one in others):
                faults[place] = "content_of_another_owner"
            if faults[place] is None and any(mine == self._owners(one) for one in refused.get(name, ())):
                faults[place] = "refused_before"
            if faults[place] is None:
                fresh[name] = place
            wanted.append(place)
        sound = [place for place in wanted if faults[place] is None]
        sketches = self._sketched(batch, [contents[place] for place in sound])
        copies = dict(zip(sound, sketches, strict=True))
        rows = []
        for place in wanted:
            content, lineage, notes = prepared[place]
            fault = faults[place]
            sketch, copied = copies.get(place, (None, False))
            grounds: list[str] = []
            if fault is None:
                grounds, notes = self._grounds(datanet, content.decode(), copied, notes, screens)
            state, due = ("refused", None) if fault else ("refusing", appeal_until_ns) if grounds else ("waiting", None)
            rows.append(
                Taken(
                    digest=digests[place],
                    content=None if fault else content,
                    size_bytes=len(content),
                    title=" ".join(items[place].title.split())[:CONTRIBUTION_TITLE_CHARS_MAX] or "untitled",
                    state=state,  # type: ignore[arg-type]  # one of the three
                    reasons=(fault,) if fault else tuple(grounds or notes),
                    lineage=lineage.to_text() if lineage else "",
                    sketch=sketch,
                    due_at_ns=due,
                )
            )
        return Checked(tuple(rows), unchanged)

    def _owners(self, submission: Submission) -> set[ContributorId]:
        return {owner.contributor_id for owner in self._submissions.owners(submission.batch)}

    def _prepared(self, datanet: Datanet, item: Item) -> tuple[bytes, Derivation | None, list[str]]:
        """Bytes, lineage and notes of a row once personal data was taken out, where the rules say so."""
        content, lineage = item.content, item.lineage
        if datanet.rules.personal_data != "clean" or _fault(content) is not None:
            return content, lineage, []
        cleaned = without_personal_data(content.decode())
        if not cleaned.count:
            return content, lineage, []
        if lineage is None:
            lineage = Derivation(self._submissions.keep_parent(content), "cleaned", 0, len(content))
        else:
            lineage = Derivation(lineage.parent_digest, "cleaned", lineage.begin, lineage.end)
        return cleaned.text.encode(), lineage, ["personal_data_removed"]

    def _grounds(
        self, datanet: Datanet, text: str, copied: bool, notes: list[str], screens: Mapping[str, Screen]
    ) -> tuple[list[str], list[str]]:
        """(grounds to refuse a sound row, what its reviewers should look at)."""
        rules, languages = datanet.rules, datanet.card.languages
        grounds: list[str] = []
        notes = list(notes)
        if copied:
            (grounds if rules.near_duplicates == "refuse" else notes).append("near_duplicate")
        if languages and (language := language_of(text)) is not None and language not in languages:
            grounds.append("wrong_language")
        if rules.personal_data != "clean" and without_personal_data(text).count:
            (grounds if rules.personal_data == "refuse" else notes).append("personal_data")
        for name, screen in screens.items():
            word = screen(text)
            if word is not None:
                grounds.append(f"screen:{name}:{_SCREEN_WORD.sub('_', word.lower())[:40]}")
        return grounds, notes

    def _sketched(self, batch: Batch, contents: Sequence[bytes]) -> list[tuple[bytes | None, bool]]:
        """Sketch of each content, and whether it nearly repeats an earlier one that stands."""
        seen = self._seen(batch.offered.datanet)
        sketches = sketches_of(contents)
        begin, fresh = len(seen.table), list(sketches)
        found = dict(zip(fresh, seen.table.add(list(sketches.values())), strict=True))
        seen.ahead.extend(sketches.values())
        result: list[tuple[bytes | None, bool]] = []
        for place, content in enumerate(contents):
            copied = False
            for row in found.get(place, ()):
                earlier = contents[fresh[row - begin]] if row >= begin else self._standing(seen.numbers[row])
                copied = copied or (earlier is not None and nearly_repeats(content, earlier))
            result.append((sketches.get(place), copied))
        return result

    def _standing(self, number: int) -> bytes | None:
        """The text of an earlier row, unless it was refused or withdrawn."""
        if not number:
            return None
        row = self._submissions.by_numbers([number])[number]
        if row.state not in _LIVE:
            return None
        content = self._submissions.content(number)
        if content is None and row.contribution is not None:
            content = self._registry.content(row.contribution)
        return content

    def _seen(self, datanet: int) -> _Seen:
        """The sketches of a datanet, brought up to what is kept."""
        seen = self._tables.setdefault(datanet, _Seen(SketchTable(), [], []))
        last = next((number for number in reversed(seen.numbers) if number), 0)
        later = self._submissions.sketches(datanet, last)
        first = list(islice(later, max(len(seen.ahead), _LOADED_ROWS)))
        if [sketch for _, sketch in first[: len(seen.ahead)]] == seen.ahead:
            seen.numbers.extend(number for number, _ in first[: len(seen.ahead)])
            first = first[len(seen.ahead) :]
        else:  # they were not kept after all, or another process came in between
            seen.numbers.extend([0] * len(seen.ahead))
        seen.ahead.clear()
        while first:
            seen.table.add([sketch for _, sketch in first])
            seen.numbers.extend(number for number, _ in first)
            first = list(islice(later, _LOADED_ROWS))
        return seen


@dataclass(slots=True)
class _Seen:
    """The sketches of one datanet that are in memory."""

    table: SketchTable
    numbers: list[int]  # submission of each row of the table; 0 for one that was never kept
    ahead: list[bytes]  # the newest rows, which had not been kept when they were added


def cut_items(title: str, content: bytes, chars_max: int, keep_parent: Callable[[bytes], str]) -> tuple[Item, ...]:
    """A text as one row, or cut into derived rows when it is longer than `chars_max` characters."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return (Item(title, content),)  # the checks say so
    runs = cut(text, chars_max)
    if len(runs) <= 1:
        return (Item(title, content),)
    parent = keep_parent(content)
    return tuple(
        Item(f"{title} ({number} of {len(runs)})", content[begin:end], Derivation(parent, "cut", begin, end))
        for number, (begin, end) in enumerate(runs, start=1)
        if content[begin:end].strip()
    )


def _fault(content: bytes) -> str | None:
    """Why bytes can never be a contribution, if they cannot."""
    if len(content) > CONTRIBUTION_SIZE_BYTES_MAX:
        return "content_too_large"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return "content_not_utf8"
    if not text.strip("\ufeff \t\r\n\f\v"):
        return "content_empty"
    return "content_binary" if "\x00" in text else None
