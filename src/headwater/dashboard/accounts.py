"""Signing in and out: callers by API key, contributors by wallet, the operator by password, anybody by a link.

Who signs in by a key may ask, and see the calls and receipts of that key; a contributor sees its own statement; the
operator sees the books, and nobody's words.
"""

# Annotations stay live here: FastAPI resolves them.

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from headwater.core.errors import HeadwaterError, MissingError
from headwater.core.ids import ContributorId
from headwater.dashboard import wallet_sign_in
from headwater.dashboard.attempts import Attempts
from headwater.dashboard.links import take_link
from headwater.dashboard.pages import Area, Pages
from headwater.dashboard.passwords import FILE, check_password
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say

OPERATOR: Final = "operator"
_HOMES: Final = {"payer": "/ask", "contributor": "/statement", "operator": "/operator"}

Text = Annotated[str, Form(max_length=4_096)]


def area(site: Site, pages: Pages) -> Area:
    """The routes under ``/sign-in`` and ``/sign-out``."""
    router = APIRouter()
    sessions, attempts = pages.sessions, Attempts()

    def form(request: Request, next: str, error: HeadwaterError | None = None, **given: Any) -> Response:
        data = {
            "next": _path(next),
            "password_set": (site.folder / FILE).exists(),
            "wallets": site.books is not None,
            "problem": None if error is None else error.message,
            "method": given.get("method", ""),
            "message": given.get("message", ""),
            "address": given.get("address", ""),
        }
        return pages.show(request, "accounts/sign_in.html", say("accounts.title"), data, status=400 if error else 200)

    def sign_in(request: Request, role: str, subject: str, next: str) -> Response:
        response = pages.redirect(request, _path(next) or _HOMES[role], flash="signed_in")
        sessions.sign_in(request, response, role, subject)
        attempts.forgive(_who(request))
        return response

    def wallet_site(request: Request) -> wallet_sign_in.Site:
        host = sessions.host(request)
        scheme = "https" if sessions.secure(request) else "http"
        chain_id = site.books.chain.chain_id if site.books is not None else 1
        return wallet_sign_in.Site(host, f"{scheme}://{host}/sign-in", chain_id)

    @router.get("/sign-in", response_class=Response)
    def choose(request: Request, next: str = "") -> Response:
        return form(request, next)

    @router.post("/sign-in/key", response_class=Response)
    def by_key(request: Request, key: Text, next: Text = "") -> Response:
        attempts.take(_who(request), site.now_ns())
        try:
            return sign_in(request, "payer", site.keys.authenticate(key.strip()).key_id, next)
        except HeadwaterError as error:
            return form(request, next, error, method="key")

    @router.post("/sign-in/operator", response_class=Response)
    def by_password(request: Request, password: Text, next: Text = "") -> Response:
        attempts.take(_who(request), site.now_ns())
        try:
            check_password(site.folder, password)
        except HeadwaterError as error:
            return form(request, next, error, method="operator")
        return sign_in(request, "operator", OPERATOR, next)

    @router.post("/sign-in/wallet/text", response_class=Response)
    def wallet_text(request: Request, address: Text, next: Text = "") -> Response:
        attempts.take(_who(request), site.now_ns())
        try:
            message = wallet_sign_in.offer(
                sessions.store,
                wallet_site(request),
                address.strip(),
                say("accounts.statement"),
                nonce=site.random_bytes(16),
                now_ns=site.now_ns(),
            )
        except HeadwaterError as error:
            return form(request, next, error, method="wallet", address=address)
        return form(request, next, method="wallet", message=message, address=address.strip())

    @router.post("/sign-in/wallet", response_class=Response)
    def by_wallet(request: Request, message: Text, signature: Text, next: Text = "") -> Response:
        attempts.take(_who(request), site.now_ns())
        try:
            address = wallet_sign_in.check(
                sessions.store, wallet_site(request), message, signature, now_ns=site.now_ns()
            )
            return sign_in(request, "contributor", _contributor_at(site, address), next)
        except HeadwaterError as error:
            return form(request, next, error, method="wallet")

    @router.get("/sign-in/link/{word}", response_class=Response)
    def link(request: Request, word: str) -> Response:
        return pages.show(request, "accounts/link.html", say("accounts.title"), {"word": word[:100]})

    @router.post("/sign-in/link/{word}", response_class=Response)
    def by_link(request: Request, word: str) -> Response:
        attempts.take(_who(request), site.now_ns())
        role, subject = take_link(sessions.store, word, now_ns=site.now_ns())
        if role == "payer":
            site.keys.in_force(subject)
        elif role == "contributor":
            site.registry.contributor(ContributorId(subject))
        return sign_in(request, role, subject, "")

    @router.post("/sign-out", response_class=Response)
    def sign_out(request: Request) -> Response:
        response = pages.redirect(request, "/", flash="signed_out")
        sessions.sign_out(request, response)
        return response

    return Area("accounts", router)


def _who(request: Request) -> str:
    return request.client.host if request.client else ""


def _path(next: str) -> str:
    """A path of ours to go to afterwards; anything that could lead elsewhere is nothing."""
    plain = next.startswith("/") and not next.startswith("//") and "\\" not in next and next.isprintable()
    return next if plain and not next.startswith("/sign-") else ""


def _contributor_at(site: Site, address: str) -> str:
    rows = site.db.query("SELECT id FROM contributors WHERE payout_address = ?", (address,))
    if not rows:
        raise MissingError(
            f"no contributor is enrolled with the address {address}",
            code="contributor_missing",
            fix="enrol first: headwater contributor enroll",
        )
    return str(rows[0][0])
