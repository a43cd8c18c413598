"""Opens what a worker needs of a home, and nothing more: books, keys, signer, policy, the log by way of the head.

No models, indexes or pages: a worker is small and starts quickly. This is where its clock and randomness enter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from headwater.gateway.relay import Relays
from headwater.gateway.sharing import Sharing
from headwater.gateway.upstreams_file import read_upstreams
from headwater.gateway.vouchers import Vouchers
from headwater.gateway.workers.front import Front, FrontParts
from headwater.gateway.workers.life import end_orphaned
from headwater.gateway.workers.line import Lines
from headwater.gateway.workers.orders import Plan
from headwater.meter import Meter, MeterParts
from headwater.settings import Settings
from headwater.splits import Policy
from headwater.store.call_store import CallStore
from headwater.store.database import Sql
from headwater.store.home_database import open_home_database
from headwater.store.key_file import load_signer
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.metered_store import MeteredStore
from headwater.store.recalls import Recalls
from headwater.store.recent import recent
from headwater.store.registry_store import RegistryStore
from headwater.store.remote_log import RemoteLog

LOG_SOCKET = "log.sock"
HEAD_SOCKET = "head.sock"


@contextmanager
def opened(plan: Plan) -> Iterator[tuple[Front, Callable[[str], Relays]]]:
    """A worker's front over the home of its plan, not yet serving; and what reads an upstreams file for it.

    Raises:
        HeadwaterError: the home, its key or the head cannot be reached.
    """
    chosen, folder = settings_of(plan.settings), Path(plan.folder)
    with ExitStack() as stack:
        db = stack.enter_context(database(chosen))
        ledger, keys = Ledger(db), KeyStore(db)
        run_id = os.urandom(16).hex()
        calls = CallStore(db, ledger, keys, run_id=run_id)
        stack.callback(calls.close)
        log = RemoteLog(folder / LOG_SOCKET, run_id)
        stack.callback(log.close)
        log.watch(end_orphaned)
        recalls = Recalls(folder, run_id)
        stack.callback(recalls.close)
        sharing = Sharing.over(folder)
        stack.callback(sharing.close)
        signer = load_signer(chosen.home / "operator.key")
        policy = Policy.from_toml(plan.policy)
        parts = MeterParts(
            store=MeteredStore(db, ledger, keys, calls),
            log=log,
            signer=signer,
            policy=policy,
            registry_digest=recent(RegistryStore(db).digest),
            now_ns=time.time_ns,
            random_bytes=os.urandom,
        )
        meter = Meter(parts)
        meter.join(recalls)

        def read(text: str) -> Relays:
            models, upstreams = read_upstreams(
                text, environment=os.environ, folder=Path(plan.upstreams_folder), scoring=False
            )
            return Relays(models, upstreams, meter)

        yield (
            Front(
                FrontParts(
                    number=plan.number,
                    keys=keys,
                    relays=read(plan.upstreams),
                    sharing=sharing,
                    lines=Lines(folder / HEAD_SOCKET),
                    vouchers=_vouchers(plan, chosen, db, ledger, keys, signer.address, policy.currency),
                    vouchers_at_head=plan.vouchers,
                    random_bytes=os.urandom,
                    stall_s=plan.stall_s,
                    body_timeout_s=plan.body_timeout_s,
                    relayed_body_bytes_max=chosen.relayed_body_bytes_max,
                )
            ),
            read,
        )


@contextmanager
def database(settings: Settings) -> Iterator[Sql]:
    """The database of a home that is there already."""
    db = open_home_database(settings.home, settings.database, create=False)
    try:
        yield db
    finally:
        db.close()


def settings_as_json(settings: Settings) -> dict[str, Any]:
    """Settings as they travel to a worker."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def settings_of(given: Mapping[str, Any]) -> Settings:
    """What `settings_as_json` wrote."""
    return Settings(**{**given, "home": Path(given["home"])})


def _vouchers(
    plan: Plan, chosen: Settings, db: Sql, ledger: Ledger, keys: KeyStore, payee: str, asset: str
) -> Vouchers | None:
    """What takes vouchers, where the chain is reached by RPC."""
    if not plan.vouchers or plan.chain is None:
        return None
    from headwater.chain.client import Chain  # for who takes vouchers
    from headwater.chain.manifest import Manifest
    from headwater.gateway.credit_chain import voucher_store, vouchers_on

    chain = Chain(plan.chain)
    chain.attach(Manifest.load(chosen.home / "deployment.json"))
    return vouchers_on(voucher_store(db, ledger, keys, chain, asset), chain, payee)
