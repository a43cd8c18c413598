"""Requests to addresses that strangers chose reach the public internet and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from headwater.core.errors import InvalidError, RefusedError, UpstreamError
from headwater.store.outbound import check_url, request


class _Echo(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("location", "http://127.0.0.1:9/")
        self.end_headers()
        self.wfile.write(self.headers["host"].encode() + b"|" + raw * (1 if self.path != "/long" else 100_000))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.9", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
        *("::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "224.0.0.1", "ff02::1", "240.0.0.1"),
        *("2002:7f00:1::", "2002:a01:203::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        "2001:0:5ef5:79fd:0:0:80ff:fffe",  # Teredo, of 127.0.0.1
    ],
)
def test_no_name_leads_inside(address: str) -> None:
    """A public name with an address of a private network is refused before anything is sent."""
    with pytest.raises(RefusedError) as refused:
        request("POST", "https://hooks.example/x", b"", resolve=lambda *_: ["93.184.216.34", address])
    assert refused.value.code == "address_not_public"


@pytest.mark.parametrize(
    "url",
    [
        *("http://hooks.example/", "ftp://hooks.example/", "https:///x", "https://a:b@hooks.example/", "", "x"),
        *("https://hooks.example/#x", "https://hooks.example/a b", "https://hooks.example:0/", "https://h:99999/"),
        "https://hooks.example/" + "x" * 2_000,
        "https://hööks.example/",
    ],
)
def test_only_plain_https_addresses_are_taken(url: str) -> None:
    """Users, fragments, other schemes and what cannot be printed are refused."""
    with pytest.raises(InvalidError) as refused:
        check_url(url)
    assert refused.value.code == "url_invalid"


def test_an_allowed_host_is_reached_under_its_own_name(port: int) -> None:
    """What the operator allows may be plain and inside; the request says the name, not the address."""
    reply = request("POST", f"http://inside:{port}/", b"hello", allowed=("inside",), resolve=lambda *_: ["127.0.0.1"])

    assert (reply.status, reply.body) == (200, f"inside:{port}|hello".encode())


def test_redirects_are_not_followed_and_long_replies_are_cut(port: int) -> None:
    """A redirect is an answer like any other; what comes back is bounded."""
    away = request("POST", f"http://127.0.0.1:{port}/away", b"x", allowed=("127.0.0.1",))
    long = request(
        "POST", f"http://127.0.0.1:{port}/long", b"0123456789", allowed=("127.0.0.1",), reply_bytes_max=1_000
    )

    assert (away.status, len(long.body)) == (302, 1_000)


def test_a_host_is_allowed_by_its_name_and_not_by_where_it_stands_in_the_address() -> None:
    """The name in a path, a query, a user or a longer name allows nothing; the host itself may be plain."""
    assert check_url("http://inside:80/x", allowed=("inside",)) == "http://inside:80/x"
    assert check_url("http://INSIDE/x", allowed=("inside",))
    for url in (
        *("http://evil.example/?to=//inside/", "http://evil.example//inside:80/", "http://inside:80@evil.example/"),
        *("http://inside.evil.example/", "http://evil.example#//inside/", "http://notinside/"),
    ):
        with pytest.raises(InvalidError):
            check_url(url, allowed=("inside",))


def test_a_whole_reply_says_so_and_a_cut_one_too(port: int) -> None:
    """So that half of a statement is not taken for all of it."""
    short = request("POST", f"http://127.0.0.1:{port}/", b"hello", allowed=("127.0.0.1",))
    cut = request("POST", f"http://127.0.0.1:{port}/", b"hello", allowed=("127.0.0.1",), reply_bytes_max=5)
    exact = request(
        "POST", f"http://127.0.0.1:{port}/", b"", allowed=("127.0.0.1",), reply_bytes_max=len(short.body) - 5
    )

    assert (short.whole, cut.whole, exact.whole) == (True, False, True)
    assert len(cut.body) == 5


def test_nobody_there_is_said(port: int) -> None:
    """A closed port is an error with a code."""
    with pytest.raises(UpstreamError) as failed:
        request("POST", "http://127.0.0.1:9/", b"", allowed=("127.0.0.1",), timeout_s=2)
    assert failed.value.code == "host_unreachable"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "a.localhost",
        "127.0.0.1",
        "[::1]",
        "0x7f000001",
        "2130706433",
        "127.1",
        "10.0.0.8",
        "[::ffff:10.0.0.8]",
    ],
)
def test_an_address_written_out_is_judged_before_anybody_is_asked(host: str) -> None:
    """Whoever names it is told at once, in whichever spelling; one that the operator allows is not judged."""
    with pytest.raises(RefusedError) as refused:
        check_url(f"https://{host}/hook")
    assert refused.value.code == "address_not_public"
    name = host.strip("[]")
    assert check_url(f"https://{host}/hook", allowed=[name]) == f"https://{host}/hook"


def test_names_and_public_addresses_may_be_named() -> None:
    """A name is looked up only when it is asked."""
    for url in ("https://example.com/x", "https://8.8.8.8/x", "https://0xc0ffee.example/x"):
        assert check_url(url) == url
