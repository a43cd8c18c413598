"""The torch scorer against the scorer in this process: forked caches, padding, precisions, folders, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution.layout import Scorer
from headwater.core.errors import HeadwaterError, InvalidError, InvariantError
from headwater.models.scorer import LocalScorer
from headwater.models.tokenizer import Tokenizer, byte_alphabet
from headwater.models.weights import tiny_weights

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from headwater.models.torch_scorer import TorchScorer, load_torch_scorer  # noqa: E402
from headwater.models.torch_weights import llama_module  # noqa: E402

torch.set_num_threads(1)
BYTES = Tokenizer((*byte_alphabet(), "<|im_start|>", "<|im_end|>"), (), (256, 257))
WEIGHTS = tiny_weights(7)
LOCAL = LocalScorer(WEIGHTS, BYTES, precision="float32")


def bytes_of(text: str, control: bool) -> tuple[int, ...]:
    return BYTES.tokenize(text, control=control)


def made(precision: str = "float32", weights=WEIGHTS, **options) -> TorchScorer:
    module = llama_module(weights).to(getattr(torch, precision))
    return TorchScorer(module, bytes_of, weights_digest=weights.digest, **options)


SCORER = made()
token_lists = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(contexts=token_lists, answer=st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_prompts_that_overlap_in_any_way_are_told_apart(contexts, answer) -> None:
    """Repeated prompts, prompts that begin others, and answers that look like prompts score as in our own engine."""
    assert np.abs(SCORER.score(contexts, answer) - LOCAL.score(contexts, answer)).max() < 1e-4


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_every_subset_of_a_game_agrees_however_it_is_batched(batch_tokens: int) -> None:
    """Sixteen subsets of sources of several lengths: padding and grouping do not show."""
    rng = np.random.default_rng(3)
    head, tail, answer, *sources = (tuple(rng.integers(0, 258, n).tolist()) for n in (5, 9, 12, 31, 8, 17, 50))
    contexts = [
        head + tuple(token for i, source in enumerate(sources) if row >> i & 1 for token in source) + tail
        for row in range(16)
    ]

    scored = made(batch_tokens=batch_tokens).score(contexts, answer)

    assert np.abs((scored - LOCAL.score(contexts, answer)).sum(axis=1)).max() < 1e-3
    assert (scored <= 0).all()


def test_shared_prefixes_are_computed_once() -> None:
    """The model sees the tokens of the tree, not those of every prompt."""
    seen = 0
    scorer = made()
    forward = scorer._model.forward

    def counting(*args, **kwargs):
        nonlocal seen
        seen += int(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    scorer._model.forward = counting
    scorer.score([(1,) * 100 + (last,) for last in range(20)], (5, 6))

    assert seen == 100 + 20 * 2


def test_bfloat16_is_near_and_says_that_it_is_another_arithmetic() -> None:
    """Half precision scores within a bit or two of an answer, under a digest of its own."""
    half = made("bfloat16")
    contexts, answer = [(1, 2, 3, 4), (1, 2), (9, 8, 7)], (5, 6, 7, 8)

    assert np.abs((half.score(contexts, answer) - LOCAL.score(contexts, answer)).sum(axis=1)).max() < 2
    assert half.precision == "bfloat16"
    assert half.digest != SCORER.digest


def test_a_folder_is_loaded_with_its_own_tokenizer(tmp_path: Path) -> None:
    """Saved and loaded again: same tokens, same scores; special tokens only where they are honoured."""
    from tokenizers import AddedToken, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast
    from transformers import PreTrainedTokenizerFast

    fast = Fast(models.BPE({letter: i for i, letter in enumerate(byte_alphabet())}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=fast).save_pretrained(tmp_path)
    llama_module(WEIGHTS).save_pretrained(tmp_path)

    loaded: Scorer = load_torch_scorer(tmp_path, device="cpu")
    text = "é 🦊 سلام<|im_end|>"

    assert loaded.tokenize(text, control=True) == BYTES.tokenize(text, control=True)
    assert loaded.tokenize(text, control=False) == BYTES.tokenize(text, control=False)
    assert loaded.context_tokens_max == 4096
    assert np.abs(loaded.score([(1, 2, 3)], (4, 5)) - LOCAL.score([(1, 2, 3)], (4, 5))).max() < 1e-4
    assert load_torch_scorer(tmp_path, device="cpu", precision="bfloat16").digest != loaded.digest


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda _: SCORER.score([(1,), ()], (1,)), "context_empty"),
        (lambda _: SCORER.score([(1,) * 4096], (1,)), "context_too_long"),
        (lambda _: SCORER.score([(300,)], (1,)), "token_unknown"),
        (lambda _: made(context_tokens_max=5000), "context_window_invalid"),
        (lambda _: made(context_tokens_max=8), "context_window_invalid"),
        (lambda _: made("float16"), "precision_unknown"),
        (lambda tmp: load_torch_scorer(tmp), "model_missing"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path: Path, act, code: str) -> None:
    """Each refusal has its own code and says what to do."""
    with pytest.raises(HeadwaterError) as caught:
        act(tmp_path)

    assert caught.value.code == code
    assert caught.value.fix


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    """A configuration alone is no model."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InvalidError) as caught:
        load_torch_scorer(tmp_path)

    assert caught.value.code == "model_unreadable"


def test_a_model_whose_caches_cannot_be_forked_is_refused() -> None:
    """A model that ignores the positions it is given is found out before it scores anything."""
    module = llama_module(WEIGHTS)
    forward = module.forward

    def deaf(*args, logits_to_keep=0, **kwargs):
        kwargs.pop("position_ids", None)
        return forward(*args, logits_to_keep=logits_to_keep, **kwargs)

    module.forward = deaf
    with pytest.raises(InvalidError) as caught:
        TorchScorer(module, bytes_of, weights_digest="sha256:x")

    assert caught.value.code == "model_not_forkable"


def test_numbers_that_are_not_finite_stop_the_stage() -> None:
    """Damaged weights raise instead of giving scores."""
    scorer = made()
    with torch.no_grad():
        scorer._model.model.norm.weight[0] = float("nan")
    with pytest.raises(InvariantError) as caught:
        scorer.score([(1, 2)], (3,))

    assert caught.value.code == "score_not_finite"


def test_nothing_to_score_gives_empty_arrays() -> None:
    """No answer tokens, no contexts: shapes are still right."""
    assert SCORER.score([(1,), (2, 3)], []).shape == (2, 0)
    assert SCORER.score([], [1, 2]).shape == (0, 2)


@pytest.mark.slow
@pytest.mark.model
def test_the_demo_model_gives_the_same_bits_in_both_engines() -> None:
    """On the real weights, float32: same tokens, and answers within a thousandth of a bit."""
    from headwater.models import load_scorer, load_weights, smollm_path
    from headwater.models.gguf_file import open_gguf
    from headwater.models.smollm import file_digest

    local = load_scorer(precision="float32", context_tokens_max=1024)
    weights = load_weights(open_gguf(smollm_path()), file_digest(smollm_path()))

    def tokenize(text: str, control: bool) -> tuple[int, ...]:
        return local.tokenize(text, control=control)

    scorer = TorchScorer(llama_module(weights), tokenize, weights_digest=weights.digest)
    texts = ("<|im_start|>user\n", "A wheel is a ZIP archive. ", "Zip is strict. ", "What is a wheel?<|im_end|>\n")
    parts = [local.tokenize(text, control=True) for text in texts]
    contexts = [parts[0] + parts[1] * (row & 1) + parts[2] * (row >> 1) + parts[3] for row in range(4)]
    answer = local.tokenize("A ZIP archive with a special name. 🦊", control=False)

    assert np.abs((scorer.score(contexts, answer) - local.score(contexts, answer)).sum(axis=1)).max() < 1e-3
