"""The operator's password: its Argon2id hash in a file of the home that only its owner can read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from headwater.core.errors import InvalidError, MissingError, RefusedError

FILE: Final = "operator.password"
CHARS_MIN: Final = 12
CHARS_MAX: Final = 1_024

_HASHER: Final = PasswordHasher()  # RFC 9106's second recommended setting, with its time cost raised


def set_password(home: Path, password: str) -> Path:
    """Keep the hash of a password; the one before is worth nothing from then on.

    Raises:
        InvalidError: ``password_invalid``: too short or too long.
    """
    if not CHARS_MIN <= len(password) <= CHARS_MAX:
        raise InvalidError(
            f"a password of {len(password)} characters",
            code="password_invalid",
            fix=f"use {CHARS_MIN} to {CHARS_MAX} characters",
        )
    path, draft = home / FILE, home / f"{FILE}.{os.getpid()}"
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(_HASHER.hash(password))
    draft.replace(path)
    return path


def check_password(home: Path, password: str) -> None:
    """Refuse any password but the operator's.

    Raises:
        MissingError: ``password_missing``: none was set.
        RefusedError: ``password_wrong``.
    """
    path = home / FILE
    if not path.exists():
        raise MissingError(
            "no operator's password is set here",
            code="password_missing",
            fix="run headwater pages password, or sign in by a link of headwater pages link operator",
        )
    try:
        _HASHER.verify(path.read_text("utf-8"), password[: CHARS_MAX + 1])
    except (VerificationError, InvalidHashError):
        raise RefusedError("this is not the operator's password", code="password_wrong", fix="try again") from None
