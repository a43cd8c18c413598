"""Keys that sign transactions. A key is read from a file or the environment and is never shown, logged or kept as text.

Anything with an address and `sign_transaction` is a signer, so a hardware or remote key fits as well.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from headwater.core.address import format_address, parse_address
from headwater.core.errors import InvalidError, MissingError, RefusedError, UpstreamError
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


class CommandSigner:
    """A key that somebody else holds: a command signs, and what it gives back is checked before it is used.

    The command reads one JSON object, the fields of an EIP-1559 transaction with numbers as decimal strings and `data`
    as 0x hex, and writes the signed bytes as 0x hex. With `blobVersionedHashes` it is one of EIP-4844, signed without
    its blobs.
    """

    __slots__ = ("_address", "_command", "_timeout_s")

    def __init__(self, command: Sequence[str], address: str, *, timeout_s: float = 60.0) -> None:
        """Sign as `address` by running `command`, without a shell."""
        self._command, self._timeout_s = tuple(command), timeout_s
        self._address = format_address(parse_address(address))
        if not self._command:
            raise InvalidError("an empty signer command", code="signer_invalid", fix="name the program that signs")

    @property
    def address(self) -> str:
        """EIP-55 address that the command signs for."""
        return self._address

    def sign_transaction(self, transaction: dict[str, Any]) -> bytes:
        """The signed bytes of `transaction`.

        Raises:
            UpstreamError: the command failed, or gave something that is not signed bytes.
            RefusedError: it signed something else, or with another key.
        """
        wanted = {key: value for key, value in transaction.items() if key not in ("from", "type", "accessList")}
        shown = {key: value if isinstance(value, str | list) else str(value) for key, value in wanted.items()}
        try:
            done = subprocess.run(
                self._command,
                input=json.dumps(shown, sort_keys=True).encode() + b"\n",
                capture_output=True,
                timeout=self._timeout_s,
                check=True,
            )
            raw = bytes.fromhex(done.stdout.decode("ascii").strip().removeprefix("0x"))
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise UpstreamError(
                f"the signer {Path(self._command[0]).name} failed: {type(error).__name__}",
                code="signer_failed",
                fix="run it by hand with the fields of a transaction",
            ) from None
        _check_signed(raw, wanted, self._address)
        return raw

    def __repr__(self) -> str:
        return f"CommandSigner({self._address})"


def _check_signed(raw: bytes, wanted: Mapping[str, Any], address: str) -> None:
    from eth_account import Account
    from eth_account.typed_transactions.typed_transaction import TypedTransaction
    from hexbytes import HexBytes

    try:
        fields: dict[str, Any] = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        who = str(Account.recover_transaction(HexBytes(raw)))
    except Exception:  # the library raises several kinds
        raise UpstreamError(
            "the signer gave no signed transaction", code="signer_failed", fix="let it write 0x hex"
        ) from None
    numbers = ("chainId", "nonce", "gas", "maxFeePerGas", "maxPriorityFeePerGas", "value")
    same = all(int(fields[name]) == int(wanted[name]) for name in numbers)
    same = same and bytes(fields["data"]).hex() == str(wanted.get("data", "0x")).removeprefix("0x").lower()
    same = same and bytes(fields.get("to") or b"").hex() == str(wanted.get("to") or "").removeprefix("0x").lower()
    if "blobVersionedHashes" in wanted:
        same = same and int(fields["maxFeePerBlobGas"]) == int(wanted["maxFeePerBlobGas"])
        same = (
            same and ["0x" + bytes(one).hex() for one in fields["blobVersionedHashes"]] == wanted["blobVersionedHashes"]
        )
    if not same or who != address:
        raise RefusedError(
            f"the signer signed for {who} and {'the same' if same else 'another'} transaction, asked was {address}",
            code="signer_differs",
            fix="use the signer of that address",
        )


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
