"""What a key may do: routes, models, rates and budgets, on both ways a call can go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import RefusedError
from headwater.core.money import NANO
from headwater.gateway.limits import MINUTE_NS, OwnRates, RateError
from headwater.meter import Meter, MeterParts
from headwater.metered import Used
from headwater.store.key_limits import DAY_NS, KeyLimits
from headwater.store.key_store import KeyRecord
from headwater.store.metered_store import MeteredStore
from toy.desk import Desk, open_desk
from toy.home import open_home
from toy.upstream import Upstream, upstream

ASK = [{"role": "user", "content": "Who is paid?"}]
SECOND_NS = MINUTE_NS // 60


def record(**limits: object) -> KeyRecord:
    """A key with limits, in no store."""
    return KeyRecord("key_1", "x", "test", 1, None, None, 0, KeyLimits(**limits))  # type: ignore[arg-type]


# Rates, without a server


@given(st.integers(1, 50), st.lists(st.integers(0, 30 * SECOND_NS), min_size=1, max_size=60))
def test_no_minute_holds_more_than_twice_its_limit_and_the_long_run_holds_the_limit(limit: int, gaps: list[int]):
    """Whatever the moments at which calls come: a burst of one minute's worth, then the rate."""
    now_ns = [0]
    rates, key = OwnRates(lambda: now_ns[0]), record(requests_per_minute=limit)
    passed: list[int] = []
    for gap in gaps:
        now_ns[0] += gap
        for _ in range(3):
            with contextlib.suppress(RateError):
                rates.take(key, 0, 0)
                passed.append(now_ns[0])
    for begin in passed:
        assert sum(begin <= at < begin + MINUTE_NS for at in passed) <= 2 * limit
    assert len(passed) <= limit + now_ns[0] * limit // MINUTE_NS + 1


def test_a_refused_call_passes_when_the_answer_said_so():
    """`retry-after` is neither too early nor more than a second too late."""
    now_ns = [5]
    rates, key = OwnRates(lambda: now_ns[0]), record(tokens_per_minute=600)
    assert rates.take(key, 600, 0) is not None
    with pytest.raises(RateError) as caught:
        rates.take(key, 100, 0)

    assert caught.value.retry_after_s == 10
    now_ns[0] += 9 * SECOND_NS
    with pytest.raises(RateError):
        rates.take(key, 100, 0)
    now_ns[0] += SECOND_NS
    rates.take(key, 100, 0)


def test_what_a_call_did_not_use_is_given_back_and_what_it_used_more_is_owed():
    """Tokens and money are settled by what was used; the request itself stays counted."""
    rates = OwnRates(lambda: 0)
    key = record(requests_per_minute=3, tokens_per_minute=100, units_per_minute=1_000)
    taken = rates.take(key, 100, 1_000)
    assert taken is not None
    with pytest.raises(RateError):
        rates.take(key, 1, 1)
    taken.settle(10, 100)

    told = dict(taken.headers(0))
    assert told[b"x-ratelimit-remaining-requests"] == b"2"
    assert told[b"x-ratelimit-remaining-tokens"] == b"90"
    assert told[b"x-ratelimit-remaining-money"] == b"0.000000900"
    rates.take(key, 90, 900)
    with pytest.raises(RateError):
        rates.take(key, 1, 0)


def test_a_call_larger_than_a_minute_waits_for_all_of_it_and_is_paid_off_before_the_next():
    """No limit makes a large call impossible, and none is a way around it."""
    now_ns = [0]
    rates, key = OwnRates(lambda: now_ns[0]), record(tokens_per_minute=100)
    rates.take(key, 300, 0)
    now_ns[0] = 2 * MINUTE_NS
    with pytest.raises(RateError) as caught:
        rates.take(key, 100, 0)
    assert caught.value.retry_after_s == 60


def test_limits_are_looked_at_in_a_few_microseconds():
    """Median of many, CPU time: far below a hundredth of the call's budget of 0.3 ms, with room for a busy machine."""
    rates = OwnRates()
    key = record(requests_per_minute=10**9, tokens_per_minute=10**9, units_per_minute=10**12)
    costs = []
    for _ in range(200):
        began = time.process_time_ns()
        for _ in range(50):
            taken = rates.take(key, 100, 1_000)
            assert taken is not None
            taken.settle(50, 500)
        costs.append((time.process_time_ns() - began) / 50)
    assert sorted(costs)[100] < 30_000


# Over HTTP, on both ways


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    """An upstream."""
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def desk(server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway with a model of its own, `toy`, and one that the upstream answers, `fine`."""
    config = f"""
        [upstream.real]
        base_url = "{server.url}"
        [model.fine]
        targets = [{{ upstream = "real", model = "fine" }}]
        request_price = "0.001"
        [model.status-503]
        targets = [{{ upstream = "real", model = "status-503" }}]
        request_price = "0.001"
    """
    with open_desk(tmp_path_factory.mktemp("home"), upstreams=config) as running:
        yield running


def limited(desk: Desk, budget_units: int | None = None, **limits: object) -> tuple[str, KeyRecord]:
    """A funded key with limits."""
    secret, key = desk.toy.keys.create(
        "limited",
        os.urandom(32),
        1,
        budget_units=budget_units,
        limits=KeyLimits(**limits),  # type: ignore[arg-type]
    )
    desk.toy.fund(key, 100 * NANO)
    return secret, key


def refused(desk: Desk, secret: str, model: str, **options: object) -> openai.APIStatusError:
    """The refusal of a call."""
    with pytest.raises(openai.APIStatusError) as caught:
        desk.client(secret).chat.completions.create(model=model, messages=ASK, **options)  # type: ignore[call-overload]
    return caught.value


@pytest.mark.parametrize("model", ["toy", "fine"])
def test_a_key_over_its_requests_a_minute_is_told_when_to_come_back(desk: Desk, model: str):
    """429 with `retry-after` and what the limits are; the answers before it say what was left."""
    secret, _ = limited(desk, requests_per_minute=2)
    left = []
    for _ in range(2):
        raw = desk.client(secret).chat.completions.with_raw_response.create(model=model, messages=ASK)
        left.append(raw.headers["x-ratelimit-remaining-requests"])
    error = refused(desk, secret, model)

    assert left == ["1", "0"]
    assert (error.status_code, error.code) == (429, "rate_limit_exceeded")
    assert 1 <= int(error.response.headers["retry-after"]) <= 30
    assert error.response.headers["x-ratelimit-limit-requests"] == "2"
    assert error.response.headers["x-should-retry"] == "true"


@pytest.mark.parametrize("model", ["toy", "fine"])
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_were_not_used_can_be_used_again(desk: Desk, model: str, stream: bool):
    """What is taken before a call is its most, what stays taken is what it used."""
    secret, _ = limited(desk, tokens_per_minute=2_000)
    for _ in range(3):  # of which each takes half before it is answered
        answer = desk.client(secret).chat.completions.create(
            model=model, messages=ASK, max_tokens=1_000, stop=[" "], stream=stream
        )
        assert list(answer)


def test_money_a_minute_is_a_limit_too_and_a_failed_call_gives_it_back(desk: Desk):
    """A call that was not charged has used nothing but a request."""
    secret, _ = limited(desk, units_per_minute=1_500_000)
    for _ in range(3):
        assert refused(desk, secret, "status-503").status_code == 502
    desk.client(secret).chat.completions.create(model="fine", messages=ASK)
    assert refused(desk, secret, "fine").status_code == 429


@pytest.mark.parametrize("model", ["toy", "fine"])
def test_a_key_for_one_model_may_not_ask_another(desk: Desk, model: str):
    """403, and only its own models are listed."""
    other = {"toy": "fine", "fine": "toy"}[model]
    secret, _ = limited(desk, models=(model,))
    desk.client(secret).chat.completions.create(model=model, messages=ASK)
    error = refused(desk, secret, other)

    assert (error.status_code, error.code) == (403, "model_not_permitted")
    assert [listed.id for listed in desk.client(secret).models.list()] == [model]


def test_a_key_for_some_routes_may_not_ask_others(desk: Desk):
    """A key for receipts reads them and buys nothing; one for chat buys and reads nothing."""
    reading, _ = limited(desk, routes=("receipts",))
    buying, _ = limited(desk, routes=("chat",))

    assert refused(desk, reading, "fine").code == refused(desk, reading, "toy").code == "route_not_permitted"
    assert desk.get("/v1/account", reading)["available"] == "100.000000000"
    desk.client(buying).chat.completions.create(model="fine", messages=ASK)
    for ask in (
        lambda: desk.client(buying).embeddings.create(model="fine", input="x"),
        lambda: desk.client(buying).get("/account", cast_to=object),
        lambda: desk.client(buying).get("/consent", cast_to=object),
    ):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            ask()
        assert "route_not_permitted" in caught.value.response.text


@pytest.mark.parametrize("model", ["toy", "fine"])
def test_an_expired_key_is_told_so(desk: Desk, model: str):
    """401, as for any key that is not in force."""
    secret, _ = limited(desk, expires_at_ns=2)
    error = refused(desk, secret, model)
    assert (error.status_code, error.code) == (401, "api_key_expired")


@pytest.mark.parametrize("model", ["toy", "fine"])
def test_a_budget_of_the_day_refuses_what_it_does_not_cover(desk: Desk, model: str):
    """402, which clients do not repeat."""
    secret, _ = limited(desk, budget_day_units=10)
    error = refused(desk, secret, model)

    assert (error.status_code, error.code) == (402, "budget_exceeded")
    assert "of the day" in error.message
    assert error.response.headers["x-should-retry"] == "false"


# Budgets and leases over midnight


def test_a_lease_of_yesterday_does_not_carry_calls_of_today(tmp_path: Path):
    """What is held today is leased today, and counts towards today's budget only."""
    with open_home(tmp_path / "home") as toy:
        now_ns = [5 * DAY_NS - 1]
        _, key = toy.keys.create("x", b"\x05" * 32, 1, limits=KeyLimits(budget_day_units=100))
        toy.fund(key, 10_000)
        flow = toy.flow.parts
        meter = Meter(
            MeterParts(
                MeteredStore(toy.db, toy.ledger, toy.keys, toy.calls),
                *(toy.log, flow.signer, flow.policy, toy.registry.digest, lambda: now_ns[0], os.urandom),
            )
        )

        async def day() -> None:
            meter.lease(key, 60)
            hold = meter.hold(key, 60)
            assert hold is not None
            await meter.charge(hold, Used("m", _DIGEST, _DIGEST, _DIGEST, 1, 1, 60, "count"))
            with pytest.raises(RefusedError) as caught:
                meter.lease(key, 60)
            assert caught.value.code == "budget_exceeded"

        async def days() -> None:
            await day()
            now_ns[0] += 1
            assert meter.hold(key, 1) is None  # although 40 of yesterday's lease are free
            meter.settle_books()
            await day()
            meter.settle_books()
            await meter.drain()

        asyncio.run(days())
        meter.close()
        meter._bring_up(time.monotonic(), close=True)
        assert toy.keys.committed(key.key_id, 4, 5 * DAY_NS - 1) == 60
        assert toy.keys.committed(key.key_id, 5, 5 * DAY_NS) == 60
        assert toy.calls.check() == ()


_DIGEST = "sha256:" + "1" * 64
