"""`headwater key`: what its commands print, keep and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.main import main
from headwater.core.errors import RefusedError
from headwater.store.database import Database
from headwater.store.key_store import KeyStore

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command on a home and gives its status and its JSON."""

    def call(*arguments: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--home", str(tmp_path / "home"), "--json"])
        shown = capsys.readouterr()
        return int(end.value.code or 0), json.loads(shown.out or shown.err)

    return call


def test_limits_given_at_creation_are_kept_and_changed_one_by_one(run: Run):
    """A flag that is not given changes nothing, `none` takes a limit away."""
    _, made = run(
        *("key", "create", "app", "--budget", "9", "--budget-day", "1.5", "--requests-per-minute", "60"),
        *("--model", "a", "--model", "b", "--route", "chat", "--expires", "2100-01-01T00:00:00Z"),
    )
    key = made["key_id"]
    run("key", "limit", key, "--budget-day", "none", "--model", "none", "--money-per-minute", "0.25")
    _, (listed,) = run("key", "list")

    assert (listed["budget"], listed["budget_day"], listed["committed_day"]) == ("9.000000000", None, "0.000000000")
    assert (listed["models"], listed["routes"]) == ([], ["chat"])
    assert (listed["requests_per_minute"], listed["money_per_minute"]) == (60, "0.250000000")
    assert listed["expires_at"].startswith("2100-01-01")


def test_a_rotated_secret_opens_and_the_old_one_with_no_grace_does_not(run: Run, tmp_path: Path):
    """The new secret is printed once, for the same key."""
    _, made = run("key", "create", "app")
    _, rotated = run("key", "rotate", made["key_id"], "--grace", "0s")

    with Database(tmp_path / "home" / "headwater.db") as db:
        keys = KeyStore(db)
        assert keys.authenticate(rotated["secret"]).key_id == rotated["key_id"] == made["key_id"]
        with pytest.raises(RefusedError):
            keys.authenticate(made["secret"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("key", "create", "app", "--requests-per-minute", "many"), "limits_invalid"),
        (("key", "create", "app", "--requests-per-minute", "0"), "limits_invalid"),
        (("key", "create", "app", "--route", "everywhere"), "limits_invalid"),
        (("key", "create", "app", "--expires", "soon"), "instant_invalid"),
        (("key", "create", "app", "--expires", "2020-01-01T00:00:00Z"), "expires_invalid"),
        (("key", "create", "app", "--expires", "0s"), "expires_invalid"),
        (("key", "create", "app", "--budget-day", "-1"), "limits_invalid"),
        (("key", "limit", "key_none", "--budget", "1"), "key_unknown"),
        (("key", "rotate", "key_none"), "key_unknown"),
        (("key", "rotate", "key_none", "--grace", "a while"), "grace_invalid"),
        (("key", "rotate", "key_none", "--grace", "91d"), "grace_invalid"),
    ],
)
def test_limits_that_make_no_sense_are_refused_with_their_code(run: Run, arguments: tuple[str, ...], code: str):
    """Status 1, and nothing is made or changed."""
    run("key", "create", "other")
    status, told = run(*arguments)
    assert (status, told["error"]["code"] if "error" in told else told["code"]) == (1, code)
    assert len(run("key", "list")[1]) == 1


def test_a_grace_out_of_range_is_told_as_it_was_given(run: Run):
    """In days, with what is allowed."""
    key = run("key", "create", "app")[1]["key_id"]
    status, told = run("key", "rotate", key, "--grace", "900d")

    assert (status, told["error"]["message"]) == (1, "a grace of 900 days")
    assert told["error"]["fix"] == "use 0 to 90 days (7776000 seconds)"


def test_a_reference_booked_with_another_amount_is_told_by_its_name(run: Run):
    """The message holds what the operator typed, and no digest of it; nothing is booked."""
    key = run("key", "create", "app")[1]["key_id"]
    run("key", "deposit", key, "5", "--reference", "wire 17")
    status, told = run("key", "deposit", key, "6.50", "--reference", "wire 17")

    assert (status, told["error"]["code"]) == (1, "idempotency_conflict")
    assert "'wire 17'" in told["error"]["message"]
    assert "6.50" in told["error"]["message"]
    assert "sha256" not in told["error"]["message"]
    assert run("key", "list")[1][0]["available_units"] == str(5 * 10**9)


def test_a_deposit_beyond_every_transfer_is_told_in_the_currency(run: Run):
    """Its bound too, not in nano units."""
    key = run("key", "create", "app")[1]["key_id"]
    status, told = run("key", "deposit", key, "4611686018.427387905", "--reference", "wire")

    assert (status, told["error"]["code"]) == (1, "amount_out_of_range")
    assert told["error"]["fix"] == "deposit at most 4611686018.427387904 at a time"


def test_what_is_to_be_copied_stands_on_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """However narrow the terminal: the command after `create`, a key's limits, the fix of an error."""
    home = ("--home", str(tmp_path / "a home with a name that is longer than any terminal is wide" / "home"))
    with pytest.raises(SystemExit):
        main(["key", "create", "app", "--budget-day", "2", "--model", "a", "--model", "b", "--route", "chat", *home])
    made = capsys.readouterr().out.splitlines()
    key = made[1].split()[-1]
    assert made[2:] == [f"give it credit: headwater key deposit {key} 5.00 --reference …"]

    with pytest.raises(SystemExit):
        main(["key", "list", *home])
    first, second = capsys.readouterr().out.splitlines()
    assert (first.split()[0], first.split()[-1]) == (key, "app")
    assert second.strip() == "budget_day 2.000000000, models a b, routes chat"

    with pytest.raises(SystemExit):
        main(["key", "deposit", key, "99999999999", "--reference", "wire", *home])
    assert len(capsys.readouterr().err.splitlines()) == 2
