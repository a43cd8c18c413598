from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution.account import Rules, attribute
from headwater.attribution.budget import Budget
from headwater.attribution.layout import Layout, Part
from headwater.attribution.ownership import settle_ownership
from headwater.attribution.reference import uniform_reference
from headwater.core.errors import InvalidError, UpstreamError
from headwater.core.money import PPB

VOCABULARY = 64
REFERENCE = uniform_reference(VOCABULARY)


@dataclass(frozen=True)
class Overlap:
    """A scorer whose model has read only its prompt: a token is likelier the more often the prompt has it."""

    broken: float | None = None
    digest: str = "sha256:" + "0" * 64
    context_tokens_max: int = 4096

    def tokenize(self, text, *, control):  # noqa: ARG002  # this model has no special tokens
        return tuple(ord(c) % VOCABULARY for c in text)

    def score(self, contexts, answer):
        rows = []
        for context in contexts:
            counts = np.bincount(list(context), minlength=VOCABULARY) + 0.05
            rows.append(np.log2(counts / counts.sum())[list(answer)])
        logp = np.array(rows, dtype=np.float64).reshape(len(contexts), len(answer))
        return logp if self.broken is None else np.full_like(logp, self.broken)


def layout(*texts, owners=None, times=None):
    parts = [Part("fixed-0", "", "zz", fixed=True)]
    for i, text in enumerate(texts):
        owner = owners[i] if owners else f"owner-{i}"
        parts.append(Part(f"part-{i}", owner, text, registered_at_ns=times[i] if times else i))
    return Layout((*parts, Part("fixed-1", "", "yy", fixed=True)))


def measure(*texts, answer="aaaabbbb", rules=None, **how):
    rules = rules or Rules(evidence_floor_millibits=0)
    return attribute(Overlap(), layout(*texts, **how), answer, reference=REFERENCE, rules=rules)


words = st.text("abcdefgh", min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(words, min_size=0, max_size=5), answer=words)
def test_bits_of_all_parts_sum_to_the_whole_at_every_token(texts, answer):
    """Base model and shares add up, per token and in sum, and the weights with the residual are a whole."""
    found = measure(*texts, answer=answer)

    at_tokens = found.base_token_bits + sum((s.token_bits for s in found.shares), np.zeros(found.tokens))
    assert at_tokens.sum() == pytest.approx(found.total_bits, abs=1e-6)
    assert sum(s.weight_ppb for s in found.shares) + found.residual_ppb == PPB
    assert all(s.weight_ppb == 0 for s in found.shares if s.bits <= 0)


def test_the_source_that_holds_the_answer_is_credited_and_the_unrelated_one_is_not():
    """Effect is paid, presence is not."""
    found = measure("aaaabbbb", "ccccdddd")

    assert found.shares[0].bits > 5 > 0 > found.shares[1].bits
    assert found.shares[1].weight_ppb == 0


LONG = "alpha beta gamma delta epsilon zeta eta theta"


def test_a_copy_of_an_earlier_source_earns_nothing_and_costs_its_owner_nothing():
    """Whoever registered first keeps what the pair explains, wherever the copy stands in the prompt."""
    alone = measure(LONG, answer=LONG[:12])
    copied = measure(LONG, LONG, answer=LONG[:12], times=[2, 1])

    assert copied.shares[0].weight_ppb == 0
    assert copied.shares[1].bits > 0
    assert sum(s.bits for s in copied.shares) == pytest.approx(copied.shares[1].bits)
    assert alone.shares[0].bits > 0


def test_cutting_a_source_in_two_changes_what_its_owner_earns_by_nothing():
    """Parts of one owner are one player: the owner's bits are those of the uncut source, and so are the others'."""
    whole = measure("aaaabbbb", "abab", owners=["x", "y"])
    cut = measure("aaaa", "bbbb", "abab", owners=["x", "x", "y"])

    assert cut.players == whole.players == 2
    assert cut.shares[0].bits + cut.shares[1].bits == pytest.approx(whole.shares[0].bits)
    assert cut.shares[2].bits == pytest.approx(whole.shares[1].bits)


def test_an_owner_who_harms_with_one_part_and_repairs_with_another_is_paid_as_for_both():
    """Cutting a text where it turns from poison to antidote pays no more than the text as it was."""
    whole = measure("aaaabbbb", "zqzqzqzqzqab", owners=["x", "y"])
    cut = measure("aaaabbbb", "zqzqzqzqzq", "ab", owners=["x", "y", "y"])
    alone = measure("aaaabbbb", "ab", owners=["x", "y"])

    assert alone.shares[1].weight_ppb > 0
    assert cut.shares[1].bits < 0 < cut.shares[2].bits
    assert cut.shares[1].weight_ppb == 0
    assert cut.shares[2].weight_ppb == pytest.approx(whole.shares[1].weight_ppb, abs=2)


@pytest.mark.parametrize("passes", [16, 32, 64])
def test_an_owner_cut_in_nine_is_paid_like_the_whole_source_when_sampled(passes):
    """Six owners, one in nine parts: its bits and its pay are those of the uncut source, within the intervals."""
    text = "aabbccddeeffgghhaab"
    others = ["gh" * 3, "ef" * 2, "zzzz", "abab", "cdcd"]
    pieces = [text[len(text) * j // 9 : len(text) * (j + 1) // 9] for j in range(9)]
    owners = ["a", "b", "c", "d", "e"]

    def account(*texts, owners):
        return attribute(
            Overlap(),
            layout(*texts, owners=owners),
            "aabbccdd",
            budget=Budget(passes),
            reference=REFERENCE,
            rules=Rules(evidence_floor_millibits=0),
        )

    whole = account(text, *others, owners=["x", *owners])
    cut = account(*pieces, *others, owners=["x"] * 9 + owners)
    exact = attribute(Overlap(), layout(text, *others, owners=["x", *owners]), "aabbccdd", reference=REFERENCE)

    assert (exact.grade, cut.grade) == ("A", "B")
    assert cut.passes <= passes
    bits = sum(share.bits for share in cut.shares[:9])
    wide = sum(share.high - share.bits for share in cut.shares[:9])
    assert abs(bits - exact.shares[0].bits) <= max(wide, 1e-9)
    paid = sum(share.weight_ppb for share in cut.shares[:9])
    assert paid <= whole.shares[0].weight_ppb * 1.05
    if passes < 54:  # none left to look inside: all of them tell the owners apart, and the parts are alike
        assert cut.passes == whole.passes
        assert paid == pytest.approx(whole.shares[0].weight_ppb, rel=1e-6)  # micro-bits, rounded


def test_one_pass_is_too_few_for_one_owner_too():
    """With and without is two."""
    with pytest.raises(InvalidError) as caught:
        attribute(Overlap(), layout("aabb"), "aa", budget=Budget(1), reference=REFERENCE)

    assert caught.value.code == "budget_too_small"


def test_evidence_below_the_floor_pays_nobody():
    """An answer that no source moved leaves the whole pool to the residual, whatever the signs of the noise."""
    found = measure("cccc", "dddd", rules=Rules(evidence_floor_millibits=5_000))

    assert found.residual_ppb == PPB
    assert all(s.weight_ppb == 0 for s in found.shares)


def test_the_model_weight_decides_what_fluent_language_is_worth():
    """The heavier the base model's bits, the more stays with the residual."""
    light, heavy = (
        measure("aaaabbbb", answer="zzaabb", rules=Rules(model_weight_ppm=w, evidence_floor_millibits=0))
        for w in (0, 1_000_000)
    )

    assert light.residual_ppb == 0
    assert heavy.residual_ppb > light.residual_ppb
    assert [s.bits for s in light.shares] == [s.bits for s in heavy.shares]


@pytest.mark.parametrize("broken", [float("nan"), float("-inf"), float("inf")])
def test_a_scorer_that_gives_no_number_is_refused(broken):
    """What is not finite never becomes a share."""
    with pytest.raises(UpstreamError) as caught:
        attribute(Overlap(broken), layout("aa"), "aa", reference=REFERENCE)

    assert caught.value.code == "scorer_not_finite"


def test_an_answer_without_tokens_is_refused():
    """There is nothing to attribute in nothing."""
    with pytest.raises(InvalidError) as caught:
        measure("aa", answer="")

    assert caught.value.code == "answer_empty"


def test_more_players_than_the_budget_covers_are_sampled_and_graded_so():
    """Nine players of a budget for eight give grade B, within the budget, with intervals, conserved at every token."""
    found = measure(*[chr(97 + i) * 3 for i in range(9)], answer="aabbcc")

    assert found.grade == "B"
    assert found.passes <= 256
    assert any(s.low < s.bits < s.high for s in found.shares)
    at_tokens = found.base_token_bits + sum(s.token_bits for s in found.shares)
    assert abs(at_tokens.sum() - found.total_bits) < 1e-6


def test_ownership_is_settled_by_time_of_registration_then_by_place():
    """Of two copies with one time the earlier part is the original."""
    parts = layout(LONG, LONG + " iota", "unrelated words stand here alone", times=[5, 5, 1]).players
    settled = settle_ownership(parts, 0.8)

    assert settled.unions == ((0, 1), (2,))
    assert settled.copies == ((1, 0),)


def test_repeated_part_ids_are_refused():
    """Two parts under one id could not be paid apart."""
    with pytest.raises(InvalidError) as caught:
        Layout((Part("a", "x", "t"), Part("a", "y", "t")))

    assert caught.value.code == "layout_invalid"
