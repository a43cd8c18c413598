"""Scoring on a served model, over loopback, against the same model in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from headwater.attribution.layout import Scorer
from headwater.core.errors import HeadwaterError, InvalidError, UpstreamError
from headwater.models.scorer import LocalScorer
from headwater.models.tokenizer import Tokenizer, byte_alphabet
from headwater.models.upstream_scorer import UpstreamScorer
from headwater.models.weights import tiny_weights

BYTES = Tokenizer((*byte_alphabet(), "<|im_start|>", "<|im_end|>"), (), (256, 257))
LOCAL = LocalScorer(tiny_weights(7), BYTES, precision="float32", context_tokens_max=512)
CONTEXTS = [(1, 2, 3), (1, 2), (9,) * 30, (1, 2, 3), (256, 65, 66, 257)]
ANSWER = (5, 6, 7, 257)
Serve = Callable[..., str]


def bytes_of(text: str, control: bool) -> tuple[int, ...]:
    return BYTES.tokenize(text, control=control)


def every_other_byte(text: str, control: bool) -> tuple[int, ...]:
    return bytes_of(text, control)[::2]


def started(port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """A server process and its address."""
    command = [sys.executable, str(Path(__file__).with_name("completions_server.py")), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}"


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    """One server for all tests that leave it alive."""
    process, url = started()
    yield url
    process.kill()
    process.communicate()


@pytest.fixture
def serve(root: str, request: pytest.FixtureRequest) -> Serve:
    """The address under which a server has the faults asked for, counted for this test alone."""

    def address(**faults: object) -> str:
        return f"{root}/{quote(json.dumps(faults | {'test': request.node.name}), safe='')}/v1"

    return address


def scorer(url: str, **options) -> UpstreamScorer:
    defaults = {
        "context_tokens_max": 512,
        "weights_digest": "sha256:aa",
        "pause_s": 0.01,
        "batch": 2,
        "timeout_s": 20.0,
    }
    return UpstreamScorer(url, "tiny", bytes_of, **defaults | options)


@pytest.mark.parametrize("spelling", ["prompt_logprobs", "echo"])
def test_a_served_model_scores_as_the_same_model_here(serve: Serve, spelling) -> None:
    """Both spellings give the answer's tokens and no others, whatever order answers have."""
    upstream: Scorer = scorer(serve(), spelling=spelling)
    upstream.check()

    assert np.abs(upstream.score(CONTEXTS, ANSWER) - LOCAL.score(CONTEXTS, ANSWER)).max() < 1e-5
    assert upstream.score([], ANSWER).shape == (0, 4)
    assert upstream.score([(1,)], ()).shape == (1, 0)


def test_a_server_that_starts_up_is_tried_again(serve: Serve) -> None:
    """A passing failure costs a pause, not the measurement; one attempt too few and it is reported."""
    assert np.isfinite(scorer(serve(fail_first=2), parallel=1).score(CONTEXTS, ANSWER)).all()
    with pytest.raises(UpstreamError) as caught:
        scorer(serve(fail_first=2, again=True), attempts=2, parallel=1).score(CONTEXTS, ANSWER)

    assert caught.value.code == "upstream_failed"


def test_a_server_that_dies_midway_is_resumed_without_measuring_twice() -> None:
    """What was measured before the end is kept: of four prompts, the server that comes back may be asked for two."""
    process, url = started()
    mortal = quote('{"die_after": 2}')
    upstream = scorer(f"{url}/{mortal}/v1", parallel=1, batch=1, attempts=1)
    try:
        with pytest.raises(UpstreamError) as caught:
            upstream.score(CONTEXTS, ANSWER)
        assert caught.value.code == "upstream_unreachable"
        assert process.wait(20) == 3
        process, _ = started(int(url.rpartition(":")[2]))

        assert np.abs(upstream.score(CONTEXTS, ANSWER) - LOCAL.score(CONTEXTS, ANSWER)).max() < 1e-5
        with pytest.raises(UpstreamError):
            upstream.score([(77,)], ANSWER)
    finally:
        process.kill()
        process.communicate()


def test_a_server_that_hangs_is_given_up(serve: Serve) -> None:
    """Waiting has an end."""
    with pytest.raises(UpstreamError) as caught:
        scorer(serve(sleep_s=2), timeout_s=0.3, attempts=1).score([(1,)], (2,))

    assert caught.value.code == "upstream_unreachable"


@pytest.mark.parametrize("fault", ["nan", "clipped"])
@pytest.mark.parametrize("spelling", ["prompt_logprobs", "echo"])
def test_what_is_no_log_probability_is_refused(serve: Serve, fault: str, spelling) -> None:
    """NaN, and the number servers put for minus infinity, never become bits."""
    with pytest.raises(UpstreamError) as caught:
        scorer(serve(**{fault: True}), spelling=spelling, attempts=1).score([(1, 2)], (3,))

    assert caught.value.code == "scorer_not_finite"


@pytest.mark.parametrize(
    ("faults", "spelling", "code"),
    [
        ({"bos": True}, "prompt_logprobs", "tokenizer_mismatch"),
        ({"id_shift": 1}, "prompt_logprobs", "tokenizer_mismatch"),
        ({"mute": True}, "prompt_logprobs", "upstream_without_logprobs"),
        ({"mute": True}, "echo", "upstream_without_logprobs"),
        ({"key": "k"}, "echo", "upstream_refused"),
    ],
)
def test_a_server_that_reads_otherwise_is_refused_at_once(serve: Serve, faults, spelling, code: str) -> None:
    """A token added, other ids, no log-probabilities, a wrong key: each has its code, and checking finds it too."""
    upstream = scorer(serve(**faults), spelling=spelling)
    for ask in (upstream.check, lambda: upstream.score([(1, 2)], (3, 4))):
        with pytest.raises(InvalidError) as caught:
            ask()
        assert caught.value.code == code
        assert caught.value.fix


def test_the_key_is_sent(serve: Serve) -> None:
    """A server that asks for a key gets it."""
    scorer(serve(key="k"), api_key="k").check()


def test_a_token_count_that_differs_is_named(serve: Serve) -> None:
    """With a foreign tokenizer the error says how many tokens each reads."""
    upstream = UpstreamScorer(
        serve(),
        "tiny",
        every_other_byte,
        context_tokens_max=64,
        weights_digest="x",
    )
    with pytest.raises(InvalidError, match="reads 10 tokens where our tokenizer reads 5") as caught:
        upstream.check("ten chars.")

    assert caught.value.code == "tokenizer_mismatch"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda url: scorer(url, context_tokens_max=4096).check(), "context_window_invalid"),
        (lambda url: scorer(url).score([()], (1,)), "context_empty"),
        (lambda url: scorer(url).score([(1,) * 512], (1,)), "context_too_long"),
        (lambda _: scorer("ftp://host/v1"), "upstream_url_invalid"),
        (lambda url: scorer(url, batch=0), "upstream_limit_invalid"),
    ],
)
def test_what_cannot_be_asked_is_refused(serve: Serve, make, code: str) -> None:
    """Limits and addresses are checked before anything is sent, the window against the server's own."""
    with pytest.raises(HeadwaterError) as caught:
        make(serve())

    assert caught.value.code == code


def test_a_model_that_is_not_served_is_named(serve: Serve) -> None:
    """The error lists what the server does have."""
    upstream = UpstreamScorer(serve(), "other", bytes_of, context_tokens_max=8, weights_digest="x")
    with pytest.raises(InvalidError, match="tiny"):
        upstream.check()


def test_digest_names_model_weights_and_spelling() -> None:
    """What the operator states of the weights is part of it."""
    url = "http://127.0.0.1:1/v1"
    digests = {scorer(url).digest, scorer(url, weights_digest="sha256:bb").digest, scorer(url, spelling="echo").digest}

    assert len(digests) == 3
