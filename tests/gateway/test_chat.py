"""The chat route as OpenAI's own client meets it: plain, streamed, replayed, and what it costs."""

from __future__ import annotations

import json
import urllib.error

import openai
import pytest

from headwater.core.money import parse_units
from toy.desk import Desk

ASK = [{"role": "user", "content": "Say hello"}]


def ask(desk: Desk, **extra: object):  # type: ignore[no-untyped-def]
    """One plain answer."""
    settings = {"model": "toy", "messages": ASK, "max_tokens": 20, **extra}
    return desk.client().chat.completions.create(**settings)  # type: ignore[call-overload]


def test_a_plain_answer_has_openais_shape_and_our_bill(shared: Desk) -> None:
    """The client reads text, usage and finish reason; the headwater object says what it cost."""
    answer = ask(shared)

    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "toy"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "You said: Say hello."
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20
    bill = answer.headwater
    assert bill["status"] == "pending"
    expected = 2_000_000 + 4_000 * answer.usage.prompt_tokens + 100_000 * 20
    assert parse_units(bill["price"]) == expected
    assert bill["sources"] == []


def test_the_receipt_header_finds_the_receipt(shared: Desk) -> None:
    """The call id in the header is the id in the bill, and leads to the signed receipt."""
    raw = shared.client().chat.completions.with_raw_response.create(model="toy", messages=ASK, max_tokens=8)  # type: ignore[arg-type]
    call = raw.headers["headwater-receipt"]

    assert raw.parse().headwater["receipt"] == call  # type: ignore[union-attr]
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["content-type"] == "application/json"
    shared.settled()
    assert shared.get(f"/v1/receipts/{call}")["status"] == "final"


def test_a_stream_is_framed_as_openai_frames_it(shared: Desk) -> None:
    """One id everywhere, the role first, one finish reason, no usage unasked, the bill on the last chunk."""
    chunks = list(ask(shared, stream=True))

    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.role for c in chunks[1:]] == [None] * (len(chunks) - 1)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "You said: Say hello."
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert all(c.usage is None for c in chunks)
    assert chunks[-1].headwater["receipt"].startswith("call_")


def test_usage_comes_last_and_only_when_asked_for(shared: Desk) -> None:
    """With include_usage one more chunk without choices carries usage and bill."""
    *chunks, last = ask(shared, stream=True, stream_options={"include_usage": True})

    assert last.choices == []
    assert last.usage.completion_tokens == 20
    assert last.headwater["currency"] == shared.toy.currency
    assert all(c.usage is None and not hasattr(c, "headwater") for c in chunks)


def test_the_bytes_of_a_stream_end_with_one_done(shared: Desk) -> None:
    """Headers keep proxies from buffering; every frame is `data:`; `[DONE]` comes once and last."""
    with shared.post({"model": "toy", "messages": ASK, "max_tokens": 5, "stream": True}) as response:
        headers, body = response.headers, response.read().decode()

    assert headers["content-type"].startswith("text/event-stream")
    assert "no-transform" in headers["cache-control"]
    assert headers["x-accel-buffering"] == "no"
    frames = body.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(frame.removeprefix("data: "))["choices"] for frame in frames[:-2])


def test_characters_of_several_tokens_arrive_whole(shared: Desk) -> None:
    """A letter that takes several tokens is never cut in two, streamed or not."""
    question = [{"role": "user", "content": "naïve — 東京"}]
    plain = ask(shared, messages=question, max_tokens=40).choices[0].message.content
    streamed = "".join(
        c.choices[0].delta.content or "" for c in ask(shared, messages=question, max_tokens=40, stream=True)
    )

    assert plain == streamed
    assert "naïve — 東京" in plain


def test_parameters_reach_the_model(shared: Desk) -> None:
    """Stops end the answer, seeds repeat it, and text in parts is read as one text."""
    stopped = ask(shared, stop=["h"], max_tokens=100)
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("You said: Say ", "stop")
    drawn = [ask(shared, temperature=1.0, seed=seed).choices[0].message.content for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello"}]}]
    assert ask(shared, messages=parts).choices[0].message.content == "You said: Say hello."
    assert ask(shared, max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3


def test_sources_and_prompt_are_named_in_the_bill(shared: Desk) -> None:
    """A grounded model names what it put before the model; the caller may ask for fewer or another prompt."""
    question = [{"role": "user", "content": "a river begins"}]
    kinds = [s["kind"] for s in ask(shared, model="toy-grounded", messages=question).headwater["sources"]]
    assert sorted(kinds) == ["document", "document", "prompt"]
    one = ask(shared, model="toy-grounded", messages=question, extra_body={"headwater": {"sources": 1}})
    assert [s["title"] for s in one.headwater["sources"] if s["kind"] == "document"] == ["Rivers"]
    prompt = shared.toy.registry.contributions(kind="prompt")[0].id
    chosen = ask(shared, extra_body={"headwater": {"prompt": prompt, "sources": 0}})
    assert [s["contribution"] for s in chosen.headwater["sources"]] == [prompt]


def test_the_account_falls_by_the_price_of_each_answer(desk: Desk) -> None:
    """What the bills say is what the ledger took, to the unit, and nothing stays set aside."""
    prices = [parse_units(ask(desk, max_tokens=n).headwater["price"]) for n in (1, 5, 9)]

    assert desk.toy.spent(desk.key) == sum(prices)
    assert desk.toy.reserved(desk.key) == 0
    account = desk.get("/v1/account")
    assert parse_units(account["balance"]) == 100 * 10**9 - sum(prices)
    assert account["available"] == account["balance"]


def test_a_retry_with_the_same_key_gets_the_same_answer_for_one_price(desk: Desk) -> None:
    """Idempotency-Key: the answer is given again, streamed or plain, and charged once."""
    headers = {"Idempotency-Key": "order-1"}
    first = ask(desk, temperature=1.0, extra_headers=headers)
    again = ask(desk, temperature=1.0, extra_headers=headers)

    assert again.choices[0].message.content == first.choices[0].message.content
    assert (again.id, again.created, again.usage) == (first.id, first.created, first.usage)
    assert desk.toy.spent(desk.key) == parse_units(first.headwater["price"])
    assert desk.toy.model.started == 1


def test_a_stream_is_replayed_as_a_stream(desk: Desk) -> None:
    """The same text, id, usage and bill, with a header that says it was given before."""
    wanted = {"stream": True, "stream_options": {"include_usage": True}, "extra_headers": {"Idempotency-Key": "s"}}
    first, again = list(ask(desk, **wanted)), list(ask(desk, **wanted))

    def text(chunks: list) -> str:  # type: ignore[type-arg]
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

    assert text(first) == text(again)
    assert first[-1].usage == again[-1].usage
    assert first[0].id == again[0].id
    assert desk.toy.model.started == 1


def test_the_same_key_with_another_body_is_refused_for_good(shared: Desk) -> None:
    """409, and the client is told not to try again."""
    headers = {"Idempotency-Key": "order-2"}
    ask(shared, extra_headers=headers)
    with pytest.raises(openai.ConflictError) as caught:
        ask(shared, extra_headers=headers, max_tokens=21)

    assert caught.value.code == "idempotency_conflict"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_the_same_key_while_at_work_is_told_to_wait(desk: Desk) -> None:
    """409 that may be retried; the first call is not disturbed and a later retry gets its answer."""
    body = {"model": "toy", "messages": [{"role": "user", "content": "[hold] wait"}], "max_tokens": 4, "stream": True}
    with desk.post(body, {"Idempotency-Key": "k"}) as response:
        response.readline()
        with pytest.raises(urllib.error.HTTPError) as caught:
            desk.post(body, {"Idempotency-Key": "k"})
        assert caught.value.code == 409
        assert caught.value.headers["x-should-retry"] == "true"
        assert json.loads(caught.value.read())["error"]["code"] == "call_in_progress"
        desk.toy.model.held.set()
        first = response.read()
    with desk.post(body, {"Idempotency-Key": "k"}) as response:
        assert response.headers["idempotent-replayed"] == "true"
        assert first.endswith(b"[DONE]\n\n")
    assert desk.toy.model.started == 1


def test_models_are_listed_with_their_prices(shared: Desk) -> None:
    """The list and a single model have OpenAI's fields, and prices beside them."""
    models = shared.client().models.list().data
    one = shared.client().models.retrieve("toy")

    assert [m.id for m in models] == ["toy", "toy-dear", "toy-grounded"]
    assert one.object == "model"
    assert one.headwater["output_token_price"] == "0.000100000"  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError) as caught:
        shared.client().models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"
