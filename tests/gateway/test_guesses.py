"""Guessing keys: bounded per address, and no trouble for who has one."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.core.errors import HeadwaterError, InvalidError, RefusedError
from headwater.gateway.guesses import Guesses
from headwater.gateway.proxies import Proxies
from toy.desk import open_desk

WRONG = "hw_test_" + "A" * 43


def guess(guesses: Guesses, peer: str, wrong: bool = True, forwarded: str | None = None) -> str:
    """One look-up from an address: the code of its refusal."""
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded.encode())]
    try:
        with guesses.counted({"client": (peer, 1), "headers": headers}):
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


def caller(trusted: str, peer: str, *forwarded: str) -> str | None:
    """Who is taken for the caller."""
    headers = [(b"x-forwarded-for", one.encode()) for one in forwarded]
    return Proxies(trusted.split()).caller({"client": (peer, 1), "headers": headers})


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "counted"),
    [
        ("", "10.0.0.7", ("1.1.1.1",), "10.0.0.7"),  # nobody is trusted
        ("10.0.0.7", "10.0.0.8", ("1.1.1.1",), "10.0.0.8"),  # somebody else claims to be a proxy
        ("10.0.0.7", "10.0.0.7", ("1.1.1.1",), "1.1.1.1"),
        ("10.0.0.7", "10.0.0.7", ("6.6.6.6, 1.1.1.1",), "1.1.1.1"),  # what stands before is the caller's own claim
        ("10.0.0.7", "10.0.0.7", ("6.6.6.6", "1.1.1.1"), "1.1.1.1"),  # in headers of its own too
        ("10.0.0.0/24", "10.0.0.7", ("6.6.6.6, 1.1.1.1, 10.0.0.9",), "1.1.1.1"),  # two proxies in a row
        ("10.0.0.0/24", "10.0.0.7", ("10.0.0.9, 10.0.0.8",), "10.0.0.9"),  # from inside
        ("10.0.0.7", "10.0.0.7", (), "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7", ("",), "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7", ("1.1.1.1, nonsense",), "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7", ("1.1.1.1:4711",), "1.1.1.1"),
        ("10.0.0.7", "10.0.0.7", ("[2001:db8::5]:4711",), "2001:db8::"),
        ("10.0.0.7", "::ffff:10.0.0.7", ("::ffff:1.1.1.1",), "1.1.1.1"),
        ("2001:db8::/32", "2001:db8::7", ("1.1.1.1",), "1.1.1.1"),
        ("10.0.0.0/8", "10.0.0.7", (", ".join(["1.1.1.1"] + ["10.0.0.9"] * 40),), "10.0.0.9"),  # looked at so far only
    ],
)
def test_the_last_address_that_is_no_trusted_proxy_counts(
    trusted: str, peer: str, forwarded: tuple[str, ...], counted: str
):
    """Nobody else can say who speaks."""
    assert caller(trusted, peer, *forwarded) == counted


def test_behind_a_proxy_each_caller_has_a_bound_of_its_own_and_cannot_take_anothers():
    """Claiming other addresses before the real one changes nothing."""
    guesses = Guesses(2, proxies=Proxies(("10.0.0.7",)), now_s=lambda: 0.0)
    codes = [guess(guesses, "10.0.0.7", forwarded=f"9.9.9.{n}, 1.1.1.1") for n in range(3)]

    assert codes == ["invalid_api_key", "invalid_api_key", "rate_limit_exceeded"]
    assert guess(guesses, "10.0.0.7", forwarded="2.2.2.2") == "invalid_api_key"
    assert guess(guesses, "10.0.0.7", forwarded="1.1.1.1, 9.9.9.9") == "invalid_api_key"


def test_what_is_no_network_is_refused():
    """By its setting's name."""
    for wrong in ("proxy.example", "10.0.0.1/24", "10.0.0.0/33"):
        with pytest.raises(InvalidError) as refused:
            Proxies((wrong,))
        assert refused.value.code == "proxies_invalid"


def test_a_gateway_behind_a_proxy_counts_its_callers_apart(tmp_path: Path):
    """Over a real connection: with the setting the header counts, without it it does not."""
    body = {"model": "toy", "messages": [{"role": "user", "content": "x"}]}

    def told(trusted: tuple[str, ...], forwarded: list[str]) -> list[int]:
        name = "trusting" if trusted else "alone"
        with open_desk(tmp_path / name, failed_keys_per_minute=2, trusted_proxies=trusted) as desk:  # type: ignore[arg-type]
            codes = []
            for one in forwarded:
                with pytest.raises(urllib.error.HTTPError) as refused:
                    desk.post(body, {"Authorization": f"Bearer {WRONG}", "X-Forwarded-For": one})
                codes.append(refused.value.code)
            return codes

    callers = ["1.1.1.1", "6.6.6.6, 1.1.1.1", "7.7.7.7, 1.1.1.1", "2.2.2.2"]
    assert told(("127.0.0.0/8",), callers) == [401, 401, 429, 401]
    assert told((), callers) == [401, 401, 429, 429]
