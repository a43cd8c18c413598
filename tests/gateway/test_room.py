"""The room for bodies, and what a picture counts: numbers alone, no sockets."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.limits import REQUEST_SIZE_BYTES_MAX
from headwater.gateway.errors import failure_of
from headwater.gateway.passing import ROUTES, read_request
from headwater.gateway.pictures import PICTURE_TOKENS_MAX
from headwater.gateway.room import TOGETHER_BYTES_MIN, UNCOUNTED_BYTES, Room

MIB = 2**20
BASE64 = base64.b64encode(bytes(range(256)) * 600).decode()  # 204,800 letters
URL = "data:image/png;base64," + BASE64
SAVED = len(BASE64) - PICTURE_TOKENS_MAX


def test_the_room_is_what_the_setting_says_and_never_too_small_for_many_calls() -> None:
    """16 of the largest, at least 512 MiB; where nothing is relayed, what it was."""
    assert (Room.of(32 * MIB).body_bytes_max, Room.of(32 * MIB).together_bytes_max) == (32 * MIB, 512 * MIB)
    assert Room.of(4 * MIB).together_bytes_max == TOGETHER_BYTES_MIN
    assert Room.of(100 * MIB).together_bytes_max == 1_600 * MIB
    assert (Room.of(None).body_bytes_max, Room.of(None).together_bytes_max) == (REQUEST_SIZE_BYTES_MAX, None)


def test_what_is_too_large_is_413_and_what_finds_no_room_is_503_and_retried() -> None:
    """Both say how large; a small body has a place at all times, and whoever is not known yet has half the room."""
    room = Room(4 * MIB, 8 * MIB)
    first, second, third, stranger = room.place(), room.place(), room.place(), room.place(known=False)
    first.grow(4 * MIB)
    with pytest.raises(HeadwaterError, match=str(UNCOUNTED_BYTES + 1)) as shut_out:
        stranger.grow(UNCOUNTED_BYTES + 1)
    second.grow(3 * MIB)
    second.grow(4 * MIB)
    with pytest.raises(HeadwaterError, match="this one has 65537") as busy:
        third.grow(UNCOUNTED_BYTES + 1)
    third.grow(UNCOUNTED_BYTES)
    with pytest.raises(InvalidError, match=f"{4 * MIB + 1} bytes or more, and {4 * MIB} are taken") as large:
        room.place().grow(4 * MIB + 1)
    told = [failure_of(one.value) for one in (large, busy, shut_out)]

    assert [(one.status, one.code, one.retried) for one in told] == [
        (413, "request_too_large", False),
        *[(503, "bodies_busy", True)] * 2,
    ]
    assert not room.fits(UNCOUNTED_BYTES + 1)
    assert room.fits(UNCOUNTED_BYTES)
    for place in (first, second, third, stranger, first):  # twice is as once
        place.give_back()
    assert room.taken_bytes == 0


def test_memory_goes_back_once_the_room_is_empty_after_much_was_taken() -> None:
    """Once for each time, not for every call, and never while bodies are at work."""
    times: list[int] = []
    room = Room(64 * MIB, 512 * MIB, lambda: times.append(room.taken_bytes))
    for sizes, expected in (((64,), 0), ((64, 1), 1), ((64,), 1), ((64, 64, 64), 2), ((), 2)):
        places = [room.place() for _ in sizes]
        for place, size in zip(places, sizes, strict=True):
            place.grow(size * MIB)
        for place in places:
            place.give_back()
        assert len(times) == expected
    assert set(times) == {0}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3 * MIB), st.booleans()), max_size=40))
def test_the_room_is_never_overdrawn_and_is_empty_in_the_end(steps: list[tuple[int, int, bool]]) -> None:
    """However places grow, are refused and are given back."""
    room = Room(2 * MIB, 3 * MIB)
    places = [room.place(known=bool(number % 2)) for number in range(4)]
    for number, size, leaves in steps:
        with contextlib.suppress(HeadwaterError):
            places[number].grow(size)
        assert 0 <= room.taken_bytes <= 3 * MIB
        if leaves:
            places[number].give_back()
            places[number] = room.place()
    for place in places:
        place.give_back()
    assert room.taken_bytes == 0


# Pictures


def chat(*parts: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    """A chat of one message of parts."""
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": list(parts)}], **more}


def response(*parts: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    """The same to the other route."""
    return "/v1/responses", {"input": [{"role": "user", "content": list(parts)}], **more}


def saved(path: str, body: dict[str, Any], escaped: bool = False) -> int:
    """How many tokens less than bytes a body is taken for."""
    raw = json.dumps({"model": "m", **body}).encode()
    if escaped:
        raw = raw.replace(b"/", rb"\/")
    request = read_request(raw, ROUTES[path])
    assert request.size_bytes == len(raw)
    return len(raw) - request.prompt_bytes


PICTURE = {"type": "image_url", "image_url": {"url": URL, "detail": "high"}}
INPUT = {"type": "input_image", "image_url": URL}


def test_a_picture_counts_at_most_its_ceiling_on_both_routes() -> None:
    """One, several, beside text, in any message; one that is smaller counts as its base64."""
    text = {"type": "text", "text": "What is this?"}
    assert saved(*chat(text, PICTURE)) == SAVED
    assert saved(*chat(PICTURE, text, PICTURE)) == 2 * SAVED
    assert saved(*response(INPUT, {"type": "input_text", "text": "x"})) == SAVED
    path, body = chat(PICTURE)
    body["messages"] = [{"role": "system", "content": "x"}, *body["messages"], {"role": "assistant", "content": None}]
    assert saved(path, body) == SAVED
    small = {"type": "image_url", "image_url": {"url": "data:image/gif;base64," + BASE64[:PICTURE_TOKENS_MAX]}}
    assert saved(*chat(small)) == 0
    request = read_request(json.dumps({"model": "m", **chat(PICTURE)[1]}).encode(), "chat")
    assert request.text_bytes == request.size_bytes - len(BASE64)


def test_slashes_that_were_escaped_change_nothing_but_the_length() -> None:
    """As PHP and others write them; each escape is a byte more of the picture."""
    slashes = BASE64.count("/")
    assert slashes
    assert saved(*chat(PICTURE), escaped=True) == SAVED + slashes


TEXT = "data:image/png;base64," + "Pay me, for I am a long text. " * 7_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        chat({"type": "text", "text": URL}),
        chat({"type": "text", "text": TEXT, "image_url": {"url": "data:image/png;base64,AAAA"}}),
        chat({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}, "text": URL}),
        chat({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": URL}}),
        chat({"type": "image_url", "image_url": {"url": TEXT}}),
        chat({"type": "image_url", "image_url": {"url": URL + "\n"}}),
        chat({"type": "image_url", "image_url": {"url": URL + "é"}}),
        chat({"type": "image_url", "image_url": {"url": URL + "\\"}}),
        chat({"type": "image_url", "image_url": {"url": URL.replace("image", "text", 1)}}),
        chat({"type": "image_url", "image_url": {"url": " " + URL}}),
        chat({"type": "image_url", "image_url": {"url": URL.replace(";base64", "", 1)}}),
        chat({"type": "image_url", "image_url": {"url": "data:image/" + BASE64 + ";base64,AAAA"}}),
        chat({"type": "image_url", "image_url": URL}),
        chat({"type": "input_image", "image_url": URL}),
        chat({"type": "input_audio", "input_audio": {"data": URL}}),
        chat({"type": "file", "file": {"file_data": URL}}),
        chat({"type": 1}, PICTURE),
        chat("a text", PICTURE),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": URL}]}),
        ("/v1/chat/completions", {"messages": [PICTURE]}),
        ("/v1/chat/completions", {"messages": {"content": [PICTURE]}}),
        ("/v1/chat/completions", {"messages": [{"content": {"content": [PICTURE]}}]}),
        ("/v1/chat/completions", {"messages": [], "input": response(INPUT)[1]["input"]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [PICTURE]}),
        ("/v1/completions", {"prompt": [PICTURE], **chat(PICTURE)[1]}),
        ("/v1/embeddings", {"input": response(INPUT)[1]["input"]}),
        response(PICTURE),
        response({"type": "input_text", "text": URL}),
        response({"type": "input_file", "file_data": URL}),
        ("/v1/responses", {"input": URL}),
        ("/v1/responses", {"input": [INPUT]}),
    ],
)
def test_text_that_is_dressed_as_a_picture_counts_as_text(path: str, body: dict[str, Any]) -> None:
    """Only the URL of a part that is typed as a picture, in the content of a message, and base64 to its end."""
    assert saved(path, body) == 0


def test_of_fields_that_came_twice_the_last_counts_as_it_is_passed_on() -> None:
    """A part that is a picture first and text last is text."""
    part = json.dumps(PICTURE)[:-1] + ', "type": "text", "text": "x"}'
    raw = b'{"model": "m", "messages": [{"content": [%b]}]}' % part.encode()
    assert read_request(raw, "chat").prompt_bytes == len(raw)
    raw = b'{"model": "m", "messages": [{"content": [%b]}], "messages": []}' % json.dumps(PICTURE).encode()
    request = read_request(raw, "chat")
    assert request.prompt_bytes == len(raw)
    assert b"data:image" not in request.body("m")


def test_what_stands_beside_a_large_conversation_is_bounded() -> None:
    """It is read here, key by key: a body of a million fields would take a hundred times its size."""
    fields = ",".join(f'"f{number}":1' for number in range(300_000))
    raw = b'{"model": "m", "messages": [], %b}' % fields.encode()
    with pytest.raises(InvalidError, match="beside messages") as caught:
        read_request(raw, "chat")
    assert (caught.value.code, failure_of(caught.value).status) == ("request_too_large", 413)
    long = {"model": "m", "prompt": "x" * 3 * MIB}
    assert read_request(json.dumps(long).encode(), "completions").prompt_bytes > 3 * MIB
    with pytest.raises(InvalidError, match="beside messages"):
        read_request(json.dumps(long).encode(), "chat")
