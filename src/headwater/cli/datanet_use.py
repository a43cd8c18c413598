"""What a version of a datanet gives to somebody who trains on it or answers from it, on its terms."""

from __future__ import annotations

import time

from headwater.cli.home import Home
from headwater.core.errors import RefusedError
from headwater.core.ids import ContributionId
from headwater.registry import Use
from headwater.registry.datanet import may_use
from headwater.store.consent_store import ConsentStore
from headwater.store.datanet_store import DatanetStore, parse_reference


def contributions_of(home: Home, reference: str, use: Use) -> tuple[ContributionId, ...]:
    """What NAME@VERSION (the newest frozen version without @VERSION) offers for a use now, sorted.

    Members that were withdrawn, erased or taken down since it was frozen are left out.

    Raises:
        MissingError: no such datanet or version.
        RefusedError: the datanet does not permit the use, has ended, or permits it to other operators only.
    """
    name, number = parse_reference(reference)
    store, now = DatanetStore(home.db), time.time_ns()
    kept = store.get(name)
    refusal = may_use(kept.datanet, use, now, holder=home.signer.address)
    if refusal is not None:
        code, message = refusal
        raise RefusedError(message, code=code, fix="see `headwater datanet show`, or ask its owner")
    number = kept.version if number is None else number
    store.version(kept, number)
    stopped = ConsentStore(home.db).all_stopped(now)
    return tuple(entry.contribution for entry in store.entries(kept, number) if entry.contribution not in stopped)


def version_name(home: Home, reference: str) -> str:
    """A version as a record names it for good: the datanet's id, the version and the manifest's digest."""
    name, number = parse_reference(reference)
    store = DatanetStore(home.db)
    kept = store.get(name)
    manifest = store.version(kept, kept.version if number is None else number).manifest
    return f"{manifest.datanet}@{manifest.version} {manifest.digest}"
