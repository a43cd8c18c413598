"""What callers are told when a call cannot be answered, and that it costs them nothing."""

from __future__ import annotations

import json
import urllib.error
from typing import Any

import openai
import pytest

from headwater.core.limits import REQUEST_SIZE_BYTES_MAX
from toy.desk import Desk

CONTENT = "messages[0].content"
ASK = {"model": "toy", "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 5}


def refused(desk: Desk, body: object, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Status and error object of a request that must be refused."""
    spent = desk.toy.spent(desk.key)
    with pytest.raises(urllib.error.HTTPError) as caught:
        desk.post(body, headers)
    assert caught.value.headers["content-type"] == "application/json"
    error = json.loads(caught.value.read())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert desk.toy.spent(desk.key) == spent
    assert desk.toy.reserved(desk.key) == 0
    return caught.value.code, error


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"model": None}, "invalid_value", "model"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "hi"}, "invalid_value", "messages"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "invalid_value",
            f"{CONTENT}[0].text",
        ),
        ({"messages": [{"role": "tool"}]}, "invalid_value", "messages[0].content"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 10**6}, "invalid_value", "max_tokens"),
        ({"max_tokens": True}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_value", "max_tokens"),
        ({"max_completion_tokens": 6}, "invalid_value", "max_tokens"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"top_p": -1}, "invalid_value", "top_p"),
        ({"seed": 2**70}, "invalid_value", "seed"),
        ({"stop": ["a"] * 5}, "invalid_value", "stop"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"stream": "yes"}, "invalid_value", "stream"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"n": 9}, "invalid_value", "n"),
        ({"tools": [{"type": "function"}]}, "invalid_value", "tools[0].function"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format"),
        ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
        ({"frequency_penalty": 0.5}, "unsupported_parameter", "frequency_penalty"),
        ({"max_token": 5}, "unknown_parameter", "max_token"),
        ({"headwater": {"sources": 99}}, "invalid_value", "headwater.sources"),
        ({"headwater": {"source": 1}}, "unknown_parameter", "headwater.source"),
        ({"headwater": {"prompt": "nobody"}}, "invalid_value", "headwater.prompt"),
    ],
)
def test_a_wrong_field_is_named(shared: Desk, change: dict[str, Any], code: str, param: str) -> None:
    """400 with the field in `param`, as a client would write it."""
    status, error = refused(shared, {**ASK, **change})

    assert (status, error["code"], error["param"]) == (400, code, param)


def test_an_image_is_refused_by_its_type(shared: Desk) -> None:
    """A part that is no text is named; what it points to is never fetched."""
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/secret"}}
    status, error = refused(shared, {**ASK, "messages": [{"role": "user", "content": [image]}]})

    assert (status, error["code"], error["param"]) == (400, "unsupported_parameter", "messages[0].content[0]")
    assert "image_url" in error["message"]
    assert "secret" not in error["message"]


@pytest.mark.parametrize(
    "harmless",
    [
        {"tools": []},
        {"response_format": {"type": "text"}},
        {"logprobs": False},
        {"frequency_penalty": 0.0, "presence_penalty": 0},
        {"user": "u", "metadata": {"a": "b"}, "store": False, "tools": None, "anything": None},
        {"n": 1, "top_p": 1, "temperature": 0, "stop": None, "seed": -5},
    ],
)
def test_fields_that_ask_for_nothing_are_let_through(shared: Desk, harmless: dict[str, Any]) -> None:
    """Defaults spelt out, nulls and notes about the caller change nothing."""
    with shared.post({**ASK, **harmless}) as response:
        assert json.load(response)["choices"][0]["message"]["content"] == "You s"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"model": "toy", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"model": "toy", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": NaN}',
        b"[" * 100_000,
        b'{"messages":' * 5_000 + b"1" + b"}" * 5_000,
        json.dumps({**ASK, "metadata": json.loads("[" * 60 + "]" * 60)}).encode(),
    ],
)
def test_what_is_no_json_object_is_refused(shared: Desk, raw: bytes) -> None:
    """Empty, cut, nested without end, not UTF-8 or half a surrogate: 400 and nothing else."""
    status, error = refused(shared, raw)

    assert (status, error["code"]) == (400, "invalid_json")


def test_a_body_over_the_limit_is_refused_before_it_is_read(shared: Desk) -> None:
    """413 by its announced length; and a compressed body is not unpacked."""
    big = {**ASK, "messages": [{"role": "user", "content": "x" * REQUEST_SIZE_BYTES_MAX}]}
    with pytest.raises((urllib.error.HTTPError, urllib.error.URLError)) as caught:
        shared.post(big)
    if isinstance(caught.value, urllib.error.HTTPError):
        assert caught.value.code == 413
    status, error = refused(shared, ASK, {"Content-Encoding": "gzip"})
    assert (status, error["code"]) == (415, "content_encoding_unsupported")


def test_a_prompt_beyond_the_window_says_how_long_it_is(shared: Desk) -> None:
    """400 context_length_exceeded, as OpenAI calls it."""
    with pytest.raises(openai.BadRequestError) as caught:
        shared.client().chat.completions.create(model="toy", messages=[{"role": "user", "content": "x" * 20_000}])

    assert caught.value.code == "context_length_exceeded"


def test_a_model_that_does_not_exist(shared: Desk) -> None:
    """404 model_not_found, and where the names are that do exist."""
    with pytest.raises(openai.NotFoundError) as caught:
        shared.client().chat.completions.create(model="gpt-4", messages=ASK["messages"])  # type: ignore[arg-type]

    assert caught.value.code == "model_not_found"
    assert "GET /v1/models" in caught.value.message


@pytest.mark.parametrize("secret", ["hw_test_" + "A" * 43, "nonsense", "hw_test_", "x" * 5_000])
def test_a_key_that_is_not_in_force(shared: Desk, secret: str) -> None:
    """401 invalid_api_key on every route that takes a key; the key is not repeated."""
    client = shared.client(secret)
    for call in (
        client.models.list,
        lambda: client.chat.completions.create(model="toy", messages=[{"role": "user", "content": "x"}]),
    ):
        with pytest.raises(openai.AuthenticationError) as caught:
            call()
        assert caught.value.code == "invalid_api_key"
        assert secret not in caught.value.message


def test_a_missing_or_strange_authorization_header(shared: Desk) -> None:
    """401 too, with the scheme that is expected."""
    for value in ("", "Bearer", "Bearer ", f"Basic {shared.secret}", shared.secret):
        status, error = refused(shared, ASK, {"Authorization": value})
        assert (status, error["code"]) == (401, "invalid_api_key")


def test_a_revoked_key_stops_at_once(shared: Desk) -> None:
    """The call after the revocation is refused."""
    secret, key = shared.toy.key("to be withdrawn")
    client = shared.client(secret)
    client.chat.completions.create(**ASK)  # type: ignore[call-overload]
    shared.toy.keys.revoke(key.key_id, 1)
    with pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(**ASK)  # type: ignore[call-overload]


def test_too_little_credit_is_402_and_not_retried(shared: Desk) -> None:
    """The ceiling is asked for before a token is made; clients are told not to come back."""
    secret, key = shared.toy.key("poor", units=1_000)
    started = shared.toy.model.started
    with pytest.raises(openai.APIStatusError) as caught:
        shared.client(secret, max_retries=3).chat.completions.create(**ASK)  # type: ignore[call-overload]

    assert (caught.value.status_code, caught.value.code) == (402, "insufficient_credit")
    assert caught.value.type == "insufficient_quota"  # type: ignore[attr-defined]
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert shared.toy.model.started == started
    assert shared.toy.spent(key, 1_000) == 0


def test_an_idempotency_key_has_a_form(shared: Desk) -> None:
    """Too long, empty or unprintable: 400."""
    for key in ("x" * 256, "", "a\tb"):
        status, error = refused(shared, ASK, {"Idempotency-Key": key})
        assert (status, error["code"]) == (400, "idempotency_key_invalid")


@pytest.mark.parametrize(("fails", "status"), [("[fail=0]", 503), ("[fail=3]", 503), ("[mute]", 503)])
def test_a_model_that_fails_costs_nothing(shared: Desk, fails: str, status: int) -> None:
    """A plain call whose model broke, at once or in the middle, is an error without a charge."""
    found, error = refused(shared, {**ASK, "messages": [{"role": "user", "content": fails}]})

    assert (found, error["code"]) == (status, "model_failed")


def test_a_stream_that_fails_before_its_first_byte_is_a_status(shared: Desk) -> None:
    """Nothing was sent yet, so the error is an HTTP one."""
    found, error = refused(shared, {**ASK, "stream": True, "messages": [{"role": "user", "content": "[fail=0]"}]})

    assert (found, error["code"]) == (503, "model_failed")


def test_a_stream_that_fails_in_the_middle_says_so_and_ends(shared: Desk) -> None:
    """An error event, no finish reason, no [DONE], no charge; OpenAI's client raises it."""
    body = {**ASK, "stream": True, "messages": [{"role": "user", "content": "[fail=3][delay=0.01]"}]}
    spent = shared.toy.spent(shared.key)
    with shared.post(body) as response:
        raw = response.read().decode()
    last = json.loads(raw.strip().split("\n\n")[-1].removeprefix("data: "))

    assert last["error"]["code"] == "model_failed"
    assert "[DONE]" not in raw
    assert '"finish_reason":"' not in raw
    shared.settled()
    assert shared.toy.spent(shared.key) == spent
    with pytest.raises(openai.APIError) as caught:
        list(shared.client().chat.completions.create(**body))  # type: ignore[call-overload]
    assert caught.value.code == "model_failed"


def test_after_a_failure_the_same_idempotency_key_may_be_used_again(desk: Desk) -> None:
    """A call that did not answer was never made, as far as its key is concerned."""
    body = {**ASK, "messages": [{"role": "user", "content": "[fail=2] x"}]}
    for _ in range(2):
        status, error = refused(desk, body, {"Idempotency-Key": "again"})
        assert (status, error["code"]) == (503, "model_failed")
    assert desk.toy.model.started == 2


def test_unknown_routes_answer_in_the_form_of_their_side(shared: Desk) -> None:
    """OpenAI's envelope under /v1, RFC 9457 elsewhere; wrong methods name the right ones."""
    for path, media in (("/v1/nothing", "application/json"), ("/nothing", "application/problem+json")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            shared.get(path)
        assert (caught.value.code, caught.value.headers["content-type"]) == (404, media)
        found = json.loads(caught.value.read())
        assert found.get("error", found)["code"] == "route_unknown"
    for path, allow in (("/v1/chat/completions", "POST"), ("/v1/models", "GET, HEAD")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            shared.get(path) if allow == "POST" else shared.post(b"{}", path=path)
        assert (caught.value.code, caught.value.headers["allow"]) == (405, allow)
        assert json.loads(caught.value.read())["error"]["code"] == "method_not_allowed"
    with pytest.raises(urllib.error.HTTPError) as caught:
        shared.post(b"{}", path="/v1/account")
    assert (caught.value.code, json.loads(caught.value.read())["code"]) == (405, "method_not_allowed")


def test_a_bug_of_ours_is_500_and_keeps_what_was_asked_to_itself(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unplanned error gives no text away, neither to the caller nor to the log, and leaves nothing reserved."""

    def broken(*_: object) -> None:
        raise KeyError("sec" + "ret")

    monkeypatch.setattr(desk.toy.flow, "open", broken)
    status, error = refused(desk, ASK)

    assert (status, error["code"]) == (500, "internal_error")
    assert "secret" not in error["message"]
    assert "secret" not in caplog.text
    assert desk.app.answering.state().waiting == 0
