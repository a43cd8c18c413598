"""A head is known again by its bytes, whatever the length of its body, and never when anything else differs."""

from __future__ import annotations

import pytest

from headwater.core.known_head import VAIN_MAX, KnownHead

HEAD = b"POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\nAuthorization: Bearer s\r\n\r\n"


@pytest.fixture
def known() -> KnownHead[str]:
    """One that has learnt the head with a length of 17."""
    learnt: KnownHead[str] = KnownHead()
    learnt.learn(HEAD % b"17" + b"the body's first", b"17", "found")
    return learnt


@pytest.mark.parametrize("length", ["17", "0", "5", "123456789"])
def test_the_same_head_is_known_with_any_length(known: KnownHead[str], length: str) -> None:
    head = HEAD % length.encode()
    assert known.match(head + b"more") == (int(length), len(head))
    assert known.found == "found"


@pytest.mark.parametrize(
    "other",
    [
        HEAD % b"1234567890",  # more digits than a body may have
        HEAD % b"",
        HEAD % b"-1",
        HEAD % b"+1",
        HEAD % b" 17",
        HEAD % b"1_7",
        HEAD % b"17 ",
        HEAD % "١٧".encode(),  # digits elsewhere
        (HEAD % b"17")[:-1],  # not all of it yet
        (HEAD % b"17")[:40],
        HEAD.replace(b"s\r\n", b"t\r\n") % b"17",
        HEAD.replace(b"POST", b"PUT") % b"17",
        HEAD.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked") % b"17",
        b"",
    ],
)
def test_what_differs_is_another_head(known: KnownHead[str], other: bytes) -> None:
    assert known.match(other) is None


@pytest.mark.parametrize(
    ("data", "length"),
    [
        ((HEAD % b"17")[:-2], b"17"),  # the head is not whole
        (HEAD % b"17", b"18"),  # the parser found another length
        (HEAD.replace(b"Content-Length: %b\r\n", b"") + b"\r\ncontent-length: 17\r\n\r\n", b"17"),  # in the body
        (HEAD % b"017", b"17"),
        (HEAD % b"17 ", b"17"),
    ],
)
def test_a_head_that_is_not_plain_is_not_learnt(data: bytes, length: bytes) -> None:
    known: KnownHead[str] = KnownHead()
    known.learn(data, length, "found")
    assert known.match(data) is None
    assert known.found is None


def test_heads_that_never_come_again_are_no_longer_learnt() -> None:
    known: KnownHead[int] = KnownHead()
    for number in range(VAIN_MAX + 1):
        known.learn(HEAD.replace(b"Host: x", b"Host: %d" % number) % b"1", b"1", number)
    assert known.found == VAIN_MAX - 1
    assert known.match(HEAD.replace(b"Host: x", b"Host: %d" % VAIN_MAX) % b"1") is None
    assert known.match(HEAD.replace(b"Host: x", b"Host: %d" % (VAIN_MAX - 1)) % b"1") is not None
