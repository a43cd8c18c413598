"""Token sequences as a radix tree: what they share is one node, computed once.

Pure. Knows nothing of models. The tree depends only on the set of sequences, not on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Node:
    """A run of tokens that every sequence below it shares."""

    parent: int | None  # index of a node that comes earlier
    start: int  # position of its first token
    tokens: tuple[int, ...]  # at least one


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """The nodes, parents first, and for each sequence the node it ends in."""

    nodes: tuple[Node, ...]
    ends: tuple[int, ...]

    @property
    def token_count(self) -> int:
        """Tokens in all nodes: the cost of the tree."""
        return sum(len(node.tokens) for node in self.nodes)

    def path(self, end: int) -> tuple[int, ...]:
        """Node indices from the root down to `end`."""
        indices = [end]
        while (parent := self.nodes[indices[-1]].parent) is not None:
            indices.append(parent)
        return tuple(reversed(indices))


def build_tree(sequences: Sequence[Sequence[int]], cuts: Sequence[int] | None = None) -> PrefixTree:
    """The radix tree of non-empty sequences; repeated sequences end in the same node.

    Args:
        sequences: of token ids.
        cuts: for each sequence a position at which a node must begin; sequences that share it have the same one.

    >>> tree = build_tree([(1, 2, 3), (1, 2, 4), (1, 2)])
    >>> [node.tokens for node in tree.nodes], tree.ends
    ([(1, 2), (3,), (4,)], (1, 2, 0))
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    order = sorted(range(len(arrays)), key=lambda index: arrays[index].tolist())
    nodes: list[Node] = []
    ends = [0] * len(arrays)
    waiting: list[tuple[int | None, int, list[int]]] = [
        (None, 0, order)
    ]  # parent, position, sorted members that go on there
    while waiting:
        parent, start, members = waiting.pop()
        children = []
        for same in _runs(arrays, members, start):
            stop = _shared(arrays[same[0]], arrays[same[-1]], start)  # sorted: the ends of the run share least
            if cuts is not None and start < cuts[same[0]] < stop:
                stop = cuts[same[0]]
            node = len(nodes)
            nodes.append(Node(parent, start, tuple(arrays[same[0]][start:stop].tolist())))
            for index in same:
                if len(arrays[index]) == stop:
                    ends[index] = node
            longer = [index for index in same if len(arrays[index]) > stop]
            if longer:
                children.append((node, stop, longer))
        waiting.extend(reversed(children))
    return PrefixTree(tuple(nodes), tuple(ends))


def _runs(arrays: Sequence[NDArray[np.int64]], members: list[int], at: int) -> list[list[int]]:
    """Members cut into runs with the same token at position `at`."""
    runs: list[list[int]] = []
    for index in members:
        if runs and arrays[runs[-1][0]][at] == arrays[index][at]:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _shared(left: NDArray[np.int64], right: NDArray[np.int64], start: int) -> int:
    """Position where two sequences part; they agree before `start`."""
    size = min(len(left), len(right))
    differ = np.flatnonzero(left[start:size] != right[start:size])
    return start + int(differ[0]) if len(differ) else size
