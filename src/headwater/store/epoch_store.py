"""Closed epochs and the indices of payees, in the home folder's database.

Invariants: a payee's index and address never change; epochs are numbered without gaps and are never
edited, only marked as posted. A window is opened before it is computed and never changes either, so a
close that was interrupted goes on with the same receipts and the same time, and gives the same bytes. What
corrections are about to be logged is kept too, until they are booked.
Knows nothing of how an epoch is computed or of chains.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, MissingError
from headwater.core.ids import AccountId
from headwater.receipts import manifest_hash
from headwater.settlement.disputes import Span
from headwater.settlement.epoch import Epoch, Payee, Window
from headwater.store.database import Row, Sql

_STEPS = (
    """
    CREATE TABLE payees (
      payee_index INTEGER PRIMARY KEY,
      account TEXT NOT NULL UNIQUE,
      address TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE epochs (
      epoch INTEGER PRIMARY KEY CHECK (epoch > 0),
      log_size INTEGER NOT NULL,
      manifest BLOB NOT NULL,
      closed_at_ns INTEGER NOT NULL,
      transaction_hash TEXT
    ) STRICT;
    CREATE TRIGGER payees_are_for_ever BEFORE UPDATE ON payees
    BEGIN SELECT RAISE(ABORT, 'a payee keeps its index and address'); END;
    CREATE TRIGGER epochs_are_for_ever BEFORE UPDATE OF epoch, log_size, manifest, closed_at_ns ON epochs
    BEGIN SELECT RAISE(ABORT, 'a closed epoch is never edited'); END;
    """,
    """
    CREATE TABLE windows (
      epoch INTEGER PRIMARY KEY CHECK (epoch > 0),
      log_from INTEGER NOT NULL,
      log_size INTEGER NOT NULL CHECK (log_size > log_from),
      log_seen INTEGER NOT NULL CHECK (log_seen >= log_size),
      log_root BLOB NOT NULL,
      opened_at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE changes (
      epoch INTEGER PRIMARY KEY REFERENCES epochs (epoch),
      packed BLOB NOT NULL
    ) STRICT;
    CREATE TRIGGER windows_are_for_ever BEFORE UPDATE ON windows
    BEGIN SELECT RAISE(ABORT, 'a window is never edited'); END;
    CREATE TRIGGER changes_are_for_ever BEFORE UPDATE ON changes
    BEGIN SELECT RAISE(ABORT, 'a closed epoch is never edited'); END;
    """,
    """
    CREATE TABLE corrections (
      receipt_id TEXT PRIMARY KEY,
      payer TEXT NOT NULL,
      booked INTEGER NOT NULL DEFAULT 0 CHECK (booked IN (0, 1))
    ) STRICT;
    CREATE INDEX corrections_open ON corrections (receipt_id) WHERE booked = 0;
    """,
)
_COLUMNS = "epoch, log_size, manifest, closed_at_ns, transaction_hash"


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """An epoch as it was closed, and the transaction that posted its root if one did."""

    epoch: int
    log_size: int
    manifest: bytes
    closed_at_ns: int
    transaction_hash: str | None

    @property
    def data_hash(self) -> bytes:
        """What the chain keeps of the manifest, 32 bytes."""
        return manifest_hash(self.manifest)

    @property
    def manifest_digest(self) -> str:
        """How the next epoch names this one, ``sha256:…``."""
        return digest(self.manifest)


class EpochStore:
    """Epochs kept in `database`; its tables are made on first use."""

    def __init__(self, database: Sql) -> None:
        self._database = database
        database.migrate("epochs", _STEPS)

    def add_payees(self, addresses: Mapping[AccountId, str]) -> tuple[Payee, ...]:
        """Give every account an index, new ones after the last; gives all payees by index.

        Raises:
            ConflictError: an account or an address is already a payee with the other one different.
        """
        with self._database.transaction():
            known = {payee.account: payee for payee in self.payees()}
            taken = {payee.address.lower() for payee in known.values()}
            for account, address in addresses.items():
                if account in known and known[account].address.lower() == address.lower():
                    continue
                if account in known or address.lower() in taken:
                    raise ConflictError(
                        f"{account} or {address} is already a payee, with another address or account",
                        code="payee_conflict",
                        fix="one account has one address, and an address receives for one account",
                    )
                self._database.execute("INSERT INTO payees VALUES (?, ?, ?)", (len(known), account, address))
                known[account] = Payee(len(known), account, address)
                taken.add(address.lower())
        return self.payees()

    def payees(self) -> tuple[Payee, ...]:
        """All payees, by index."""
        rows = self._database.query("SELECT payee_index, account, address FROM payees ORDER BY payee_index")
        return tuple(Payee(index, AccountId(account), address) for index, account, address in rows)

    def transaction(self) -> AbstractContextManager[None]:
        """A transaction in which nobody else opens a window or corrects a receipt."""
        return self._database.transaction()

    def intend(self, receipt_id: str, payer: AccountId) -> None:
        """Keep, durably, that a correction is about to be logged and who pays for it.

        Raises:
            ConflictError: it was intended with another payer.
        """
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO corrections (receipt_id, payer) VALUES (?, ?) ON CONFLICT DO NOTHING", (receipt_id, payer)
            )
            rows = self._database.query("SELECT payer FROM corrections WHERE receipt_id = ?", (receipt_id,))
            if rows[0][0] != payer:
                raise ConflictError(
                    f"receipt {receipt_id} is paid by {rows[0][0]}, not by {payer}",
                    code="payer_differs",
                    fix="name the payer that it was first given with",
                )

    def corrected(self, receipt_id: str) -> None:
        """Mark a correction as booked."""
        self._database.execute("UPDATE corrections SET booked = 1 WHERE receipt_id = ?", (receipt_id,))

    def intentions(self) -> tuple[tuple[str, AccountId], ...]:
        """(receipt id, payer) of corrections that are not booked; their receipts may be in the log or not."""
        rows = self._database.query("SELECT receipt_id, payer FROM corrections WHERE booked = 0 ORDER BY receipt_id")
        return tuple((identity, AccountId(payer)) for identity, payer in rows)

    def opened(self) -> Window | None:
        """The window that was opened and is not closed yet, if there is one."""
        rows = self._database.query(
            "SELECT epoch, log_from, log_size, log_root, opened_at_ns, log_seen FROM windows"
            " WHERE epoch > (SELECT coalesce(max(epoch), 0) FROM epochs)"
        )
        return Window(*rows[0]) if rows else None

    def open_window(self, window: Window) -> None:
        """Keep a window, durably, before it is computed."""
        self._database.execute(
            "INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?)",
            (
                window.epoch,
                window.log_from,
                window.log_size,
                window.log_seen,
                window.log_root,
                window.closed_at_ns,
            ),
        )

    def spans(self) -> tuple[Span, ...]:
        """Every window so far, oldest first, the one that is not closed yet included."""
        known = {
            epoch: Span(*places)
            for epoch, *places in self._database.query("SELECT epoch, log_from, log_size, log_seen FROM windows")
        }
        before = 0
        for epoch, size in self._database.query("SELECT epoch, log_size FROM epochs ORDER BY epoch"):
            known.setdefault(epoch, Span(before, size, size))  # closed before windows were kept
            before = size
        return tuple(span for _, span in sorted(known.items()))

    def changes(self, epoch: int) -> bytes:
        """The packed change set of an epoch.

        Raises:
            MissingError: it has not been closed, or was closed before change sets were kept.
        """
        rows = self._database.query("SELECT packed FROM changes WHERE epoch = ?", (epoch,))
        if not rows:
            raise MissingError(
                f"epoch {epoch} has no change set", code="changes_missing", fix="its manifest has all amounts"
            )
        return bytes(rows[0][0])

    def add(self, epoch: Epoch) -> EpochRecord:
        """Keep a closed epoch; keeping the same one again changes nothing.

        Raises:
            ConflictError: that number holds another epoch, or is not the next.
        """
        window = epoch.window
        with self._database.transaction():
            last = self.last()
            if last is not None and last.epoch == window.epoch and last.manifest == epoch.manifest:
                return last
            if window.epoch != (last.epoch + 1 if last else 1):
                raise ConflictError(
                    f"epoch {window.epoch} is not the next one",
                    code="epoch_conflict",
                    fix="close epochs one after another",
                )
            self._database.execute(
                "INSERT INTO epochs VALUES (?, ?, ?, ?, NULL)",
                (window.epoch, window.log_size, epoch.manifest, window.closed_at_ns),
            )
            self._database.execute("INSERT INTO changes VALUES (?, ?)", (window.epoch, epoch.changes))
        return self.get(window.epoch)

    def posted(self, epoch: int, transaction_hash: str) -> None:
        """Mark an epoch's root as posted by a transaction."""
        self._database.execute("UPDATE epochs SET transaction_hash = ? WHERE epoch = ?", (transaction_hash, epoch))

    def get(self, epoch: int) -> EpochRecord:
        """The epoch with this number.

        Raises:
            MissingError: it has not been closed.
        """
        rows = self._database.query(f"SELECT {_COLUMNS} FROM epochs WHERE epoch = ?", (epoch,))
        if not rows:
            raise MissingError(
                f"epoch {epoch} has not been closed", code="epoch_missing", fix="run headwater epoch close"
            )
        return _record(rows[0])

    def all(self) -> tuple[EpochRecord, ...]:
        """Every epoch, oldest first."""
        return tuple(_record(row) for row in self._database.query(f"SELECT {_COLUMNS} FROM epochs ORDER BY epoch"))

    def last(self) -> EpochRecord | None:
        """The newest epoch, or nothing before the first."""
        rows = self._database.query(f"SELECT {_COLUMNS} FROM epochs ORDER BY epoch DESC LIMIT 1")
        return _record(rows[0]) if rows else None

    def last_posted(self) -> EpochRecord | None:
        """The newest epoch whose root is on the chain, or nothing before the first."""
        rows = self._database.query(
            f"SELECT {_COLUMNS} FROM epochs WHERE transaction_hash IS NOT NULL ORDER BY epoch DESC LIMIT 1"
        )
        return _record(rows[0]) if rows else None

    def containing(self, log_index: int) -> EpochRecord:
        """The epoch whose window holds the receipt at `log_index`.

        Raises:
            MissingError: that receipt is in no closed epoch yet.
        """
        rows = self._database.query(
            f"SELECT {_COLUMNS} FROM epochs WHERE log_size > ? ORDER BY epoch LIMIT 1", (log_index,)
        )
        if not rows:
            raise MissingError(
                f"the receipt at log index {log_index} is in no closed epoch",
                code="epoch_not_closed",
                fix="wait for the next epoch, or run headwater epoch close",
            )
        return _record(rows[0])


def _record(row: Row) -> EpochRecord:
    return EpochRecord(*row)
