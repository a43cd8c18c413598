"""A checkpoint: one size and root of the log as a signed note, which witnesses may sign, too.

    example.org/log            origin: which log
    20852163                   entries
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

    — example.org/log Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5…
    — witness.example AbCd…    the same text, a time before it

A signature line holds the four bytes that name a key, then the signature. The log signs the text alone; a
witness signs ``cosignature/v1``, a time in seconds and the text, and by that says only: *I saw this log
grow from what I signed before*. Pure: keys are values, times are arguments.
Source: C2SP, signed-note, tlog-checkpoint and tlog-cosignature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from headwater.core.errors import ConflictError, InvalidError
from headwater.receipts.log import HASH_BYTES, TreeHead, verify_consistency

CHECKPOINT_BYTES_MAX: Final = 64 * 2**10
ORIGIN_CHARS_MAX: Final = 200
ED25519: Final = 0x01
COSIGNATURE: Final = 0x04

_DASH: Final = "— "


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A public key that signs notes under a name: a log's (Ed25519) or a witness's (cosignature)."""

    name: str
    kind: int  # ED25519 or COSIGNATURE
    public: bytes  # 32

    @property
    def id(self) -> bytes:
        """The four bytes by which a signature line names this key."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    @property
    def text(self) -> str:
        """The key as one word: name, id and key, joined by +."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode('ascii')}"

    @classmethod
    def from_text(cls, text: str) -> NoteKey:
        """Read a key from its one word.

        Raises:
            InvalidError: of another form, or its id does not fit.
        """
        name, _, rest = text.strip().partition("+")
        identity, _, encoded = rest.partition("+")
        try:
            raw = base64.b64decode(encoded, validate=True)
            key = cls(check_name(name), raw[0], raw[1:])
            if len(raw) != 33 or key.kind not in (ED25519, COSIGNATURE) or key.id.hex() != identity:
                raise ValueError
        except (ValueError, IndexError, binascii.Error):
            raise InvalidError(
                f"{text[:100]!r} is not a verifier key",
                code="note_key_invalid",
                fix="give it as its owner prints it: <name>+<8 hex digits>+<base64>",
            ) from None
        return key


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line."""

    name: str
    key_id: bytes  # 4
    signature: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head as it was published, with the signatures it carries."""

    origin: str
    head: TreeHead
    signatures: tuple[NoteSignature, ...] = ()

    @property
    def text(self) -> str:
        """What is signed: three lines."""
        return f"{self.origin}\n{self.head.size}\n{base64.b64encode(self.head.root).decode('ascii')}\n"

    def to_bytes(self) -> bytes:
        """The note as it is stored and served."""
        lines = [
            f"{_DASH}{line.name} {base64.b64encode(line.key_id + line.signature).decode('ascii')}\n"
            for line in self.signatures
        ]
        return (self.text + "\n" + "".join(lines)).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Checkpoint:
        """Read a note; signatures are not checked here. See `verify`.

        Raises:
            InvalidError: too large, or not a checkpoint in its one form.
        """
        try:
            if len(raw) > CHECKPOINT_BYTES_MAX:
                raise ValueError(f"{len(raw)} bytes")
            text, rule, below = raw.decode("utf-8").rpartition("\n\n")
            origin, size, root = text.split("\n")
            if not rule or not below.endswith("\n") or not size.isascii() or str(int(size)) != size:
                raise ValueError("not of three lines, a blank one and signatures")
            head = TreeHead(int(size), base64.b64decode(root, validate=True))
            if len(head.root) != HASH_BYTES:
                raise ValueError("a root of another size than 32 bytes")
            note = cls(check_name(origin), head, tuple(_signature(line) for line in below.split("\n")[:-1]))
            if note.to_bytes() != raw:
                raise ValueError("not written in the one form")
        except (ValueError, binascii.Error) as error:
            raise InvalidError(
                f"not a checkpoint: {error}", code="checkpoint_invalid", fix="use the bytes as they were served"
            ) from None
        return note

    def signed_by(self, key: NoteKey) -> bool:
        """Whether one of its signatures is this key's, and good."""
        return self.signed_at(key) is not None

    def signed_at(self, key: NoteKey) -> int | None:
        """When a witness signed, in seconds since 1970; 0 for a log's own key; None without a good signature."""
        public = Ed25519PublicKey.from_public_bytes(key.public)
        for line in self.signatures:
            if (line.name, line.key_id) != (key.name, key.id):
                continue
            at_s, signature = 0, line.signature
            message = self.text.encode()
            if key.kind == COSIGNATURE:
                at_s, signature = int.from_bytes(signature[:8], "big"), signature[8:]
                message = _cosigned(self.text, at_s)
            try:
                public.verify(signature, message)
            except InvalidSignature:
                continue
            return at_s
        return None

    def verify(self, key: NoteKey, witnesses: Sequence[NoteKey] = ()) -> None:
        """Check the log's signature and those of all `witnesses`.

        Raises:
            InvalidError: a signature is missing or wrong, or the origin is not the key's name.
        """
        if self.origin != key.name:
            raise InvalidError(
                f"a checkpoint of {self.origin!r}, expected one of {key.name!r}",
                code="checkpoint_origin",
                fix="ask the right log",
            )
        for one in (key, *witnesses):
            if not self.signed_by(one):
                raise InvalidError(
                    f"the checkpoint of size {self.head.size} has no good signature of {one.name} (key {one.id.hex()})",
                    code="checkpoint_unsigned",
                    fix="fetch it again; if it stays, it is not from this log or not seen by this witness",
                )


class NoteSigner:
    """Signs notes with an Ed25519 key held in memory."""

    __slots__ = ("_key", "name", "public")

    def __init__(self, name: str, secret: bytes) -> None:
        self.name = check_name(name)
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"NoteSigner({self.name})"

    @property
    def key(self) -> NoteKey:
        """The public key, as a log's."""
        return NoteKey(self.name, ED25519, self.public)

    @property
    def witness_key(self) -> NoteKey:
        """The public key, as a witness's."""
        return NoteKey(self.name, COSIGNATURE, self.public)

    def checkpoint(self, head: TreeHead) -> Checkpoint:
        """A checkpoint of this signer's log, signed."""
        bare = Checkpoint(self.name, head)
        line = NoteSignature(self.name, self.key.id, self._key.sign(bare.text.encode()))
        return Checkpoint(self.name, head, (line,))

    def cosign(self, checkpoint: Checkpoint, *, at_s: int) -> NoteSignature:
        """This witness's signature line; `judge` decides whether it may be given."""
        signature = self._key.sign(_cosigned(checkpoint.text, at_s))
        return NoteSignature(self.name, self.witness_key.id, at_s.to_bytes(8, "big") + signature)


class ForkError(ConflictError):
    """Two checkpoints that one log has signed cannot both be true; they are evidence, keep both."""


def judge(last: Checkpoint | None, new: Checkpoint, proof: Sequence[bytes]) -> None:
    """Refuse a checkpoint that does not grow from the last one that was accepted.

    Args:
        last: what this witness has signed before; None for the first time, which is taken on trust.
        new: what is presented, its log's signature already checked.
        proof: consistency proof from the last size to the new one.

    Raises:
        ForkError: same size with another root, or a proof that does not lead from the old root to the new.
        ConflictError: smaller than what was signed before.
    """
    if last is None:
        return
    old, head = last.head, new.head
    if new.origin != last.origin:
        raise ConflictError(
            f"a checkpoint of {new.origin!r}, this witness follows {last.origin!r}",
            code="witness_origin",
            fix="keep one state file per log",
        )
    if head.size < old.size:
        raise ConflictError(
            f"a checkpoint of size {head.size}, size {old.size} was signed before",
            code="checkpoint_old",
            fix="present a newer one; if the log has no newer one, it lost entries it had promised",
        )
    if not verify_consistency(old, head, proof):
        raise ForkError(
            f"{new.origin}: the log of size {head.size} and root {head.root.hex()} does not contain the one of size "
            f"{old.size} and root {old.root.hex()} that it signed before",
            code="log_forked",
            fix="keep both checkpoints: together they prove that the log told two stories, or that a proof was false",
        )


def check_name(name: str) -> str:
    """`name` as an origin or a signer's name.

    Raises:
        InvalidError: empty, too long, or with spaces, plus signs or control characters.
    """
    if not 0 < len(name) <= ORIGIN_CHARS_MAX or not name.isprintable() or any(c.isspace() or c == "+" for c in name):
        raise InvalidError(
            f"{name[:80]!r} is not a name for a log or a witness",
            code="note_name_invalid",
            fix="use a name without spaces or plus signs, such as example.org/headwater",
        )
    return name


def _signature(line: str) -> NoteSignature:
    if not line.startswith(_DASH):
        raise ValueError(f"{line[:40]!r} is not a signature line")
    name, _, encoded = line[len(_DASH) :].partition(" ")
    raw = base64.b64decode(encoded, validate=True)
    if len(raw) < 5:
        raise ValueError("a signature of less than five bytes")
    return NoteSignature(check_name(name), raw[:4], raw[4:])


def _cosigned(text: str, at_s: int) -> bytes:
    return f"cosignature/v1\ntime {at_s}\n{text}".encode()
