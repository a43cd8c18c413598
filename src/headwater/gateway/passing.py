"""Bytes that pass through: what must be read of a request and an answer, and nothing more.

A request is read one level deep, so fields nobody here knows go on as they came and a key that came
twice goes on once. An answer is searched, not parsed: its usage is read, our object is put in at its
end. A stream goes on as it comes; only its last events wait, until what it cost is on the disk. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from headwater.core.canonical import refuse_deep
from headwater.core.errors import HeadwaterError, InvalidError, UpstreamError
from headwater.core.limits import REQUEST_DEPTH_MAX, REQUEST_SIZE_BYTES_MAX
from headwater.gateway.errors import RequestError
from headwater.gateway.pictures import PICTURE_TOKENS_MAX, picture_sizes
from headwater.gateway.room import too_large

Fields = dict[str, msgspec.Raw]
Shape = Literal["chat", "completions", "responses", "embeddings"]

EVENT_BYTES_MAX: Final = 4 * 2**20
ROUTES: Final[Mapping[str, Shape]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
}

_LARGE: Final[Mapping[Shape, str]] = {
    "chat": "messages",
    "completions": "prompt",
    "responses": "input",
    "embeddings": "input",
}
"""The field that may be as large as the body; everything beside it is read here, and is bounded for that."""

_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_READ: Final[Mapping[str, type]] = {
    "model": str,
    "stream": bool,
    "stream_options": dict,
    "headwater": dict,
    **dict.fromkeys((*_LIMITS, "n", "best_of"), int),
}
"""The fields that are read, and what each is."""

_KINDS: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a fraction",
    str: "a text",
    list: "a list",
    dict: "an object",
}


class _Large(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


_decode_large = msgspec.json.Decoder(_Large).decode
_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_value = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_EVENT_END: Final = re.compile(rb"\r?\n\r?\n")
_LAST_RESPONSE: Final = re.compile(rb'"type":\s*"response\.(?:completed|incomplete|failed)"')
_FINISHED: Final = re.compile(rb'"finish_reason":\s*"')


class _Usage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    input_tokens: Any = None
    output_tokens: Any = None


_NOTHING: Final = msgspec.Raw(b"null")


class _Answer(msgspec.Struct):
    usage: msgspec.Raw = _NOTHING
    response: _Answer | None = None  # in the last event of a streamed response
    choices: list[msgspec.Raw] | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_usage = msgspec.json.Decoder(_Usage | None).decode


class UsageSaid(msgspec.Struct, frozen=True, gc=False):
    """What an upstream says it used, in tokens. It is believed only within what was reserved."""

    prompt: int
    completion: int


class Request(msgspec.Struct, frozen=True, gc=False):
    """A request read one level deep."""

    shape: Shape
    fields: Fields
    model: str
    stream: bool
    include_usage: bool  # the caller asked for the usage of a stream
    answers: int  # n or best_of, whichever is larger: how many the caller may be charged for
    max_tokens: int | None  # of one answer
    prompt_bytes: int  # of everything the model reads, a picture as its ceiling; no byte makes more than one token
    size_bytes: int  # of the body
    text_bytes: int  # of everything in it but pictures
    extension: Mapping[str, Any]  # our own object, `headwater`

    def body(self, model: str) -> bytes:
        """The body for an upstream that calls the model `model`."""
        fields: dict[str, Any] = {name: raw for name, raw in self.fields.items() if name != "headwater"}
        fields["model"] = model
        if self.stream and self.shape in ("chat", "completions"):
            options = fields.get("stream_options")
            known = {} if options is None else _value(options, "stream_options", dict) or {}
            fields["stream_options"] = {**known, "include_usage": True}
        return _encode(fields)


def read_request(raw: bytes, shape: Shape) -> Request:
    """What must be known of a request before it is sent on.

    Raises:
        RequestError: not JSON, or a field that decides the price is not what it should be.
        InvalidError: ``request_too_large``, beside the conversation.
    """
    try:
        refuse_deep(raw, REQUEST_DEPTH_MAX)
        if not raw.isascii():
            raw.decode()  # what is passed on undecoded is UTF-8 too
        beside = 0 if len(raw) <= REQUEST_SIZE_BYTES_MAX else _beside(raw, shape)
        fields = _decode_fields(raw) if beside <= REQUEST_SIZE_BYTES_MAX else {}
    except (HeadwaterError, msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        what = error.message if isinstance(error, HeadwaterError) else str(error)[:200]
        raise RequestError(
            f"the body is not a JSON object: {what}", param=None, code="invalid_json", fix="send JSON in UTF-8"
        ) from None
    if beside > REQUEST_SIZE_BYTES_MAX:
        raise too_large(beside, REQUEST_SIZE_BYTES_MAX, f"what is beside {_LARGE[shape]}")
    pictures = picture_sizes(fields, shape) if b"data:image" in raw else ()
    said = {name: _value(fields[name], name, kind) for name, kind in _READ.items() if name in fields}
    model, options = said.get("model"), said.get("stream_options") or {}
    limits = [limit for name in _LIMITS if (limit := said.get(name)) is not None]
    if not model:
        raise RequestError(
            "model: the model is missing", param="model", code="invalid_value", fix="send a name from GET /v1/models"
        )
    return Request(
        shape=shape,
        fields=fields,
        model=model,
        stream=bool(said.get("stream")),
        include_usage=options.get("include_usage") is True,
        answers=max(said.get("n") or 1, said.get("best_of") or 1),
        max_tokens=max(limits) if limits else None,
        prompt_bytes=len(raw) - sum(max(0, size - PICTURE_TOKENS_MAX) for size in pictures),
        size_bytes=len(raw),
        text_bytes=len(raw) - sum(pictures),
        extension=said.get("headwater") or {},
    )


def _beside(raw: bytes, shape: Shape) -> int:
    """Bytes of a body that are not in its large field."""
    return len(raw) - len(bytes(getattr(_decode_large(raw), _LARGE[shape])))


def _value(raw: msgspec.Raw, name: str, kind: type) -> Any:
    try:
        value = _decode_value(raw)
    except msgspec.DecodeError as error:  # such as a number beyond all bounds
        raise RequestError(f"{name}: {error}", param=name, code="invalid_value", fix=f"send {_KINDS[kind]}") from None
    if value is None:
        return None
    if type(value) is not kind:
        raise RequestError(
            f"{name} is {_KINDS[type(value)]}", param=name, code="invalid_value", fix=f"send {_KINDS[kind]}"
        )
    if kind is int and isinstance(value, int) and not 1 <= value < 2**31:
        raise RequestError(f"{name} is {value}", param=name, code="invalid_value", fix="use a whole number from 1")
    return value


# A whole answer


def usage_of(body: bytes) -> UsageSaid | None:
    """The usage in an answer's body, or None when it says none.

    Raises:
        UpstreamError: ``upstream_garbage`` when it is not JSON.
    """
    try:
        return _said(_decode_answer(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _garbage("its answer is not the JSON it should be") from None


def with_bill(body: bytes, bill: bytes) -> bytes:
    """An answer's body with our object put in at its end.

    Args:
        body: a JSON object, as `usage_of` has read it.
        bill: the JSON of our object.
    """
    end = body.rfind(b"}")
    comma = b"" if body[:end].strip() == b"{" else b","
    return body[:end] + comma + b'"headwater":' + bill + body[end:]


def _said(answer: _Answer) -> UsageSaid | None:
    """The usage that an answer says; what is no count of tokens is as if it said nothing."""
    raw = answer.usage
    if raw == _NOTHING and answer.response is not None:
        raw = answer.response.usage
    try:
        usage = _decode_usage(raw)
    except msgspec.DecodeError:
        usage = None
    if usage is None:
        return None
    prompt = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    completion = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    prompt, completion = 0 if prompt is None else prompt, 0 if completion is None else completion
    fine = type(prompt) is type(completion) is int and prompt >= 0 and completion >= 0
    return UsageSaid(prompt, completion) if fine else None


# A stream


class StreamPass:
    """A stream on its way through. `feed` gives what may go on; the last events wait for `end`.

    Args:
        shape: of the route.
        include_usage: whether the caller asked for the usage; otherwise the event that holds it is ours.
        one: whether there is one answer, so that the event with the finish reason is the last but the usage.
    """

    __slots__ = ("_carry", "_held", "_include_usage", "_one", "_responses", "deltas", "finished", "passed", "usage")

    def __init__(self, shape: Shape, *, include_usage: bool, one: bool) -> None:
        self._responses = shape == "responses"
        self._include_usage, self._one = include_usage, one
        self._carry = b""
        self._held: list[bytes] = []
        self.usage: UsageSaid | None = None
        self.deltas = 0  # events that are about a token each, the held ones too
        self.passed = 0  # of them those that went on: what is owed for a stream that breaks
        self.finished = False  # the upstream ended the stream as it should

    def feed(self, data: bytes) -> bytes:
        """What of the stream may go on now: whole events that are not its last.

        Raises:
            UpstreamError: ``upstream_garbage`` for an event without an end, or one that is not JSON.
        """
        data = self._carry + data if self._carry else data
        cut = data.rfind(b"\n\n")
        cut = cut + 2 if cut >= 0 else 0
        crlf = data.rfind(b"\n\r\n")
        cut = max(cut, crlf + 3 if crlf >= 0 else 0)
        self._carry = data[cut:]
        if len(self._carry) > EVENT_BYTES_MAX:
            raise _garbage(f"an event of its stream is longer than {EVENT_BYTES_MAX} bytes")
        events = data[:cut]
        if not events:
            return b""
        if not self._held and not self._may_end(events):
            count = events.count(b"data:")
            self.deltas += count
            self.passed += count
            return events
        ready = [event for event in _events(events) if not self._hold(event)]
        self.passed += sum(_data_of(event) is not None for event in ready)
        return b"".join(ready)

    def _may_end(self, events: bytes) -> bool:
        """Whether there may be an event that is to be held back; quick, and true too often rather than too seldom."""
        if self._responses:
            return b'"response.' in events and _LAST_RESPONSE.search(events) is not None
        if b"[DONE]" in events or b'"error"' in events or _FINISHED.search(events) is not None:
            return True
        return b'"usage"' in events and events.count(b'"usage"') != events.count(b'"usage":null')

    def _hold(self, event: bytes) -> bool:
        """Whether an event is kept back; what it says is noted."""
        data = _data_of(event)
        if data is None:
            return bool(self._held)  # a comment between the last events waits with them
        if data == b"[DONE]":
            self.finished = True
            self._held.append(event)
            return True
        if not self._held and not self._may_end(event):
            self.deltas += 1
            return False
        try:
            answer = _decode_answer(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _garbage("an event of its stream is not JSON") from None
        self.usage = _said(answer) or self.usage
        if self._responses:
            if _LAST_RESPONSE.search(data) is None:
                self.deltas += 1
                return False
            self.finished = True
            self._held.append(event)
            return True
        if answer.choices == [] and answer.usage != _NOTHING:
            if self._include_usage:
                self._held.append(event)
            return True
        self.deltas += 1
        if self._held or (self._one and _FINISHED.search(data) is not None):
            self._held.append(event)
            return True
        return False

    def end(self, bill: bytes) -> bytes:
        """The last events with our object in the last of them that is JSON, after the charge is durable."""
        for place in range(len(self._held) - 1, -1, -1):
            data = _data_of(self._held[place])
            if data is not None and data.endswith(b"}"):
                self._held[place] = self._held[place].replace(data, with_bill(data, bill), 1)
                break
        else:
            self._held.insert(0, b": headwater " + bill + b"\n\n")
        return b"".join(self._held)


def _events(data: bytes) -> list[bytes]:
    """Whole events, each with its end."""
    events, start = [], 0
    for match in _EVENT_END.finditer(data):
        events.append(data[start : match.end()])
        start = match.end()
    return events


def _data_of(event: bytes) -> bytes | None:
    """The data of an event; None for a comment."""
    if event.startswith(b"data: ") and event.count(b"\n") == 2 and b"\r" not in event:
        return event[6:-2]
    lines = [line.removeprefix(b"data:").strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _garbage(what: str) -> UpstreamError:
    return UpstreamError(f"the upstream is not usable: {what}", code="upstream_garbage", fix="tell the operator")


def tokens_ceiling(request: Request, answer_tokens_max: int) -> tuple[int, int]:
    """The most a call may use: (prompt tokens, answer tokens).

    Args:
        answer_tokens_max: of one answer, when the caller names no limit.

    Raises:
        InvalidError: ``max_tokens_too_large``.
    """
    wanted = answer_tokens_max if request.max_tokens is None else request.max_tokens
    if wanted > answer_tokens_max:
        raise InvalidError(
            f"max_tokens is {wanted}", code="max_tokens_too_large", fix=f"ask for at most {answer_tokens_max}"
        )
    answers = 0 if request.shape == "embeddings" else request.answers * wanted
    return request.prompt_bytes, answers
