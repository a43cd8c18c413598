"""Accounts of answers token by token, encrypted under their payer's key as the text is, and gone when the text is gone.

Kept by call; what a call's text loses, this loses in the same statement. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

from headwater.store.database import Sql
from headwater.store.evidence_store import EvidenceCipher

_KIND = "token account"
_STEPS = (
    """
    CREATE TABLE token_accounts (
      call_id TEXT PRIMARY KEY,
      key_id TEXT NOT NULL,
      sealed BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX token_accounts_by_key ON token_accounts (key_id);
    CREATE TRIGGER token_accounts_go_with_text AFTER UPDATE OF answer ON calls
    WHEN NEW.answer IS NULL AND OLD.answer IS NOT NULL
    BEGIN DELETE FROM token_accounts WHERE call_id = OLD.call_id; END;
    """,
)


class AccountStore:
    """Token accounts in `db`, which already has the journal of calls."""

    def __init__(self, db: Sql) -> None:
        self._db, self._cipher = db, EvidenceCipher(db)
        db.migrate("token_accounts", _STEPS)

    def keep(self, call_id: str, key_id: str, account: bytes) -> None:
        """Keep a call's account; a second one, of an attribution that was repeated, takes the place of the first."""
        with self._db.transaction():
            sealed = self._cipher.seal(key_id, call_id, _KIND, account)
            self._db.execute(
                "INSERT INTO token_accounts VALUES (?, ?, ?)"
                " ON CONFLICT (call_id) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed",
                (call_id, key_id, sealed),
            )

    def get(self, call_id: str) -> bytes | None:
        """A call's account; None when there is none, or it was erased."""
        rows = self._db.query("SELECT key_id, sealed FROM token_accounts WHERE call_id = ?", (call_id,))
        return self._cipher.open(rows[0][0], call_id, _KIND, rows[0][1]) if rows else None
