"""What the pages look at: the open stores of one home, the gateway beside them, and a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headwater.flow import Flow
from headwater.gateway import Gateway
from headwater.models.adapters import AdapterStore
from headwater.settings import Settings
from headwater.settle import Settlement
from headwater.store.database import Sql
from headwater.store.epoch_store import EpochStore
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.registry_store import RegistryStore


@dataclass(frozen=True, slots=True)
class Site:
    """Everything a page may read; built once by the layer above, which closes it afterwards."""

    gateway: Gateway
    folder: Path  # of the home
    settings: Settings
    db: Sql
    registry: RegistryStore
    ledger: Ledger
    keys: KeyStore
    epochs: EpochStore
    adapters: AdapterStore
    books: Settlement | None  # epochs and claims on a chain; None without one
    policy_text: Callable[[str], str]  # the TOML of a policy that was in force, by its digest
    now_ns: Callable[[], int]
    random_bytes: Callable[[int], bytes]

    @property
    def flow(self) -> Flow:
        """The path of a call, as the gateway runs it."""
        return self.gateway.flow

    @property
    def currency(self) -> str:
        """What prices are in."""
        return self.flow.parts.policy.currency
