"""`GET /docs`: the API's description as one page for people. It loads nothing, from here or from anywhere else.

Made from `/openapi.json`, without a script, so that it reads the same on a machine that reaches nobody.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, StrictUndefined

_DEPTH_MAX: Final = 4
"""How far fields within fields are listed."""

_STYLE: Final = """
:root { color-scheme: light dark; --ground: #f6f8fa; --panel: #fff; --sunken: #eef2f6; --line: #d4dce4; --text: #14202c;
  --quiet: #506070; --accent: #0b62a8; }
@media (prefers-color-scheme: dark) { :root { --ground: #0f1620; --panel: #16202c; --sunken: #1c2836; --line: #2f3e4f;
  --text: #e7eef5; --quiet: #a3b3c2; --accent: #6db6f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
a { color: var(--accent); }
h1, h2 { line-height: 1.2; }
h2 { margin: 2rem 0 .5rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; }
details { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; margin: .5rem 0; }
summary { cursor: pointer; padding: .6rem .9rem; overflow-wrap: anywhere; }
summary:focus-visible, a:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.inside { border-top: 1px solid var(--line); padding: .6rem .9rem; overflow-x: auto; }
.quiet { color: var(--quiet); }
.verb { display: inline-block; min-width: 4.5rem; font-weight: 700; color: var(--accent); }
code { font: .92em ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; margin: .25rem 0 .75rem; }
caption { text-align: left; font-weight: 700; padding: .25rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-top: 1px solid var(--line); }
"""
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} {{ version }}: its API</title>
<link rel="icon" href="data:,">
<style>{{ style | safe }}</style>
</head>
<body>
<main>
<h1>{{ title }} <small class="quiet">{{ version }}</small></h1>
<p>{{ summary }} A key goes into <code>Authorization: Bearer …</code>. For programs:
<a href="openapi.json"><code>/openapi.json</code></a>.</p>
<nav aria-label="Parts"><ul>{% for tag in tags %}<li><a href="#{{ tag }}">{{ tag }}</a></li>{% endfor %}</ul></nav>
{% for tag, routes in tags.items() %}
<section id="{{ tag }}">
<h2>{{ tag }}</h2>
{% for route in routes %}
<details>
<summary><span class="verb">{{ route.verb }}</span> <code>{{ route.path }}</code>
<span class="quiet">{{ route.said }}</span></summary>
<div class="inside">
{% for caption, rows in (("Parameters", route.parameters), ("Body", route.body)) if rows %}
<table>
<caption>{{ caption }}</caption>
<thead><tr><th scope="col">Name</th><th scope="col">Form</th><th scope="col">What it is</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><td><code>{{ row.name }}</code>{% if row.needed %} (needed){% endif %}</td><td>{{ row.form }}</td>
<td>{{ row.said }}</td></tr>
{% endfor %}
</tbody>
</table>
{% endfor %}
<p class="quiet">Answers: {{ route.answers }}</p>
</div>
</details>
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
_VERBS: Final = ("get", "put", "post", "patch", "delete")
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS: Final = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def described_routes(app: FastAPI) -> None:
    """Add `/docs`; to be called once every route is there."""

    @cache
    def page() -> str:
        return page_of(app.openapi())

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        """The API's description for people."""
        return HTMLResponse(page(), headers=_HEADERS)


def page_of(schema: Mapping[str, Any]) -> str:
    """The page of an OpenAPI description."""
    tags: dict[str, list[dict[str, Any]]] = {}
    for path, verbs in schema["paths"].items():
        for verb in _VERBS:
            if (route := verbs.get(verb)) is not None:
                tags.setdefault(route.get("tags", ["other"])[0], []).append(_route(schema, path, verb, route))
    info = schema["info"]
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(_PAGE)
    return page.render(
        title=info["title"], version=info["version"], summary=info.get("summary", ""), tags=tags, style=_STYLE
    )


def _route(schema: Mapping[str, Any], path: str, verb: str, route: Mapping[str, Any]) -> dict[str, Any]:
    content = route.get("requestBody", {}).get("content", {})
    body: Mapping[str, Any] = next((one.get("schema", {}) for one in content.values()), {})
    return {
        "verb": verb.upper(),
        "path": path,
        "said": route.get("description") or route.get("summary", ""),
        "parameters": [
            {
                "name": f"{one['name']}",
                "needed": one.get("required", False),
                "form": _form(schema, one.get("schema", {})),
                "said": one.get("description") or _said(schema, one.get("schema", {})) or f"in the {one['in']}",
            }
            for one in route.get("parameters", ())
        ],
        "body": _fields(schema, body, "", _DEPTH_MAX),
        "answers": ", ".join(route.get("responses", {"200": {}})),
    }


def _fields(schema: Mapping[str, Any], shape: Mapping[str, Any], above: str, depth: int) -> list[dict[str, Any]]:
    """The fields of an object and, up to `depth`, of those within it, one row each."""
    shape = _resolved(schema, shape)
    rows: list[dict[str, Any]] = []
    for name, field in shape.get("properties", {}).items():
        needed = name in shape.get("required", ())
        form, said = _form(schema, field), _said(schema, field)
        rows.append({"name": above + name, "needed": needed, "form": form, "said": said})
        inner = _resolved(schema, field)
        if depth > 1:
            for one in (inner, *inner.get("anyOf", ())):
                listed = _resolved(schema, one)
                if listed.get("type") == "array":
                    rows += _fields(schema, listed.get("items", {}), f"{above}{name}[].", depth - 1)
                else:
                    rows += _fields(schema, listed, f"{above}{name}.", depth - 1)
    return rows


def _form(schema: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    """What a value looks like, in a few words."""
    shape = _resolved(schema, shape)
    for either in ("anyOf", "oneOf"):
        if either in shape:
            return " or ".join(dict.fromkeys(_form(schema, one) for one in shape[either]))
    if "enum" in shape:
        return " | ".join(map(str, shape["enum"]))
    kind: str | Sequence[str] = shape.get("type", "anything")
    if kind == "array":
        return f"list of {_form(schema, shape.get('items', {}))}"
    words = kind if isinstance(kind, str) else " or ".join(kind)
    low, high = shape.get("minimum"), shape.get("maximum")
    if low is not None and high is not None:
        words += f", {low} to {high}"
    elif low is not None:
        words += f" from {low}"
    return words


def _said(schema: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    """What is said of a value, with what it is when left out."""
    shape = _resolved(schema, shape)
    inner = shape.get("anyOf", [{}])[0]
    said = shape.get("description") or inner.get("description", "")
    default = shape.get("default", inner.get("default"))
    if default is None:
        return str(said)
    return f"{said}{'; ' if said else ''}{default} unless given"


def _resolved(schema: Mapping[str, Any], shape: Mapping[str, Any]) -> Mapping[str, Any]:
    """A shape, or the one it refers to."""
    if "$ref" not in shape:
        return shape
    found: Mapping[str, Any] = schema["components"]["schemas"][shape["$ref"].rsplit("/", 1)[-1]]
    return found
