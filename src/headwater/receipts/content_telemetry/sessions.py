"""A receipt as a Content Telemetry session: what was offered, what was used, and how much each part explained.

One call is one session of one turn, at the *minimal* privacy level: token counts and content, no words of anybody.
The receipt's own figures go with each event under ``data.headwater``, because the standard's funnel has no place
for bits and money. An owner is shown the events of its own contributions only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from headwater.core.ids import ContributorId
from headwater.core.instants import format_instant
from headwater.receipts.content_telemetry.documents import VERSION
from headwater.receipts.receipt import Receipt, ReceiptShare

TURN: Final = "1"
_DOMAIN: Final = b"headwater telemetry\x00"


@dataclass(frozen=True, slots=True)
class Content:
    """What is known of a contribution beside what its receipt says."""

    content_digest: str  # sha256:…
    license_expression: str
    url: str | None = None  # where it can be read


def session_json(
    receipt: Receipt, receipt_id: str, contents: Mapping[str, Content], *, viewer: ContributorId | None = None
) -> dict[str, Any]:
    """The session of one receipt.

    Args:
        receipt_id: 64 hex digits.
        contents: by contribution id; those that are missing are named by their id alone.
        viewer: only events of this contributor's contributions, and the turn without its counts of others.
    """
    at = format_instant(receipt.issued_at_ns)
    shares = [s for s in receipt.attribution.shares if viewer is None or any(o.contributor == viewer for o in s.owners)]
    paid = {(p.contribution, p.account): p.amount for p in receipt.payouts if p.contribution is not None}
    events = [_event(receipt_id, "turn_started", at, 0, turn={"privacy_level": "minimal"})]
    for number, share in enumerate(shares):
        known = contents.get(share.contribution)
        named = _named(share, known)
        accounts = {o.account for o in share.owners if viewer is None or o.contributor == viewer}
        amount = sum(
            units for (ctb, account), units in paid.items() if ctb == share.contribution and account in accounts
        )
        figures = {
            "receipt": receipt_id,
            "channel": share.channel,
            "kind": share.kind,
            "weight_ppb": share.weight_ppb,
            "microbits": str(share.microbits),
            "interval_microbits": [str(share.low_microbits), str(share.high_microbits)],
            "grade": receipt.attribution.grade,
            "paid_nano": str(amount),
            "currency": receipt.currency,
        }
        for kind, role, data in _funnel(share, known):
            extra = {} if role is None else {"source_role": role}
            events.append(_event(receipt_id, kind, at, number, **extra, **named, data={**data, "headwater": figures}))
    done: dict[str, Any] = {"privacy_level": "minimal"}
    if viewer is None:
        done |= {"query_tokens": receipt.usage.prompt_tokens, "response_tokens": receipt.usage.completion_tokens}
    events.append(_event(receipt_id, "turn_completed", at, 0, turn=done))
    return {
        "document_type": "session",
        "schema_version": VERSION,
        "conformance_level": "citation",
        "session_id": stable_uuid(receipt_id, "session", 0),
        "agent_id": receipt.operator,
        "started_at": at,
        "ended_at": at,
        "events": events,
    }


def _funnel(share: ReceiptShare, known: Content | None) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """(event type, who reports it, data) of one share. What an adapter learned was never retrieved or in the prompt."""
    hashed = {} if known is None else {"content_hash": known.content_digest}
    if share.channel == "grounded":
        yield "content_retrieved", "index", {"media_type": "text"}
        yield "content_grounded", None, {"scope": "turn", "cached": True, "media_type": "text", **hashed}
        if share.weight_ppb > 0:
            yield "content_cited", None, {"citation_type": "unclassified", "position": _position(share), **hashed}
    elif share.channel == "reproduced":
        yield "content_cited", None, {"citation_type": "direct_quote", "position": _position(share), **hashed}
    else:
        yield "content_grounded", None, {"scope": "session", "cached": True, **hashed}


def _position(share: ReceiptShare) -> str:
    if share.weight_ppb >= 500_000_000:
        return "primary"
    return "supporting" if share.weight_ppb >= 100_000_000 else "mentioned"


def _named(share: ReceiptShare, known: Content | None) -> dict[str, Any]:
    named: dict[str, Any] = {"content_id": share.contribution}
    if known is not None:
        named["license_ref"] = known.license_expression
        if known.url is not None:
            named["content_url"] = known.url
    return named


def _event(receipt_id: str, kind: str, at: str, number: int, **more: Any) -> dict[str, Any]:
    return {"id": stable_uuid(receipt_id, kind, number), "type": kind, "timestamp": at, "turn_id": TURN, **more}


def stable_uuid(receipt_id: str, what: str, number: int) -> str:
    """The same for the same receipt, so that a report sent twice is counted once."""
    raw = hashlib.sha256(_DOMAIN + f"{receipt_id}/{what}/{number}".encode()).digest()[:16]
    return str(UUID(bytes=raw, version=5))
