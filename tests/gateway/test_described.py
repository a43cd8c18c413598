"""The API's description for people: it needs nothing from anywhere, and says what the description for programs says."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import urllib.error
import urllib.request

import pytest

from headwater.gateway.described import page_of
from toy.desk import Desk


def fetched(desk: Desk, path: str) -> tuple[str, dict[str, str]]:
    """A page and its headers, asked without a key."""
    with urllib.request.urlopen(desk.url + path, timeout=20) as response:
        return response.read().decode(), {name.lower(): value for name, value in response.headers.items()}


def test_no_page_names_another_host(shared: Desk) -> None:
    """No address with a host in it, no script, nothing to load; and the browser is told to load nothing."""
    page, headers = fetched(shared, "/docs")

    assert headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"(?:[a-z][a-z0-9+.-]*:)?//[a-z0-9]", page, re.IGNORECASE)
    assert not re.search(r"<(script|img|iframe|object|embed|form|base)\b|@import|url\(", page, re.IGNORECASE)
    targets = re.findall(r"(?:href|src)=\"([^\"]*)\"", page)
    assert targets
    assert all(target in ("openapi.json", "data:,") or target.startswith("#") for target in targets)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert headers["content-security-policy"].split("; ")[:2] == ["default-src 'none'", f"style-src 'sha256-{allowed}'"]


@pytest.mark.parametrize("path", ["/docs/oauth2-redirect", "/redoc"])
def test_no_other_page_of_a_library_is_served(shared: Desk, path: str) -> None:
    """What FastAPI would add loads from elsewhere: it is not there."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetched(shared, path)
    assert caught.value.code == 404


def test_every_route_and_field_of_the_description_is_on_the_page(shared: Desk) -> None:
    """Each verb and path, each parameter, and each field of each body."""
    schema = shared.get("/openapi.json")
    text = html.unescape(re.sub(r"<[^>]+>", " ", fetched(shared, "/docs")[0]))
    words = " ".join(text.split())

    assert len(schema["paths"]) > 20
    for path, verbs in schema["paths"].items():
        for verb, route in verbs.items():
            assert f"{verb.upper()} {path} " in words
            for one in route.get("parameters", ()):
                assert f" {one['name']} " in words
            for content in route.get("requestBody", {}).get("content", {}).values():
                shape = content["schema"]
                if "$ref" in shape:
                    shape = schema["components"]["schemas"][shape["$ref"].rsplit("/", 1)[-1]]
                for name in shape["properties"]:
                    assert f" {name} " in words, (path, name)
    assert "messages[].role" in words
    assert "GET /v1/receipts The key's own calls in short" in words
    assert "limit integer, 1 to 100" in words


def test_what_a_description_says_is_text_on_the_page() -> None:
    """Whatever stands in a description is shown, never run."""
    said = "<script>alert(1)</script>"
    route = {"tags": ["x"], "description": said, "parameters": [{"name": said, "in": "query", "schema": {}}]}
    page = page_of({"info": {"title": said, "version": "1"}, "paths": {"/" + said: {"get": route}}})

    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
