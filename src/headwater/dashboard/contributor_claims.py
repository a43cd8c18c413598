"""How a contributor's money gets to them: sent for nothing on the embedded chain, by their own wallet, or by a relayer.

Whoever sends a claim, only the payee gains: the contract pays the address that the root names. A relayer's fee is shown
before anything is signed, and the payee's wallet signs over it. One claim at a time goes to the chain.
"""

# Annotations stay live here: FastAPI resolves them.

import threading
from collections.abc import Callable
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from headwater.chain import Chain
from headwater.chain.oracle import read_fees
from headwater.chain.relaying import Offer, check_fee_line, relay, relay_fee, typed_data, wallet_file
from headwater.core.errors import HeadwaterError, InvalidError, MissingError, RefusedError
from headwater.core.instants import DAY_NS, SECOND_NS
from headwater.dashboard.contributor_statement import account_due
from headwater.dashboard.pages import Pages
from headwater.dashboard.site import Site
from headwater.registry import Contributor
from headwater.settle import Settlement
from headwater.settlement.claim_to import ClaimTo

ETHER_UNITS: Final = 3_000 * 10**6
"""What an ether is taken to be worth, in token units, where a relayer's fee is worked out."""

OFFER_DAYS: Final = 7
_LOCK_S: Final = 60.0


class Claims:
    """Claims of a site's contributors."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()

    def offered(self, contributor: Contributor, claimable_units: int) -> dict[str, Any]:
        """Which ways of being paid a page offers now, and why not the others."""
        books = self._site.books
        last = None if books is None else books.books.epochs.last_posted()
        if books is None or last is None:
            why = "no_chain" if books is None else "no_epoch"
        elif not contributor.enrolled:
            why = "not_enrolled"
        elif claimable_units <= 0:
            why = "nothing"
        else:
            why = ""
        return {
            "why_not": why,
            "epoch": None if last is None else last.epoch,
            "sent_for_you": not why and not self._site.settings.rpc_url,
            "delay_s": self._site.settings.root_delay_s,
        }

    def send(self, contributor: Contributor) -> int:
        """Send the claim with the operator's key, which pays the chain; gives the token units that arrived.

        Raises:
            HeadwaterError: there is nothing to claim, or the chain refuses it: a root is not active before its delay.
        """
        books, epoch = self._ready()
        with self._held():
            paid = books.chain.claim(epoch, books.claim(epoch, account_due(contributor)).proof)
            books.sync()
        return int(paid.amount)

    def wallet(self, contributor: Contributor) -> bytes:
        """The claim as a transaction that a wallet sends."""
        books, epoch = self._ready()
        with self._held():
            index = books.claim(epoch, account_due(contributor)).proof.leaf.index
            return msgspec.json.format(msgspec.json.encode(wallet_file(books.chain, epoch, books.tree(epoch), [index])))

    def terms(self, contributor: Contributor) -> dict[str, Any]:
        """What a relayer would keep and what would arrive, and what the payee's wallet signs."""
        books, epoch = self._ready()
        with self._held():
            claim, terms = self._terms(books, epoch, contributor, None)
            paid = books.chain.paid(claim.proof.leaf.index)
            line = dict(check_fee_line(terms, terms.cumulative - paid))
            data = typed_data(terms, chain_id=books.chain.chain_id, contract=books.chain.manifest.payout)
        return {"line": line, "deadline_s": terms.deadline_s, "fee": str(terms.fee), "typed_data": data}

    def relay(self, contributor: Contributor, signature: str, fee: str, deadline_s: str) -> int:
        """Send what the payee signed; gives the token units that arrived at the payee.

        Raises:
            InvalidError: not a signature, or not over these terms.
            RefusedError: signed by somebody else, or the fee no longer covers the gas.
        """
        books, epoch = self._ready()
        if not (fee.isdecimal() and deadline_s.isdecimal() and len(fee) < 30 and len(deadline_s) < 12):
            raise InvalidError("terms that were not offered", code="offer_invalid", fix="load the page again")
        with self._held():
            claim, terms = self._terms(books, epoch, contributor, (int(fee), int(deadline_s)))
            first = not books.chain.paid(claim.proof.leaf.index)
            least = relay_fee(read_fees(books.chain.sender), ether_units=ETHER_UNITS, first=first, margin_percent=0)
            value = Offer(claim, terms, _signature(signature)).as_json()
            offer = Offer.from_json(value)  # checks who signed
            paid = relay(books.chain, offer, now_s=self._site.now_ns() // SECOND_NS, fee_min=least)
            books.sync()
        return int(paid.amount) - terms.fee

    def _terms(
        self, books: Settlement, epoch: int, contributor: Contributor, given: tuple[int, int] | None
    ) -> tuple[Any, ClaimTo]:
        claim = books.claim(epoch, account_due(contributor))
        leaf, chain = claim.proof.leaf, books.chain
        if given is None:
            fee = relay_fee(read_fees(chain.sender), ether_units=ETHER_UNITS, first=not chain.paid(leaf.index))
            given = fee, (self._site.now_ns() + OFFER_DAYS * DAY_NS) // SECOND_NS
        return claim, ClaimTo(leaf.address, leaf.amount, leaf.address, given[0], _sender(chain), given[1])

    def _ready(self) -> tuple[Settlement, int]:
        books = self._site.books
        last = None if books is None else books.books.epochs.last_posted()
        if books is None or last is None:
            raise MissingError(
                "no root has been posted yet", code="epoch_missing", fix="wait for the operator to close and post one"
            )
        return books, last.epoch

    def _held(self) -> "_Held":
        return _Held(self._lock)

    def add_routes(self, router: APIRouter, pages: Pages, private: Callable[[Request, str], Contributor]) -> None:
        """The routes of claims, each for the contributor itself and the operator."""

        @router.post("/contributors/{contributor}/claim", response_class=Response)
        def claim(request: Request, contributor: str) -> Response:
            known = private(request, contributor)
            self.send(known)
            return pages.redirect(request, f"/contributors/{known.id}", flash="claimed")

        @router.get("/contributors/{contributor}/wallet", response_class=Response)
        def wallet(request: Request, contributor: str) -> Response:
            known = private(request, contributor)
            disposition = f'attachment; filename="claim-{known.id}.json"'
            return Response(
                self.wallet(known), 200, {"content-disposition": disposition}, media_type="application/json"
            )

        @router.get("/contributors/{contributor}/relay", response_class=Response)
        def offered(request: Request, contributor: str) -> Response:
            known = private(request, contributor)
            data: dict[str, Any] = {"id": known.id, "name": known.name, "problem": None, "terms": None}
            try:
                data["terms"] = self.terms(known)
            except HeadwaterError as error:  # a fee above what is due is an answer, not a failure of the page
                data["problem"] = {"message": error.message, "code": error.code, "fix": error.fix or ""}
            return pages.show(request, "contributor/relay.html", known.name, data)

        @router.post("/contributors/{contributor}/relay", response_class=Response)
        def relayed(
            request: Request, contributor: str, signature: str = Form(), fee: str = Form(), deadline_s: str = Form()
        ) -> Response:
            known = private(request, contributor)
            self.relay(known, signature.strip(), fee, deadline_s)
            return pages.redirect(request, f"/contributors/{known.id}", flash="claimed")


class _Held:
    """The one place at the chain; waits a minute for it."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=_LOCK_S):
            raise MissingError("the chain is busy with other claims", code="chain_busy", fix="try again in a minute")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _sender(chain: Chain) -> str:
    """Whose key pays the chain: the relayer that offers name."""
    signer = chain.sender.signer
    if signer is None:
        raise RefusedError("this server sends nothing to the chain", code="signer_missing", fix="claim with a wallet")
    return signer.address


def _signature(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raw = b""
    if len(raw) != 65:
        raise InvalidError("not a signature of 65 bytes", code="signature_invalid", fix="sign the terms again")
    return raw
