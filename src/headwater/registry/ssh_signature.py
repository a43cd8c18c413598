"""SSH signatures (`ssh-keygen -Y sign`, and Git commits signed with an SSH key): read and checked, without any program.

Source: OpenSSH, PROTOCOL.sshsig. Ed25519, ECDSA on the NIST curves and RSA with SHA-2 are known; SHA-1 and DSA are not.
Knows nothing of who a key belongs to.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from headwater.core.errors import InvalidError

MAGIC: Final = b"SSHSIG"
ARMOUR_CHARS_MAX: Final = 16_384
RSA_BITS_MIN: Final = 2_048

_BEGIN: Final = "-----BEGIN SSH SIGNATURE-----"
_END: Final = "-----END SSH SIGNATURE-----"
_RSA: Final = {b"rsa-sha2-256": hashes.SHA256(), b"rsa-sha2-512": hashes.SHA512()}
_CURVES: Final = {
    b"ecdsa-sha2-nistp256": hashes.SHA256(),
    b"ecdsa-sha2-nistp384": hashes.SHA384(),
    b"ecdsa-sha2-nistp521": hashes.SHA512(),
}
_HASHES: Final = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}


@dataclass(frozen=True, slots=True)
class SshSignature:
    """An SSH signature that fits its message."""

    fingerprint: str  # of the key, as `ssh-keygen -l` prints it: SHA256:…
    namespace: str


def check_ssh_signature(message: bytes, armoured: str, namespace: str) -> SshSignature:
    """The key that signed `message` in `namespace`.

    Raises:
        InvalidError: ``signature_invalid``: not an SSH signature, in another namespace, or of another message.
    """
    try:
        return _check(message, _unarmoured(armoured), namespace)
    except (ValueError, IndexError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise InvalidError(
            f"the SSH signature does not fit: {str(error)[:120] or 'another key or message'}",
            code="signature_invalid",
            fix=f"sign exactly the statement: ssh-keygen -Y sign -n {namespace} -f KEY FILE",
        ) from None


def _check(message: bytes, raw: bytes, namespace: str) -> SshSignature:
    if raw[:6] != MAGIC or int.from_bytes(raw[6:10], "big") != 1:
        raise ValueError("it is no SSHSIG of version 1")
    key, space, reserved, algorithm, signature = _strings(raw[10:], 5)
    if space != namespace.encode():
        raise ValueError(f"it is in the namespace {space[:40]!r}")
    if algorithm not in _HASHES:
        raise ValueError(f"it hashes with {algorithm[:20]!r}")
    hashed = _HASHES[algorithm](message).digest()
    signed = MAGIC + b"".join(map(_string, (space, reserved, algorithm, hashed)))
    kind, value = _strings(signature, 2)
    public = load_ssh_public_key(_strings(key, 1, rest=True)[0] + b" " + base64.b64encode(key))
    if isinstance(public, Ed25519PublicKey) and kind == b"ssh-ed25519":
        public.verify(value, signed)
    elif isinstance(public, RSAPublicKey) and kind in _RSA and public.key_size >= RSA_BITS_MIN:
        public.verify(value, signed, padding.PKCS1v15(), _RSA[kind])
    elif isinstance(public, ec.EllipticCurvePublicKey) and kind in _CURVES:
        r, s = (int.from_bytes(part, "big") for part in _strings(value, 2))
        public.verify(encode_dss_signature(r, s), signed, ec.ECDSA(_CURVES[kind]))
    else:
        raise ValueError(f"signatures of kind {kind[:30]!r} are not known")
    digest = base64.b64encode(hashlib.sha256(key).digest()).rstrip(b"=").decode()
    return SshSignature(f"SHA256:{digest}", namespace)


def _unarmoured(text: str) -> bytes:
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(text) > ARMOUR_CHARS_MAX or len(lines) < 3 or lines[0] != _BEGIN or lines[-1] != _END:
        raise ValueError("it has not the armour of an SSH signature")
    return base64.b64decode("".join(lines[1:-1]), validate=True)


def _strings(raw: bytes, count: int, *, rest: bool = False) -> tuple[bytes, ...]:
    """`count` length-prefixed strings, and nothing after them unless `rest`."""
    found, at = [], 0
    for _ in range(count):
        size = int.from_bytes(raw[at : at + 4], "big")
        if at + 4 + size > len(raw):
            raise ValueError("it is cut off")
        found.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(raw) and not rest:
        raise ValueError("something follows it")
    return tuple(found)


def _string(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "big") + raw
