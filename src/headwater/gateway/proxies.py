"""Whose request it is, behind proxies of the operator: the last address in X-Forwarded-For that is none of theirs.

A proxy adds the address that spoke to it at the end of the list, so what stands before the first address that is not
trusted, from the end, is the caller's own claim and is not looked at. Without trusted proxies the header counts for
nothing. A network of 2^64 addresses, as one household has, counts as one caller.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

from headwater.core.errors import InvalidError
from headwater.gateway.wire import Scope

HOPS_MAX: Final = 32
"""Addresses of a header that are looked at, from its end."""
_HEADER: Final = b"x-forwarded-for"
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """The operator's own proxies.

    Args:
        trusted: addresses and networks, such as 10.0.0.7 or 10.0.0.0/24.

    Raises:
        InvalidError: ``proxies_invalid``.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        try:
            self._trusted = tuple(ipaddress.ip_network(one) for one in trusted)
        except ValueError as error:
            raise InvalidError(
                f"trusted_proxies: {error}", code="proxies_invalid", fix="give addresses and networks, parted by spaces"
            ) from None

    def caller(self, scope: Scope) -> str | None:
        """The caller's address; None where the connection has none."""
        client = scope.get("client")
        if not client or not client[0]:
            return None
        peer = str(client[0])
        if not self._trusted:
            return _counted(_address(peer), peer)
        found = _address(peer)
        for hop in self._hops(scope):
            if found is None or not self._trusts(found):
                break
            if (named := _address(hop)) is None:
                break  # what is no address was written by nobody we trust
            found = named
        return _counted(found, peer)

    def _trusts(self, address: _Address) -> bool:
        return any(address.version == network.version and address in network for network in self._trusted)

    @staticmethod
    def _hops(scope: Scope) -> Sequence[str]:
        """The addresses of the header, the last first."""
        said = b",".join(value for name, value in scope.get("headers", ()) if name == _HEADER)
        return [hop.decode("latin-1").strip() for hop in said.split(b",")[: -HOPS_MAX - 1 : -1]] if said else []


def _address(text: str) -> _Address | None:
    """An address as proxies write it, also with a port; one of the newer kind that stands for an older one as that."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _counted(address: _Address | None, text: str) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Address(int(address) >> 64 << 64))
    return text if address is None else str(address)
