"""Closes vouchers while a home is served, before a payer's withdrawal falls due.

A payer that asks its money back is seen within `EVERY_S`, which is less than the shortest delay a contract can have;
then every voucher that waits is closed, up to 128 payers in one transaction. What cannot be closed now is tried again.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from headwater.chain import Chain, Credit
from headwater.cli.credit import close_vouchers, credit_store
from headwater.cli.home import Home
from headwater.core.errors import HeadwaterError
from headwater.gateway.credit_chain import credit_of
from headwater.store.voucher_store import VoucherStore

EVERY_S: Final = 15.0

_log = logging.getLogger("headwater.credit")


class Closing:
    """Watches a Credit contract for payers of ours; a context manager runs it on a thread of its own."""

    def __init__(self, store: VoucherStore, credit: Credit, payee: str, *, every_s: float = EVERY_S) -> None:
        self._store, self._credit, self._payee, self._every_s = store, credit, payee, every_s
        self._from_block: int | None = None
        self._asked: set[str] = set()  # whoever has money asked back that vouchers may still need
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="closing vouchers", daemon=True)

    def step(self) -> list[dict[str, Any]]:
        """Look once, and close when a payer whose vouchers wait has asked its money back; what was closed.

        Raises:
            HeadwaterError: the chain failed; the next step looks again.
        """
        waiting = {signed.voucher.payer for signed in self._store.waiting()}
        self._look(waiting)
        if not self._asked & waiting:
            return []
        rows = close_vouchers(self._store, self._credit, self._payee)
        # Vouchers taken from now on are covered by what is not asked back, so the request needs no second closing.
        self._asked -= waiting
        return rows

    def _look(self, waiting: set[str]) -> None:
        """Note who has asked since the last look; the first time, whoever has anything asked back."""
        if self._from_block is None:
            next_block = self._credit.newest_block() + 1  # before the accounts are read: nothing falls in between
            self._asked |= {payer for payer in waiting if self._credit.account_of(payer).asked_back}
        else:
            asking, next_block = self._credit.asking(self._from_block)
            self._asked |= set(asking) & waiting
        self._from_block = next_block

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                for row in self.step():
                    _log.info("closed %s token units of %d payers", row["token_units"], row["payers"])
            except HeadwaterError as error:
                _log.warning("vouchers wait to be closed: %s [%s]", error.message, error.code)

    def __enter__(self) -> Closing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def closing(home: Home, chain: Chain) -> Closing | None:
    """What closes the vouchers of a home; None when its deployment has no Credit contract."""
    if chain.manifest.credit is None:
        return None
    return Closing(credit_store(home, chain), credit_of(chain), home.signer.address)
