"""The served model: exact tokens, stops, repeatability; and scoring what it said."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError, MissingError, UpstreamError
from headwater.models.backend import Backend, Piece, Sampling
from headwater.models.chatml import render_chat
from headwater.models.llama import LlamaBackend
from headwater.models.outlet import Outlet
from headwater.models.scorer import load_scorer


def run_outlet(tokens: list[bytes], stops: tuple[bytes, ...]) -> list[Piece]:
    """All pieces that tokens leave as, with the final one."""
    outlet = Outlet(stops)
    pieces: list[Piece] = []
    for token, data in enumerate(tokens):
        pieces += outlet.take(token, data)
        if outlet.stopped:
            break
    return [*pieces, *outlet.finish("stop" if outlet.stopped else "length")]


token_bytes = st.lists(st.text(alphabet="ab€", min_size=1, max_size=4).map(str.encode), max_size=12)


@given(token_bytes, st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3), st.integers(1, 4))
def test_text_ends_where_the_first_stop_string_begins(words: list[bytes], stops: list[str], cut: int) -> None:
    """However text falls into tokens, the answer is the text before the earliest stop, and no token is invented."""
    whole = b"".join(words)
    tokens = [whole[at : at + cut] for at in range(0, len(whole), cut)]
    pieces = run_outlet(tokens, tuple(stop.encode() for stop in stops))
    expected, made = b"", 0
    for token in tokens:  # the stop that is complete first wins; of those complete at once, the earliest
        expected, made = expected + token, made + 1
        found = [at for at in (expected.find(stop.encode()) for stop in stops) if at >= 0]
        if found:
            expected = expected[: min(found)]
            made = -(-len(expected) // cut)
            break

    assert "".join(piece.text for piece in pieces) == expected.decode(errors="replace")
    assert [token for piece in pieces for token in piece.token_ids] == list(range(made))
    assert [piece.finish_reason is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def prompt(backend: LlamaBackend, *messages: tuple[str, str]) -> tuple[int, ...]:
    """Tokens of a chat."""
    return tuple(
        token
        for piece in render_chat(messages, system_default=None)
        for token in backend.tokenize(piece.text, control=piece.control)
    )


def answer(
    backend: LlamaBackend, tokens: tuple[int, ...], sampling: Sampling
) -> tuple[str, tuple[int, ...], str | None]:
    """Text, ids and finish reason of a whole answer."""
    pieces = list(backend.generate(tokens, sampling))
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    return (
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.token_ids),
        pieces[-1].finish_reason,
    )


@pytest.mark.model
def test_the_first_answer_ends_and_leaves_the_end_of_turn_out(backend) -> None:
    """A short question is answered to its end; the end-of-turn token is no part of it; text and ids agree."""
    text, ids, reason = answer(backend, prompt(backend, ("user", "What is the capital of France?")), Sampling(64))

    assert "Paris" in text
    assert reason == "stop"
    assert backend.tokenizer.text(ids) == text
    assert not set(ids) & backend.tokenizer.control_ids


@pytest.mark.model
def test_ids_of_characters_that_span_tokens_are_all_there(backend) -> None:
    """Emoji come out whole, with every token that made them."""
    text, ids, _ = answer(
        backend, prompt(backend, ("user", "Repeat: 🦊🚀🎉")) + backend.tokenize("🦊🚀", control=False), Sampling(12)
    )

    assert len(ids) == 12
    assert backend.tokenizer.text(ids) == text
    assert any(ord(character) > 0x1F000 for character in text)


@pytest.mark.model
def test_greedy_and_seeded_answers_repeat(backend) -> None:
    """Greedy ignores the seed; a seed repeats its own draw; another draws otherwise; earlier calls leave no trace."""
    tokens = prompt(backend, ("user", "Tell me a story about a river."))

    assert answer(backend, tokens, Sampling(24)) == answer(backend, tokens, Sampling(24, seed=9))
    drawn = [answer(backend, tokens, Sampling(24, temperature=1.0, top_p=0.95, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.model
def test_stop_strings_cut_the_answer(backend) -> None:
    """The answer ends before the stop string, with reason stop."""
    tokens = prompt(backend, ("user", "What is the capital of France?"))
    whole, _, _ = answer(backend, tokens, Sampling(32))
    at = whole.index("Paris")
    text, ids, reason = answer(backend, tokens, Sampling(32, stop=("aris", "nowhere")))

    assert (text, reason) == (whole[: at + 1], "stop")
    assert backend.tokenizer.text(ids).startswith(text)


@pytest.mark.model
def test_concurrent_answers_are_those_given_alone(backend) -> None:
    """More calls than slots, at once, each get their own answer."""
    tokens = [
        prompt(backend, ("user", f"What is the capital of {place}?")) for place in ("France", "Italy", "Japan", "Egypt")
    ]
    alone = [answer(backend, one, Sampling(12)) for one in tokens]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: answer(backend, one, Sampling(12)), tokens)) == alone


@pytest.mark.model
def test_closing_the_iterator_frees_the_slot(backend) -> None:
    """Callers that go away in the middle do not use the backend up."""
    tokens = prompt(backend, ("user", "Tell me a long story."))
    for _ in range(4):
        pieces = backend.generate(tokens, Sampling(200))
        assert next(pieces).token_ids
        pieces.close()  # type: ignore[attr-defined]

    assert answer(backend, tokens, Sampling(3))[2] == "length"


@pytest.mark.model
@pytest.mark.parametrize(
    ("tokens", "sampling", "code"),
    [
        ((), Sampling(4), "prompt_empty"),
        ((1,) * 1000, Sampling(25), "context_too_long"),
        ((1, 10**6), Sampling(4), "token_unknown"),
        ((1,), Sampling(0), "sampling_invalid"),
        ((1,), Sampling(1, temperature=-1.0), "sampling_invalid"),
        ((1,), Sampling(1, temperature=float("nan")), "sampling_invalid"),
        ((1,), Sampling(1, top_p=0.0), "sampling_invalid"),
        ((1,), Sampling(1, stop=("",)), "sampling_invalid"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(backend, tokens, sampling: Sampling, code: str) -> None:
    """Refusals come from the call itself, not from the first piece."""
    with pytest.raises(InvalidError) as caught:
        backend.generate(tokens, sampling)

    assert caught.value.code == code


@pytest.mark.model
def test_the_listener_refuses_strangers(backend) -> None:
    """Another program on the machine cannot use the model without the key."""
    connection = backend._engine.connect()
    connection.request("POST", "/completion", '{"prompt": [1], "n_predict": 1}', {"content-type": "application/json"})

    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.model
def test_names_and_limits(backend) -> None:
    """The backend fits its seam and says what it serves."""
    seam: Backend = backend

    assert seam.name == "smollm2-135m-instruct"
    assert seam.digest.startswith("sha256:")
    assert seam.context_tokens_max == 1024
    with pytest.raises(InvalidError):
        LlamaBackend(context_tokens_max=10**6)
    with pytest.raises(MissingError):
        LlamaBackend(Path("nowhere.gguf"))


@pytest.mark.model
def test_scoring_what_was_served_reproduces_its_choices(backend, smollm_scorer) -> None:
    """With every part present, the tokens served greedily are the scorer's most likely ones but for near ties.

    The engine rounds activations to 8 bits, so a choice may differ where two tokens are within a
    fraction of a bit; it may not where the scorer sees a clear winner.
    """
    tokens = prompt(
        backend,
        ("system", "Answer from the source: The Danube rises in the Black Forest and ends in the Black Sea."),
        ("user", "Where does the Danube rise?"),
    )
    _, ids, _ = answer(backend, tokens, Sampling(24))
    scored = smollm_scorer.score([tokens], ids)[0]
    sure = scored > -1.0  # more likely than all others together

    assert sure.mean() > 0.6
    for position in np.flatnonzero(~sure):
        context = (*tokens, *ids[:position])
        assert scored[position] > -4.0
        top = max(
            smollm_scorer.score([context], [other])[0, 0]
            for other in set(ids) | {int(backend.tokenizer.tokenize(" the", control=False)[0])}
        )
        assert top - scored[position] < 0.5


@pytest.mark.model
def test_the_scorer_agrees_with_a_plain_pass_over_the_real_weights(smollm_scorer, plain) -> None:
    """Both arithmetics are within their stated error of a float64 pass, over a whole answer."""
    from headwater.models.gguf_file import open_gguf
    from headwater.models.smollm import file_digest, smollm_path
    from headwater.models.weights import load_weights

    context = tuple(
        token
        for piece in render_chat([("user", "Where does the Danube rise?")])
        for token in smollm_scorer.tokenize(piece.text, control=piece.control)
    )
    said = smollm_scorer.tokenize("The Danube rises in the Black Forest, in Germany.", control=False)
    expected = plain(load_weights(open_gguf(smollm_path()), file_digest(smollm_path())), context, said).sum()

    assert abs(smollm_scorer.score([context], said).sum() - expected) < 0.03
    assert abs(load_scorer(precision="float32", context_tokens_max=1024).score([context], said).sum() - expected) < 1e-3


@pytest.mark.model
def test_nothing_is_printed_and_a_closed_backend_says_so() -> None:
    """A service's output stays clean from loading to closing."""
    code = (
        "from headwater.models.llama import LlamaBackend\n"
        "from headwater.models.backend import Sampling\n"
        "with LlamaBackend(context_tokens_max=256, parallel=1) as backend:\n"
        "    assert len(list(backend.generate((1, 2, 3), Sampling(3)))) >= 1\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)

    assert (run.stdout, run.stderr) == (b"", b"")
    backend = LlamaBackend(context_tokens_max=256, parallel=1)
    backend.close()
    with pytest.raises(UpstreamError) as caught:
        backend.generate((1,), Sampling(1))
    assert caught.value.code == "model_closed"


@pytest.mark.model
def test_a_backend_closed_at_once_ends() -> None:
    """Opening and closing without a call, again and again, never leaves a server that waits for ever."""
    opened = "LlamaBackend(context_tokens_max=256, parallel=1)"
    code = f"from headwater.models.llama import LlamaBackend\nfor _ in range(4):\n    {opened}.close()\n"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
