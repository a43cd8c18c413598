"""Looking up what a domain says of itself, without being made to look into our own network.

As every request to an address that a stranger chose (`outbound`); here by HTTPS on port 443 only, with status 200.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from headwater.core.errors import HeadwaterError, RefusedError, UpstreamError
from headwater.store import outbound

BYTES_MAX: Final = 16_384
TIMEOUT_S: Final = 10.0


def fetch(domain: str, path: str, *, resolve: outbound.Resolve = outbound.addresses_of) -> bytes:
    """What `domain` serves at `path` over HTTPS.

    Raises:
        RefusedError: ``address_private``: it points into a private network.
        UpstreamError: ``domain_unreachable``: it does not answer with 200 in time, or with too much.
    """
    url = f"https://{domain}{path}"
    try:
        if urlsplit(url).netloc != domain or urlsplit(url).hostname != domain.lower():
            raise _unreachable(f"{domain[:80]!r} is no domain", "give its name without a port or a path")
        reply = outbound.request(
            "GET",
            url,
            headers={"accept": "text/plain", "user-agent": "headwater"},
            timeout_s=TIMEOUT_S,
            reply_bytes_max=BYTES_MAX,
            resolve=resolve,
        )
    except RefusedError as error:
        raise RefusedError(
            error.message, code="address_private", fix="publish the statement where everybody can read it"
        ) from None
    except (HeadwaterError, ValueError) as error:
        raise _unreachable(f"{domain[:80]}{path[:80]} cannot be read: {str(error)[:100]}", "try again later") from None
    if reply.status != 200 or not reply.whole:
        raise _unreachable(
            f"{domain}{path} answers {reply.status} with {'' if reply.whole else 'more than '}{len(reply.body)} bytes",
            f"serve it there with status 200 and at most {BYTES_MAX} bytes, without redirects",
        )
    return reply.body


def _unreachable(why: str, fix: str) -> UpstreamError:
    return UpstreamError(why, code="domain_unreachable", fix=fix)


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
