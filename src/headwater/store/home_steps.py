"""The steps of every store that keeps its tables in a home's database, so that they can be made without their stores.

Those that others refer to come first. Derived tables with a file of their own (`readings`) are none of these.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from headwater.core.errors import InvalidError, InvariantError
from headwater.store.account_store import _STEPS as _TOKEN_ACCOUNTS
from headwater.store.audit_trail import _STEPS as _AUDIT_TRAIL
from headwater.store.call_store import _STEPS as _CALLS
from headwater.store.cluster_store import _STEPS as _CLUSTERS
from headwater.store.consent_store import _STEPS as _CONSENT
from headwater.store.database import Database, Sql
from headwater.store.datanet_store import _STEPS as _DATANETS
from headwater.store.deadline_clock import _STEPS as _DEADLINE_CLOCKS
from headwater.store.dispute_store import _STEPS as _DISPUTES
from headwater.store.enrolment_store import _STEPS as _ENROLMENT
from headwater.store.epoch_store import _STEPS as _EPOCHS
from headwater.store.evidence_store import _STEPS as _EVIDENCE
from headwater.store.feedback_store import _STEPS as _FEEDBACK
from headwater.store.home_database import OWN_MODULES
from headwater.store.invoice_store import _STEPS as _INVOICES
from headwater.store.key_store import _STEPS as _API_KEYS
from headwater.store.ledger_tables import STEPS as _LEDGER
from headwater.store.payment_store import _STEPS as _X402_PAYMENTS
from headwater.store.readings_registry import _STEPS as _READINGS_REGISTRY
from headwater.store.registry_store import _STEPS as _REGISTRY
from headwater.store.review_store import _STEPS as _REVIEWS
from headwater.store.session_store import _STEPS as _PAGE_SESSIONS
from headwater.store.submission_store import _STEPS as _SUBMISSIONS
from headwater.store.telemetry_store import _STEPS as _TELEMETRY
from headwater.store.voucher_store import _STEPS as _VOUCHERS
from headwater.store.webhook_store import _STEPS as _WEBHOOKS

HOME_STEPS: Final[Mapping[str, tuple[str, ...]]] = {
    "registry": _REGISTRY,
    "calls": _CALLS,
    "token_accounts": _TOKEN_ACCOUNTS,
    "audit_trail": _AUDIT_TRAIL,
    "clusters": _CLUSTERS,
    "consent": _CONSENT,
    "datanets": _DATANETS,
    "deadline_clocks": _DEADLINE_CLOCKS,
    "disputes": _DISPUTES,
    "enrolment": _ENROLMENT,
    "epochs": _EPOCHS,
    "evidence": _EVIDENCE,
    "feedback": _FEEDBACK,
    "invoices": _INVOICES,
    "api_keys": _API_KEYS,
    "ledger": _LEDGER,
    "x402_payments": _X402_PAYMENTS,
    "readings_registry": _READINGS_REGISTRY,
    "reviews": _REVIEWS,
    "page_sessions": _PAGE_SESSIONS,
    "submissions": _SUBMISSIONS,
    "telemetry": _TELEMETRY,
    "vouchers": _VOUCHERS,
    "webhooks": _WEBHOOKS,
}
"""Steps by the name of their module, as the stores call them."""


@contextmanager
def empty_copy(of: Sql) -> Iterator[Database]:
    """A scratch file with the tables that a home's database has, without its rows.

    Raises:
        InvalidError: ``database_newer``: it was written by a newer version.
        InvariantError: ``migration_changed``: a step that was applied there has since been edited.
    """
    applied = _applied(of)
    with tempfile.TemporaryDirectory() as scratch, Database(Path(scratch) / "empty.db") as database:
        for module in sorted({module for module, _, _ in applied} - HOME_STEPS.keys()):
            raise _newer(f"module {module} is not known")
        for module, steps in HOME_STEPS.items():
            count = sum(module == one for one, _, _ in applied)
            if count > len(steps):
                raise _newer(f"{module} is at step {count}, this version knows {len(steps)}")
            if count:
                database.migrate(module, steps[:count])
        for made, there in zip(_applied(database), applied, strict=True):
            if made != there:
                raise InvariantError(
                    f"migration {made[0]} step {made[1]} was edited after it was applied",
                    code="migration_changed",
                    fix="restore the step and add a new one after it",
                )
        yield database


def _applied(database: Sql) -> list[tuple[str, int, str]]:
    rows = database.query("SELECT module, step, digest FROM migrations ORDER BY module, step")
    return [(module, step, digest) for module, step, digest in rows if module not in OWN_MODULES]


def _newer(what: str) -> InvalidError:
    return InvalidError(
        what, code="database_newer", fix="run the headwater version that wrote this database, or a later one"
    )
