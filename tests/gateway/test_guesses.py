"""Guessing keys: bounded per address, and no trouble for who has one."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.core.errors import HeadwaterError, RefusedError
from headwater.gateway.guesses import Guesses
from toy.desk import open_desk

WRONG = "hw_test_" + "A" * 43


def guess(guesses: Guesses, peer: str, wrong: bool = True) -> str:
    """One look-up from an address: the code of its refusal."""
    try:
        with guesses.counted({"client": (peer, 1)}):
            if wrong:
                raise RefusedError("no", code="invalid_api_key", fix="")
    except HeadwaterError as error:
        return error.code
    return "let in"


def test_an_address_may_guess_so_often_a_minute():
    """Then it is told to wait; other addresses and right keys are not; and it drips back."""
    now_s = [0.0]
    guesses = Guesses(3, now_s=lambda: now_s[0])
    assert [guess(guesses, "10.0.0.1") for _ in range(4)] == ["invalid_api_key"] * 3 + ["rate_limit_exceeded"]
    assert guess(guesses, "10.0.0.1", wrong=False) == "let in"
    assert guess(guesses, "10.0.0.2") == "invalid_api_key"
    now_s[0] = 20.0
    assert [guess(guesses, "10.0.0.1") for _ in range(2)] == ["invalid_api_key", "rate_limit_exceeded"]
    now_s[0] = 200.0
    assert [guess(guesses, "10.0.0.1", wrong=False) for _ in range(9)] == ["let in"] * 9


@pytest.mark.parametrize(("one", "other"), [("2001:db8::1", "2001:db8::2"), ("::ffff:10.0.0.1", "10.0.0.1")])
def test_addresses_of_one_household_count_as_one(one: str, other: str):
    """A guesser with a whole network of IPv6 addresses, or one address in two writings, has one allowance."""
    guesses = Guesses(1, now_s=lambda: 0.0)
    assert [guess(guesses, one), guess(guesses, other)] == ["invalid_api_key", "rate_limit_exceeded"]


def test_without_a_bound_nobody_waits():
    """0 switches it off."""
    guesses = Guesses(0)
    assert [guess(guesses, "10.0.0.1") for _ in range(50)] == ["invalid_api_key"] * 50


def test_guessers_are_told_429_on_every_kind_of_route_and_a_right_key_is_unaffected(tmp_path: Path):
    """OpenAI's routes and ours count together; the right key of the same address is answered all the while."""
    with open_desk(tmp_path / "home", failed_keys_per_minute=5) as desk:
        body = {"model": "toy", "messages": [{"role": "user", "content": "x"}]}
        fresh, _ = desk.toy.key("never used before")

        def refused(route: Callable[[], object]) -> urllib.error.HTTPError:
            with pytest.raises(urllib.error.HTTPError) as caught:
                route()
            return caught.value

        chat = lambda: desk.post(body, {"Authorization": f"Bearer {WRONG}"})  # noqa: E731
        account = lambda: desk.get("/v1/account", WRONG)  # noqa: E731
        assert [refused(route).code for route in (chat, chat, account, account, chat)] == [401] * 5
        last = refused(chat)
        assert (last.code, int(last.headers["retry-after"]) >= 1) == (429, True)
        assert refused(account).code == 429
        for secret in (desk.secret, fresh):
            assert desk.post(body, {"Authorization": f"Bearer {secret}"}).status == 200
            assert desk.get("/v1/account", secret)["currency"] == desk.toy.currency
