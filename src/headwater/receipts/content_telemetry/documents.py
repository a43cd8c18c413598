"""Reads the standard's documents from strangers: sessions, standalone events, batches and manifests.

Shapes follow the published JSON Schemas; unknown fields pass, as the standard asks of consumers. What a schema
cannot say is checked here too: a content event names its content, an event above the retrieval level its session,
a turn holds nothing above its privacy level, a manifest claims only its own host. A document that breaks a rule
is refused whole, so that nothing private slips in by being half read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from headwater.core.canonical import refuse_deep
from headwater.core.errors import InvalidError

VERSION: Final = "0.1"
DOCUMENT_BYTES_MAX: Final = 4 * 2**20
EVENTS_MAX: Final = 10_000

Shape = TypeVar("Shape", bound=Struct)
Count = Annotated[int, Meta(ge=0)]
Sha256 = Annotated[str, Meta(pattern=r"^sha256:[a-f0-9]{64}$")]
Instant = Annotated[datetime, Meta(tz=True)]

_CONTENT: Final = ("content_retrieved", "content_grounded", "content_cited", "content_displayed", "content_engaged")
_NEVER: Final[Mapping[str, tuple[str, ...]]] = {
    "full": (),
    "summary": (),
    "intent": ("query_text", "response_text"),
    "minimal": (
        *("query_text", "response_text", "query_intent", "topics"),
        *("response_type", "response_mode", "ad_rendered"),
    ),
}
"""Fields of a turn above each privacy level."""

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Turn(Struct):
    """One turn of a conversation, as far as its privacy level lets it be told."""

    privacy_level: Literal["full", "summary", "intent", "minimal"]
    query_text: str | UnsetType | None = UNSET
    response_text: str | UnsetType | None = UNSET
    query_intent: str | UnsetType | None = UNSET
    response_type: str | UnsetType | None = UNSET
    response_mode: str | UnsetType | None = UNSET
    topics: list[str] | UnsetType = UNSET
    content_urls_retrieved: list[str] | UnsetType = UNSET
    content_urls_cited: list[str] | UnsetType = UNSET
    query_tokens: Count | UnsetType | None = UNSET
    response_tokens: Count | UnsetType | None = UNSET
    model_id: str | UnsetType | None = UNSET
    ad_rendered: bool | UnsetType | None = UNSET


class TelemetryEvent(Struct):
    """One event. `data` is checked by type where the standard says what is in it."""

    type: Literal[
        "content_retrieved",
        "content_grounded",
        "content_cited",
        "content_displayed",
        "content_engaged",
        "turn_started",
        "turn_completed",
    ]
    timestamp: Instant
    id: UUID | UnsetType = UNSET
    turn_id: str | UnsetType | None = UNSET
    source_role: Literal["origin", "edge", "index", "agent"] | UnsetType = UNSET
    content_telemetry_id: UUID | UnsetType | None = UNSET
    content_url: str | UnsetType | None = UNSET
    content_id: str | UnsetType | None = UNSET
    license_ref: str | UnsetType | None = UNSET
    turn: Turn | UnsetType | None = UNSET
    data: dict[str, Any] | UnsetType = UNSET


class _Grounded(Struct):
    scope: Literal["session", "turn"] | UnsetType = UNSET
    cached: bool | UnsetType = UNSET
    tokens_ingested: Count | UnsetType = UNSET
    content_version: str | UnsetType = UNSET
    content_last_modified: Instant | UnsetType = UNSET
    content_hash: Sha256 | UnsetType = UNSET
    media_type: str | UnsetType = UNSET


class _Cited(Struct):
    citation_type: Literal["direct_quote", "paraphrase", "reference", "contradiction", "unclassified"] | UnsetType = (
        UNSET
    )
    media_type: str | UnsetType = UNSET
    excerpt_tokens: Count | UnsetType = UNSET
    excerpt_chars: Count | UnsetType = UNSET
    excerpt_hash: Sha256 | UnsetType = UNSET
    position: Literal["primary", "supporting", "mentioned", "unclassified"] | UnsetType = UNSET
    content_hash: Sha256 | UnsetType = UNSET
    url_verified: bool | UnsetType = UNSET


class _Retrieved(Struct):
    media_type: str | UnsetType = UNSET
    user_agent: str | UnsetType = UNSET
    bot_category: str | UnsetType = UNSET
    bot_name: str | UnsetType = UNSET
    verified: bool | UnsetType = UNSET
    cache_status: str | UnsetType = UNSET
    response_status: Annotated[int, Meta(ge=100, le=599)] | UnsetType = UNSET
    response_bytes: Count | UnsetType = UNSET
    ja4: str | UnsetType = UNSET
    asn: int | UnsetType = UNSET
    asn_org: str | UnsetType = UNSET
    country: Annotated[str, Meta(pattern=r"^[A-Z]{2}$")] | UnsetType = UNSET
    ip_hash: Sha256 | UnsetType = UNSET


class _Displayed(Struct):
    display_type: str | UnsetType = UNSET
    media_type: str | UnsetType = UNSET


class _Engaged(Struct):
    engagement_type: str | UnsetType = UNSET


_DATA: Final[Mapping[str, type[Struct]]] = {
    "content_retrieved": _Retrieved,
    "content_grounded": _Grounded,
    "content_cited": _Cited,
    "content_displayed": _Displayed,
    "content_engaged": _Engaged,
}


class _Session(Struct):
    schema_version: Literal["0.1"]
    session_id: UUID
    started_at: Instant
    document_type: Literal["session"] = "session"
    conformance_level: Literal["retrieval", "grounding", "citation"] | UnsetType = UNSET
    agent_id: str | UnsetType | None = UNSET
    content_scope: str | UnsetType | None = UNSET
    manifest_ref: str | UnsetType | None = UNSET
    ended_at: Instant | UnsetType | None = UNSET
    events: list[TelemetryEvent] = []


class _Standalone(Struct):
    document_type: Literal["event"]
    schema_version: Literal["0.1"]
    event: TelemetryEvent
    session_id: UUID | UnsetType = UNSET
    ctx_token: str | UnsetType = UNSET
    agent_id: str | UnsetType = UNSET
    started_at: Instant | UnsetType = UNSET


class _Batch(Struct):
    document_type: Literal["event_batch"]
    schema_version: Literal["0.1"]
    events: Annotated[list[TelemetryEvent], Meta(min_length=1)]
    session_id: UUID | UnsetType = UNSET
    ctx_token: str | UnsetType = UNSET
    agent_id: str | UnsetType = UNSET
    started_at: Instant | UnsetType = UNSET


class _Kind(Struct):
    document_type: str | UnsetType = UNSET


class _Marks(Struct):
    document_type: Any = UNSET
    roles: Any = UNSET
    events: Any = UNSET
    session_id: Any = UNSET


_SHAPES: Final[Mapping[str, type[_Session | _Standalone | _Batch]]] = {
    "session": _Session,
    "event": _Standalone,
    "event_batch": _Batch,
}


class Document(Struct, frozen=True):
    """A session, event or batch that was read, in one form."""

    kind: Literal["session", "event", "event_batch"]
    session_id: str | None
    ctx_token: str | None
    agent_id: str | None
    events: tuple[TelemetryEvent, ...]


class Operator(Struct):
    """Who runs a participant."""

    name: str
    domain: str | UnsetType = UNSET


class ManifestKey(Struct, rename={"public_key": "publicKey"}):
    """A public key of a participant."""

    id: str
    type: Literal["Ed25519"]
    public_key: str
    expires: Instant | UnsetType = UNSET


class Endpoint(Struct):
    """Where telemetry goes."""

    endpoint: str
    conformance_level: Literal["retrieval", "grounding", "citation"] | UnsetType = UNSET


class Manifest(Struct):
    """A participant's `.well-known/content-telemetry.json`."""

    schema_version: Literal["0.1"]
    id: str
    roles: Annotated[list[Literal["content_owner", "agent", "platform"]], Meta(min_length=1)]
    operator: Operator
    keys: list[ManifestKey] | UnsetType = UNSET
    telemetry: Endpoint | UnsetType = UNSET
    domains: list[str] | UnsetType = UNSET


def read_document(raw: bytes) -> Document:
    """Read a session, a standalone event or a batch.

    Raises:
        InvalidError: ``telemetry_invalid``: not the standard's, too large, or against its rules; the message names the
            place.
    """
    kind = _decode(raw, _Kind).document_type
    name = "session" if kind is UNSET else str(kind)
    if name not in _SHAPES:
        raise _invalid(f"document_type {name[:80]!r}", f"use {', '.join(_SHAPES)}")
    found = _decode(raw, _SHAPES[name])
    events = [found.event] if isinstance(found, _Standalone) else found.events
    session = None if found.session_id is UNSET else str(found.session_id)
    token = found.ctx_token if not isinstance(found, _Session) and found.ctx_token is not UNSET else None
    if len(events) > EVENTS_MAX:
        raise _invalid(f"{len(events)} events", f"send at most {EVENTS_MAX} at once")
    for at, event in enumerate(events):
        _check_event(event, f"events[{at}]", named=session is not None or token is not None)
    agent = found.agent_id
    return Document(name, session, token, agent if isinstance(agent, str) else None, tuple(events))  # type: ignore[arg-type]


def form_of(raw: bytes) -> Literal["events", "manifest", "fractional"]:
    """What a document says it is, by its marks; what has none is taken for events.

    Raises:
        InvalidError: ``telemetry_invalid``: no JSON object, or too large.
    """
    marks = _decode(raw, _Marks)
    if marks.document_type == "fractional_attribution":
        return "fractional"
    bare = marks.document_type is UNSET and marks.events is UNSET and marks.session_id is UNSET
    return "manifest" if bare and marks.roles is not UNSET else "events"


def read_manifest(raw: bytes) -> Manifest:
    """Read a participant's manifest.

    Raises:
        InvalidError: ``telemetry_invalid``.
    """
    found = _decode(raw, Manifest)
    where = urlsplit(found.id)
    host = where.hostname or ""
    if not host or where.scheme not in ("https", "http"):
        raise _invalid(f"id {found.id[:80]!r}", "give the manifest's own address")
    if len(set(found.roles)) != len(found.roles):
        raise _invalid("a role is repeated", "name each role once")
    keys = [] if found.keys is UNSET else found.keys
    if len({key.id for key in keys}) != len(keys):
        raise _invalid("a key id is repeated", "give each key an id of its own")
    domains = [] if found.domains is UNSET else found.domains
    if domains and not where.path.startswith("/.well-known/"):
        raise _invalid("domains in a manifest under a path", "claim domains in the manifest of the host's root")
    for domain in domains:
        claimed = domain.lower().removeprefix("*.")
        if claimed != host and not claimed.endswith("." + host):
            raise _invalid(f"domain {domain[:80]!r} is not under {host[:80]!r}", "claim the own host or subdomains")
    return found


def manifest_json(base_url: str, name: str, *, roles: Sequence[str], public_key: str | None = None) -> dict[str, Any]:
    """This gateway's manifest.

    Args:
        base_url: such as ``https://ai.example``, without a path.
        name: the operator's, for people.
        roles: of ``agent``, ``platform``, ``content_owner``.
        public_key: Ed25519, multibase.
    """
    base = base_url.rstrip("/")
    body: dict[str, Any] = {
        "schema_version": VERSION,
        "id": f"{base}/.well-known/content-telemetry.json",
        "roles": list(roles),
        "operator": {"name": name, "domain": urlsplit(base).hostname or ""},
        "telemetry": {"endpoint": f"{base}/v1/telemetry", "conformance_level": "citation"},
    }
    if public_key is not None:
        body["keys"] = [{"id": "log", "type": "Ed25519", "publicKey": public_key}]
    return body


def multibase_key(public: bytes) -> str:
    """An Ed25519 public key as the manifest wants it: multicodec prefix, base58btc, as in ``did:key``.

    >>> multibase_key(bytes(32))[:4]
    'z6Mk'
    """
    number, text = int.from_bytes(b"\xed\x01" + public), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "z" + text


def _check_event(event: TelemetryEvent, where: str, *, named: bool) -> None:
    if event.type in _CONTENT:
        if not any(isinstance(name, str) and name for name in (event.content_url, event.content_id)):
            raise _invalid(f"{where} names no content", "give content_url or content_id")
        if event.data is not UNSET:
            try:
                msgspec.convert(event.data, _DATA[event.type])
            except msgspec.ValidationError as error:
                raise _invalid(f"{where}.data: {error}", "see the standard's data of this event") from None
    if event.type != "content_retrieved" and not named:
        raise _invalid(f"{where} belongs to no session", "give session_id, or ctx_token after a click")
    if isinstance(event.turn, Turn):
        for name in _NEVER[event.turn.privacy_level]:
            if getattr(event.turn, name) not in (UNSET, None):
                raise _invalid(
                    f"{where}.turn has {name} at privacy level {event.turn.privacy_level}", f"leave {name} out"
                )


def _decode(raw: bytes, shape: type[Shape]) -> Shape:
    if len(raw) > DOCUMENT_BYTES_MAX:
        raise _invalid(f"{len(raw)} bytes", f"send at most {DOCUMENT_BYTES_MAX}")
    refuse_deep(raw)
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(str(error), f"send Content Telemetry {VERSION}") from None


def _invalid(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="telemetry_invalid", fix=fix)
