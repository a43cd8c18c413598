"""Looking up what a domain says of itself, without being made to look into our own network.

HTTPS only, on port 443, no redirects, no proxies; the name is resolved once, every address of it must be a public one,
and the connection goes to that very address, so that a name cannot change its mind in between. Bounded in time and
size.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from headwater.core.errors import RefusedError, UpstreamError

BYTES_MAX: Final = 16_384
TIMEOUT_S: Final = 10.0

Resolve = Callable[[str], Sequence[str]]
"""The IP addresses of a name."""


def addresses_of(domain: str) -> tuple[str, ...]:
    """The IP addresses of a name, as this machine resolves it.

    Raises:
        UpstreamError: it has none.
    """
    try:
        found = socket.getaddrinfo(domain, 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UpstreamError(
            f"{domain} does not resolve: {error}", code="domain_unreachable", fix="check its name, or try later"
        ) from None
    return tuple(dict.fromkeys(str(row[4][0]) for row in found))


def public_address(domain: str, resolve: Resolve = addresses_of) -> str:
    """An address of `domain` that may be connected to.

    Raises:
        RefusedError: ``address_private``: one of its addresses is private, local, reserved or a multicast one.
        UpstreamError: it has no address.
    """
    found = resolve(domain)
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and (inner := address.ipv4_mapped or address.sixtofour):
            address = inner
        if not address.is_global or address.is_multicast or address.is_reserved:
            raise RefusedError(
                f"{domain} points to {address}, which is not a public address",
                code="address_private",
                fix="publish the statement where everybody can read it",
            )
    if not found:
        raise UpstreamError(f"{domain} has no address", code="domain_unreachable", fix="check its name, or try later")
    return found[0]


class _Pinned(http.client.HTTPSConnection):
    """Speaks to one address, and checks that the certificate is the domain's."""

    def __init__(self, domain: str, address: str) -> None:
        self._context_of_ours = ssl.create_default_context()
        super().__init__(domain, 443, timeout=TIMEOUT_S, context=self._context_of_ours)
        self._address = address

    def connect(self) -> None:
        """Connect to the address that was looked at, whatever the name says by now."""
        plain = socket.create_connection((self._address, 443), TIMEOUT_S)
        try:
            self.sock = self._context_of_ours.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


def fetch(domain: str, path: str, *, resolve: Resolve = addresses_of) -> bytes:
    """What `domain` serves at `path` over HTTPS.

    Raises:
        RefusedError: it points into a private network.
        UpstreamError: it does not answer with 200 in time, or with too much.
    """
    connection = _Pinned(domain, public_address(domain, resolve))
    try:
        connection.request("GET", path, headers={"accept": "text/plain", "user-agent": "headwater"})
        answer = connection.getresponse()
        raw = answer.read(BYTES_MAX + 1)
        if answer.status != 200 or len(raw) > BYTES_MAX:
            raise UpstreamError(
                f"{domain}{path} answers {answer.status} with {len(raw)} bytes",
                code="domain_unreachable",
                fix=f"serve it there with status 200 and at most {BYTES_MAX} bytes, without redirects",
            )
        return raw
    except (OSError, http.client.HTTPException) as error:
        raise UpstreamError(
            f"{domain}{path} cannot be read: {str(error)[:100]}", code="domain_unreachable", fix="try again later"
        ) from None
    finally:
        connection.close()


def text_records(name: str) -> tuple[str, ...]:
    """The DNS TXT records of a name; none when it has none.

    Raises:
        UpstreamError: nothing answers, or the resolver is not installed.
    """
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        raise UpstreamError(
            "DNS proofs need a resolver", code="resolver_missing", fix="pip install 'headwater[dns]'"
        ) from None
    try:
        answer = dns.resolver.resolve(name, "TXT", lifetime=TIMEOUT_S)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return ()
    except dns.exception.DNSException as error:
        raise UpstreamError(
            f"{name} cannot be looked up: {type(error).__name__}", code="domain_unreachable", fix="try again later"
        ) from None
    return tuple(b"".join(row.strings).decode("utf-8", "replace") for row in answer)
