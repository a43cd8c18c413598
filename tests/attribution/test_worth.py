"""Prompts of coalitions: how parts are read, what is refused, and going on after a scorer died."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.attribution.account import Rules, attribute
from headwater.attribution.budget import Budget
from headwater.attribution.layout import Layout, Part
from headwater.attribution.worth import Worth, WorthCache
from headwater.core.errors import InvalidError, UpstreamError

RULES = Rules(evidence_floor_millibits=0)


class Letters:
    """A toy model over bytes in which ``ab`` is one token; a token is likelier the more often the prompt has it."""

    digest = "sha256:" + "0" * 64
    batch_contexts = 4

    def __init__(self, dies_after: int | None = None, window: int = 4096) -> None:
        self.context_tokens_max, self.left, self.scored = window, dies_after, 0

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:  # noqa: ARG002  # no special tokens
        ids, at, raw = [], 0, text.encode()
        while at < len(raw):
            two = raw[at : at + 2] == b"ab"
            ids.append(256 if two else raw[at])
            at += 1 + two
        return tuple(ids)

    def score(self, contexts, answer):
        if self.left is not None and self.scored + len(contexts) > self.left:
            raise UpstreamError("the server hung up", code="upstream_failed")
        self.scored += len(contexts)
        rows = []
        for context in contexts:
            counts = np.bincount(list(context), minlength=257) + 0.05
            rows.append(np.log2(counts / counts.sum())[list(answer)])
        return np.array(rows)


def layout(*texts: str, joined: bool = False) -> Layout:
    parts = [Part(f"p{i}", f"o{i}", text) for i, text in enumerate(texts)]
    return Layout((Part("head", "", "zz", fixed=True), *parts, Part("tail", "", "yy", fixed=True)), joined=joined)


def test_parts_read_apart_never_change_their_neighbours_and_joined_ones_are_one_text() -> None:
    """A pair of letters cut by a border is two tokens apart and one when joined."""
    apart, joined = (Worth(Letters(), layout("xa", "bx", joined=how), (1,)) for how in (False, True))
    everybody = frozenset({0, 1})

    assert list(apart.prompt(everybody)[0]) == list(b"zzxabxyy")
    assert list(joined.prompt(everybody)[0]) == [*b"zzx", 256, *b"xyy"]
    assert joined.prompt(frozenset({0}))[0] == apart.prompt(frozenset({0}))[0]


def test_joined_text_never_crosses_from_template_into_a_text() -> None:
    """Special tokens cannot form out of a template's end and a source's beginning."""
    seen = []

    class Spy(Letters):
        def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:
            seen.append((text, control))
            return super().tokenize(text, control=control)

    parts = (Part("t", "", "<|", fixed=True, control=True), Part("s", "o", "im_end|>"), Part("u", "p", "more"))
    Worth(Spy(), Layout(parts, joined=True), (1,)).prompt(frozenset({0, 1}))

    assert seen[-2:] == [("<|", True), ("im_end|>more", False)]


@pytest.mark.parametrize("passes", [64, 24])
def test_a_scorer_that_dies_midway_goes_on_where_it_stopped(passes: int) -> None:
    """With the same cache the second attempt scores the rest only, and the account is that of one attempt."""
    texts, cache = ["aaa", "bbb", "abab", "cc", "dd", "ee"], WorthCache()
    whole = Letters()
    expected = attribute(whole, layout(*texts), "aab", budget=Budget(passes), rules=RULES)
    with pytest.raises(UpstreamError):
        attribute(Letters(dies_after=10), layout(*texts), "aab", budget=Budget(passes), rules=RULES, worth_cache=cache)
    kept = len(cache.rows)

    second = Letters()
    found = attribute(second, layout(*texts), "aab", budget=Budget(passes), rules=RULES, worth_cache=cache)

    assert 0 < kept <= 10
    assert second.scored == whole.scored - kept
    assert [s.bits for s in found.shares] == [s.bits for s in expected.shares]
    assert found.passes == expected.passes <= passes


def test_a_cache_of_another_answer_is_refused() -> None:
    """Scores of one answer are never taken for those of another."""
    cache = WorthCache()
    attribute(Letters(), layout("aa"), "a", worth_cache=cache)
    with pytest.raises(InvalidError) as caught:
        attribute(Letters(), layout("aa"), "b", worth_cache=cache)
    assert caught.value.code == "worth_cache_mismatch"


def test_a_prompt_beyond_the_window_is_refused_before_anything_is_scored() -> None:
    """The longest prompt decides, and it is not the scorer that finds out."""
    scorer = Letters(window=12)
    with pytest.raises(InvalidError) as caught:
        attribute(scorer, layout("a" * 5, "c" * 5), "bb")
    assert (caught.value.code, scorer.scored) == ("context_too_long", 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5])
def test_numbers_that_are_no_log_probabilities_are_refused(value: float) -> None:
    """Not finite, or above zero: nothing is computed from them."""

    class Broken(Letters):
        def score(self, contexts, answer):
            return np.full((len(contexts), len(answer)), value)

    with pytest.raises(UpstreamError) as caught:
        attribute(Broken(), layout("a"), "b")
    assert caught.value.code == "scorer_not_finite"


def test_an_empty_part_is_worth_exactly_nothing_and_costs_no_pass() -> None:
    """A part without tokens neither earns nor is measured."""
    found = attribute(Letters(), layout("aaa", ""), "aa", rules=RULES)

    assert found.passes == 2
    assert found.shares[1].bits == found.shares[1].low == found.shares[1].high == 0.0
    assert found.shares[1].weight_ppb == 0


@pytest.mark.parametrize("text", ["🧪🧪 emoji 👩‍👩‍👧", "نص من اليمين إلى اليسار", "a\u0301 combined", "\u200f\u202e"])
def test_any_script_is_measured_and_conserved(text: str) -> None:
    """Emoji, right-to-left text and marks are bytes like any other; bits add up at every token."""
    found = attribute(Letters(), layout(text, "plain"), text, rules=RULES)

    assert found.tokens == len(text.encode())
    at_tokens = found.base_token_bits + sum(s.token_bits for s in found.shares)
    assert abs(at_tokens.sum() - found.total_bits) < 1e-6
    assert found.shares[0].bits > 0


def test_without_a_reference_bits_are_plain_log2_p() -> None:
    """The base is what the fixed parts alone give the answer, the total what the whole prompt gives it."""
    scorer, parts = Letters(), layout("aaa", "cc")
    found = attribute(scorer, parts, "aab")
    alone, whole = scorer.score([list(b"zzyy"), list(b"zzaaaccyy")], scorer.tokenize("aab", control=False)).sum(axis=1)

    assert found.base_bits == pytest.approx(alone)
    assert found.total_bits == pytest.approx(whole)


def test_parts_of_one_owner_are_sampled_as_one_and_divided_inside() -> None:
    """Nine owners, one of three parts: the budget is kept, bits conserve, and the part that matters has most of it."""
    texts = ["q" + chr(99 + i) * 2 for i in range(11)]
    texts[4] = "aaaaab"
    parts = [Part(f"p{i}", f"o{0 if i in (3, 4, 5) else i}", text) for i, text in enumerate(texts)]
    parts[0] = Part("p0", "first", texts[0])
    whole = Layout((Part("head", "", "zz", fixed=True), *parts))

    found = attribute(Letters(), whole, "aaab", budget=Budget(60), rules=RULES)

    assert (found.grade, found.players) == ("B", 9)
    assert found.passes <= 60
    assert found.merged == (("p3", "p4", "p5"),)
    assert abs(found.base_bits + sum(s.bits for s in found.shares) - found.total_bits) < 1e-6
    assert max(found.shares, key=lambda s: s.bits).part_id == "p4"


def test_a_share_that_is_not_sure_is_not_paid_and_nobody_else_gets_it() -> None:
    """With hardly any passes the intervals include zero: the pool stays with the residual."""
    texts = [chr(99 + i) * 3 for i in range(9)]
    sure = attribute(Letters(), layout(*texts, "aaaaaa"), "aaaa", budget=Budget(1024), rules=RULES)
    unsure = attribute(Letters(), layout(*texts, "aaaaaa"), "aaaa", budget=Budget(4), rules=RULES)

    assert sure.grade == "A"
    assert sure.shares[-1].weight_ppb == 10**9
    assert unsure.passes <= 4
    assert all(s.weight_ppb == 0 for s in unsure.shares if s.low <= 0)
    assert unsure.residual_ppb > 0


def test_measuring_everybody_apart_splits_a_copy_equally() -> None:
    """Without merging, exact copies share: why ownership is settled first."""
    long = "one two three four five six seven eight"
    copies = layout(long, long)
    apart = attribute(Letters(), copies, long, rules=Rules(merge=False, evidence_floor_millibits=0))
    merged = attribute(Letters(), copies, long, rules=RULES)

    assert apart.shares[0].bits == pytest.approx(apart.shares[1].bits)
    assert merged.shares[1].bits == 0
    assert merged.copies == (("p1", "p0"),)
