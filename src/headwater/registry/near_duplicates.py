"""Near-duplicates: texts that say the same words, found exactly, in sets small enough to compare in pairs.

Jaccard similarity of word shingles, without sampling, so the same texts give the same groups. Meant for
the passages retrieved for one answer; a corpus needs an index instead.
Source: A. Broder, "On the resemblance and containment of documents", 1997, section 2 (no sketches here).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SHINGLE_WORDS = 3
"""Words in a shingle: long enough that two texts on one subject differ, short enough to survive an edit."""

_WORD = re.compile(r"\w+")


def shingles(text: str, words: int = SHINGLE_WORDS) -> frozenset[tuple[str, ...]]:
    """Every run of `words` case-folded words of `text`; one shorter run when there are fewer.

    >>> sorted(shingles("To be, or not", 3))
    [('be', 'or', 'not'), ('to', 'be', 'or')]
    """
    run = [word.casefold() for word in _WORD.findall(text)]
    if len(run) <= words:
        return frozenset([tuple(run)] if run else [])
    return frozenset(tuple(run[i : i + words]) for i in range(len(run) - words + 1))


def resemblance(left: frozenset[tuple[str, ...]], right: frozenset[tuple[str, ...]]) -> float:
    """Jaccard similarity of two shingle sets, 0..1; texts without a word resemble nothing."""
    union = len(left | right)
    return len(left & right) / union if union else 0.0


def merge_near_duplicates(texts: Sequence[str], threshold: float) -> tuple[tuple[int, ...], ...]:
    """Group the indexes of `texts` so that texts that resemble each other share a group.

    Two texts are joined when their resemblance is at least `threshold`; groups are the connected
    components, so a chain of small edits is one group. Quadratic in the number of texts.

    Args:
        texts: (n,) texts in order of preference.
        threshold: 0 < threshold <= 1.

    Returns:
        Groups ordered by their first index, each ascending; together they hold every index once.

    Raises:
        ValueError: a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
    sets = [shingles(text) for text in texts]
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for j in range(len(texts)):
        for i in range(j):
            first, second = sorted((root(i), root(j)))
            if first != second and resemblance(sets[i], sets[j]) >= threshold:
                parent[second] = first
    groups: dict[int, list[int]] = {}
    for i in range(len(texts)):
        groups.setdefault(root(i), []).append(i)
    return tuple(tuple(group) for _, group in sorted(groups.items()))
