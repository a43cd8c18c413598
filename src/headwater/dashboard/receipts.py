"""Receipts: the way of a price, drawn and told; signature, log and payouts checked in the browser that looks.

A receipt holds no text, but it says who paid and who was paid: it is shown to its payer, to the people it pays and to
the operator, and to anybody else it looks like one that does not exist. Who has a receipt's bundle file can check it
at ``/verify`` without any account.
"""

# Annotations stay live here: FastAPI resolves them.

import base64
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from headwater.core.errors import HeadwaterError, MissingError
from headwater.core.ids import CallId, ReceiptId, check_receipt_id
from headwater.dashboard import receipt_view
from headwater.dashboard.pages import Area, Link, Pages, wants_json
from headwater.dashboard.sessions import Session
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.flow import pseudonym
from headwater.receipts import Receipt
from headwater.splits import Policy
from headwater.store.readings_registry import names, titles
from headwater.store.receipt_log import LoggedReceipt


def area(site: Site, pages: Pages) -> Area:
    """The routes under ``/receipts`` and ``/verify``."""
    router = APIRouter()
    log = site.flow.parts.log

    def shown_to(request: Request, id: str) -> tuple[LoggedReceipt, Receipt]:
        """A receipt that whoever asks may see.

        Raises:
            MissingError: there is none, or it is not theirs.
        """
        try:
            logged = log.get(check_receipt_id(id))
            receipt = Receipt.from_bytes(logged.raw)
        except HeadwaterError:
            logged = None
        if logged is None or not may_see(pages.session(request), receipt):
            raise MissingError(
                f"no receipt {id[:80]!r} that you may see",
                code="receipt_unknown",
                fix="sign in as who paid for the call or was paid by it, or check its bundle file at /verify",
            )
        return logged, receipt

    @router.get("/receipts/{id}", response_class=Response)
    def one(request: Request, id: str) -> Response:
        logged, receipt = shown_to(request, id)
        data = _receipt(site, logged, receipt)
        extra: dict[str, Any] = {}
        if not wants_json(request):
            ids = tuple({payout.contribution for payout in receipt.payouts if payout.contribution is not None})
            name = names(site.db, _people(receipt))
            extra["drawing"] = receipt_view.drawing(receipt, titles(site.db, ids), name)
        return pages.show(request, "receipts/receipt.html", say("receipt.title"), data | extra)

    @router.get("/receipts/{id}/proof", response_class=Response)
    def proof(request: Request, id: str) -> Response:
        request.scope["headwater.json"] = True
        return pages.show(request, "", "", receipt_view.proof(site, *shown_to(request, id)))

    @router.get("/receipts/{id}/file", response_class=Response)
    def file(request: Request, id: str) -> Response:
        logged, receipt = shown_to(request, id)
        disposition = {"content-disposition": f'attachment; filename="{receipt.id}.json"'}
        return Response(logged.raw, 200, disposition, media_type="application/json")

    if site.books is not None:
        books = site.books

        @router.get("/receipts/{id}/bundle", response_class=Response)
        def bundle(request: Request, id: str) -> Response:
            _, receipt = shown_to(request, id)
            disposition = {"content-disposition": f'attachment; filename="{receipt.id}.bundle.json"'}
            return Response(books.bundle(receipt.id).to_bytes(), 200, disposition, media_type="application/json")

    @router.get("/verify", response_class=Response)
    def verify(request: Request) -> Response:
        data = {"operator": site.flow.parts.signer.address}
        return pages.show(request, "receipts/verify.html", say("verify.title"), data)

    return Area("receipts", router, (Link("/verify", "verify.link"),))


def may_see(session: Session | None, receipt: Receipt) -> bool:
    """Whether a receipt is somebody's: they paid for it, are paid by it, or run the place."""
    if session is None:
        return False
    if session.role == "operator":
        return True
    if session.role == "payer":
        return receipt.payer == pseudonym(session.subject)
    return session.subject in _people(receipt)


def _people(receipt: Receipt) -> tuple[str, ...]:
    """Ids of the contributors that a receipt names."""
    owners = {owner.contributor for share in receipt.attribution.shares for owner in share.owners}
    paid = {
        payout.account.partition(":")[2]
        for payout in receipt.payouts
        if payout.account.startswith(("contributor:", "escrow:"))
    }
    return tuple(sorted(owners | paid))


def _receipt(site: Site, logged: LoggedReceipt, receipt: Receipt) -> dict[str, Any]:
    name = names(site.db, _people(receipt))
    ids = tuple({share.contribution for share in receipt.attribution.shares})
    title = titles(site.db, ids)
    try:
        policy = Policy.from_toml(site.policy_text(receipt.policy_digest))
    except HeadwaterError:
        policy = None
    account, last = receipt.attribution, site.epochs.last()
    return {
        "id": receipt.id,
        "settled": site.books is not None and last is not None and logged.entry.index < last.log_size,
        "call": receipt.call_id,
        "issued_at_ns": receipt.issued_at_ns,
        "operator": receipt.operator,
        "payer": receipt.payer,
        "model": receipt.model.name,
        "model_digest": receipt.model.digest,
        "adapter": receipt.model.adapter,
        "currency_code": receipt.currency,
        "price_units": receipt.price,
        "prompt_tokens": receipt.usage.prompt_tokens,
        "answer_tokens": receipt.usage.completion_tokens,
        "policy_digest": receipt.policy_digest,
        "registry_digest": receipt.registry_digest,
        "request_digest": receipt.request_digest,
        "answer_digest": receipt.answer_digest,
        "grade": account.grade,
        "estimator": account.estimator,
        "version": account.version,
        "residual_ppb": account.residual_ppb,
        "base_microbits": account.base_microbits,
        "total_microbits": account.total_microbits,
        "lines": receipt_view.lines(receipt, policy),
        "shares": [
            {
                "contribution": share.contribution,
                "title": title.get(share.contribution, share.contribution),
                "kind": share.kind,
                "channel": share.channel,
                "microbits": share.microbits,
                "low_microbits": share.low_microbits,
                "high_microbits": share.high_microbits,
                "weight_ppb": share.weight_ppb,
            }
            for share in sorted(account.shares, key=lambda s: (-s.weight_ppb, s.contribution))
        ],
        "payouts": [
            {
                "account": payout.account,
                "name": receipt_view.account_name(payout.account, name),
                "line": payout.line,
                "contribution": payout.contribution,
                "title": title.get(payout.contribution or "", ""),
                "units": payout.amount,
            }
            for payout in receipt.payouts
        ],
        "signature": logged.signature,
        "receipt_base64": base64.b64encode(logged.raw).decode("ascii"),
        "log_index": logged.entry.index,
        "history": _history(site, receipt.call_id, receipt.id),
        "supersedes": receipt.supersedes,
    }


def _history(site: Site, call: CallId, shown: ReceiptId) -> list[dict[str, Any]]:
    """Every receipt of a call, oldest first; the last one is in force."""
    log = site.flow.parts.log
    found = [(entry.index, Receipt.from_bytes(log.at(entry.index).raw)) for entry in log.by_call(call)]
    return [
        {
            "id": one.id,
            "log_index": index,
            "issued_at_ns": one.issued_at_ns,
            "price_units": one.price,
            "in_force": place + 1 == len(found),
            "shown": one.id == shown,
        }
        for place, (index, one) in enumerate(found)
    ]
