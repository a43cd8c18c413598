"""Request and answer text at rest: encrypted under a key of its owner, so that erasing the key erases the text.

    home key (a file)  wraps  an owner's key (a row)  encrypts  the texts of that owner's calls

AES-256-GCM with random nonces; what a ciphertext belongs to (owner, call, kind) is bound into it, so none can
be moved to another place. Nothing readable is ever written to the database or to its write-ahead log, and once
an owner's key is gone, no copy of the file made without the key row can be read. Receipts hold digests over nonces,
and verify with all text gone. Knows nothing of calls' states or money.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from headwater.core.errors import UpstreamError
from headwater.store.database import Sql
from headwater.store.key_file import load_or_create_secret

KEY_FILE: Final = "evidence.key"
MAGIC: Final = b"HWE1"
NONCE_BYTES: Final = 12
KEY_BYTES: Final = 32

_STEPS = (
    """
    CREATE TABLE evidence_keys (
      owner TEXT PRIMARY KEY,
      wrapped BLOB NOT NULL
    );
    """,
)


class EvidenceCipher:
    """Encrypts and reads texts by owner; keys are rows of `db`, wrapped by the key file beside it."""

    def __init__(self, db: Sql, *, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._db, self._random = db, random_bytes
        self._key_file: Path = db.folder / KEY_FILE
        self._home: AESGCM | None = None
        # The owner's key that was used last: as it is wrapped, itself, and what it encrypts with.
        self._opened: tuple[bytes, bytes, AESGCM] = (b"", bytes(KEY_BYTES), AESGCM(bytes(KEY_BYTES)))
        db.migrate("evidence", _STEPS)

    def seal(self, owner: str, call_id: str, kind: str, text: bytes) -> bytes:
        """The ciphertext of a text; the owner gets a key if it has none. Within the caller's transaction."""
        cipher = self._cipher(owner) or self._make(owner)
        nonce = self._random(NONCE_BYTES)
        return MAGIC + nonce + cipher.encrypt(nonce, text, _bound(owner, call_id, kind))

    def open(self, owner: str, call_id: str, kind: str, sealed: bytes | None) -> bytes | None:
        """The text of a ciphertext; None when there is none, or its owner's key has been erased.

        What was written before texts were encrypted is given as it is.

        Raises:
            UpstreamError: it was changed, or belongs to another call.
        """
        if sealed is None or not sealed.startswith(MAGIC):
            return sealed
        cipher = self._cipher(owner)
        if cipher is None:
            return None
        nonce, rest = sealed[len(MAGIC) : len(MAGIC) + NONCE_BYTES], sealed[len(MAGIC) + NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, rest, _bound(owner, call_id, kind))
        except InvalidTag:
            raise _unreadable(f"the {kind} of {call_id}") from None

    def mark(self, owner: str, text: str) -> bytes:
        """By what a text of this owner is known again, and of nobody else; the owner gets a key if it has none.

        A keyed digest: without the owner's key no text can be tried against it, and once that is erased nobody has it.
        """
        found = self.mark_of(owner, text)
        if found is None:
            self._make(owner)
            found = self.mark_of(owner, text)
            assert found is not None
        return found

    def mark_of(self, owner: str, text: str) -> bytes | None:
        """The mark of a text; None for an owner without a key."""
        key = self._key(owner)
        if key is None:
            return None
        # The key encrypts; what marks is another one made of it, so that neither tells of the other.
        marking = hmac.digest(key, b"headwater answer mark", hashlib.sha256)
        return hmac.digest(marking, text.encode("utf-8", "surrogatepass"), hashlib.sha256)

    def erase(self, owner: str) -> bool:
        """Delete an owner's key: none of its texts can be read any more. Whether there was one."""
        self._opened = (b"", bytes(KEY_BYTES), self._opened[2])
        return self._db.execute("DELETE FROM evidence_keys WHERE owner = ?", (owner,)) > 0

    def _cipher(self, owner: str) -> AESGCM | None:
        return None if (opened := self._open(owner)) is None else opened[1]

    def _key(self, owner: str) -> bytes | None:
        return None if (opened := self._open(owner)) is None else opened[0]

    def _open(self, owner: str) -> tuple[bytes, AESGCM] | None:
        # Asked each time: another process may have erased the key, and then nobody may go on reading.
        rows = self._db.query("SELECT wrapped FROM evidence_keys WHERE owner = ?", (owner,))
        if not rows:
            return None
        wrapped: bytes = rows[0][0]
        known, raw, cipher = self._opened
        if known == wrapped:
            return raw, cipher
        try:
            key = self._wrapping().decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], owner.encode())
        except InvalidTag:
            raise _unreadable(f"the key of {owner}") from None
        self._opened = (wrapped, key, AESGCM(key))
        return key, self._opened[2]

    def _make(self, owner: str) -> AESGCM:
        key, nonce = self._random(KEY_BYTES), self._random(NONCE_BYTES)
        wrapped = nonce + self._wrapping().encrypt(nonce, key, owner.encode())
        self._db.execute("INSERT INTO evidence_keys VALUES (?, ?)", (owner, wrapped))
        return AESGCM(key)

    def _wrapping(self) -> AESGCM:
        if self._home is None:
            self._home = AESGCM(load_or_create_secret(self._key_file))
        return self._home


def _bound(owner: str, call_id: str, kind: str) -> bytes:
    return "\x00".join((owner, call_id, kind)).encode()


def _unreadable(what: str) -> UpstreamError:
    return UpstreamError(
        f"{what} cannot be decrypted",
        code="evidence_unreadable",
        fix=f"restore {KEY_FILE} and the database from the same copy",
    )
