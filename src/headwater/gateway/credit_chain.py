"""Vouchers over a Credit contract: what the chain says of payers, for whoever takes their vouchers."""

from __future__ import annotations

from collections.abc import Callable

from headwater.chain.client import Chain
from headwater.chain.credit import Credit
from headwater.core.errors import MissingError
from headwater.gateway.vouchers import Deposited, Vouchers
from headwater.settlement.epoch import UNITS_DECIMALS
from headwater.store.database import Sql
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.voucher_store import VoucherStore


def credit_of(chain: Chain) -> Credit:
    """The Credit contract of a deployment.

    Raises:
        MissingError: it has none.
    """
    if chain.manifest.credit is None:
        raise MissingError(
            "this deployment has no Credit contract",
            code="credit_missing",
            fix="deploy one: headwater chain deploy --credit-delay-s 86400 …",
        )
    return Credit(chain, chain.manifest.credit)


def voucher_store(db: Sql, ledger: Ledger, keys: KeyStore, chain: Chain, asset: str) -> VoucherStore:
    """Vouchers in `db` for the Credit contract of a deployment."""
    unit_nano = int(10 ** (UNITS_DECIMALS - chain.manifest.token_decimals))
    return VoucherStore(db, ledger, keys, domain=credit_of(chain).domain, asset=asset, unit_nano=unit_nano)


def vouchers_on(store: VoucherStore, chain: Chain, payee: str) -> Vouchers:
    """What takes vouchers to `payee`."""
    return Vouchers(store, payee, reader(credit_of(chain), payee))


def reader(credit: Credit, payee: str) -> Callable[[str], Deposited]:
    """Reads what the chain says of a payer.

    What was closed is read before what is left, so that a closing in between makes it less and never more.
    """

    def read(payer: str) -> Deposited:
        closed = credit.closed(payer, payee)
        return Deposited(closed, credit.account_of(payer).covers)

    return read
