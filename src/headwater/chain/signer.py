"""Keys that sign transactions. A key is read from a file or the environment and is never shown, logged or kept as text.

Anything with an address and `sign_transaction` is a signer, so a hardware or remote key fits as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.core.keccak import keccak256

_FORM = re.compile(r"(?:0x)?([0-9a-fA-F]{64})")


class Signer(Protocol):
    """What `Chain` needs in order to send."""

    @property
    def address(self) -> str:
        """EIP-55 address that pays for and sends the transactions."""

    def sign_transaction(self, transaction: dict[str, Any]) -> bytes:
        """The signed bytes of an EIP-1559 transaction whose fields are all filled in."""


class KeySigner:
    """A signer with its key in memory."""

    __slots__ = ("_account",)

    def __init__(self, key: bytes) -> None:
        """Take a 32-byte secp256k1 key.

        Raises:
            InvalidError: not a key of that curve. The message does not hold it.
        """
        from eth_account import Account

        try:
            self._account = Account.from_key(key)
        except Exception:  # the library's message may contain the key
            raise InvalidError("this is not a secp256k1 key", code="key_invalid", fix="give 64 hex digits") from None

    @property
    def address(self) -> str:
        """EIP-55 address of the key."""
        return str(self._account.address)

    def sign_transaction(self, transaction: dict[str, Any]) -> bytes:
        """The signed bytes of `transaction`."""
        return bytes(self._account.sign_transaction(transaction).raw_transaction)

    def __repr__(self) -> str:
        return f"KeySigner({self.address})"


def signer_from_text(text: str) -> KeySigner:
    """The signer of a key written as 64 hex digits.

    Raises:
        InvalidError: anything else. The message does not hold it.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise InvalidError("a key is 64 hex digits", code="key_invalid", fix="write the key as 64 hex digits")
    return KeySigner(bytes.fromhex(match[1]))


def signer_from_file(path: Path) -> KeySigner:
    """The signer whose key is the only line of `path`.

    Raises:
        MissingError: no such file.
        RefusedError: others may read the file.
        InvalidError: it does not hold a key.
    """
    if not path.is_file():
        raise MissingError(f"no key file {path.name}", code="key_missing", fix="give the path of a file with the key")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise RefusedError(
            f"key file {path.name} has mode {mode:03o}",
            code="key_exposed",
            fix=f"chmod 600 {path.name}, or make a new key",
        )
    return signer_from_text(path.read_text(encoding="ascii", errors="replace"))


def signer_from_environment(name: str, environment: Mapping[str, str] = os.environ) -> KeySigner:
    """The signer whose key is in the environment variable `name`.

    Raises:
        MissingError: it is not set.
        InvalidError: it does not hold a key.
    """
    if name not in environment:
        raise MissingError(f"{name} is not set", code="key_missing", fix=f"set {name} to the key, 64 hex digits")
    return signer_from_text(environment[name])


def derived_signer(seed: bytes, number: int) -> KeySigner:
    """Account `number` of an embedded chain's seed: for play money only."""
    return KeySigner(keccak256(b"headwater.embedded.account" + number.to_bytes(4, "big") + seed))
