"""Requests to addresses that strangers chose: to the public internet only, bounded in time and size, no redirects.

The name is resolved once, every address it has must be public, and the connection goes to the address that was
checked, so a name that changes its answer in between reaches nothing inside. A host of this network is reached only
by who allows it by name.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from headwater.core.errors import InvalidError, RefusedError, UpstreamError

URL_CHARS_MAX: Final = 2_000
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
Resolve = Callable[[str, int], Sequence[str]]
"""(host, port) to every IP address it has."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    body: bytes
    whole: bool = True  # not cut by size or time


def addresses_of(host: str, port: int) -> Sequence[str]:
    """Every address a host has by the system's resolver.

    Raises:
        UpstreamError: ``host_unknown``.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UpstreamError(f"{host[:80]!r} cannot be resolved: {error}", code="host_unknown") from None
    return sorted({str(entry[4][0]) for entry in found})


def check_url(url: str, *, allowed: Sequence[str] = ()) -> str:
    """An address a stranger may name: https with a host, and nothing hidden in it.

    A name is resolved only when it is asked; an address written out, in any of its spellings, is judged here.

    Args:
        allowed: hosts that may be named by plain http too, and be inside.

    Raises:
        InvalidError: ``url_invalid``.
        RefusedError: ``address_not_public``.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    schemes = ("https", "http") if parts.hostname in allowed else ("https",)
    bad = (
        parts.scheme not in schemes
        or not parts.hostname
        or parts.username is not None
        or parts.fragment
        or port == 0
        or len(url) > URL_CHARS_MAX
        or not url.isascii()
        or not url.isprintable()
        or " " in url
    )
    if bad:
        raise InvalidError(
            f"{url[:80]!r} is no address that may be named",
            code="url_invalid",
            fix=f"give {' or '.join(schemes)}://host/path without a user",
        )
    host = parts.hostname or ""
    written = None if host in allowed else _written(host)
    if written is not None:
        _check_public(host, written)
    return url


def _written(host: str) -> str | None:
    """The IP address that a host spells out, as resolvers read it: 0x7f000001 and 127.1 are 127.0.0.1."""
    if host == "localhost" or host.endswith(".localhost"):
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return str(ipaddress.IPv4Address(socket.inet_aton(host)))
    except (OSError, ValueError):
        return None


def request(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    allowed: Sequence[str] = (),
    timeout_s: float = 10.0,
    reply_bytes_max: int = 64 * 1024,
    resolve: Resolve = addresses_of,
) -> Reply:
    """Ask an address that a stranger chose.

    Args:
        allowed: hosts of this network that may be reached, and by plain http.
        timeout_s: for the whole exchange.
        reply_bytes_max: a longer reply is cut there.

    Raises:
        InvalidError: ``url_invalid``.
        RefusedError: ``address_not_public``.
        UpstreamError: ``host_unknown``, ``host_unreachable``.
    """
    parts = urlsplit(check_url(url, allowed=allowed))
    host = parts.hostname or ""
    inside = host in allowed
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = resolve(host, port)
    if not addresses:
        raise UpstreamError(f"{host[:80]!r} has no address", code="host_unknown")
    if not inside:
        for address in addresses:
            _check_public(host, address)
    until = time.monotonic() + timeout_s
    connection = _connection(parts.scheme, host, port, addresses[0], timeout_s)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(method, target, body, {"connection": "close", **(headers or {})})
        response = connection.getresponse()
        read = bytearray()
        while len(read) <= reply_bytes_max and time.monotonic() < until:
            part = response.read1(min(8_192, reply_bytes_max + 1 - len(read)))
            if not part:
                return Reply(response.status, bytes(read))
            read += part
        return Reply(response.status, bytes(read[:reply_bytes_max]), whole=False)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UpstreamError(f"{host[:80]} did not answer: {type(error).__name__}", code="host_unreachable") from None
    finally:
        connection.close()


def _check_public(host: str, address: str) -> None:
    reached = _reached(ipaddress.ip_address(address.partition("%")[0]))
    if not reached.is_global or reached.is_multicast or reached.is_reserved:
        raise RefusedError(
            f"{host[:80]} is at {address}, which is not public",
            code="address_not_public",
            fix="name a host of the public internet, or have the operator allow this one",
        )


def _reached(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 address stands for, where it does: mapped, by 6to4, Teredo or NAT64."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)


def _connection(scheme: str, host: str, port: int, address: str, timeout_s: float) -> http.client.HTTPConnection:
    """A connection to `address` that speaks to `host`: its name in the request and in the certificate."""

    def dial() -> socket.socket:
        return socket.create_connection((address, port), timeout_s)

    if scheme == "https":
        context = ssl.create_default_context()

        class Secure(http.client.HTTPSConnection):
            def connect(self) -> None:
                plain = dial()
                try:
                    self.sock = context.wrap_socket(plain, server_hostname=host)
                except BaseException:
                    plain.close()
                    raise

        return Secure(host, port, timeout=timeout_s)

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = dial()

    return Plain(host, port, timeout=timeout_s)
