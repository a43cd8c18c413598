"""Content Telemetry: what we write is the standard's, and what breaks the standard is refused."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from headwater.core.errors import HeadwaterError, InvalidError
from headwater.receipts.content_telemetry import (
    Content,
    fractional_report,
    manifest_json,
    read_document,
    read_fractional,
    read_manifest,
    session_json,
)

PUBLISHED = Path(__file__).parents[3] / "shared" / "telemetry"
published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published schemas are not here")

SESSION = {
    "schema_version": "0.1",
    "session_id": "11111111-2222-4333-8444-555555555555",
    "started_at": "2026-01-02T03:04:05Z",
    "events": [{"type": "content_grounded", "timestamp": "2026-01-02T03:04:06Z", "content_id": "a"}],
}


def with_event(**fields: Any) -> bytes:
    """The session above with its event's fields replaced; None takes one away."""
    event = {k: v for k, v in {**SESSION["events"][0], **fields}.items() if v is not None}
    return json.dumps({**SESSION, "events": [event]}).encode()


def read(path: Path) -> object:
    """Read a published example as what it is."""
    raw = path.read_bytes()
    return read_manifest(raw) if path.name.startswith("manifest") else read_document(raw)


@published
@pytest.mark.parametrize("name", sorted(p.name for p in PUBLISHED.glob("valid/*.json")))
def test_published_examples_are_accepted(name: str) -> None:
    """Whatever the standard calls valid is read."""
    read(PUBLISHED / "valid" / name)


@published
@pytest.mark.parametrize("name", sorted(p.name for p in PUBLISHED.glob("invalid/*.json")))
def test_published_counter_examples_are_refused(name: str) -> None:
    """Whatever the standard calls invalid is refused, also where only its prose says so."""
    with pytest.raises(InvalidError) as refused:
        read(PUBLISHED / "invalid" / name)
    assert refused.value.code == "telemetry_invalid"


def contents(example) -> dict[str, Content]:
    """What a registry would say of the first contribution of the example."""
    first = example.receipt.attribution.shares[0].contribution
    return {first: Content("sha256:" + "ab" * 32, "CC0-1.0", "https://example.org/a")}


@published
def test_what_is_written_validates_against_the_published_schemas(example) -> None:
    """Sessions and manifests pass the standard's own JSON Schemas, formats included."""
    jsonschema = pytest.importorskip("jsonschema")
    from referencing import Registry, Resource

    schemas = {p.name: json.loads(p.read_text()) for p in PUBLISHED.glob("*.json")}
    registry = Registry().with_resources((s["$id"], Resource.from_contents(s)) for s in schemas.values())
    for name, value in (
        ("telemetry-session.json", session_json(example.receipt, example.id, contents(example))),
        ("manifest.json", manifest_json("https://ai.example", "An operator", roles=("agent", "platform"))),
    ):
        checker = jsonschema.Draft202012Validator(
            schemas[name], registry=registry, format_checker=jsonschema.FormatChecker()
        )
        assert [e.message for e in checker.iter_errors(value)] == []


def test_a_session_holds_every_share_and_no_words(example) -> None:
    """Each share of the receipt has its event, with what it was paid; texts have no place in it."""
    session = session_json(example.receipt, example.id, contents(example))

    read_back = read_document(json.dumps(session).encode())
    shown = {e["content_id"] for e in session["events"] if "content_id" in e}
    assert shown == {share.contribution for share in example.receipt.attribution.shares}
    assert read_back.agent_id == example.receipt.operator
    assert all(e["turn"]["privacy_level"] == "minimal" for e in session["events"] if "turn" in e)
    first = next(e for e in session["events"] if e.get("content_url"))
    assert (first["license_ref"], first["data"]["headwater"]["receipt"]) == ("CC0-1.0", example.id)
    ids = [e["id"] for e in session["events"]]
    assert len(set(ids)) == len(ids)
    assert session == session_json(example.receipt, example.id, contents(example))


def test_an_owner_sees_only_its_own_events(example) -> None:
    """A contributor's copy names no contribution of others and no token counts."""
    owner = example.receipt.attribution.shares[0].owners[0].contributor
    session = session_json(example.receipt, example.id, {}, viewer=owner)

    own = {s.contribution for s in example.receipt.attribution.shares if any(o.contributor == owner for o in s.owners)}
    others = {s.contribution for s in example.receipt.attribution.shares} - own
    text = json.dumps(session)
    assert {e["content_id"] for e in session["events"] if "content_id" in e} == own
    assert others
    assert not any(other in text for other in others)
    assert session["events"][-1]["turn"] == {"privacy_level": "minimal"}


def test_fractions_sum_to_one_and_are_read_back(example) -> None:
    """The report's fractions and residual are the receipt's weights, to the last billionth."""
    report = fractional_report(example.receipt, example.id, contents(example))

    read_back = read_fractional(json.dumps(report).encode())
    assert sum(Decimal(part.fraction) for part in read_back.contributions) + Decimal(read_back.model_residual) == 1
    assert read_back.receipt == example.id
    assert [int(Decimal(p.fraction) * 10**9) for p in read_back.contributions] == [
        share.weight_ppb for share in example.receipt.attribution.shares
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_residual": "0.000000001"}, "sum"),
        ({"model_residual": "0.1"}, "regex"),
        ({"document_type": "session"}, "enum"),
        ({"receipt": "ab"}, "regex"),
    ],
)
def test_a_report_that_does_not_add_up_is_refused(example, change: dict[str, Any], why: str) -> None:
    """Fractions must make one, in the written form."""
    report = fractional_report(example.receipt, example.id, {})
    if change.get("model_residual") == report["model_residual"]:
        change = {"model_residual": "0.000000002"}
    with pytest.raises(InvalidError):
        read_fractional(json.dumps({**report, **change}).encode())


def test_harm_cannot_be_reported_as_earning(example) -> None:
    """A positive fraction for a negative contribution is refused."""
    report = fractional_report(example.receipt, example.id, {})
    paid = next(part for part in report["contributions"] if Decimal(part["fraction"]) > 0)
    paid |= {"raw_contribution_bits": "-1.000000", "interval_bits": ["-2.000000", "0.000000"]}

    with pytest.raises(InvalidError, match="harmed"):
        read_fractional(json.dumps(report).encode())


@pytest.mark.parametrize(
    "raw",
    [
        with_event(content_id=None),
        with_event(content_id=""),
        with_event(timestamp="2026-01-02T03:04:06"),
        with_event(type="content_stolen"),
        with_event(data={"tokens_ingested": -1}),
        with_event(data={"content_hash": "sha256:AB"}),
        with_event(turn={"privacy_level": "minimal", "topics": ["a"]}),
        with_event(turn={"privacy_level": "intent", "response_text": "a"}),
        with_event(turn={"privacy_level": "full", "query_tokens": -1}),
        json.dumps({**SESSION, "schema_version": "0.2"}).encode(),
        json.dumps({**SESSION, "document_type": "poem"}).encode(),
        json.dumps({**SESSION, "session_id": "7"}).encode(),
        b"[]",
        b"\xff",
        b'{"a":' * 3000,
        b"",
    ],
)
def test_documents_against_the_rules_are_refused(raw: bytes) -> None:
    """Nothing of a bad document is taken, and the error says what is wrong."""
    with pytest.raises(HeadwaterError) as refused:
        read_document(raw)
    assert refused.value.fix


def test_unknown_fields_and_custom_media_pass() -> None:
    """Extensions of others do not stop a document."""
    found = read_document(with_event(data={"media_type": "hologram", "vendor": {"x": 1}}, later="field"))

    assert found.events[0].data == {"media_type": "hologram", "vendor": {"x": 1}}


@pytest.mark.parametrize(
    "change",
    [
        {"roles": ["agent", "agent"]},
        {"keys": [{"id": "a", "type": "Ed25519", "publicKey": "z6"}] * 2},
        {"domains": ["example.org"]},
        {"id": "nowhere"},
        {"id": "https://ai.example/sub/.well-known/content-telemetry.json", "domains": ["ai.example"]},
    ],
)
def test_manifests_claim_only_what_is_theirs(change: dict[str, Any]) -> None:
    """Repeated roles and keys, and domains of others, are refused."""
    with pytest.raises(InvalidError):
        read_manifest(json.dumps({**manifest_json("https://ai.example", "x", roles=("agent",)), **change}).encode())


def test_a_manifest_may_claim_its_subdomains() -> None:
    """The own host and what is under it pass."""
    body = manifest_json("https://ai.example", "x", roles=("agent",), public_key="z6Mk")

    assert read_manifest(json.dumps({**body, "domains": ["ai.example", "*.eu.ai.example"]}).encode()).domains
