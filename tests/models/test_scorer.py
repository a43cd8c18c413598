"""The scorer's tree, batches and refusals on a tiny model, against a plain float64 pass."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution.layout import Scorer
from headwater.core.errors import HeadwaterError, InvalidError, InvariantError
from headwater.models import network
from headwater.models.linear import Precision
from headwater.models.scorer import LocalScorer
from headwater.models.tokenizer import Tokenizer, byte_alphabet
from headwater.models.weights import CodedMatrix, LlamaWeights, tiny_weights

TOLERANCE = {
    "float32": 1e-4,
    "int16": 4e-3,
    "int8": 1.0,
}  # bits per token on the tiny model, whose random weights magnify every rounding
BYTES = Tokenizer((*byte_alphabet(), "<|im_start|>", "<|im_end|>"), (), (256, 257))
WEIGHTS = tiny_weights(7)
SCORERS = {
    precision: LocalScorer(WEIGHTS, BYTES, precision=precision, context_tokens_max=2048)
    for precision in ("float32", "int16", "int8")
}


def game(players: int, size: int, seed: int = 0) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """All subsets of random sources between a fixed head and a fixed tail, and an answer."""
    rng = np.random.default_rng(seed)
    head, tail, answer, *sources = (
        tuple(rng.integers(0, 300, count).tolist()) for count in (5, 9, 12, *[size] * players)
    )
    contexts = [
        head + tuple(token for keep, source in zip(kept, sources, strict=True) if keep for token in source) + tail
        for kept in product((0, 1), repeat=players)
    ]
    return contexts, answer


@pytest.mark.parametrize("precision", ["float32", "int16", "int8"])
def test_every_subset_of_a_game_matches_a_plain_pass(precision: Precision, plain) -> None:
    """The tree, its batches and its offsets give what one whole pass per prompt gives."""
    contexts, answer = game(4, 21)
    scored = SCORERS[precision].score(contexts, answer)
    expected = np.array([plain(WEIGHTS, context, answer) for context in contexts])

    assert scored.shape == (16, 12)
    assert np.abs(scored - expected).max() < TOLERANCE[precision]


token_lists = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(contexts=token_lists, answer=st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_prompts_that_overlap_in_any_way_are_told_apart(contexts, answer, plain) -> None:
    """Repeated prompts, prompts that begin other prompts, and answers that look like prompts all score as if alone."""
    scored = SCORERS["float32"].score(contexts, answer)

    for row, context in zip(scored, contexts, strict=True):
        assert np.abs(row - plain(WEIGHTS, context, answer)).max() < TOLERANCE["float32"]


@pytest.mark.parametrize("precision", ["float32", "int16", "int8"])
def test_scores_are_the_same_bits_alone_and_in_any_company(precision: Precision) -> None:
    """A receipt can be replayed: one prompt alone, all together, and in another order agree to the last bit."""
    contexts, answer = game(4, 30, seed=1)
    together = SCORERS[precision].score(contexts, answer)
    turned = SCORERS[precision].score(contexts[::-1], answer)[::-1]
    alone = np.concatenate([SCORERS[precision].score([context], answer) for context in contexts])

    assert np.array_equal(together, turned)
    assert np.array_equal(together, alone)


def test_scores_do_not_depend_on_how_the_work_is_grouped(monkeypatch) -> None:
    """Groups of any size, down to one node at a time, give the same bits."""
    contexts, answer = game(4, 17, seed=2)
    expected = SCORERS["int16"].score(contexts, answer)
    for rows in (1, 40, 100_000):
        monkeypatch.setattr(network, "GROUP_ROWS", rows)
        assert np.array_equal(SCORERS["int16"].score(contexts, answer), expected)


def test_concurrent_calls_do_not_disturb_each_other() -> None:
    """Several threads on one scorer get what each gets alone."""
    games = [game(3, 15, seed) for seed in range(4)]
    expected = [SCORERS["int16"].score(*one) for one in games]
    start = threading.Barrier(4)

    def run(index: int) -> np.ndarray:
        start.wait()
        return SCORERS["int16"].score(*games[index])

    with ThreadPoolExecutor(4) as pool:
        for scored, alone in zip(pool.map(run, range(4)), expected, strict=True):
            assert np.array_equal(scored, alone)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (8, 2), (3, 1)])
def test_any_sharing_of_key_heads_is_read_right(heads: int, kv_heads: int, plain) -> None:
    """One, two, three or four heads to a key head match the plain pass."""
    weights = tiny_weights(3, width=96 if heads == 3 else 64, heads=heads, kv_heads=kv_heads)
    contexts, answer = game(2, 40)

    scored = LocalScorer(weights, BYTES, precision="float32").score(contexts, answer)

    assert np.abs(scored - [plain(weights, context, answer) for context in contexts]).max() < TOLERANCE["float32"]


def test_probabilities_of_all_next_tokens_sum_to_one() -> None:
    """Scoring every token of the vocabulary as the answer covers everything once."""
    scored = [SCORERS["float32"].score([(1, 2, 3)], [token])[0, 0] for token in range(300)]

    assert abs(np.exp2(scored).sum() - 1) < 1e-5


def test_nothing_to_score_gives_empty_arrays() -> None:
    """No answer tokens, no contexts, or neither: shapes are still right."""
    scorer = SCORERS["int16"]

    assert scorer.score([(1,), (2, 3)], []).shape == (2, 0)
    assert scorer.score([], [1, 2]).shape == (0, 2)
    assert scorer.score([], []).shape == (0, 0)


@pytest.mark.parametrize(
    ("contexts", "answer", "code"),
    [
        ([(1,), ()], (1,), "context_empty"),
        ([()], (), "context_empty"),
        ([(1,) * 2040], (1,) * 9, "context_too_long"),
        ([(1, 300)], (1,), "token_unknown"),
        ([(1,)], (-1,), "token_unknown"),
    ],
)
def test_what_cannot_be_scored_is_refused(contexts, answer, code: str) -> None:
    """Each refusal has its own code and says what to do."""
    with pytest.raises(InvalidError) as caught:
        SCORERS["int16"].score(contexts, answer)

    assert caught.value.code == code
    assert caught.value.fix


def test_the_window_itself_fits() -> None:
    """Prompt and answer that fill the window exactly are scored."""
    assert np.isfinite(SCORERS["int16"].score([(5,) * 2044], (1, 2, 3, 4))).all()


@pytest.mark.parametrize("precision", ["float32", "int16", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_stop_the_stage(precision: Precision, bad: float) -> None:
    """Damaged weights raise instead of giving scores."""
    embedding = WEIGHTS.embedding
    scale = embedding.scale.copy()
    scale[2, 0] = bad
    broken: LlamaWeights = replace(WEIGHTS, embedding=CodedMatrix(embedding.codes, scale, embedding.minimum))

    with pytest.raises(InvariantError, match="not finite"):
        LocalScorer(broken, BYTES, precision=precision).score([(1, 2)], (3,))


def test_digest_names_weights_and_arithmetic() -> None:
    """Other weights or another arithmetic give another digest, the same ones the same."""
    digests = {SCORERS["int16"].digest, SCORERS["float32"].digest, LocalScorer(tiny_weights(8), BYTES).digest}

    assert len(digests) == 3
    assert LocalScorer(tiny_weights(7), BYTES).digest == SCORERS["int16"].digest
    assert all(digest.startswith("sha256:") and len(digest) == 71 for digest in digests)


def test_a_window_beyond_the_model_is_refused() -> None:
    """The scorer cannot be asked for positions the model was never trained on."""
    with pytest.raises(HeadwaterError) as caught:
        LocalScorer(WEIGHTS, BYTES, context_tokens_max=4097)

    assert caught.value.code == "context_window_invalid"


def test_it_is_a_scorer() -> None:
    """The class fits the seam of the attribution stage."""
    scorer: Scorer = SCORERS["int16"]

    assert scorer.tokenize("é<|im_end|>", control=True) == (0xC3, 0xA9, 257)
    assert scorer.context_tokens_max == 2048
