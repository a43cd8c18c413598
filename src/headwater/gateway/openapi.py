"""The API's description: OpenAI's routes and the bodies of ours, beside what FastAPI knows by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from fastapi import FastAPI

from headwater.core.limits import TOOLS_MAX
from headwater.gateway.admin_fields import LimitFields, NewDeposit, NewKey, Rotation
from headwater.gateway.datanet_fields import NewAppeal, NewDatanet, NewReviewers, NewSubmission, NewVote

_TEXT: Final[dict[str, Any]] = {"type": "string"}
_NUMBER: Final[dict[str, Any]] = {"type": "number"}
_COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 1}
_MESSAGE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": _TEXT},
}
_SAMPLING: Final[dict[str, Any]] = {
    "stream": {"type": "boolean"},
    "temperature": {**_NUMBER, "minimum": 0, "maximum": 2},
    "top_p": {**_NUMBER, "minimum": 0, "maximum": 1},
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 4}]},
    "seed": {"type": "integer"},
}
_FUNCTION: Final[dict[str, Any]] = {
    "name": {**_TEXT, "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    "description": _TEXT,
    "parameters": {"type": "object"},
    "strict": {"type": "boolean"},
}
_KIND: Final[dict[str, Any]] = {"enum": ["function"]}
_TOOL_NESTED: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {"type": _KIND, "function": {"type": "object", "required": ["name"], "properties": _FUNCTION}},
}
_TOOL_FLAT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {"type": _KIND, **_FUNCTION},
}
_CHOICE: Final[dict[str, Any]] = {
    "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]},
    "parallel_tool_calls": {"type": "boolean"},
}

OPENAI_BODIES: Final[Mapping[str, dict[str, Any]]] = {
    "/v1/chat/completions": {
        "required": ["model", "messages"],
        "properties": {
            "model": _TEXT,
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "max_completion_tokens": _COUNT,
            "tools": {"type": "array", "items": _TOOL_NESTED, "maxItems": TOOLS_MAX},
            **_CHOICE,
            **_SAMPLING,
        },
    },
    "/v1/completions": {
        "required": ["model", "prompt"],
        "properties": {"model": _TEXT, "prompt": _TEXT, "max_tokens": _COUNT, **_SAMPLING},
    },
    "/v1/responses": {
        "required": ["model", "input"],
        "properties": {
            "model": _TEXT,
            "input": {"anyOf": [_TEXT, {"type": "array", "items": _MESSAGE}]},
            "max_output_tokens": _COUNT,
            "tools": {"type": "array", "items": _TOOL_FLAT, "maxItems": TOOLS_MAX},
            **_CHOICE,
            "stream": {"type": "boolean"},
        },
    },
    "/v1/embeddings": {
        "required": ["model", "input"],
        "properties": {"model": _TEXT, "input": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}},
    },
}
"""What each route needs of a body. Fields that are not named here are passed on."""

_FEEDBACK: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["receipt"],
    "properties": {
        "receipt": _TEXT,
        "rating": {"enum": ["up", "down"]},
        "correction": _TEXT,
        "preferred": _TEXT,
        "comment": _TEXT,
    },
}
_STRUCTS: Final[Mapping[tuple[str, str], type[msgspec.Struct]]] = {
    ("/v1/admin/keys", "post"): NewKey,
    ("/v1/admin/keys/{key_id}", "patch"): LimitFields,
    ("/v1/admin/keys/{key_id}/rotate", "post"): Rotation,
    ("/v1/admin/keys/{key_id}/deposits", "post"): NewDeposit,
    ("/v1/datanets", "post"): NewDatanet,
    ("/v1/datanets/{name}/reviewers", "put"): NewReviewers,
    ("/v1/datanets/{name}/submissions", "post"): NewSubmission,
    ("/v1/datanets/{name}/submissions/{id}/appeal", "post"): NewAppeal,
    ("/v1/reviews/{task}", "post"): NewVote,
}


def describe(app: FastAPI) -> None:
    """Make `/openapi.json` of `app` complete; to be called once every route is there."""
    plain = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(plain())
        return app.openapi_schema

    app.openapi = complete  # type: ignore[method-assign]


def _complete(schema: dict[str, Any]) -> dict[str, Any]:
    paths = schema["paths"]
    structs, components = msgspec.json.schema_components(_STRUCTS.values(), ref_template="#/components/schemas/{name}")
    for (path, verb), body in zip(_STRUCTS, structs, strict=True):
        if path in paths:
            paths[path][verb]["requestBody"] = _body(body)
    if "/v1/feedback" in paths:
        paths["/v1/feedback"]["post"]["requestBody"] = _body(_FEEDBACK)
    for path, shape in OPENAI_BODIES.items():
        paths[path] = {
            "post": {
                "tags": ["openai"],
                "summary": "As OpenAI's; answers carry a receipt and, beside `usage`, a `headwater` object.",
                "requestBody": _body({"type": "object", "additionalProperties": True, **shape}),
                "responses": {"200": {"description": "The answer, or its stream of events."}},
            }
        }
    paths["/v1/models"] = {
        "get": {
            "tags": ["openai"],
            "summary": "Models this key may ask for, with their prices.",
            "responses": {"200": {"description": "The list."}},
        }
    }
    found = schema.setdefault("components", {})
    found.setdefault("schemas", {}).update(components)
    found["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}]
    return schema


def _body(shape: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": shape}}}
