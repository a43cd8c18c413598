"""API keys: what is kept, what opens and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.store.database import Database
from headwater.store.key_store import KeyStore

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
    keys.commit_units(key.key_id, 100)
    with pytest.raises(RefusedError) as caught:
        keys.commit_units(key.key_id, 1)
    assert caught.value.code == "budget_exceeded"

    keys.commit_units(key.key_id, -40)
    keys.commit_units(key.key_id, 40)
    assert keys.get(key.key_id).committed_units == 100


def test_unknown_keys_are_missing(keys: KeyStore) -> None:
    """Asking for or revoking a key that is not there says so."""
    for ask in (lambda: keys.get("key_none"), lambda: keys.revoke("key_none", 1)):
        with pytest.raises(MissingError):
            ask()
