"""The pages beside the gateway: what `headwater serve` puts on its address besides `/v1`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from headwater.cli.home import Home, home_database
from headwater.gateway import Gateway
from headwater.gateway.serve import Served
from headwater.settle import Settlement
from headwater.store.epoch_store import EpochStore
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.registry_store import RegistryStore


@contextmanager
def with_pages(home: Home, gateway: Gateway, books: Settlement | None) -> Iterator[Served]:
    """The gateway with the pages in front of it, not yet listening.

    The pages read through a connection of their own, so that a long look never holds up a call.
    """
    from headwater.dashboard import Site, dashboard_app, front  # jinja2 and argon2 are for who serves pages

    db = home_database(home.settings)
    try:
        site = Site(
            gateway=gateway,
            folder=home.path,
            settings=home.settings,
            db=db,
            registry=RegistryStore(db),
            ledger=Ledger(db),
            keys=KeyStore(db),
            epochs=EpochStore(db),
            adapters=home.adapters,
            books=books,
            policy_text=home.policy_by_digest,
            now_ns=time.time_ns,
            random_bytes=os.urandom,
        )
        yield front(gateway, dashboard_app(site))
    finally:
        db.close()
