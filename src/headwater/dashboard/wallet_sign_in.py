"""Signing in by a wallet's signature over a text that names this site, once.

The text is EIP-4361's: who asks, whose address, for what, a nonce and an end. The server writes it and reads it back
from what was signed; the nonce is a one-time word kept for that address, so no signature works twice, at another site
or for somebody else. Source: EIP-4361, "Sign-In with Ethereum".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from eth_account import Account
from eth_account.messages import encode_defunct

from headwater.core.errors import InvalidError, RefusedError
from headwater.core.instants import SECOND_NS, format_instant, parse_instant
from headwater.registry import checksum_address
from headwater.store.session_store import SessionStore

LASTS_NS: Final = 10 * 60 * SECOND_NS
PURPOSE: Final = "wallet"
_NONCE_BYTES: Final = 16
_FORM: Final = re.compile(
    r"(?P<domain>\S+) wants you to sign in with your Ethereum account:\n(?P<address>0x[0-9a-fA-F]{40})\n\n"
    r"(?P<statement>[^\n]*)\n\nURI: (?P<uri>\S+)\nVersion: 1\nChain ID: (?P<chain>[0-9]+)\n"
    r"Nonce: (?P<nonce>[0-9a-f]{32})\nIssued At: (?P<issued>\S+)\nExpiration Time: (?P<expires>\S+)"
)
_SIGNATURE: Final = re.compile(r"0x[0-9a-fA-F]{130}")


@dataclass(frozen=True, slots=True)
class Site:
    """Whom the signature is for."""

    host: str  # and port, as people type it
    uri: str
    chain_id: int


def offer(store: SessionStore, site: Site, address: str, statement: str, *, nonce: bytes, now_ns: int) -> str:
    """The text to sign, good for one signature of this address within ten minutes.

    Args:
        nonce: 16 random bytes.

    Raises:
        InvalidError: not an address.
    """
    address = checksum_address(address)
    store.keep_word(nonce, PURPOSE, address.lower(), now_ns=now_ns, lasts_ns=LASTS_NS)
    return (
        f"{site.host} wants you to sign in with your Ethereum account:\n{address}\n\n{statement}\n\n"
        f"URI: {site.uri}\nVersion: 1\nChain ID: {site.chain_id}\nNonce: {nonce.hex()}\n"
        f"Issued At: {_second(now_ns)}\nExpiration Time: {_second(now_ns + LASTS_NS)}"
    )


def check(store: SessionStore, site: Site, text: str, signature: str, *, now_ns: int) -> str:
    """The address that signed a text of ours; the text is used up.

    Raises:
        InvalidError: the text or the signature has another form.
        RefusedError: for another site, too old, used before, or signed by somebody else.
    """
    match = _FORM.fullmatch(text.replace("\r\n", "\n").strip())
    if match is None or _SIGNATURE.fullmatch(signature.strip()) is None:
        raise InvalidError(
            "the text or its signature is not as it was given",
            code="wallet_message_invalid",
            fix="sign the text exactly as it stands, and paste 0x and 130 hex digits",
        )
    if (match["domain"], match["uri"], int(match["chain"])) != (site.host, site.uri, site.chain_id):
        raise _refused("it was written for another site or chain")
    if not parse_instant(match["issued"]) - SECOND_NS <= now_ns < parse_instant(match["expires"]):
        raise _refused("it is too old")
    address = match["address"].lower()
    try:
        signer = Account.recover_message(encode_defunct(text=match[0]), signature=signature.strip())
    except Exception:  # the library raises whatever its parts raise for numbers off the curve
        raise _refused("nobody's key fits the signature") from None
    if signer.lower() != address:
        raise _refused(f"it was signed by {signer}")
    if store.take_word(bytes.fromhex(match["nonce"]), PURPOSE, now_ns=now_ns) != address:
        raise _refused("it was offered to another address")
    return checksum_address(address)


def _second(at_ns: int) -> str:
    return format_instant(at_ns)[:19] + "Z"


def _refused(why: str) -> RefusedError:
    return RefusedError(f"this signature does not sign you in: {why}", code="wallet_refused", fix="ask for a new text")
