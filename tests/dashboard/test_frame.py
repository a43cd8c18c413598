"""What every page has: strict headers, a JSON twin, small files that are ours, and words that exist."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from importlib.resources import files

import pytest

from headwater.dashboard.assets import Assets
from headwater.dashboard.strings import WORDS, say

PUBLIC = (
    *("/", "/sign-in", "/ask", "/explore", "/search?q=river", "/contributions", "/receipts", "/epochs"),
    *("/transactions", "/datanets", "/adapters", "/verify", "/contributors"),
)
FIRST_LOAD_BYTES_MAX = 300_000


@pytest.mark.parametrize("path", [*PUBLIC, "/nothing/here", "/contributions/ctb_none"])
def test_every_page_has_strict_headers(shared, path):
    """Only files of ours run, nothing inline, nobody frames a page, and no page is kept by what is in between."""
    reply = shared.visitor().get(path)

    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", PUBLIC)
def test_no_page_needs_inline_code_or_another_host(shared, path):
    """Pages hold no inline script, style or handler, and name nothing outside this server."""
    reply = shared.visitor().get(path)

    assert reply.status == 200
    for tag, attributes in reply.elements:
        assert tag != "style"
        assert tag != "script" or (attributes.get("src") or "").startswith("/static/")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href", "action"):
            assert re.match(r"(/(?!/)|#)", attributes.get(name) or "/"), (tag, attributes)


@pytest.mark.parametrize("path", PUBLIC)
def test_every_page_has_a_json_twin(shared, path):
    """`.json` behind the path and an Accept header give the same data, and the page links to it."""
    visitor = shared.visitor()
    page = visitor.get(path)
    twin = next(a["href"] for tag, a in page.elements if tag == "a" and a.get("rel") == "alternate")

    by_path, by_header = visitor.get(twin), visitor.get(path, accept="application/json")

    assert by_path.headers["content-type"] == by_header.headers["content-type"] == "application/json"
    assert by_path.json == by_header.json


def test_an_unknown_page_says_so_in_both_forms(shared):
    """A missing page is a page of its own with 404, and RFC 9457 for who asks for JSON."""
    visitor = shared.visitor()

    assert visitor.get("/nothing").status == 404
    problem = visitor.get("/nothing.json")
    assert problem.status == 404
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.json["code"] == "route_unknown"


def test_the_gateway_is_where_it_was(shared):
    """Beside the pages `/v1` and the health routes answer as before."""
    visitor = shared.visitor()

    assert visitor.get("/healthz").json["status"] == "ok"
    assert visitor.get("/v1/models", authorization=f"Bearer {shared.secret}").json["object"] == "list"
    assert visitor.get("/v1/nothing").json["error"]["code"] == "route_unknown"


def test_the_first_load_is_small_and_compressed(shared):
    """The heaviest page with everything it loads takes at most 300 kB on the wire."""
    visitor = shared.visitor()
    heaviest = 0
    for path in PUBLIC:
        page = visitor.get(path, accept_encoding="gzip")
        html = gzip.decompress(page.body) if page.headers.get("content-encoding") == "gzip" else page.body
        total = len(page.body)
        for address in set(re.findall(r'(?:src|href)="(/static/[^"]+)"', html.decode())):
            total += len(visitor.get(address, accept_encoding="gzip").body)
        heaviest = max(heaviest, total)
    every = sum(len(asset.compressed) for asset in Assets()._assets.values() if not asset.path.endswith(".txt"))

    assert heaviest <= FIRST_LOAD_BYTES_MAX
    assert every <= FIRST_LOAD_BYTES_MAX  # even all scripts and styles of all pages together


def test_files_are_served_as_they_are_and_kept_by_browsers(shared):
    """A file under its digest's address may be kept for ever; a wrong path is 404 and leads nowhere."""
    visitor, assets = shared.visitor(), Assets()
    reply = visitor.get(assets.address("js/proofs.js"))

    assert reply.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in reply.headers["cache-control"]
    assert visitor.get(assets.address("js/proofs.js"), if_none_match=reply.headers["etag"]).status == 304
    for path in ("/static/x/../app.py", "/static/x/%2e%2e/app.py", "/static/x/none.js"):
        assert visitor.get(path).status == 404


def test_vendored_files_are_those_of_the_manifest():
    """Each file made from other packages has the digest that the manifest names, and its licence beside it."""
    folder = files("headwater.dashboard").joinpath("static", "vendor")
    manifest = json.loads(folder.joinpath("manifest.json").read_text("utf-8"))
    lock = json.loads(files("headwater.dashboard").joinpath("vendoring", "package-lock.json").read_text("utf-8"))

    assert {entry.name for entry in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == digest
    for package, said in manifest["packages"].items():
        assert lock["packages"][f"node_modules/{package}"]["version"] == said["version"]
        assert said["license"] in ("MIT", "0BSD", "BSD-0-Clause")
        assert said["text"] in manifest["files"]


def test_every_word_that_a_template_says_exists():
    """Templates and modules name words by keys that are there; no sentence stands in a template."""
    used = set()
    for entry in _sources(files("headwater.dashboard")):
        used |= set(re.findall(r"""say\(\s*["']([a-z_]+\.[a-zA-Z_]+)["']""", entry))

    begun = {key for key in used if key.endswith("_")}  # the rest of these comes from data
    assert used - begun
    assert used - begun - set(WORDS) == set()
    assert [key for key in begun if not any(word.startswith(key) for word in WORDS)] == []
    assert say("error.back") == WORDS["error.back"]


def _sources(folder):
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.name not in ("static", "vendoring", "__pycache__"):
                yield from _sources(entry)
        elif entry.name.endswith((".html", ".py")):
            yield entry.read_text("utf-8")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/.well-known/content-telemetry.json", "application/json"),
        ("/license.xml", "application/rsl+xml"),
        ("/robots.txt", "text/plain"),
        ("/log/checkpoint", "application/problem+json"),
        ("/openapi.json", "application/json"),
    ],
)
def test_what_other_systems_look_for_is_the_gateway_s_and_no_page(shared, path, kind):
    """Pages stand in front of the gateway by default: files of standards and the log stay where they are looked for."""
    reply = shared.visitor().get(path)

    assert reply.headers["content-type"].partition(";")[0] == kind
    assert reply.status == (404 if path.startswith("/log/") else 200)
