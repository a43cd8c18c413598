"""What processes of a gateway share beside the database: rates in a mapped table, claims in locked files."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import ConflictError, RefusedError, UpstreamError
from headwater.core.instants import SECOND_NS
from headwater.gateway.keeping import Claims, OwnClaims, SharedClaims
from headwater.gateway.limits import MINUTE_NS, OwnRates, RateError, Taken, check_route
from headwater.gateway.shared_rates import SharedRates
from headwater.gateway.sharing import Sharing
from headwater.store.key_limits import NO_LIMITS, KeyLimits
from headwater.store.key_store import KeyRecord


def record(name: str = "key_1", **limits: int) -> KeyRecord:
    """A key with limits."""
    return KeyRecord(name, "x", "test", 0, None, None, 0, KeyLimits(**limits))  # type: ignore[arg-type]


ACTS = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 20), st.integers(0, 150), st.integers(0, 150)), max_size=40
)


@given(ACTS)
def test_a_shared_table_counts_as_one_process_does(acts: list[tuple[str, int, int, int]]) -> None:
    """Call for call the same outcome and the same headers, whichever of two processes is asked."""
    now_ns = [10 * MINUTE_NS]
    path = f"/dev/shm/hw-rates-{os.getpid()}" if Path("/dev/shm").is_dir() else f"/tmp/hw-rates-{os.getpid()}"
    own = OwnRates(lambda: now_ns[0])
    tables = [SharedRates(Path(path), lambda: now_ns[0], slots=64) for _ in range(2)]
    try:
        for number, (name, gap_s, tokens, used) in enumerate(acts):
            key = record(f"key_{name}", requests_per_minute=20, tokens_per_minute=200, units_per_minute=500)
            now_ns[0] += gap_s * SECOND_NS
            outcomes: list[object] = []
            for rates in (own, tables[number % 2]):
                try:
                    taken = rates.take(key, tokens, 2 * tokens)
                except RateError as error:
                    outcomes.append((error.message, error.retry_after_s, error.headers))
                else:
                    assert taken is not None
                    taken.settle(used, 2 * used)
                    outcomes.append(taken.headers(now_ns[0]))
            assert outcomes[0] == outcomes[1]
    finally:
        for table in tables:
            table.close()
        os.unlink(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a table."""
    return tmp_path / "rates"


def took(rates: SharedRates, key: KeyRecord, tokens: int = 0) -> Taken:
    """What a call takes."""
    taken = rates.take(key, tokens, 0)
    assert taken is not None
    return taken


def test_a_key_without_rates_touches_nothing(path: Path) -> None:
    """No lock, no slot."""
    rates = SharedRates(path, slots=1)
    before = path.read_bytes()
    assert rates.take(KeyRecord("key_1", "x", "test", 0, None, None, 0, NO_LIMITS), 10, 10) is None
    assert path.read_bytes() == before
    rates.close()


def test_a_full_table_refuses_for_a_moment_and_forgets_nobody(path: Path) -> None:
    """Who has a slot goes on; a new key gets the slot of one that has used nothing up, once there is one."""
    now_ns = [0]
    rates = SharedRates(path, lambda: now_ns[0], slots=4)
    for number in range(4):
        took(rates, record(f"key_{number}", requests_per_minute=1))
    with pytest.raises(UpstreamError) as caught:
        took(rates, record("key_new", requests_per_minute=1))
    assert caught.value.code == "rates_full"
    with pytest.raises(RateError):
        took(rates, record("key_2", requests_per_minute=1))
    now_ns[0] = MINUTE_NS
    took(rates, record("key_new", requests_per_minute=1))
    with pytest.raises(RateError):
        took(rates, record("key_new", requests_per_minute=1))
    rates.close()


def test_what_a_call_used_is_settled_though_its_slot_has_gone_to_another_key(path: Path) -> None:
    """It counts for its own key, never for the one that has the slot now."""
    now_ns = [0]
    rates = SharedRates(path, lambda: now_ns[0], slots=1)
    first, second = record("key_1", tokens_per_minute=100), record("key_2", tokens_per_minute=100)
    slow = took(rates, first, 50)
    now_ns[0] = MINUTE_NS
    took(rates, second, 40)
    slow.settle(100, 0)  # it used more than was thought; there is no place to say so now
    assert dict(took(rates, second, 60).headers(now_ns[0]))[b"x-ratelimit-remaining-tokens"] == b"0"
    now_ns[0] = 3 * MINUTE_NS
    slow.settle(200, 0)
    with pytest.raises(RateError):
        took(rates, first, 50)
    rates.close()


def test_a_table_of_an_earlier_boot_or_another_size_is_begun_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its instants mean nothing on this clock."""
    key = record(requests_per_minute=1)
    for slots, boot in ((8, bytes(16)), (8, b"\x01" * 16), (16, b"\x01" * 16)):
        monkeypatch.setattr("headwater.gateway.shared_rates._boot", lambda boot=boot: boot)
        rates = SharedRates(path, slots=slots)
        took(rates, key)
        with pytest.raises(RateError):
            took(rates, key)
        rates.close()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UpstreamError) as caught:
        SharedRates(path.parent / "nowhere" / "rates")
    assert caught.value.code == "rates_unopenable"


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_process_killed_while_it_holds_the_lock_does_not_stop_the_others(path: Path) -> None:
    """The kernel frees the lock; counts go on from where they were."""
    rates, key = SharedRates(path), record(requests_per_minute=2)
    took(rates, key)
    with subprocess.Popen([sys.executable, "-S", "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with open(path) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.send_signal(signal.SIGKILL)
    took(rates, key)
    with pytest.raises(RateError):
        took(rates, key)
    rates.close()


def test_a_shared_limit_costs_a_few_microseconds(path: Path) -> None:
    """Median of many, CPU time, with room for a busy machine."""
    rates, key = SharedRates(path), record(requests_per_minute=10**9, tokens_per_minute=10**9)
    costs = []
    for _ in range(100):
        began = time.process_time_ns()
        for _ in range(20):
            took(rates, key, 10).settle(5, 0)
        costs.append((time.process_time_ns() - began) / 20)
    rates.close()
    assert sorted(costs)[50] < 150_000


# Claims


@pytest.fixture(params=["own", "shared"])
def claims(request: pytest.FixtureRequest, tmp_path: Path) -> Claims:
    """Of one process, or of several."""
    return OwnClaims() if request.param == "own" else SharedClaims(tmp_path / "claims")


def code(claims: Claims, key_id: str, name: str, asked: str) -> str:
    """Why a claim is refused."""
    with pytest.raises(ConflictError) as caught:
        claims.take(key_id, name, asked)
    return caught.value.code


def test_a_key_at_work_is_one_requests(claims: Claims) -> None:
    """The same request is told to wait, another one that the key is taken; another payer's key is another key."""
    claims.take("key_1", "order", "sha256:aa")
    assert code(claims, "key_1", "order", "sha256:aa") == "call_in_progress"
    assert code(claims, "key_1", "order", "sha256:bb") == "idempotency_conflict"
    claims.take("key_2", "order", "sha256:bb")
    claims.take("key_1", "order/../x\x00y", "sha256:bb")
    claims.free("key_1", "order")
    claims.take("key_1", "order", "sha256:bb")
    for key_id, name in (("key_1", "order"), ("key_2", "order"), ("key_1", "order/../x\x00y")):
        claims.free(key_id, name)


def test_what_a_dead_process_left_is_free_and_swept(tmp_path: Path) -> None:
    """A file that nobody has locked claims nothing, whatever is in it; those at work stay."""
    folder = tmp_path / "claims"
    first, second = SharedClaims(folder), SharedClaims(folder)
    first.take("key_1", "order", "sha256:aa")
    lock = first._locks.pop(("key_1", "order"))
    os.close(lock)  # as the kernel does
    first.take("key_1", "other", "sha256:cc")
    second.take("key_1", "order", "sha256:bb")
    assert code(first, "key_1", "order", "sha256:bb") == "call_in_progress"
    assert code(first, "key_1", "order", "sha256:aa") == "idempotency_conflict"
    os.close(second._locks.pop(("key_1", "order")))
    assert len(list(folder.iterdir())) == 2
    assert first.sweep() == 1
    assert code(second, "key_1", "other", "sha256:cc") == "call_in_progress"
    first.free("key_1", "other")
    assert list(folder.iterdir()) == []


def test_sharing_is_alone_or_over_a_folder(tmp_path: Path) -> None:
    """Alone nothing is written; over a folder two see each other."""
    alone = Sharing.alone()
    assert alone.sweep() == 0
    alone.close()
    first, second = Sharing.over(tmp_path), Sharing.over(tmp_path)
    first.claims.take("key_1", "order", "sha256:aa")
    assert code(second.claims, "key_1", "order", "sha256:aa") == "call_in_progress"
    first.rates.take(record(requests_per_minute=1), 0, 0)
    with pytest.raises(RateError):
        second.rates.take(record(requests_per_minute=1), 0, 0)
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/datanets/d/submissions", "feedback"),
        ("/v1/reviews/next", "feedback"),
        ("/v1/disputes", "feedback"),
        ("/v1/enrolments/e/proofs", "feedback"),
        ("/v1/telemetry", "feedback"),
        ("/v1/webhooks/w/messages", "receipts"),
        ("/v1/receipts/call_1/bundle", "receipts"),
        ("/v1/admin/keys", "admin"),
    ],
)
def test_every_native_route_is_for_keys_that_are_for_it(path: str, route: str) -> None:
    """A key for chat alone is refused; one for that route is not; models and paying in are for every key."""
    limited = KeyRecord("key_1", "x", "test", 0, None, None, 0, KeyLimits(routes=("chat",)))
    with pytest.raises(RefusedError) as caught:
        check_route(limited, path)
    assert caught.value.code == "route_not_permitted"
    check_route(KeyRecord("key_1", "x", "test", 0, None, None, 0, KeyLimits(routes=(route,))), path)
    for everybody in ("/v1/models", "/v1/payments/x402"):
        check_route(limited, everybody)
