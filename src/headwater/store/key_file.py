"""Secret keys on disk, the operator's first of all: 64 hex digits in a file that only its owner can read.

A key appears under its name whole or not at all, and an exposed or damaged file is refused rather
than repaired: whoever could read it may have used it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from headwater.core.errors import InvalidError, MissingError, RefusedError, UpstreamError
from headwater.receipts.signing import KeySigner

KEY_BYTES: Final = 32

_FORM: Final = re.compile(rb"[0-9a-f]{64}\n?")


def load_signer(path: Path) -> KeySigner:
    """The signer whose key is in `path`; refused as `load_secret` says, or as no key of the curve."""
    return KeySigner(load_secret(path))


def load_secret(path: Path) -> bytes:
    """The 32 secret bytes in `path`, whatever they are the key of.

    Raises:
        MissingError: no such file.
        RefusedError: a link, not a plain file, another user's, or readable by anyone but its owner.
        InvalidError: not 64 hex digits.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MissingError(
            f"no key file at {path}", code="key_file_missing", fix="create one, or give its path"
        ) from None
    except OSError as error:
        raise RefusedError(
            f"key file {path} cannot be opened: {error.strerror}",
            code="key_file_refused",
            fix="give a plain file, not a link",
        ) from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(f"key file {path} is not a plain file", code="key_file_refused", fix="give a plain file")
        if status.st_uid != os.geteuid():
            raise RefusedError(
                f"key file {path} belongs to user {status.st_uid}",
                code="key_file_refused",
                fix="use a key file of your own",
            )
        if status.st_mode & 0o077:
            raise RefusedError(
                f"key file {path} has mode {stat.S_IMODE(status.st_mode):04o}: others can reach it",
                code="key_file_exposed",
                fix=f"chmod 600 {path}, and make a new key if anyone may have read it",
            )
        content = os.read(handle, KEY_BYTES * 2 + 2)
    finally:
        os.close(handle)
    if _FORM.fullmatch(content) is None:
        raise InvalidError(
            f"key file {path} does not hold 64 lower-case hex digits",
            code="key_file_invalid",
            fix="restore it from a copy, or move it away and create a new key",
        )
    return bytes.fromhex(content.decode("ascii"))


def load_or_create_signer(path: Path, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> KeySigner:
    """The signer whose key is in `path`; a new key is made and made durable when there is none.

    Two processes that start together end up with the same key: the first file linked in wins.
    """

    def make() -> bytes:
        secret = random_bytes(KEY_BYTES)
        KeySigner(secret)  # refuses a number outside the curve's order before it is written
        return secret

    return KeySigner(_load_or_create(path, make))


def load_or_create_secret(path: Path, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """The 32 secret bytes in `path`, made when there are none, as carefully as a signer's."""
    return _load_or_create(path, lambda: random_bytes(KEY_BYTES))


def _load_or_create(path: Path, make: Callable[[], bytes]) -> bytes:
    with contextlib.suppress(MissingError):
        return load_secret(path)
    secret = make()
    try:
        _create(path, secret)
    except OSError as error:
        raise UpstreamError(
            f"key file {path} cannot be written: {error.strerror}",
            code="key_file_not_written",
            fix="check the folder and the space left on its disk",
        ) from None
    return load_secret(path)


def _create(path: Path, secret: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(secret.hex().encode() + b"\n")
            file.flush()
            os.fsync(handle)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
