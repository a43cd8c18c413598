"""Vouchers instead of an API key: signed by the payer's wallet, checked here, closed on the chain much later.

The header `Payment-Voucher` holds the base64 of a voucher's JSON. Every request brings a voucher over more than the
one before; what it rose by is credit, what a call does not use stays for the next. The signature is checked first, so
that nobody makes us read the chain for an address that is not theirs; what the payer has on the chain is read at most
once in `FRESH_S`, and what it has asked back does not count. No request writes to the chain.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from headwater.core.canonical import refuse_deep
from headwater.core.errors import HeadwaterError, InvalidError, RefusedError
from headwater.settlement.voucher import SignedVoucher, check
from headwater.store.key_store import KeyRecord
from headwater.store.voucher_store import VoucherStore

HEADER: Final = b"payment-voucher"
FRESH_S: Final = 15.0
"""How old what is known of a payer's deposit may be; far below the contract's shortest delay, 60 s."""
HEADER_BYTES_MAX: Final = 2_048
PAYERS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Deposited:
    """What the chain says of a payer, in token units."""

    closed: int  # of its vouchers to this payee, in all
    covers: int  # in its account and not asked back


class Vouchers:
    """Takes vouchers for `payee`. Blocks for the disk, and for the chain when a payer is new or `FRESH_S` have passed.

    Args:
        read: what the chain says of a payer.
    """

    def __init__(
        self,
        store: VoucherStore,
        payee: str,
        read: Callable[[str], Deposited],
        *,
        now_s: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store, self.payee, self._read = store, payee.lower(), read
        self._now_s, self._now_ns = now_s, now_ns
        self._known: dict[str, tuple[Deposited, float]] = {}
        self._reading = threading.Lock()

    def take(self, header: bytes) -> KeyRecord:
        """The payer of a request, whose voucher counts from now on.

        Raises:
            InvalidError: ``voucher_invalid``, ``signature_invalid`` or ``voucher_other_payee``.
            RefusedError: ``voucher_not_signed``, or ``voucher_not_covered`` by what is on the chain.
            ConflictError: ``voucher_replayed``.
        """
        signed = read_voucher(header)
        voucher = signed.voucher
        if voucher.payee != self.payee:
            raise InvalidError(
                f"the voucher is for {voucher.payee}", code="voucher_other_payee", fix=f"name {self.payee} as payee"
            )
        check(signed, self._store.domain)
        found = self._deposited(voucher.payer)
        if voucher.cumulative > found.closed + found.covers:
            raise RefusedError(
                f"a voucher over {voucher.cumulative} token units, {found.closed} were paid and {found.covers} are"
                " there and not asked back",
                code="voucher_not_covered",
                fix=f"deposit more in the Credit contract; it is looked at every {FRESH_S:g} s",
            )
        return self._store.take(signed, closed=found.closed, at_ns=self._now_ns())

    def identify(self, header: bytes) -> KeyRecord:
        """Who signed a voucher that was taken: it opens the payer's own records, and is not spent by that.

        Only the newest one that was taken opens them: older ones may have been seen by others for longer.

        Raises:
            InvalidError: ``voucher_invalid``, ``signature_invalid``, ``voucher_other_payee``.
            RefusedError: ``voucher_not_signed``; ``invalid_api_key`` for one that was not taken or is not the newest.
        """
        signed = read_voucher(header)
        voucher = signed.voucher
        if voucher.payee != self.payee:
            raise InvalidError(
                f"the voucher is for {voucher.payee}", code="voucher_other_payee", fix=f"name {self.payee} as payee"
            )
        check(signed, self._store.domain)
        if self._store.mark(voucher.payer) != voucher.cumulative:
            raise RefusedError(
                "this is not the payer's newest voucher that was taken",
                code="invalid_api_key",
                fix="send the one that paid last in Payment-Voucher",
            )
        return self._store.key_of(voucher.payer)

    def _deposited(self, payer: str) -> Deposited:
        known = self._known.get(payer)
        if known is not None and self._now_s() - known[1] < FRESH_S:
            return known[0]
        with self._reading:
            at_s = self._now_s()
            found = self._read(payer)
            if len(self._known) >= PAYERS_MAX:
                self._known.clear()
            self._known[payer] = (found, at_s)
        return found


def read_voucher(header: bytes) -> SignedVoucher:
    """The voucher in a header.

    Raises:
        InvalidError: ``voucher_invalid``.
    """
    try:
        if len(header) > HEADER_BYTES_MAX:
            raise ValueError(f"{len(header)} bytes, at most {HEADER_BYTES_MAX}")
        raw = base64.b64decode(header, validate=True)
        refuse_deep(raw)
        value = msgspec.json.decode(raw)
    except (ValueError, binascii.Error, msgspec.DecodeError, HeadwaterError) as error:
        raise InvalidError(
            f"not a voucher: {str(error)[:200]}",
            code="voucher_invalid",
            fix="send the base64 of the voucher's JSON in Payment-Voucher",
        ) from None
    return SignedVoucher.from_json(value)


def voucher_header(signed: SignedVoucher) -> str:
    """A voucher as a caller sends it."""
    return base64.b64encode(msgspec.json.encode(signed.as_json())).decode()
