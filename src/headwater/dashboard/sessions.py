"""Signed cookies, and the token that shows that a form came from one of our pages.

Every visitor gets a cookie with a random token and a signature; who signs in gets a new one, whose token the store
knows. The cookie is HttpOnly and SameSite=Strict, and Secure wherever the pages are reached over HTTPS. A form
carries a mask and the masked digest of the token, so that no two pages hold the same bytes and a compressed page
tells nothing of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from headwater.core.errors import RefusedError
from headwater.core.instants import SECOND_NS
from headwater.dashboard.site import Site
from headwater.store.session_store import SessionRecord, SessionStore

COOKIE: Final = "headwater"
CSRF_HEADER: Final = "x-csrf-token"
CSRF_FIELD: Final = "csrf"

LASTS_NS: Final = 12 * 3_600 * SECOND_NS
"""A session ends so long after signing in, used or not."""
IDLE_NS: Final = 2 * 3_600 * SECOND_NS
"""It ends earlier when nothing was asked for so long."""
_SEEN_EVERY_NS: Final = 60 * SECOND_NS

_TOKEN_BYTES: Final = 32
_SAFE: Final = ("GET", "HEAD", "OPTIONS")

Session = SessionRecord


@dataclass(frozen=True, slots=True)
class Sessions:
    """Who asks, by their cookie."""

    site: Site
    store: SessionStore
    secret: bytes  # signs cookies; 32 bytes of the home's own

    @classmethod
    def open(cls, site: Site) -> Sessions:
        """The sessions of a home; the secret that signs cookies is made when it is first needed."""
        return cls(site, SessionStore(site.db), _secret(site.folder / "pages.key"))

    def of(self, request: Request) -> Session | None:
        """Who has signed in with the cookie of this request."""
        scope = request.scope
        if "headwater.session" not in scope:
            scope["headwater.session"] = self._look(request)
        found: Session | None = scope["headwater.session"]
        return found

    def require(self, request: Request, *roles: str) -> Session:
        """The session of this request, which must have one of `roles`.

        Raises:
            RefusedError: ``sign_in_needed`` or ``role_not_permitted``.
        """
        session = self.of(request)
        if session is None:
            raise RefusedError(
                "this page is for who has signed in", code="sign_in_needed", fix=f"sign in as {' or '.join(roles)}"
            )
        if session.role not in roles:
            raise RefusedError(
                f"this page is not for a {session.role}", code="role_not_permitted", fix=f"it is for {', '.join(roles)}"
            )
        return session

    def begin(self, request: Request, response: Response) -> None:
        """Give a visitor without a cookie one, so that forms can be held to it."""
        if self._token(request) is None or "headwater.fresh" in request.scope:
            self._set(request, response, self._fresh(request))

    def sign_in(self, request: Request, response: Response, role: str, subject: str) -> None:
        """Begin a session under a new token; one that was known before signing in is worth nothing afterwards."""
        if (old := self._token(request)) is not None:
            self.store.end(old)
        token = self.site.random_bytes(_TOKEN_BYTES)
        self.store.begin(token, role, subject, now_ns=self.site.now_ns(), lasts_ns=LASTS_NS)
        self._set(request, response, token)

    def sign_out(self, request: Request, response: Response) -> None:
        """End the session of this request."""
        if (token := self._token(request)) is not None:
            self.store.end(token)
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")

    def csrf(self, request: Request) -> str:
        """What a form on this page must send back."""
        token = self._token(request) or self._fresh(request)
        proof = self._proof(token)
        mask = self.site.random_bytes(len(proof))
        return _text(mask + bytes(a ^ b for a, b in zip(mask, proof, strict=True)))

    async def check_csrf(self, request: Request) -> None:
        """Refuse whatever changes something and did not come from one of our pages.

        Raises:
            RefusedError: ``csrf_refused``.
        """
        if request.method in _SAFE:
            return
        token = self._token(request)
        sent = request.headers.get(CSRF_HEADER, "")
        if not sent and request.headers.get("content-type", "").startswith(_FORMS):
            form = await request.form(max_files=4, max_fields=200)
            sent = str(form.get(CSRF_FIELD, ""))
        if token is None or not self._same_origin(request) or not self._matches(sent, token):
            raise RefusedError(
                "this form is not from a page of this site, or the page is too old",
                code="csrf_refused",
                fix="load the page again and repeat it there",
            )

    def secure(self, request: Request) -> bool:
        """Whether cookies go over HTTPS only: where people reach the pages that way."""
        return (self.site.settings.public_url or str(request.url)).startswith("https:")

    def host(self, request: Request) -> str:
        """Host and port under which people reach the pages."""
        return urlsplit(self.site.settings.public_url).netloc or request.headers.get("host", "")

    def _same_origin(self, request: Request) -> bool:
        fetched = request.headers.get("sec-fetch-site")
        if fetched is not None and fetched not in ("same-origin", "none"):
            return False
        origin = request.headers.get("origin")
        return origin is None or urlsplit(origin).netloc in (self.host(request), request.headers.get("host", ""))

    def _look(self, request: Request) -> Session | None:
        token = self._token(request)
        if token is None:
            return None
        now_ns = self.site.now_ns()
        session = self.store.get(token, now_ns=now_ns, idle_ns=IDLE_NS)
        if session is not None and now_ns - session.seen_at_ns > _SEEN_EVERY_NS:
            self.store.seen(token, now_ns)
        return session

    def _token(self, request: Request) -> bytes | None:
        token, _, signature = request.cookies.get(COOKIE, "").partition(".")
        raw, signed = _bytes(token), _bytes(signature)
        if len(raw) != _TOKEN_BYTES or not hmac.compare_digest(signed, self._mac(b"cookie", raw)):
            return None
        return raw

    def _fresh(self, request: Request) -> bytes:
        """The token that this response will give; the form on the page is bound to the same."""
        token: bytes = request.scope.setdefault("headwater.fresh", self.site.random_bytes(_TOKEN_BYTES))
        return token

    def _set(self, request: Request, response: Response, token: bytes) -> None:
        response.set_cookie(
            COOKIE,
            f"{_text(token)}.{_text(self._mac(b'cookie', token))}",
            max_age=LASTS_NS // SECOND_NS,
            path="/",
            httponly=True,
            samesite="strict",
            secure=self.secure(request),
        )

    def _proof(self, token: bytes) -> bytes:
        return self._mac(b"form", token)

    def _matches(self, sent: str, token: bytes) -> bool:
        raw = _bytes(sent)
        half = len(raw) // 2
        unmasked = bytes(a ^ b for a, b in zip(raw[:half], raw[half:], strict=False))
        return hmac.compare_digest(unmasked, self._proof(token))

    def _mac(self, purpose: bytes, token: bytes) -> bytes:
        return hmac.new(self.secret, purpose + b"\x00" + token, hashlib.sha256).digest()


_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")


def _secret(path: Path) -> bytes:
    """The home's secret, readable by its owner only."""
    if not path.exists():
        draft = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(32))
        try:
            os.link(draft, path)  # of two processes that begin at once, one makes it
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_bytes()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        return b""
