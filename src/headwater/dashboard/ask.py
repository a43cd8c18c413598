"""Asking: a chat over the gateway, and each answer with who supplied it once its receipt is there.

Only the payer's own key sees what was said. Who asks is charged as any caller is; thumbs and corrections become
feedback contributions by the gateway's own route.
"""

# Annotations stay live here: FastAPI resolves them.

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from headwater.attribution.evidence import read_answer, read_layout
from headwater.attribution.token_account import TokenAccount
from headwater.core.errors import HeadwaterError, MissingError
from headwater.core.ids import ContributionId
from headwater.core.limits import ANSWER_TOKENS_MAX
from headwater.dashboard import answer_view
from headwater.dashboard.door import Passed, ask_gateway
from headwater.dashboard.pages import Area, Link, Pages
from headwater.dashboard.receipt_view import account_name
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.receipts import Receipt, ReceiptShare
from headwater.store.account_store import AccountStore
from headwater.store.call_store import CallRecord, CallState
from headwater.store.key_store import KeyRecord
from headwater.store.readings_registry import names, titles

CHAT: Final = "/v1/chat/completions"
RECENT: Final = 20
TOKENS_DEFAULT: Final = 96

Text = Annotated[str, Form(max_length=64 * 1024)]


def area(site: Site, pages: Pages) -> Area:
    """The routes under ``/ask``."""
    router = APIRouter()
    accounts = AccountStore(site.db)
    calls = site.flow.parts.calls

    def key_of(request: Request) -> KeyRecord:
        return site.keys.in_force(pages.sessions.require(request, "payer").subject)

    def own_call(request: Request, call: str) -> CallRecord:
        """A call of the key that has signed in; anybody else's look like none."""
        key = key_of(request)
        try:
            record = calls.get(call)
        except MissingError:
            record = None
        if record is None or record.key_id != key.key_id:
            raise MissingError(f"no call {call[:80]!r} of this key", code="call_unknown", fix="sign in with its key")
        return record

    @router.get("/ask", response_class=Response)
    def ask(request: Request) -> Response:
        session = pages.session(request)
        data: dict[str, Any] = {"payer": None, "models": [], "recent": [], "tokens_max": ANSWER_TOKENS_MAX}
        data["tokens_default"] = TOKENS_DEFAULT
        if session is not None and session.role == "payer":
            key = key_of(request)
            balance = site.ledger.balance(key.account, site.currency)
            data["payer"] = {"key": key.key_id, "label": key.label, "available_units": balance.available_units}
            data["models"] = _models(site, key)
            data["recent"] = _recent(site, key)
        return pages.show(request, "ask/ask.html", say("ask.title"), data)

    @router.post("/ask/stream", response_class=Response)
    def stream(request: Request) -> Response:
        return Passed(site.gateway, key_of(request).key_id, CHAT)

    @router.get("/ask/calls/{call}", response_class=Response)
    def permalink(request: Request, call: str) -> Response:
        data = _answer(site, accounts, own_call(request, call))
        return pages.show(request, "ask/call.html", say("ask.call_title"), data)

    @router.get("/ask/calls/{call}/answer", response_class=Response)
    def fragment(request: Request, call: str) -> Response:
        return pages.fragment(request, "ask/answer.html", _answer(site, accounts, own_call(request, call)))

    @router.get("/ask/calls/{call}/passages/{contribution}", response_class=Response)
    def passage(request: Request, call: str, contribution: str, n: int = 0) -> Response:
        record = own_call(request, call)
        found = answer_view.passages(read_layout(record.evidence)) if record.evidence is not None else {}
        texts = found.get(contribution, [])
        begin, end = _place(site, contribution, texts[n]) if 0 <= n < len(texts) else (0, 0)
        where = f"?from={begin}&to={end}#passage" if end else ""
        return RedirectResponse(f"/contributions/{contribution}{where}", 303)

    @router.post("/ask/calls/{call}/feedback", response_class=Response)
    async def feedback(
        request: Request, call: str, rating: Text = "", correction: Text = "", comment: Text = ""
    ) -> Response:
        key = pages.sessions.require(request, "payer").subject
        given = {"receipt": call, "rating": rating, "correction": correction.strip(), "comment": comment.strip()}
        body = {name: value for name, value in given.items() if value}
        status, told = await ask_gateway(site.gateway, request.scope, key, "/v1/feedback", body)
        done = status in (200, 201)
        data = {
            "call": call,
            "given": done,
            "contribution": told.get("contribution") if done else None,
            "problem": None if done else told.get("detail", ""),
        }
        return pages.fragment(request, "ask/feedback.html", data, status=200 if done else status)

    links = (Link("/ask", "ask.link"),)
    return Area("ask", router, links, {"level_bits": lambda micro: f"{micro / 1e6:.1f}"})


def _models(site: Site, key: KeyRecord) -> list[dict[str, Any]]:
    found = []
    for name in site.gateway.model_names:
        if key.limits.permits_model(name):
            served = site.flow.parts.models.get(name)
            grounded = served is not None and served.sources > 0
            found.append({"name": name, "sources": served.sources if served else 0, "grounded": grounded})
    return sorted(found, key=lambda model: (not model["grounded"], model["name"]))


def _recent(site: Site, key: KeyRecord) -> list[dict[str, Any]]:
    rows = site.db.query(
        "SELECT call_id, model, state, created_at_ns, price_units FROM calls WHERE number IN"
        " (SELECT number FROM calls WHERE key_id = ? ORDER BY number DESC LIMIT ?) ORDER BY number DESC",
        (key.key_id, RECENT),
    )
    return [
        {"call": call, "model": model, "state": state, "at_ns": at_ns, "price_units": price}
        for call, model, state, at_ns, price in rows
    ]


def _answer(site: Site, accounts: AccountStore, record: CallRecord) -> dict[str, Any]:
    """Everything that is known of a call, for its payer."""
    data: dict[str, Any] = {
        "call": record.call_id,
        "model": record.model,
        "at_ns": record.created_at_ns,
        "state": record.state.value,
        "price_units": record.price_units,
        "failure": record.failure,
        "text": read_answer(record.answer).text if record.answer is not None else None,
        "question": answer_view.question(read_layout(record.evidence)) if record.evidence is not None else None,
        "receipt": record.receipt_id,
        "measured": None,
    }
    logged = None if record.state is not CallState.ATTRIBUTED else site.flow.parts.log.in_force(record.call_id)
    if logged is not None:
        receipt = Receipt.from_bytes(logged.raw)
        data["receipt"] = receipt.id
        data["measured"] = _measured(site, accounts, record, receipt)
    return data


def _measured(site: Site, accounts: AccountStore, record: CallRecord, receipt: Receipt) -> dict[str, Any]:
    account = receipt.attribution
    shares = answer_view.supplied(receipt)
    shown = shares[: answer_view.SHOWN_MAX]
    tone = answer_view.tones(shares)
    tone_of = {str(i + 1): one for i, one in enumerate(tone)} | {answer_view.BASE: "base"}
    raw = accounts.get(record.call_id)
    rows: list[dict[str, Any]] = []
    if raw is not None and record.answer is not None:
        found = answer_view.tokens(read_answer(record.answer), TokenAccount.from_bytes(raw), shares)
        rows = answer_view.token_rows(found, tone_of, account.model_weight_ppm)
    texts = answer_view.passages(read_layout(record.evidence)) if record.evidence is not None else {}
    title = titles(site.db, tuple({share.contribution for share in shown}))
    residual = account.residual_account.partition(":")[2]
    owners = {owner.contributor for share in shown for owner in share.owners}
    name = names(site.db, tuple({*owners, residual}))
    return {
        "tokens": rows,
        "suppliers": [
            _supplier(site, receipt, share, str(i + 1), tone[i], title, name, texts) for i, share in enumerate(shown)
        ],
        "more": len(shares) - len(shown),
        "more_ppb": sum(share.weight_ppb for share in shares[len(shown) :]),
        "base_microbits": account.base_microbits,
        "total_microbits": account.total_microbits,
        "residual_ppb": account.residual_ppb,
        "residual_account": account.residual_account,
        "residual_name": account_name(account.residual_account, name),
        "model_weight_ppm": account.model_weight_ppm,
        "grade": account.grade,
        "estimator": account.estimator,
        "version": account.version,
        "match": any(answer_view.is_match(receipt, share) for share in shares if share.weight_ppb),
        "model": receipt.model.name,
        "adapter": receipt.model.adapter,
        "prompt_tokens": receipt.usage.prompt_tokens,
        "answer_tokens": receipt.usage.completion_tokens,
    }


def _supplier(
    site: Site,
    receipt: Receipt,
    share: ReceiptShare,
    number: str,
    tone: str,
    title: dict[str, str],
    name: dict[str, str],
    texts: dict[str, list[str]],
) -> dict[str, Any]:
    try:
        terms = site.registry.get(ContributionId(share.contribution)).license
        license, uses = terms.expression, sorted(terms.uses)
    except HeadwaterError:
        license, uses = None, []
    return {
        "number": number,
        "tone": tone,
        "contribution": share.contribution,
        "title": title.get(share.contribution, share.contribution),
        "kind": share.kind,
        "channel": share.channel,
        "license": license,
        "uses": uses,
        "owners": [
            {
                "id": owner.contributor,
                "name": name.get(owner.contributor, owner.contributor),
                "share_ppb": owner.share_ppb,
                "waits": owner.account.startswith("escrow:"),
            }
            for owner in share.owners
        ],
        "microbits": share.microbits,
        "low_microbits": share.low_microbits,
        "high_microbits": share.high_microbits,
        "weight_ppb": share.weight_ppb,
        "paid_units": answer_view.paid_for(receipt, share.contribution),
        "match": answer_view.is_match(receipt, share),
        "passages": texts.get(share.contribution, []) if share.kind != "prompt" else [],
    }


def _place(site: Site, contribution: str, passage: str) -> tuple[int, int]:
    """Where a passage stands in its document, in characters, however it is wrapped. (0, 0): nowhere.

    The title that heads it in a prompt is ours, and is left out.
    """
    found = site.registry.get(ContributionId(contribution))
    words = passage.removeprefix(f"{found.title}: ").split()
    match = re.search(r"\s+".join(map(re.escape, words)), site.registry.text(found.id)) if words else None
    return (0, 0) if match is None else match.span()
