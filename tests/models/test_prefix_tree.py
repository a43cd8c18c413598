"""Sequences as a radix tree."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headwater.models.prefix_tree import build_tree

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=12)


@given(sequences)
def test_every_sequence_is_the_path_to_its_end(given_sequences: list[tuple[int, ...]]) -> None:
    """Joining the tokens from the root to a sequence's end gives the sequence, at the right positions."""
    tree = build_tree(given_sequences)

    for sequence, end in zip(given_sequences, tree.ends, strict=True):
        joined: tuple[int, ...] = ()
        for index in tree.path(end):
            assert tree.nodes[index].start == len(joined)
            joined += tree.nodes[index].tokens
        assert joined == sequence


@given(sequences)
def test_each_distinct_prefix_costs_one_token(given_sequences: list[tuple[int, ...]]) -> None:
    """The tree holds as many tokens as there are different prefixes: nothing is computed twice, nothing extra."""
    prefixes = {sequence[:size] for sequence in given_sequences for size in range(1, len(sequence) + 1)}

    assert build_tree(given_sequences).token_count == len(prefixes)


@given(sequences, st.randoms())
def test_order_of_sequences_does_not_matter(given_sequences: list[tuple[int, ...]], random: object) -> None:
    """A tree depends on the set of sequences only."""
    shuffled = sorted(given_sequences, key=lambda _: random.random())  # type: ignore[attr-defined]

    assert set(build_tree(given_sequences).nodes) == set(build_tree(shuffled).nodes)


@given(sequences)
def test_parents_come_first_and_nodes_are_not_empty(given_sequences: list[tuple[int, ...]]) -> None:
    """A node can be computed as soon as it is reached in order."""
    for index, node in enumerate(build_tree(given_sequences).nodes):
        assert node.tokens
        assert node.parent is None or node.parent < index


def test_a_long_chain_of_prefixes_does_not_recurse() -> None:
    """Thousands of sequences, each a prefix of the next, are no deeper than memory allows."""
    tree = build_tree([(7,) * size for size in range(1, 3000)])

    assert tree.token_count == 2999


def test_a_cut_begins_a_node_where_nothing_branches() -> None:
    """A sequence of its own and a shared one are both cut at the position given for them."""
    tree = build_tree([(1, 2, 3, 4), (1, 2, 3, 5), (7, 8, 9)], [2, 2, 1])

    assert [tuple(t for i in tree.path(end) for t in tree.nodes[i].tokens) for end in tree.ends] == [
        (1, 2, 3, 4),
        (1, 2, 3, 5),
        (7, 8, 9),
    ]
    assert sorted((node.start, node.tokens) for node in tree.nodes) == [
        (0, (1, 2)),
        (0, (7,)),
        (1, (8, 9)),
        (2, (3,)),
        (3, (4,)),
        (3, (5,)),
    ]
