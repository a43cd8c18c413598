"""Payment by x402 for a home that is served: the chain's token, the recipient, and the routes."""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING

from headwater.chain import Chain
from headwater.cli.home import Home
from headwater.cli.operations import administration
from headwater.core.errors import MissingError
from headwater.gateway.native import Routes
from headwater.settlement.epoch import UNITS_DECIMALS
from headwater.store.payment_store import PaymentStore

if TYPE_CHECKING:
    from headwater.gateway.x402 import Payments


def payments_of(home: Home, chain: Chain | None) -> tuple[Payments | None, list[Routes]]:
    """What takes payments by x402 for a home's gateway, and its routes; nothing when the setting is off.

    Raises:
        MissingError: the setting is on, and the package or a chain is missing.
    """
    if not home.settings.x402:
        return None, []
    if importlib.util.find_spec("x402") is None:
        raise MissingError(
            "x402 is on and its package is not installed", code="package_missing", fix="pip install 'headwater[x402]'"
        )
    if chain is None:
        raise MissingError(
            "x402 is on and there is no chain to be paid on",
            code="chain_missing",
            fix="set rpc_url and run `headwater chain deploy`; `headwater chain status` makes one to try things on",
        )
    from headwater.gateway.x402 import Payments
    from headwater.gateway.x402_chain import PaymentChain
    from headwater.gateway.x402_routes import payment_routes

    unit_nano = int(10 ** (UNITS_DECIMALS - chain.manifest.token_decimals))
    store = PaymentStore(home.db, home.ledger, home.keys, asset=home.policy.currency, unit_nano=unit_nano)
    paid_to = PaymentChain(chain, home.settings.x402_pay_to or home.signer.address)
    payments = Payments(store, paid_to, time.time_ns, home.settings.public_url)
    return payments, [payment_routes(payments, administration(home))]
