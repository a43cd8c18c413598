"""Calls that an upstream answers, with a real upstream on loopback and OpenAI's own client."""

from __future__ import annotations

import json
import threading
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import openai
import pytest

from headwater.core.money import NANO
from headwater.receipts import Receipt
from headwater.splits import recompute_split
from toy.desk import Desk, open_desk
from toy.upstream import USAGE, WORDS, Upstream, upstream

POLICY = files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8")
MODELS = (
    *("fine", "split", "crlf", "garbage", "truncated", "endless", "liar", "mute", "deaf", "silent"),
    *("status-400", "status-401", "status-429", "status-503"),
)
PRICE = 1_000_000 + USAGE["prompt_tokens"] * 1_000 + USAGE["completion_tokens"] * 2_000
ASK = [{"role": "user", "content": "Who is paid?"}]


def config(server: Upstream, *, dear: str = "0") -> str:
    """An upstream and a model for each of its behaviours."""
    tables = "".join(
        f'[model."{name}"]\ntargets = [{{ upstream = "real", model = "{name}" }}]\nrequest_price = "0.001"\n'
        f'input_token_price = "0.000001"\noutput_token_price = "0.000002"\nanswer_tokens_max = 100\n'
        for name in MODELS
    )
    return f"""
        [upstream.real]
        base_url = "{server.url}"
        key_env = "UPSTREAM_KEY"
        silence_s = 0.6
        head_s = 0.6
        [upstream.dead]
        base_url = "http://127.0.0.1:1/v1"
        [model.backed]
        targets = [{{ upstream = "dead", model = "x" }}, {{ upstream = "real", model = "fine" }}]
        [model.dear]
        targets = [{{ upstream = "real", model = "fine" }}]
        request_price = "{dear}"
        {tables}
    """


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    """The upstream."""
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def desk(server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway before it, whose books are checked at the end."""
    with open_desk(tmp_path_factory.mktemp("home"), upstreams=config(server, dear="1")) as running:
        yield running


def spent(desk: Desk) -> int:
    """What the key was charged."""
    desk.booked()
    return desk.toy.spent(desk.key)


def test_a_plain_answer_passes_through_whole_and_is_charged_by_its_usage(desk: Desk, server: Upstream):
    """Fields nobody here knows survive both ways, the operator's key goes upstream, the receipt is in the log."""
    before = spent(desk)
    raw = desk.client().chat.completions.with_raw_response.create(
        model="fine", messages=ASK, extra_body={"reasoning": {"deep": 1}}
    )
    answer = raw.parse()
    bill = answer.model_extra["headwater"]
    receipt = Receipt.from_bytes(desk.toy.log.get(bill["receipt_id"]).raw)

    assert answer.choices[0].message.content == "".join(WORDS)
    assert answer.choices[0].message.model_extra["reasoning_content"] == "kept"
    assert server.asked[-1]["reasoning"] == {"deep": 1}
    assert "headwater" not in server.asked[-1]
    assert server.keys[-1] == "Bearer up-secret"
    assert raw.headers["headwater-receipt"] == bill["receipt"] == receipt.call_id
    assert (receipt.price, receipt.usage.completion_tokens) == (PRICE, USAGE["completion_tokens"])
    assert receipt.attribution.residual_ppb == 10**9
    assert recompute_split(receipt, POLICY) == receipt.payouts  # a stranger comes to the same division
    assert spent(desk) - before == PRICE


@pytest.mark.parametrize("model", ["fine", "split", "crlf"])
@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_passes_through_however_it_is_cut_into_pieces(desk: Desk, model: str, usage: bool):
    """The usage event comes only when it was asked for, the bill rides on the last event, the price is the same."""
    before = spent(desk)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(desk.client().chat.completions.create(model=model, messages=ASK, stream=True, **options))

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "".join(WORDS)
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert [c.usage is not None for c in chunks][-1] is usage
    assert chunks[-1].model_extra["headwater"]["price"] == "0.001023000"
    assert spent(desk) - before == PRICE


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})])
def test_other_routes_pass_through_too(desk: Desk, path: str, body: dict[str, object]):
    """Every route is counted, not only chat."""
    before = spent(desk)
    answer = json.load(desk.post({"model": "fine", **body}, path=path))

    assert answer["headwater"]["status"] == "final"
    assert spent(desk) > before


@pytest.mark.parametrize("stream", [False, True])
def test_responses_pass_through_with_their_own_words_for_usage(desk: Desk, stream: bool):
    """The Responses API says input and output tokens, and ends its stream with an event of its own."""
    before = spent(desk)
    if stream:
        with desk.client().responses.create(model="fine", input="hello", stream=True) as events:
            kinds = [event.type for event in events]
        assert kinds[-1] == "response.completed"
    else:
        assert desk.client().responses.create(model="fine", input="hello").id == "resp_1"

    assert spent(desk) - before == PRICE


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("status-400", 400),
        ("status-429", 429),
        ("status-401", 502),
        ("status-503", 502),
        ("garbage", 503),
        ("deaf", 503),
        ("silent", 503),
    ],
)
def test_a_call_that_did_not_answer_costs_nothing(desk: Desk, model: str, status: int):
    """The caller's faults come as the upstream told them, the operator's without their text; nothing is held after."""
    before = spent(desk)
    with pytest.raises(openai.APIStatusError) as caught:
        desk.client().chat.completions.create(model=model, messages=ASK)

    assert caught.value.status_code == status
    assert isinstance(caught.value.body, dict)
    if status in (400, 429):
        assert caught.value.body["code"] == "mine"
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "7"
    assert spent(desk) == before


def test_a_stream_that_its_upstream_breaks_ends_with_an_error_and_costs_nothing(desk: Desk):
    """No clean end is invented, and nobody pays for half an answer."""
    before = spent(desk)
    chunks = iter(desk.client().chat.completions.create(model="truncated", messages=ASK, stream=True))
    seen = [next(chunks).choices[0].delta.content or "" for _ in range(1 + len(WORDS))]
    with pytest.raises(openai.APIError):
        next(chunks)

    assert "".join(seen) == "".join(WORDS)
    assert spent(desk) == before
    desk.booked()


def test_a_caller_who_leaves_a_stream_pays_for_what_was_passed_on_and_the_upstream_is_let_go(
    desk: Desk, server: Upstream
):
    """Hanging up is neither free nor ruinous, and nobody generates for nobody."""
    before = spent(desk)
    server.left.clear()
    with desk.client().chat.completions.create(model="endless", messages=ASK, stream=True) as stream:
        for _, _chunk in zip(range(5), stream, strict=False):
            pass

    assert server.left.wait(5)
    assert 1_000_000 < spent(desk) - before < 1_000_000 + 1_000_000


def test_an_upstream_that_lies_about_its_usage_is_believed_only_within_what_was_held(desk: Desk):
    """A thousand million tokens are charged as the hundred the caller allowed."""
    before = spent(desk)
    answer = desk.client().chat.completions.create(model="liar", messages=ASK, max_tokens=10)
    receipt = Receipt.from_bytes(desk.toy.log.get(answer.model_extra["headwater"]["receipt_id"]).raw)

    assert receipt.usage.completion_tokens == 10
    assert dict(receipt.attribution.parameters)["usage"] == "bound"
    assert spent(desk) - before == receipt.price <= 1_000_000 + 2_000 * 10 + 1_000 * 200


def test_an_upstream_that_says_no_usage_is_counted(desk: Desk):
    """The receipt says that the numbers are ours."""
    answer = desk.client().chat.completions.create(model="mute", messages=ASK)
    receipt = Receipt.from_bytes(desk.toy.log.get(answer.model_extra["headwater"]["receipt_id"]).raw)

    assert dict(receipt.attribution.parameters)["usage"] == "count"
    assert receipt.usage.completion_tokens > 0


def test_the_next_upstream_is_asked_when_the_first_cannot_be_reached(desk: Desk, server: Upstream):
    """Fail-over happens before the first byte, under the name each upstream has for the model."""
    answer = desk.client().chat.completions.create(model="backed", messages=ASK)

    assert answer.choices[0].message.content == "".join(WORDS)
    assert server.asked[-1]["model"] == "fine"


def test_calls_of_one_key_that_come_at_once_all_find_credit(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """However little a lease covers: nobody is told to come again while there is enough."""
    monkeypatch.setattr("headwater.meter.LEASE_CALLS", 1)
    assert desk.app.relays is not None
    meter = desk.app.relays.meter
    meter.settle_books()
    with ThreadPoolExecutor(48) as callers:
        answers = list(callers.map(lambda _: desk.post({"model": "fine", "messages": ASK}).status, range(144)))

    assert answers == [200] * 144
    desk.booked()


def test_calls_that_race_for_the_last_cent_are_not_all_admitted(desk: Desk):
    """A key with credit for three calls gets three answers out of twelve at once, and is not overdrawn."""
    secret, key = desk.toy.key("racer", 3 * NANO + NANO // 2)
    outcomes: list[int] = []

    def ask() -> None:
        try:
            desk.client(secret).chat.completions.create(model="dear", messages=ASK)
            outcomes.append(200)
        except openai.APIStatusError as error:
            outcomes.append(error.status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    desk.booked()

    assert sorted(outcomes) == [200] * 3 + [402] * 9
    assert desk.toy.spent(key, 3 * NANO + NANO // 2) == 3 * NANO


def test_a_budget_holds_here_too(desk: Desk):
    """A key may not spend more than its budget, whatever credit it has."""
    toy = desk.toy
    secret, key = toy.keys.create("careful", b"\x07" * 32, 1, budget_units=NANO + 1)
    toy.fund(key, 10 * NANO)
    desk.client(secret).chat.completions.create(model="dear", messages=ASK)
    with pytest.raises(openai.APIStatusError) as caught:
        desk.client(secret).chat.completions.create(model="dear", messages=ASK)

    assert caught.value.code == "budget_exceeded"
    assert caught.value.status_code == 402


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"model": "fine", "messages": ASK, "max_tokens": 101}, "max_tokens_too_large"),
        ({"model": "fine", "messages": ASK, "max_tokens": "9"}, "invalid_value"),
        ({"model": "fine", "messages": ASK, "n": 0}, "invalid_value"),
        ({"model": "nobody", "messages": ASK}, "model_not_found"),
    ],
)
def test_a_request_whose_price_cannot_be_known_is_refused(desk: Desk, body: dict[str, object], code: str):
    """What decides the price is read strictly."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        desk.post(body)

    assert json.load(caught.value)["error"]["code"] == code


def test_models_of_upstreams_are_listed_with_their_prices(desk: Desk):
    """A caller sees what a token costs before it asks."""
    listed = {model.id: model for model in desk.client().models.list()}

    assert {"toy", "fine", "backed"} <= set(listed)
    assert listed["fine"].model_extra["headwater"]["output_token_price"] == "0.000002000"


def test_nothing_is_left_reserved_and_every_receipt_is_booked(desk: Desk):
    """After all of the above the ledger, the journal and the log agree."""
    desk.booked()
    assert desk.app.relays is not None
    assert desk.app.relays.meter.state().behind == 0
    assert desk.toy.calls.check() == ()
    booked = {fact.receipt_id for fact in desk.toy.calls.facts().values()}
    assert {logged.entry.id for logged in desk.toy.log} <= booked


def test_receipts_that_the_books_lack_are_booked_at_the_next_start(server: Upstream, tmp_path: Path):
    """A process that dies between receipt and books loses nothing: the log is what decides."""
    with open_desk(tmp_path / "home", upstreams=config(server)) as desk:
        assert desk.app.relays is not None
        meter = desk.app.relays.meter
        meter._bring_up = lambda *_, **__: None  # type: ignore[method-assign]  # as if the process died before
        desk.client().chat.completions.create(model="fine", messages=ASK)
        assert meter.state().behind == 1
        key = desk.key
        assert desk.toy.calls.check() == ()
    with open_desk(tmp_path / "home", upstreams=config(server)) as desk:
        assert desk.toy.spent(key) == PRICE
        assert desk.toy.reserved(key) == 0


def test_no_key_reads_what_another_paid_for(desk: Desk):
    """By call id or receipt id, another's receipt looks like one that does not exist; its payer reads it."""
    bill = desk.client().chat.completions.create(model="fine", messages=ASK).model_extra["headwater"]
    desk.booked()
    stranger, _ = desk.toy.key("stranger")

    for identity in (bill["receipt"], bill["receipt_id"]):
        assert desk.get(f"/v1/receipts/{identity}")["id"] == bill["receipt_id"]
        with pytest.raises(urllib.error.HTTPError) as caught:
            desk.get(f"/v1/receipts/{identity}", stranger)
        told = json.load(caught.value)
        with pytest.raises(urllib.error.HTTPError) as absent:
            desk.get(f"/v1/receipts/{identity[:-4]}0000", stranger)
        missing = json.load(absent.value)
        assert (told["status"], told["code"]) == (missing["status"], missing["code"]) == (404, "receipt_unknown")


def test_a_receipt_is_there_before_its_call_is_booked(desk: Desk):
    """Who asks for the receipt the moment the answer ends gets it; the books may take their time."""
    assert desk.app.relays is not None
    meter = desk.app.relays.meter
    desk.client().chat.completions.create(model="fine", messages=ASK)  # a lease is there
    with meter._books:
        said = desk.client().chat.completions.with_raw_response.create(model="fine", messages=ASK)
        call = said.headers["headwater-receipt"]
        assert meter.state().behind
        found = desk.get(f"/v1/receipts/{call}")
        assert (found["status"], found["price"]) == ("final", "0.001023000")
        assert desk.get(f"/v1/receipts/{found['id']}")["call"] == call
        secret, _ = desk.toy.key()
        with pytest.raises(urllib.error.HTTPError) as others:
            desk.get(f"/v1/receipts/{call}", secret)
        assert others.value.code == 404
    desk.booked()
    assert desk.get(f"/v1/receipts/{call}")["id"] == found["id"]


def test_credit_set_aside_for_relayed_calls_and_not_used_pays_other_calls(server: Upstream, tmp_path: Path):
    """A lease is for many calls; a model in process is not refused for what nobody uses of it."""
    with open_desk(tmp_path / "home", upstreams=config(server, dear="0.25")) as desk:
        secret, key = desk.toy.key(units=NANO)
        client = desk.client(secret)
        client.chat.completions.create(model="dear", messages=ASK)
        assert desk.toy.ledger.available(key.account, desk.toy.currency) == 0  # all of it is leased
        said = client.chat.completions.create(model="toy", messages=ASK, max_tokens=2)
        assert said.choices
        assert client.chat.completions.create(model="dear", messages=ASK).choices
