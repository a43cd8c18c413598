"""Requests that begin in this process, for a payer who has already shown who they are.

The pages ask for somebody who signed in: they put the payer's key id into the request's ASGI scope, where nothing
that comes over a network can put anything, and the gateway treats the request as that key's: its limits, budget,
licences and records are those of any other call.
"""

from __future__ import annotations

from typing import Final

from headwater.gateway.wire import Scope
from headwater.store.key_store import KeyRecord, KeyStore

PAYER: Final = "headwater.payer"


def key_inside(scope: Scope, keys: KeyStore) -> KeyRecord | None:
    """The key that a request of this process is for, as it is now; None for one that came from outside.

    Raises:
        RefusedError: ``invalid_api_key`` when it was revoked, ``api_key_expired``.
    """
    key_id = scope.get(PAYER)
    if key_id is None:
        return None
    return keys.in_force(key_id)
