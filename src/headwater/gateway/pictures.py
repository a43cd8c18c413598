"""Pictures inside a request: how many tokens less they are than their bytes.

A byte makes at most one token, but a picture is no text: a model sees so many patches of it, however large its file. It
counts as its base64 or as `PICTURE_TOKENS_MAX`, whichever is less. Only what the JSON says is a picture counts as one:
the URL of a part of a message's content that is typed as a picture, all of it base64. Whatever does not fit that is
text, and counts as text. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

PICTURE_TOKENS_MAX: Final = 65_536
"""Of one picture. The dearest formula that is published for a model on these routes (gpt-4o-mini in high detail: 2,833
tokens and 5,667 for each of at most 8 tiles) comes to 48,169; this is the next power of two."""

PARTS_MAX: Final = 65_536
"""Objects in a conversation that are looked at; one with more has no pictures."""

_BEGINS: Final = re.compile(rb'"data:image\\?/[A-Za-z0-9.+-]{1,40};base64,')
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_NOTHING: Final = msgspec.Raw(b"null")


class _Address(msgspec.Struct):
    url: msgspec.Raw = _NOTHING


class _ChatPart(msgspec.Struct):
    type: str = ""
    image_url: _Address | None = None


class _ChatMessage(msgspec.Struct):
    content: list[_ChatPart] | str | None = None


class _Part(msgspec.Struct):
    type: str = ""
    image_url: msgspec.Raw = _NOTHING


class _Item(msgspec.Struct):
    content: list[_Part] | str | None = None


_decode_chat = msgspec.json.Decoder(list[_ChatMessage]).decode
_decode_items = msgspec.json.Decoder(list[_Item]).decode


def picture_sizes(fields: Mapping[str, msgspec.Raw], shape: str) -> tuple[int, ...]:
    """Bytes of the base64 of each picture in a request, as it stands there.

    Args:
        fields: the request, read one level deep.
        shape: of the route.
    """
    raw = fields.get({"chat": "messages", "responses": "input"}.get(shape, ""))
    if raw is None:
        return ()
    given = bytes(raw)
    if b"data:image" not in given or given.count(b"{") > PARTS_MAX:
        return ()
    try:
        found = _chat(given) if shape == "chat" else _items(given)
        return tuple(size for size in map(_size, found) if size)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()


def _chat(raw: bytes) -> Iterator[msgspec.Raw]:
    for message in _decode_chat(raw):
        for part in message.content if isinstance(message.content, list) else ():
            if part.type == "image_url" and part.image_url is not None:
                yield part.image_url.url


def _items(raw: bytes) -> Iterator[msgspec.Raw]:
    for item in _decode_items(raw):
        for part in item.content if isinstance(item.content, list) else ():
            if part.type == "input_image":
                yield part.image_url


def _size(url: Any) -> int:
    """Bytes of the base64 in a picture's URL as JSON has it; 0 when it is none."""
    said = bytes(url)
    match = _BEGINS.match(said)
    if match is None:
        return 0
    data = said[match.end() : -1]
    odd = data.translate(None, _BASE64)  # quick, where a pattern would take a tenth of a second
    if odd and (odd.strip(b"\\") or len(data.replace(rb"\/", b"/")) != len(data) - len(odd)):
        return 0
    return len(data)
