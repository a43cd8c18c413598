"""Upstreams that lie, send garbage, never end or smuggle: the caller is told, pays for no more than it got, and the
next call is answered as if nothing had been.

Every behaviour is asked plainly and as a stream, passed on and with sources; after all of them the books are clean and
nothing is held.
"""

from __future__ import annotations

import json
import resource
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toy.desk import Desk, open_desk
from toy.rogue import BEHAVIOURS, Rogue, rogue

REQUEST = 1_000_000  # nano units of a call
WORD = 2_000  # of an answer token
TOKENS = 50
QUESTION = [{"role": "user", "content": "Where does a river begin?"}]
SOURCES: dict[str, Any] = {"headwater": {"retrieve": 1}}
FLOODS = ("floods-head", "floods-body", "floods-words", "never-ends", "dribbles-head")
BROKEN = tuple(
    name for name in BEHAVIOURS if name not in ("fine", "held", "twice", *FLOODS) and not name.startswith("usage")
)
LIES = tuple(name for name in BEHAVIOURS if name.startswith("usage"))


def config(server: Rogue) -> str:
    """A model for each behaviour, and an upstream each, so that one is not left alone for what another did."""
    return "".join(
        f'[upstream."{name}"]\nbase_url = "{server.url}"\nsilence_s = 1\nhead_s = 1\nconnect_s = 1\n'
        f'[model."{name}"]\ntargets = [{{ upstream = "{name}", model = "{name}" }}]\nrequest_price = "0.001"\n'
        f'output_token_price = "0.000002"\nanswer_tokens_max = {TOKENS}\n'
        for name in BEHAVIOURS
    )


@pytest.fixture
def server() -> Iterator[Rogue]:
    """The upstream."""
    with rogue() as running:
        yield running


@pytest.fixture
def desk(server: Rogue, tmp_path: Path) -> Iterator[Desk]:
    """A gateway before it; its books are checked when it closes."""
    with open_desk(tmp_path / "home", upstreams=config(server)) as running:
        yield running


def settled(desk: Desk) -> int:
    """Nothing is held any more; gives what the key was charged."""
    desk.booked()
    until = time.monotonic() + 10
    while desk.toy.db.query("SELECT 1 FROM calls WHERE state = 'reserved'"):  # given back a moment after the last bytes
        assert time.monotonic() < until, "a call is still reserved"
        time.sleep(0.005)
    desk.settled()
    desk.booked()
    assert desk.toy.calls.check() == ()
    return desk.toy.spent(desk.key)


def ask(desk: Desk, model: str, stream: bool, sources: bool) -> tuple[int, str]:
    """Status and whole text of a call."""
    more = SOURCES if sources else {}
    body = {"model": model, "messages": QUESTION, "max_tokens": TOKENS, "stream": stream, **more}
    try:
        with desk.post(body) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def error_of(status: int, text: str) -> str | None:
    """The code of the error that a caller was told, as a status or as the last event of a stream."""
    last = text if status != 200 else text.rstrip().rpartition("\n")[2].removeprefix("data: ")
    try:
        found: str = json.loads(last)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return found


@pytest.mark.parametrize("sources", [False, True], ids=["passed on", "with sources"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_what_is_no_answer_is_an_error_and_is_not_paid(desk: Desk, stream: bool, sources: bool) -> None:
    """The caller is told with OpenAI's envelope; only words that were passed on before a stream broke are charged."""
    for name in BROKEN:
        before = settled(desk)
        status, text = ask(desk, name, stream, sources)
        charged = settled(desk) - before

        assert error_of(status, text), (name, status, text[:300])
        assert "[DONE]" not in text, name
        assert status != 302, name
        passed = text.count('"content":') if status == 200 else 0
        assert charged == 0 if not passed else charged <= REQUEST + TOKENS * WORD, (name, charged)
    status, text = ask(desk, "fine", stream, sources)
    assert (status, error_of(status, text)) == (200, None)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_redirect_is_followed_by_nobody(desk: Desk, server: Rogue, stream: bool) -> None:
    """Neither here nor, through what it is told, by the caller."""
    status, text = ask(desk, "redirect", stream, False)

    assert status in (500, 502, 503)
    assert "away" not in text
    assert [path for path, _ in server.seen] == ["/v1/chat/completions"]
    settled(desk)


@pytest.mark.parametrize("sources", [False, True], ids=["passed on", "with sources"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_second_answer_on_a_connection_reaches_nobody(desk: Desk, stream: bool, sources: bool) -> None:
    """What an upstream sends unasked is not taken for the answer to the next call, whoever makes it."""
    texts = []
    for model in ("twice", "fine", "twice", "fine", "fine"):
        status, text = ask(desk, model, stream, sources)
        assert status == 200, text
        texts.append(text)
        time.sleep(0.05)  # so that the second answer is there before the next question

    assert not any("SMUGGLED" in text for text in texts)
    settled(desk)


@pytest.mark.parametrize("sources", [False, True], ids=["passed on", "with sources"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_lie_about_usage_costs_at_most_what_was_held(desk: Desk, stream: bool, sources: bool) -> None:
    """Numbers below 0, beyond all bounds, or that are none: charged within the ceiling, and nothing for no answer."""
    for name in LIES:
        before = settled(desk)
        status, text = ask(desk, name, stream, sources)
        charged = settled(desk) - before

        assert 0 <= charged <= REQUEST + TOKENS * WORD, (name, charged)
        assert (charged >= REQUEST) is (error_of(status, text) is None), (name, status, charged, text)


@pytest.mark.parametrize("sources", [False, True], ids=["passed on", "with sources"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", ["floods-head", "dribbles-head"])
def test_a_head_that_never_ends_is_left(desk: Desk, server: Rogue, name: str, stream: bool, sources: bool) -> None:
    """By its size or by the time it takes; the upstream is let go."""
    status, text = ask(desk, name, stream, sources)

    assert status >= 500, text
    assert server.gone.wait(10)
    assert settled(desk) == 0


@pytest.mark.slow
@pytest.mark.parametrize("sources", [False, True], ids=["passed on", "with sources"])
@pytest.mark.parametrize(
    ("name", "stream"), [("floods-body", False), ("floods-body", True), ("floods-words", True), ("floods-words", False)]
)
def test_a_flood_is_bounded_in_memory_and_price(
    desk: Desk, server: Rogue, name: str, stream: bool, sources: bool
) -> None:
    """An answer without an end is cut at a limit of ours, and a caller who leaves one lets the upstream go."""
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    more = SOURCES if sources else {}
    body = {"model": name, "messages": QUESTION, "max_tokens": TOKENS, "stream": stream, **more}
    try:
        with desk.post(body) as answer:
            for _ in range(64):
                if not answer.read(65_536):
                    break
    except (urllib.error.HTTPError, OSError):
        pass

    assert server.gone.wait(15)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 400 * 1024
    assert 0 <= settled(desk) <= REQUEST + TOKENS * WORD
    assert ask(desk, "fine", False, False)[0] == 200


@pytest.mark.parametrize("sources", [False, True], ids=["passed on", "with sources"])
def test_a_stream_that_says_nothing_and_goes_on_is_left_with_its_caller(
    desk: Desk, server: Rogue, sources: bool
) -> None:
    """Comments without end keep nothing: when the caller goes, so does the upstream, and no word costs nothing."""
    more = SOURCES if sources else {}
    body = {"model": "never-ends", "messages": QUESTION, "max_tokens": TOKENS, "stream": True, **more}
    try:
        with desk.post(body) as answer:
            answer.read(64)
    except (urllib.error.HTTPError, OSError):
        pass

    assert server.gone.wait(15)
    assert settled(desk) <= REQUEST
