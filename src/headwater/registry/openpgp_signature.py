"""Detached OpenPGP signatures of version 4 (`gpg --detach-sign --armor`): read and checked, without any program.

Source: RFC 9580 (sections 4.2, 5.2.3, 5.5.2, 5.5.4) and RFC 4880 where version 4 is unchanged. Signatures over binary
documents by RSA or Ed25519 keys with SHA-2 are known. What certifies a key, whether it was revoked and which subkey may
sign is not looked at: whoever accepts a key accepts the very key that signs. Knows nothing of who a key belongs to.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from headwater.core.errors import InvalidError

ARMOUR_CHARS_MAX: Final = 65_536
RSA_BITS_MIN: Final = 2_048

_SIGNATURE, _PUBLIC_KEY, _SUBKEY = 2, 6, 14
_RSA, _EDDSA, _ED25519 = (1, 3), 22, 27
_ED25519_OID: Final = bytes.fromhex("2b06010401da470f01")
_HASHES: Final = {8: hashes.SHA256(), 9: hashes.SHA384(), 10: hashes.SHA512()}


@dataclass(frozen=True, slots=True)
class OpenPgpSignature:
    """An OpenPGP signature that fits its message."""

    fingerprint: str  # of the key or subkey that signed, 40 upper-case hex digits


def check_openpgp_signature(message: bytes, armoured: str, public_key: str) -> OpenPgpSignature:
    """The key of `public_key` (armoured, with subkeys) that signed `message`.

    Raises:
        InvalidError: ``signature_invalid``: not such a signature or key, or of another message.
    """
    try:
        signature = next((body for tag, body in _packets(_unarmoured(armoured)) if tag == _SIGNATURE), None)
        if signature is None:
            raise ValueError("there is no signature packet")
        keys = [body for tag, body in _packets(_unarmoured(public_key)) if tag in (_PUBLIC_KEY, _SUBKEY)]
        hashed, algorithm, hash_number, values = _signed(message, signature)
        for key in keys:
            if key[0] == 4 and _fits(key, hashed, algorithm, hash_number, values):
                framed = b"\x99" + len(key).to_bytes(2, "big") + key
                return OpenPgpSignature(hashlib.sha1(framed, usedforsecurity=False).hexdigest().upper())
        raise ValueError(f"none of {len(keys)} keys made it")
    except (ValueError, IndexError) as error:
        raise InvalidError(
            f"the OpenPGP signature does not fit: {str(error)[:120]}",
            code="signature_invalid",
            fix="sign exactly the statement: gpg --detach-sign --armor FILE, and give the key: gpg --export --armor",
        ) from None


def _signed(message: bytes, body: bytes) -> tuple[bytes, int, int, bytes]:
    """(hash of what was signed, key algorithm, hash algorithm, values) of a signature packet."""
    version, kind, algorithm, hash_number = body[:4]
    if version != 4 or kind != 0 or hash_number not in _HASHES:
        raise ValueError(f"version {version}, kind {kind}, hash {hash_number} are not known")
    size = int.from_bytes(body[4:6], "big")
    covered = body[: 6 + size]
    unhashed = int.from_bytes(body[6 + size : 8 + size], "big")
    rest = body[8 + size + unhashed :]
    trailer = b"\x04\xff" + len(covered).to_bytes(4, "big")
    engine = hashes.Hash(_HASHES[hash_number])
    engine.update(message + covered + trailer)
    hashed = engine.finalize()
    if rest[:2] != hashed[:2]:
        raise ValueError("it is of another message")
    return hashed, algorithm, hash_number, rest[2:]


def _fits(key: bytes, hashed: bytes, algorithm: int, hash_number: int, values: bytes) -> bool:
    if key[5] != algorithm and not (key[5] in _RSA and algorithm in _RSA):
        return False
    try:
        if algorithm in _RSA:
            modulus, exponent = _integers(key[6:], 2)
            public = RSAPublicNumbers(exponent, modulus).public_key()
            if public.key_size < RSA_BITS_MIN:
                return False
            (made,) = _integers(values, 1)
            raw = made.to_bytes((public.key_size + 7) // 8, "big")
            public.verify(raw, hashed, padding.PKCS1v15(), Prehashed(_HASHES[hash_number]))
        elif algorithm == _EDDSA:
            size = key[6]
            if key[7 : 7 + size] != _ED25519_OID:
                return False
            (point,) = _integers(key[7 + size :], 1)
            native = point.to_bytes(33, "big")
            r, s = _integers(values, 2)
            raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
            Ed25519PublicKey.from_public_bytes(native[1:]).verify(raw, hashed)
        elif algorithm == _ED25519:
            Ed25519PublicKey.from_public_bytes(key[6:38]).verify(values[:64], hashed)
        else:
            return False
    except (InvalidSignature, ValueError, OverflowError):
        return False
    return True


def _packets(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(raw):
        head = raw[at]
        if not head & 0x80:
            raise ValueError("it is no OpenPGP packet")
        at += 1
        if head & 0x40:
            tag, first = head & 0x3F, raw[at]
            if first < 192:
                size, at = first, at + 1
            elif first < 224:
                size, at = ((first - 192) << 8) + raw[at + 1] + 192, at + 2
            elif first == 255:
                size, at = int.from_bytes(raw[at + 1 : at + 5], "big"), at + 5
            else:
                raise ValueError("packets in parts are not known")
        else:
            tag, form = (head >> 2) & 0x0F, head & 3
            if form == 3:
                raise ValueError("packets without a length are not known")
            width = 1 << form
            size, at = int.from_bytes(raw[at : at + width], "big"), at + width
        if at + size > len(raw):
            raise ValueError("a packet is cut off")
        yield tag, raw[at : at + size]
        at += size


def _integers(raw: bytes, count: int) -> tuple[int, ...]:
    found, at = [], 0
    for _ in range(count):
        size = (int.from_bytes(raw[at : at + 2], "big") + 7) // 8
        if at + 2 + size > len(raw):
            raise ValueError("a number is cut off")
        found.append(int.from_bytes(raw[at + 2 : at + 2 + size], "big"))
        at += 2 + size
    return tuple(found)


def _unarmoured(text: str) -> bytes:
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(text) > ARMOUR_CHARS_MAX or not lines or not lines[0].startswith("-----BEGIN PGP "):
        raise ValueError("it has no OpenPGP armour")
    begin = lines.index("") + 1 if "" in lines else 1
    body = [line for line in lines[begin:] if not line.startswith(("=", "-----"))]
    return base64.b64decode("".join(body), validate=True)
