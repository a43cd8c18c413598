"""Several upstreams on loopback: their health, callers' own keys for them, and the least a call costs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from headwater.core.errors import InvalidError
from headwater.core.money import NANO
from headwater.gateway.passing import usage_of, with_bill
from headwater.gateway.upstreams_file import read_upstreams
from toy.desk import Desk, open_desk
from toy.upstream import USAGE, Upstream, upstream

ASK = [{"role": "user", "content": "Who is paid?"}]
CONFIG = """
    [upstream.first]
    base_url = "{first}"
    key_env = "UPSTREAM_KEY"
    health = "/models"
    health_every_s = 0.05
    [upstream.second]
    base_url = "{second}"
    key_env = "UPSTREAM_KEY"
    [upstream.dead]
    base_url = "http://127.0.0.1:1/v1"
    connect_s = 0.2
    [model.both]
    targets = [{{ upstream = "first", model = "fine" }}, {{ upstream = "second", model = "fine" }}]
    request_price = "0.5"
    [model.both.own_key]
    upstream = "second"
    request_price = "0.01"
    [model.locked]
    targets = [{{ upstream = "first", model = "locked" }}]
    request_price = "0.5"
    [model.locked.own_key]
    [model.least]
    targets = [{{ upstream = "second", model = "fine" }}]
    output_token_price = "0.000001"
    minimum_price = "0.02"
    [model.blip]
    targets = [{{ upstream = "second", model = "once-503" }}]
    request_price = "0.5"
    [model.strict]
    targets = [{{ upstream = "second", model = "once-503" }}]
    retries = 0
    [model.down]
    targets = [{{ upstream = "first", model = "status-503" }}]
    retries = 0
    [model.unstreamed]
    targets = [{{ upstream = "first", model = "garbage" }}, {{ upstream = "second", model = "fine" }}]
    [model.garbage]
    targets = [{{ upstream = "second", model = "garbage" }}]
    [model.gone]
    targets = [{{ upstream = "dead", model = "fine" }}]
"""


@pytest.fixture
def servers() -> Iterator[tuple[Upstream, Upstream]]:
    """Two upstreams."""
    with upstream() as first, upstream() as second:
        yield first, second


@pytest.fixture
def desk(servers: tuple[Upstream, Upstream], tmp_path: Path) -> Iterator[Desk]:
    """A gateway before them that has no model of its own to fall back on."""
    first, second = servers
    with open_desk(tmp_path, upstreams=CONFIG.format(first=first.url, second=second.url)) as running:
        yield running


def until(true: Callable[[], bool]) -> None:
    """Wait for something that a check in the background brings about."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def spent(desk: Desk) -> int:
    """What the key was charged so far, nano units."""
    desk.booked()
    return desk.toy.spent(desk.key)


def states(desk: Desk) -> dict[str, str]:
    """What /readyz says of the health of each upstream."""
    return {one["name"]: one["health"] for one in desk.get("/readyz")["upstreams"]}


def test_an_upstream_that_its_health_check_finds_unwell_is_asked_last_and_told(
    desk: Desk, servers: tuple[Upstream, Upstream]
):
    """No call is spent on finding out; when it is well again it comes first again."""
    first, second = servers
    assert first.asked == []
    until(lambda: states(desk) == {"first": "ok", "second": "not checked", "dead": "not checked"})
    first.health = 503
    until(lambda: states(desk)["first"] == "status_503")
    assert desk.get("/readyz")["status"] == "degraded"
    desk.client().chat.completions.create(model="both", messages=ASK)
    assert (len(first.asked), len(second.asked)) == (0, 1)
    first.health = 200
    until(lambda: states(desk)["first"] == "ok")
    desk.client().chat.completions.create(model="both", messages=ASK)
    assert (len(first.asked), len(second.asked)) == (1, 1)


def test_a_model_whose_only_upstream_is_unwell_is_still_asked(desk: Desk, servers: tuple[Upstream, Upstream]):
    """A health check that is wrong about its server must not stop the service."""
    first, _ = servers
    first.health = 500
    until(lambda: states(desk)["first"] == "status_500")
    with pytest.raises(openai.APIStatusError) as caught:
        desk.client().chat.completions.create(model="locked", messages=ASK)
    assert (caught.value.status_code, len(first.asked)) == (502, 1)


def test_an_upstream_that_says_not_now_is_asked_again_as_often_as_the_model_says(
    desk: Desk, servers: tuple[Upstream, Upstream]
):
    """Once by default, before the first byte, for one price; never with `retries = 0`."""
    assert desk.client().chat.completions.create(model="blip", messages=ASK).choices[0].message.content
    assert len(servers[1].asked) == 2
    assert spent(desk) == NANO // 2
    assert list(desk.client().chat.completions.create(model="blip", messages=ASK, stream=True))
    assert len(servers[1].asked) == 4
    with pytest.raises(openai.APIStatusError) as caught:
        desk.client().chat.completions.create(model="strict", messages=[{"role": "user", "content": "Another"}])
    assert (caught.value.status_code, len(servers[1].asked)) == (502, 5)


def test_who_answers_with_a_page_instead_of_a_stream_has_not_answered(desk: Desk, servers: tuple[Upstream, Upstream]):
    """The next upstream is asked; when there is none, the caller gets an error rather than a stream of nothing."""
    assert list(desk.client().chat.completions.create(model="unstreamed", messages=ASK, stream=True))
    assert [len(server.asked) for server in servers] == [1, 1]
    with pytest.raises(openai.APIStatusError) as caught:
        desk.client().chat.completions.create(model="garbage", messages=ASK, stream=True)
    assert (caught.value.status_code, caught.value.body["code"]) == (503, "upstream_garbage")
    assert len(servers[1].asked) == 2


def test_an_upstream_that_came_back_is_ready_before_anybody_asks_it(desk: Desk, servers: tuple[Upstream, Upstream]):
    """Who balances by /readyz sends nothing to what is not ready: a health check must be enough to end a pause."""
    first, _ = servers
    first.health = 503
    until(lambda: states(desk)["first"] == "status_503")
    for _ in range(5):
        with pytest.raises(openai.APIStatusError):
            desk.client().chat.completions.create(model="down", messages=ASK)
    assert {"down", "locked"} <= set(desk.get("/readyz")["models_out_of_reach"])
    first.health = 200
    until(lambda: "down" in desk.get("/readyz")["models"])
    assert desk.client().chat.completions.create(model="both", messages=ASK).choices


def test_a_model_whose_upstream_is_not_there_is_out_of_reach_before_anybody_asked(tmp_path: Path):
    """What the health check cannot connect to, no call would reach."""
    config = CONFIG.replace("connect_s = 0.2", 'connect_s = 0.2\nhealth = "/models"\nhealth_every_s = 0.05')
    with open_desk(
        tmp_path, upstreams=config.format(first="http://127.0.0.1:1/v1", second="http://127.0.0.1:1/v1")
    ) as desk:
        until(lambda: states(desk)["dead"] == "upstream_unreachable")
        assert "gone" in desk.get("/readyz")["models_out_of_reach"]


def test_callers_are_not_told_where_an_upstream_is(desk: Desk):
    with pytest.raises(openai.APIStatusError) as caught:
        desk.client().chat.completions.create(model="gone", messages=ASK)
    assert caught.value.body["code"] == "upstream_unreachable"
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    ("usage", "said"),
    [
        ('{"prompt_tokens": 5, "completion_tokens": 2}', (5, 2)),
        ('{"input_tokens": 5, "output_tokens": 2}', (5, 2)),
        ('{"prompt_tokens": 5, "completion_tokens": null}', (5, 0)),
        *((wrong, None) for wrong in ("null", "7", "[]", '"x"', '{"prompt_tokens": -5, "completion_tokens": 7}')),
        *(
            (f'{{"prompt_tokens": 5, "completion_tokens": {wrong}}}', None)
            for wrong in ("-1", "1.5", '"9"', "true", "[]")
        ),
    ],
)
def test_what_is_no_count_of_tokens_is_as_if_nothing_was_said(usage: str, said: tuple[int, int] | None):
    """The answer is still an answer; its tokens are counted here."""
    found = usage_of(f'{{"choices": [], "usage": {usage}}}'.encode())
    assert (None if found is None else (found.prompt, found.completion)) == said


@pytest.mark.parametrize("body", [b"{}", b" { \n} ", b'{"a":{}}', b'{"a":"}"}\n'])
def test_our_object_is_put_into_any_object(body: bytes):
    assert json.loads(with_bill(body, b"{}")) == {**json.loads(body), "headwater": {}}


def test_the_books_are_kept_whatever_happens_to_their_thread_once(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """An error nobody thought of delays the books and is told; the next turn writes them."""
    assert desk.app.relays is not None
    meter, failed = desk.app.relays.meter, []
    real = meter._bring_up

    def fails_once(*given: object, **more: object) -> None:
        if not failed:
            failed.append(1)
            raise OSError("a clock that jumps")
        real(*given, **more)

    monkeypatch.setattr(meter, "_bring_up", fails_once)
    desk.client().chat.completions.create(model="least", messages=ASK)
    until(lambda: bool(failed) and meter.state().behind == 0 and meter.state().error is None)
    assert desk.toy.spent(desk.key) > 0


def test_readyz_and_metrics_tell_of_models_whose_upstreams_are_left_alone(desk: Desk):
    """Ready for what can be answered, degraded by what cannot; Prometheus has the same."""
    for _ in range(5):
        with pytest.raises(openai.APIStatusError):
            desk.client().chat.completions.create(model="gone", messages=ASK)
    found = desk.get("/readyz")
    assert (found["status"], found["models_out_of_reach"]) == ("degraded", ["gone"])
    assert {"both", "least", "locked"} <= set(found["models"])
    assert found["checks"]["books"] == "ok"
    with urllib.request.urlopen(desk.url + "/metrics", timeout=10) as response:
        text = response.read().decode()
    assert 'headwater_upstream_paused{upstream="dead"} 1' in text
    assert 'headwater_upstream_paused{upstream="first"} 0' in text
    assert "headwater_books_behind " in text


def test_a_key_of_the_callers_goes_to_its_upstream_alone_at_that_price(desk: Desk, servers: tuple[Upstream, Upstream]):
    """The other upstream of the model never sees it, not even when it would come first; the operator's stays here."""
    first, second = servers
    own = desk.client(default_headers={"Upstream-Authorization": "Bearer theirs"})
    said = own.chat.completions.create(model="both", messages=ASK)
    assert said.choices[0].message.content
    assert (first.keys, second.keys) == ([], ["Bearer theirs"])
    assert spent(desk) == NANO // 100
    desk.client().chat.completions.create(model="both", messages=ASK)
    assert first.keys == ["Bearer up-secret"]
    assert spent(desk) == NANO // 100 + NANO // 2
    assert list(own.chat.completions.create(model="both", messages=ASK, stream=True))
    assert second.keys == ["Bearer theirs"] * 2


def test_a_refused_own_key_is_the_callers_fault_and_the_operators_is_not(desk: Desk):
    """401 is passed on for a key of the caller's; nothing is charged either way."""
    assert desk.client(default_headers={"Upstream-Authorization": "Bearer theirs"}).chat.completions.create(
        model="locked", messages=ASK
    )
    before = spent(desk)
    with pytest.raises(openai.AuthenticationError):
        desk.client(default_headers={"Upstream-Authorization": "Bearer wrong"}).chat.completions.create(
            model="locked", messages=ASK
        )
    with pytest.raises(openai.APIStatusError) as caught:
        desk.client().chat.completions.create(model="locked", messages=ASK)
    assert caught.value.status_code == 502
    assert spent(desk) == before


@pytest.mark.parametrize(
    ("model", "header", "code"),
    [
        ("least", "Bearer theirs", "own_key_not_taken"),
        ("both", "theirs", "own_key_invalid"),
        ("both", "Bearer ", "own_key_invalid"),
        ("both", "Bearer a b", "own_key_invalid"),
        ("both", "Bearer " + "x" * 5_000, "own_key_invalid"),
    ],
)
def test_a_key_that_cannot_be_used_is_refused_rather_than_left_out(
    desk: Desk, servers: tuple[Upstream, Upstream], model: str, header: str, code: str
):
    """Answering with the operator's key instead would cost the caller another price than it expects."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        desk.post({"model": model, "messages": ASK}, {"Upstream-Authorization": header})
    body = json.loads(caught.value.read())
    assert (caught.value.code, body["error"]["code"]) == (400, code)
    assert servers[0].asked == servers[1].asked == []
    assert "theirs" not in json.dumps(body)


def test_an_answered_call_costs_at_least_the_minimum(desk: Desk):
    """A short answer costs the minimum, which /v1/models tells."""
    said = desk.client().chat.completions.create(model="least", messages=ASK)
    assert said.usage is not None
    assert said.usage.completion_tokens == USAGE["completion_tokens"]
    assert spent(desk) == NANO // 50
    shown = {model["id"]: model["headwater"] for model in desk.get("/v1/models")["data"]}
    assert shown["least"]["minimum_price"] == "0.020000000"
    assert shown["least"]["own_key"] is None
    assert shown["both"]["own_key"]["request_price"] == "0.010000000"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('health = "models"', "health"),
        ('health = "/a b"', "health"),
        ("health_every_s = 0", "health_every_s"),
        ('[model.m.own_key]\nupstream = "other"', "no target"),
        ('[model.m]\ntargets = [{ upstream = "u", model = "x" }]\nretries = 9', "retries"),
        ('[model.m.own_key]\nprice = "1"', "unknown"),
        ('[model.m]\ntargets = [{ upstream = "u", model = "x" }]\nminimum_price = "-1"', "negative"),
    ],
)
def test_a_wrong_line_of_the_file_is_refused_with_its_place(line: str, told: str, tmp_path: Path):
    """Each names what is wrong."""
    model = "" if line.startswith("[model.m]") else '[model.m]\ntargets = [{ upstream = "u", model = "x" }]\n'
    head = '[upstream.u]\nbase_url = "http://127.0.0.1:1/v1"\n'
    text = head + (line + "\n" + model if line.startswith("health") else model + line)
    with pytest.raises(InvalidError, match=told):
        read_upstreams(text, environment={}, folder=tmp_path)
