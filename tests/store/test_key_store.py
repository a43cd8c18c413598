"""API keys: what is kept, what opens and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.store import key_store
from headwater.store.database import Database
from headwater.store.key_limits import DAY_NS, NO_LIMITS, KeyLimits
from headwater.store.key_store import KeyStore

pytestmark = pytest.mark.both_engines

SEED = bytes(range(32))


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    """An empty key store."""
    return KeyStore(Database(tmp_path / "headwater.db"))


def test_the_secret_opens_its_own_key(keys: KeyStore) -> None:
    """Each secret gives the record of the key it was made with."""
    first, one = keys.create("alpha", SEED, 5)
    second, two = keys.create("beta", SEED[::-1], 6, mode="live", budget_units=7)

    assert keys.authenticate(first) == one
    assert keys.authenticate(second) == two
    assert (first[:8], second[:8]) == ("hw_test_", "hw_live_")
    assert (two.label, two.created_at_ns, two.budget_units, two.account) == ("beta", 6, 7, f"payer:{two.key_id}")


@pytest.mark.sqlite
def test_the_secret_is_in_no_file(keys: KeyStore) -> None:
    """Neither the secret nor its random bytes reach the disk."""
    secret, _ = keys.create("alpha", SEED, 5)
    keys.db.query("PRAGMA wal_checkpoint(TRUNCATE)")

    written = b"".join(path.read_bytes() for path in keys.db.path.parent.iterdir())
    assert b"alpha" in written
    assert secret.encode() not in written
    assert secret.removeprefix("hw_test_").encode() not in written
    assert SEED not in written


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "hw_test_",
        "hw_test_" + "A" * 43,
        "hw_test_" + "A" * 44,
        "hw_live_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",  # the right secret in the wrong mode
        " hw_test_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        "hw_test_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n",
        "hw_test_aaecawqfbgcicqoldA0ODxAREhMUFRYXGBkaGxwdHh8",
        "hw_test_" + "ä" * 43,
        "x" * 100_000,
    ],
)
def test_anything_else_opens_nothing_and_is_not_repeated(keys: KeyStore, wrong: str) -> None:
    """A wrong secret is refused with one stable code, and the error does not contain it."""
    secret, _ = keys.create("alpha", SEED, 5)
    assert secret == "hw_test_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"

    with pytest.raises(RefusedError) as caught:
        keys.authenticate(wrong)
    assert caught.value.code == "invalid_api_key"
    assert not wrong.strip() or wrong.strip() not in str(caught.value)


def test_a_revoked_key_opens_nothing_for_good(keys: KeyStore) -> None:
    """Revoking is remembered with its first instant and cannot be undone by repeating it."""
    secret, key = keys.create("alpha", SEED, 5)
    keys.revoke(key.key_id, 9)
    keys.revoke(key.key_id, 10)

    with pytest.raises(RefusedError) as caught:
        keys.authenticate(secret)
    assert caught.value.code == "invalid_api_key"
    assert [(k.key_id, k.revoked, k.revoked_at_ns) for k in keys.list()] == [(key.key_id, True, 9)]


def test_bad_requests_for_a_key_are_refused(keys: KeyStore) -> None:
    """Labels, randomness and budgets are checked, and nothing is kept of a refused one."""
    for label, seed, budget, code in [
        ("", SEED, None, "label_invalid"),
        ("a\nb", SEED, None, "label_invalid"),
        ("a" * 101, SEED, None, "label_invalid"),
        ("a", SEED[:16], None, "randomness_invalid"),
        ("a", SEED, -1, "amount_out_of_range"),
        ("a", SEED, 2**62 + 1, "amount_out_of_range"),
    ]:
        with pytest.raises(InvalidError) as caught:
            keys.create(label, seed, 1, budget_units=budget)
        assert caught.value.code == code
    assert keys.list() == ()


def test_a_budget_is_never_exceeded(keys: KeyStore) -> None:
    """What is committed stays within the budget, and what is given back can be committed again."""
    _, key = keys.create("alpha", SEED, 5, budget_units=100)
    keys.commit_units(key.key_id, 100, at_ns=5)
    with pytest.raises(RefusedError) as caught:
        keys.commit_units(key.key_id, 1, at_ns=5)
    assert caught.value.code == "budget_exceeded"

    keys.commit_units(key.key_id, -40, at_ns=5)
    keys.commit_units(key.key_id, 40, at_ns=5)
    assert keys.get(key.key_id).committed_units == 100


def test_unknown_keys_are_missing(keys: KeyStore) -> None:
    """Asking for or revoking a key that is not there says so."""
    for ask in (lambda: keys.get("key_none"), lambda: keys.revoke("key_none", 1)):
        with pytest.raises(MissingError):
            ask()


def test_budgets_of_a_day_and_a_month_begin_anew(keys: KeyStore) -> None:
    """A full day refuses the same day and not the next; the month counts both, and ends on its last day."""
    limits = KeyLimits(budget_day_units=60, budget_month_units=100)
    _, key = keys.create("alpha", SEED, 5, limits=limits)
    january_30, january_31, february_1 = (day * DAY_NS + 7 for day in (29, 30, 31))

    keys.commit_units(key.key_id, 60, at_ns=january_30)
    with pytest.raises(RefusedError, match="of the day"):
        keys.commit_units(key.key_id, 1, at_ns=january_30)
    keys.commit_units(key.key_id, 40, at_ns=january_31)
    with pytest.raises(RefusedError, match="of the month"):
        keys.commit_units(key.key_id, 1, at_ns=january_31)
    keys.commit_units(key.key_id, 60, at_ns=february_1)
    assert keys.get(key.key_id).committed_units == 160
    assert not keys.days_differ(keys.get(key.key_id))


def test_what_is_given_back_is_given_back_to_the_day_it_was_taken_from(keys: KeyStore) -> None:
    """A call of yesterday that costs less makes no room today."""
    _, key = keys.create("alpha", SEED, 5, limits=KeyLimits(budget_day_units=50))
    keys.commit_units(key.key_id, 50, at_ns=1)
    keys.commit_units(key.key_id, 50, at_ns=DAY_NS)
    keys.commit_units(key.key_id, -30, at_ns=1)

    assert keys.budget_left(key.key_id, DAY_NS) == (0, "budget of the day")
    assert keys.budget_left(key.key_id, 1) == (30, "budget of the day")


def test_what_was_promised_is_counted_even_when_the_budget_was_lowered_meanwhile(keys: KeyStore) -> None:
    """A lowered budget refuses new calls, not the booking of old ones."""
    _, key = keys.create("alpha", SEED, 5, budget_units=100)
    keys.limit(key.key_id, key.limits, 10)
    keys.commit_units(key.key_id, 70, at_ns=5, promised=True)

    assert keys.budget_left(key.key_id, 5) == (-60, "budget")
    with pytest.raises(RefusedError):
        keys.commit_units(key.key_id, 1, at_ns=5)


def test_a_rotated_key_opens_with_both_secrets_until_the_grace_has_passed(tmp_path: Path) -> None:
    """The key, its limits and credit are the same; only the secret changes, and a revoked key loses both."""
    now_ns = [100]
    keys = KeyStore(Database(tmp_path / "headwater.db"), now_ns=lambda: now_ns[0])
    old, key = keys.create("alpha", SEED, 5)
    new, rotated = keys.rotate(key.key_id, SEED[::-1], 100, grace_ns=50)

    assert rotated == key == keys.authenticate(old) == keys.authenticate(new)
    now_ns[0] = 150
    assert keys.authenticate(new) == key
    with pytest.raises(RefusedError) as caught:
        keys.authenticate(old)
    assert caught.value.code == "invalid_api_key"
    now_ns[0] = 100
    keys.revoke(key.key_id, 101)
    for secret in (old, new):
        with pytest.raises(RefusedError):
            keys.authenticate(secret)
    with pytest.raises(RefusedError) as caught:
        keys.rotate(key.key_id, SEED, 102, grace_ns=0)
    assert caught.value.code == "key_revoked"


def test_an_expired_key_says_so_and_can_be_given_more_time(tmp_path: Path) -> None:
    """From its last instant on it opens nothing; with a later one it opens again."""
    keys = KeyStore(Database(tmp_path / "headwater.db"), now_ns=lambda: 100)
    secret, key = keys.create("alpha", SEED, 5, limits=KeyLimits(expires_at_ns=100))
    with pytest.raises(RefusedError) as caught:
        keys.authenticate(secret)
    assert caught.value.code == "api_key_expired"

    keys.limit(key.key_id, key.limits.changed(expires_at_ns=101), None)
    assert keys.authenticate(secret).key_id == key.key_id


def test_keys_of_a_file_made_before_limits_go_on_working(tmp_path: Path) -> None:
    """The step that adds limits keeps what was committed, and the days sum to it."""
    with Database(tmp_path / "headwater.db") as db:
        db.migrate("api_keys", key_store._STEPS[:1])
        db.execute("INSERT INTO api_keys VALUES ('key_old', ?, 'old', 'test', 1, NULL, 90, 40)", (b"\0",))
        keys = KeyStore(db)
        keys.commit_units("key_old", 50, at_ns=DAY_NS)

        assert keys.get("key_old").limits == NO_LIMITS
        assert not keys.days_differ(keys.get("key_old"))
        assert keys.budget_left("key_old", 5) == (0, "budget")


@pytest.mark.parametrize(
    "limits",
    [
        {"routes": ("everything",)},
        {"models": ("",)},
        {"models": ("m",) * 65},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"units_per_minute": True},
        {"budget_day_units": -1},
        {"budget_month_units": 2**62 + 1},
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, object]) -> None:
    """Nothing is stored that would be read otherwise than it was meant."""
    with pytest.raises(InvalidError) as caught:
        KeyLimits(**limits)  # type: ignore[arg-type]
    assert caught.value.code == "limits_invalid"
