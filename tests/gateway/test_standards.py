"""What other systems look for at fixed places, over HTTP."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from headwater.core.errors import InvalidError
from headwater.gateway.standards import Standards, standard_routes
from headwater.receipts.checkpoint import Checkpoint, NoteSigner
from headwater.receipts.content_telemetry import read_document, read_fractional, read_manifest
from headwater.receipts.tiles import Tile
from headwater.registry.rsl import read_rsl
from headwater.store.log_tiles import TileServer
from toy.desk import Desk, open_desk


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway that says who it is and shows its log."""
    tiles: list[TileServer] = []
    said = Standards("https://ai.example", "An operator", tile=lambda path: tiles[0].serve_tile(path))
    with open_desk(tmp_path_factory.mktemp("home"), more=[standard_routes(said)]) as running:
        tiles.append(TileServer(running.toy.log, NoteSigner("headwater/test", bytes(range(32)))))
        yield running


@pytest.fixture(scope="module")
def receipt(desk: Desk) -> str:
    """The receipt of one paid answer."""
    answer = desk.client().chat.completions.with_raw_response.create(
        model=next(iter(desk.app.model_names)), messages=[{"role": "user", "content": "hello"}]
    )
    desk.settled()
    return str(desk.get("/v1/receipts/" + answer.headers["headwater-receipt"])["id"])


def fetch(desk: Desk, path: str) -> tuple[bytes, str]:
    """A public file and its type."""
    with urlopen(Request(desk.url + path), timeout=20) as response:
        return response.read(), response.headers["content-type"]


def test_the_manifest_is_the_standards(desk: Desk) -> None:
    """Anybody finds who runs the gateway, without a key."""
    raw, kind = fetch(desk, "/.well-known/content-telemetry.json")

    found = read_manifest(raw)
    assert (found.operator.name, found.id) == ("An operator", "https://ai.example/.well-known/content-telemetry.json")
    assert kind == "application/json"


def test_terms_are_found_from_robots(desk: Desk) -> None:
    """robots.txt names the licence file, which lists every contribution with its terms."""
    robots, _ = fetch(desk, "/robots.txt")
    raw, kind = fetch(desk, "/license.xml")

    assert b"License: https://ai.example/license.xml" in robots
    assert kind == "application/rsl+xml"
    listed = {one.url.removeprefix("/contributions/"): one.license for one in read_rsl(raw)}
    assert listed == {one.id: one.license for one in desk.toy.flow.parts.registry.contributions()}


def test_a_receipt_leaves_as_telemetry(desk: Desk, receipt: str) -> None:
    """The payer gets its answer's session and report; both are read back by what checks strangers' ones."""
    session = desk.get(f"/v1/receipts/{receipt}/telemetry")
    report = desk.get(f"/v1/receipts/{receipt}/attribution")

    document = read_document(json.dumps(session).encode())
    assert document.session_id == read_fractional(json.dumps(report).encode()).session_id
    assert report["receipt"] == receipt
    assert session["events"][0]["type"] == "turn_started"


def test_another_keys_receipt_does_not_exist(desk: Desk, receipt: str) -> None:
    """Telemetry of a receipt is its payer's alone."""
    other, _ = desk.toy.key()

    for what in ("telemetry", "attribution"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            desk.get(f"/v1/receipts/{receipt}/{what}", other)
        assert refused.value.code == 404


def test_events_of_others_are_kept_once(desk: Desk) -> None:
    """The same batch twice is counted once, and each key reads only what it sent."""
    batch = {
        "document_type": "event_batch",
        "schema_version": "0.1",
        "events": [
            {"type": "content_retrieved", "timestamp": "2026-01-02T03:04:05Z", "content_url": f"https://e.example/{n}"}
            for n in range(3)
        ],
    }
    first = json.load(desk.post(batch, path="/v1/telemetry"))
    again = json.load(desk.post(batch, path="/v1/telemetry"))
    other, _ = desk.toy.key()

    assert (first, again) == ({"accepted": 3, "known": 0}, {"accepted": 0, "known": 3})
    page = desk.get("/v1/telemetry?limit=2")
    rest = desk.get(f"/v1/telemetry?limit=2&after={page['next']}")
    urls = [row["event"]["content_url"] for row in page["data"] + rest["data"]]
    assert urls == [f"https://e.example/{n}" for n in range(3)]
    assert rest["next"] is None
    assert desk.get("/v1/telemetry", other)["data"] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/telemetry", b"{}"),
        ("/v1/telemetry", b"\xff\xfe"),
        ("/v1/telemetry", b"[" * 100_000),
        ("/v1/telemetry", b" " * (4 * 2**20 + 1)),
        ("/v1/telemetry?form=fractional", b"{}"),
        ("/v1/telemetry?form=poem", b"{}"),
    ],
)
def test_bad_reports_are_refused_whole(desk: Desk, path: str, body: bytes) -> None:
    """A report that breaks the standard is 400 and leaves nothing."""
    before = desk.get("/v1/telemetry?limit=1000")

    with pytest.raises(urllib.error.HTTPError) as refused:
        desk.post(body, path=path)

    assert refused.value.code in (400, 413, 422)
    assert desk.get("/v1/telemetry?limit=1000") == before


def test_the_log_is_served_as_tiles(desk: Desk, receipt: str) -> None:
    """The checkpoint's size is the log's and its entry tile holds the receipt's bytes."""
    raw, _ = fetch(desk, "/log/checkpoint")
    checkpoint = Checkpoint.from_bytes(raw)
    entries, _ = fetch(desk, "/log/" + Tile(None, 0, checkpoint.head.size).path)

    assert checkpoint.head.size == len(desk.toy.log)
    assert desk.toy.log.get(receipt).raw in entries


@pytest.mark.parametrize("path", ["/log/tile/0/999", "/log/../headwater.db", "/log/tile/entries/%2e%2e/x", "/log/"])
def test_files_the_log_does_not_have_are_404(desk: Desk, path: str) -> None:
    """No path reaches outside the log."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(desk, path)
    assert refused.value.code == 404


@pytest.mark.parametrize("url", ["ai.example", "ftp://ai.example", "https://ai.example/path", "https://?q"])
def test_a_public_url_is_scheme_and_host(url: str) -> None:
    """Anything else would make a manifest that others refuse."""
    with pytest.raises(InvalidError, match="public URL"):
        Standards(url, "An operator")


def test_a_gateway_without_tiles_shows_no_log(tmp_path: Path) -> None:
    """Receipts are published only by who chooses to."""
    with open_desk(tmp_path / "home", more=[standard_routes(Standards("https://ai.example", "x"))]) as desk:
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(desk, "/log/checkpoint")
        assert refused.value.code == 404
