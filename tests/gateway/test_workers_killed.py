"""Workers that are killed again and again while callers ask: not a unit is lost, on either engine."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
from postgres import postgres  # noqa: F401 - a fixture

from headwater.cli.home import Home
from headwater.core.money import NANO
from headwater.receipts import Receipt
from toy.gang import Gang, asked, call, models, open_gang
from toy.upstream import upstream

PAYERS, CALLERS, KILLS = 3, 9, 4
CREDIT = 50 * NANO


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_every_answer_has_its_receipt_and_every_unit_spent_is_on_one(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    """Plain calls, streams and idempotency keys; what an answer cost is charged once, whoever booked it in the end."""
    database = request.getfixturevalue("postgres").fresh() if engine == "postgres" else ""
    answered: list[str] = []
    failed: Counter[str] = Counter()
    done = threading.Event()
    with upstream() as server:
        with open_gang(tmp_path, models(server), HEADWATER_DATABASE=database) as gang:
            keys = [gang.key(CREDIT) for _ in range(PAYERS)]
            callers = [
                threading.Thread(target=_ask, args=(gang, keys[n % PAYERS][0], n, done, answered, failed))
                for n in range(CALLERS)
            ]
            for caller in callers:
                caller.start()
            for number in range(KILLS):
                time.sleep(1.0)
                os.kill(gang.workers()[f"w{number % 2 + 1}"]["pid"], signal.SIGKILL)
            time.sleep(2.0)
            done.set()
            for caller in callers:
                caller.join()
            assert gang.metric("headwater_workers_restarts_total") >= KILLS - 1
            assert gang.stop() == 0
        with Home(gang.settings, create=False) as home:
            receipts = [Receipt.from_bytes(logged.raw) for logged in home.log.entries(0)]
            balances = [home.ledger.balance(key.account, home.policy.currency) for _, key in keys]
    logged = {receipt.call_id for receipt in receipts}
    assert len(answered) > 10 * CALLERS
    assert set(answered) <= logged
    assert len(logged) == len(receipts)
    # A call whose worker died between its receipt and its last byte is charged though its caller saw no end of it.
    assert len(receipts) - len(answered) <= failed["lost"]
    assert PAYERS * CREDIT - sum(one.balance_units for one in balances) == sum(one.price for one in receipts)
    assert not any(one.reserved_out_units for one in balances)
    assert failed["refused"] == 0


def _ask(
    gang: Gang, secret: str, number: int, done: threading.Event, answered: list[str], failed: Counter[str]
) -> None:
    """Ask until it is done, on one connection after another."""
    choose, line = random.Random(number), None
    while not done.is_set():
        line = line or http.client.HTTPConnection("127.0.0.1", gang.port, timeout=20)
        body = call("fine", stream=True) if choose.random() < 0.3 else call("fine")
        named = {"idempotency_key": f"{number}-{choose.random()}"} if choose.random() < 0.2 else {}
        try:
            status, headers, _ = asked(line, "POST", "/v1/chat/completions", body, secret, **named)
        except (http.client.HTTPException, OSError):
            failed["lost"] += 1
            with contextlib.suppress(OSError):
                line.close()
            line = None
            continue
        if status == 200:
            answered.append(headers["headwater-receipt"])
        else:
            failed["later" if status == 503 else "refused"] += 1
            time.sleep(0.02)
