"""Corrections: before a receipt settles everything may move, afterwards only new money, and nothing is ever lost."""

from __future__ import annotations

from collections import Counter

from hypothesis import event, given, settings
from hypothesis import strategies as st

from headwater.settlement.disputes import Span, Version, adjustments, counts, moves, settled_by, stands

PAYER = "payer:key_1"
NAMES = ["commons", "contributor:ctr_a", "contributor:ctr_b", "escrow:ctr_b", "operator:platform"]


def version(seq: int, **amounts: int) -> Version:
    """A receipt that pays contributors by their short names."""
    return Version(seq, tuple((f"contributor:ctr_{name}", amount) for name, amount in amounts.items()))


def of(**amounts: int) -> dict[str, int]:
    """Amounts by short name."""
    return {f"contributor:ctr_{name}": amount for name, amount in amounts.items()}


def test_before_maturity_a_correction_moves_all_of_it():
    """The first receipt is in the log but not in a window: the second takes its place whole, and its money moves."""
    first, second = version(0, a=60, b=40), version(5, b=30, c=70)
    spans = [Span(0, 6, 6)]

    assert stands([first], []) == of(a=60, b=40)
    assert stands([first, second], []) == of(b=30, c=70)
    assert adjustments([first, second], spans) == of(a=-60, b=-40)
    assert {(m.debit[-1], m.credit[-1], m.amount) for m in moves(of(a=60, b=40), of(b=30, c=70), payer=PAYER)} == {
        ("a", "c", 60),
        ("b", "c", 10),
    }


def test_a_correction_that_is_known_but_too_young_already_holds_the_old_one_back():
    """The window ends before the correction, but the log had it when the window opened: the disputed money waits."""
    chain = [version(0, a=100), version(5, b=100)]
    spans = [Span(0, 3, 6), Span(3, 8, 9)]

    assert counts(chain, spans[0], {}) == {}
    assert adjustments(chain, spans[:1]) == of(a=-100)
    assert settled_by(chain, spans) == of(b=100)


def test_after_maturity_only_new_money_is_paid():
    """Settled money stays; at the same price nothing moves, at a higher one the rise is paid."""
    first = version(0, a=100)
    settled = [Span(0, 3, 3)]
    same, dearer = version(5, b=100), version(5, a=20, b=90, c=20)

    assert stands([first, same], settled) == of(a=100)
    assert adjustments([first, same], [*settled, Span(3, 6, 6)]) == of(b=-100)
    late = stands([first, dearer], settled)
    assert late == of(a=100, b=25, c=5)
    assert moves(of(a=100), late, payer=PAYER)[0].debit == PAYER


class Books:
    """Money as balances: what a ledger would hold while receipts are corrected and windows close."""

    def __init__(self) -> None:
        self.due: Counter[str] = Counter()
        self.settled: Counter[str] = Counter()
        self.paid_in = 0


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_conservation_through_any_order_of_corrections_and_closes(data):
    """Windows settle exactly what the ledger holds, no account is overdrawn or loses settled money, nothing is lost."""
    chains: list[list[Version]] = []
    spans: list[Span] = []
    books, seq = Books(), 0
    for _ in range(data.draw(st.integers(1, 14))):
        if data.draw(st.booleans()):
            payouts = data.draw(
                st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 100)), min_size=1, max_size=4)
            )
            correct = chains and data.draw(st.booleans())
            chain = data.draw(st.sampled_from(chains)) if correct else []
            before = stands(chain, spans) if chain else {}
            chain.append(Version(seq, tuple(payouts)))
            seq += 1
            if not correct:
                chains.append(chain)
            after = stands(chain, spans)
            for move in moves(before, after, payer=PAYER):
                assert move.amount > 0
                books.due[move.debit] -= move.amount
                books.due[move.credit] += move.amount
            books.paid_in = -books.due[PAYER]
            event("correction" if correct else "first receipt")
        else:
            start = spans[-1].log_size if spans else 0
            size = data.draw(st.integers(start, seq))
            spans.append(Span(start, size, seq))
            window: Counter[str] = Counter()
            for chain in chains:
                for one in chain:
                    if start <= one.seq < size:
                        window.update(one.amounts())
                window.update(adjustments(chain, spans))
            assert all(amount >= 0 for amount in window.values())
            books.settled.update(window)
            books.due.subtract(window)
        assert all(amount >= 0 for account, amount in books.due.items() if account != PAYER)
        assert sum(books.settled.values()) + sum(a for n, a in books.due.items() if n != PAYER) == books.paid_in
    spans.append(Span(spans[-1].log_size if spans else 0, seq, seq))
    for chain in chains:
        books.due.subtract(counts(chain, spans[-1], settled_by(chain, spans[:-1])))
        settled = settled_by(chain, spans)
        assert sum(settled.values()) >= sum(chain[-1].amounts().values())
    assert not any(amount for account, amount in books.due.items() if account != PAYER)


def held_version(seq: int, held: int, **amounts: int) -> Version:
    """A receipt that holds `held` back for a dispute."""
    return Version(seq, (*version(seq, **amounts).payouts, ("disputed:dsp_1", held)))


@given(
    rest=st.integers(0, 1_000),
    disputed=st.integers(1, 1_000),
    first_window=st.sampled_from([None, 1, 2]),
    upheld=st.booleans(),
)
def test_what_is_held_settles_once_for_whoever_it_is_found_to_be_owed_to(rest, disputed, first_window, upheld):
    """Whichever of the receipts has settled before: nothing is lost, nobody is paid twice."""
    chain = [version(0, a=disputed, c=rest), held_version(1, disputed, c=rest)]
    final = version(2, b=disputed, c=rest) if upheld else version(2, a=disputed, c=rest)
    spans = [] if first_window is None else [Span(0, first_window, first_window)]
    before, after = stands(chain, spans[:1]), stands([*chain, final], spans[:1])
    whole = [*chain, final]
    spans = [*spans, Span(first_window or 0, 3, 3)]
    settled = settled_by(whole, spans)
    plain = Counter()
    for one in whole:
        plain.update(one.said())
    if first_window is None:
        plain.update(dict(adjustments(whole, spans)))
        assert {k: v for k, v in plain.items() if v} == {k: v for k, v in settled.items() if v}

    if first_window == 1:  # the old receipt had settled before anybody disputed it: nothing is taken back
        assert settled == Counter(version(0, a=disputed, c=rest).amounts())
    else:
        assert settled == Counter(final.amounts())
        assert sum(before.values()) == rest + disputed
        assert before["disputed:dsp_1"] == disputed
        [move] = moves(before, after, payer=PAYER)
        assert (move.debit, move.credit[-1], move.amount) == ("disputed:dsp_1", "b" if upheld else "a", disputed)
    assert not any(name.startswith("disputed:") for name in settled)
