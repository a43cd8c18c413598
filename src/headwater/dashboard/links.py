"""Links that sign somebody in once: written to a file by who runs the home, and given to whom it is for.

No mail is sent. A link holds a random word whose digest the home keeps, with role and name, until it is used or has
ended. Opening it shows a button; only pressing that uses it up, so a preview of the link does not.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from typing import Final

from headwater.core.errors import InvalidError
from headwater.store.session_store import SessionStore

PURPOSE: Final = "link"
ROLES: Final = ("operator", "contributor", "payer")
WORD_BYTES: Final = 24


def make_link(store: SessionStore, role: str, subject: str, *, word: bytes, now_ns: int, lasts_ns: int) -> str:
    """The path of a link that signs in one person once.

    Args:
        subject: a contributor's id, a key's id, or the operator's name.
        word: 24 random bytes.

    Raises:
        InvalidError: no such role.
    """
    if role not in ROLES:
        raise InvalidError(f"no role {role[:40]!r}", code="role_unknown", fix=f"use {', '.join(ROLES)}")
    store.keep_word(word, PURPOSE, f"{role}:{subject}", now_ns=now_ns, lasts_ns=lasts_ns)
    return f"/sign-in/link/{urlsafe_b64encode(word).decode()}"


def take_link(store: SessionStore, word: str, *, now_ns: int) -> tuple[str, str]:
    """(role, subject) of a link, which is used up.

    Raises:
        RefusedError: ``word_not_in_force``.
    """
    try:
        raw = urlsafe_b64decode(word.encode())
    except (ValueError, Error):
        raw = b""
    role, _, subject = store.take_word(raw, PURPOSE, now_ns=now_ns).partition(":")
    return role, subject
