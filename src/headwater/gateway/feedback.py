"""`POST /v1/feedback`: what a caller says of an answer it paid for; and its own words as contributions, if it agrees.

Feedback is registered, counted against the key's quota, and not paid: it earns when an adapter trained on
it explains answers. Personal data is taken out of every text before it is registered. A key sees only its
own calls and its own contributions.
"""

# Annotations stay live here: FastAPI resolves them, and those of a route may name what its function encloses.

from collections.abc import Callable
from typing import Annotated, Any, Final, cast

import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response

from headwater.attribution.evidence import read_answer, read_layout
from headwater.core.canonical import digest, refuse_deep
from headwater.core.errors import ConflictError, InvalidError, MissingError, RefusedError
from headwater.core.ids import ContributionId, contributor_id
from headwater.core.instants import format_instant
from headwater.core.limits import REQUEST_DEPTH_MAX
from headwater.flow import Flow
from headwater.gateway.bodies import body_up_to
from headwater.gateway.own_calls import own_call
from headwater.gateway.wire import idempotency_key
from headwater.registry import license as licenses
from headwater.registry.feedback import Rating, judge
from headwater.registry.personal_data import without_personal_data
from headwater.store.call_store import CallRecord
from headwater.store.consent_store import ConsentStore
from headwater.store.feedback_store import KEYS_NAMESPACE, FeedbackRecord, FeedbackStore
from headwater.store.key_store import KeyRecord

BODY_BYTES_MAX: Final = 128 * 1024
_FIELDS: Final = ("receipt", "rating", "correction", "preferred", "comment")


def feedback_routes(app: FastAPI, flow: Flow, payer: Callable[[Request], KeyRecord], *, reviewed: bool) -> None:
    """Add the routes.

    Args:
        payer: the key of a request.
        reviewed: whether feedback must be accepted by somebody before it is trained on.
    """
    store = FeedbackStore(flow.parts.calls.db, flow.parts.registry)
    consents = ConsentStore(flow.parts.calls.db)
    Payer = Annotated[KeyRecord, Depends(payer)]
    Body = Annotated[
        bytes, Depends(body_up_to(BODY_BYTES_MAX))
    ]  # read on the event loop; the rest waits for the disk on a thread

    @app.post("/v1/feedback", response_class=Response, tags=["feedback"])
    def give(request: Request, raw: Body, key: Payer) -> Response:
        """Say of an answer that it was good or bad, correct it, or give a better one.

        Fields: `receipt` (of a call of this key), and one or more of `rating` (up or down), `correction` or
        `preferred` (the better answer), and `comment`. It is registered as a contribution of this key, to be
        trained on; it is not paid for being given.
        """
        fields = _read(raw)
        call = own_call(flow.parts.calls, fields["receipt"], key)
        prompt, answer = _said(call)
        judged = judge(
            call.receipt_id or "",
            without_personal_data(prompt).text,
            without_personal_data(answer).text,
            rating=cast("Rating | None", fields.get("rating")),
            correction=without_personal_data(fields.get("correction") or "").text,
            preferred=without_personal_data(fields.get("preferred") or "").text,
            comment=without_personal_data(fields.get("comment") or "").text,
        )
        record, again = store.give(
            judged,
            key_id=key.key_id,
            request_digest=digest(raw),
            now_ns=flow.parts.now_ns(),
            reviewed=reviewed,
            idempotency_key=idempotency_key(request.scope),
        )
        return _json(_shown(record), 200 if again else 201)

    @app.get("/v1/feedback/{id}", response_class=Response, tags=["feedback"])
    def look(id: str, key: Payer) -> Response:
        """One piece of feedback of this key, and what became of it."""
        return _json(_shown(_own(store, id, key)))

    @app.get("/v1/consent", response_class=Response, tags=["consent"])
    def consent(key: Payer) -> Response:
        """Whether this key's prompts are registered as contributions; by default they are not."""
        return _json(_consent(consents, key))

    @app.put("/v1/consent", response_class=Response, tags=["consent"])
    def agree(raw: Body, key: Payer) -> Response:
        """Agree that this key's prompts are registered from now on, under `license`, for training and as sources."""
        fields = _object(raw, ("license",))
        consents.give(key.key_id, str(fields.get("license") or ""), flow.parts.now_ns())
        return _json(_consent(consents, key))

    @app.delete("/v1/consent", response_class=Response, tags=["consent"])
    def disagree(key: Payer) -> Response:
        """End it: nothing more is registered. What was, stays until it is withdrawn."""
        consents.end(key.key_id, flow.parts.now_ns())
        return _json(_consent(consents, key))

    @app.post("/v1/contributions/{id}/withdraw", response_class=Response, tags=["consent"])
    def withdraw(id: str, raw: Body, key: Payer) -> Response:
        """Withdraw a contribution of this key: it is never trained on again. Past receipts stay as they are."""
        fields = _object(raw, ("reason",))
        contribution = ContributionId(id)
        owner = contributor_id(KEYS_NAMESPACE, key.key_id)
        found = flow.parts.registry.get_many([contribution])
        if not found or [one.contributor_id for one in found[0].owners] != [owner]:
            raise MissingError(
                f"no contribution {id[:80]!r} of this key",
                code="contribution_missing",
                fix="use the id that registering it gave",
            )
        consents.withdraw(contribution, key.key_id, str(fields.get("reason") or ""), flow.parts.now_ns())
        return _json({"contribution": id, "withdrawn": True})


def _object(raw: bytes, names: tuple[str, ...]) -> dict[str, str | None]:
    """The fields of a JSON object of strings; an empty body has none."""
    try:
        refuse_deep(raw, REQUEST_DEPTH_MAX)
        value = msgspec.json.decode(raw or b"{}", type=dict[str, str | None])
    except (InvalidError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidError(
            f"the body is not a JSON object of texts: {str(error)[:200]}",
            code="request_invalid",
            fix=f"send an object with {', '.join(names)}",
        ) from None
    strange = sorted(set(value) - set(names))
    if strange:
        raise InvalidError(
            f"unknown fields {', '.join(strange)[:200]}", code="unknown_parameter", fix=f"use {', '.join(names)}"
        )
    return value


def _read(raw: bytes) -> dict[str, Any]:
    fields = _object(raw, _FIELDS)
    if not fields.get("receipt"):
        raise InvalidError(
            "receipt is missing", code="request_invalid", fix="send the Headwater-Receipt header of the answer"
        )
    return dict(fields)


def _said(call: CallRecord) -> tuple[str, str]:
    """The caller's last words and the answer.

    Raises:
        MissingError: the receipt is not made yet, or what was said has been erased.
    """
    if call.receipt_id is None:
        raise ConflictError(
            f"{call.call_id} has no receipt yet", code="receipt_pending", fix="give feedback when it is final"
        )
    if call.answer is None or call.evidence is None:
        raise MissingError(
            f"what was said in {call.call_id} has been erased",
            code="evidence_erased",
            fix="give feedback on a newer call",
        )
    words = [part.text for part in read_layout(call.evidence).parts if part.fixed and not part.control]
    if not words:
        raise RefusedError(
            f"{call.call_id} has no words of the caller", code="feedback_without_prompt", fix="ask with a user message"
        )
    return words[-1], read_answer(call.answer).text


def _own(store: FeedbackStore, id: str, key: KeyRecord) -> FeedbackRecord:
    record = store.get(ContributionId(id))
    if record.key_id != key.key_id:
        raise MissingError(
            f"no feedback {id[:80]!r} of this key", code="feedback_missing", fix="use the id it was given"
        )
    return record


def _consent(consents: ConsentStore, key: KeyRecord) -> dict[str, Any]:
    found = consents.in_force(key.key_id)
    return {
        "key": key.key_id,
        "registered": found is not None,
        "license": found.license_expression if found else None,
        "since": format_instant(found.at_ns) if found else None,
        "uses": sorted(licenses.USES) if found else [],
    }


def _shown(record: FeedbackRecord) -> dict[str, Any]:
    return {
        "contribution": record.contribution,
        "receipt": record.receipt,
        "given_at": format_instant(record.given_at_ns),
        "review": record.review,
        "copied_from": record.copied_from,
        "paid": "0",  # for giving it; what it earns later is in the receipts of the answers it improved
    }


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
