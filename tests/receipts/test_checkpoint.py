import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from headwater.core.errors import ConflictError, InvalidError
from headwater.receipts import EMPTY_ROOT, LogTree, TreeHead, leaf_hash
from headwater.receipts.checkpoint import Checkpoint, ForkError, NoteKey, NoteSigner, judge

SIGNER = NoteSigner("example.org/log", bytes(range(32)))
WITNESS = NoteSigner("witness.example", bytes(range(1, 33)))
TREE = LogTree(leaf_hash(bytes([number])) for number in range(40))


def test_a_checkpoint_is_a_signed_note():
    """The bytes are those of the specification, and a plain Ed25519 verifier accepts the signature over the text."""
    note = SIGNER.checkpoint(TREE.head(7)).to_bytes()
    text, rule, below = note.decode().partition("\n\n")
    assert rule
    assert text.split("\n") == ["example.org/log", "7", base64.b64encode(TREE.root(7)).decode()]
    name, encoded = below.removeprefix("— ").rstrip("\n").split(" ")
    raw = base64.b64decode(encoded)
    assert name == "example.org/log"
    assert raw[:4] == hashlib.sha256(b"example.org/log\n\x01" + SIGNER.public).digest()[:4]
    Ed25519PublicKey.from_public_bytes(SIGNER.public).verify(raw[4:], (text + "\n").encode())


def test_a_published_verifier_key_is_read():
    """The key id of a key that other software printed comes out the same (the Go checksum database's own key)."""
    text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    assert NoteKey.from_text(text).text == text


def test_keys_and_notes_come_back_from_their_text():
    """What is written is what is read, with the log's and a witness's signature on it."""
    note = SIGNER.checkpoint(TREE.head())
    note = Checkpoint(note.origin, note.head, (*note.signatures, WITNESS.cosign(note, at_s=1_780_000_000)))
    again = Checkpoint.from_bytes(note.to_bytes())
    assert again == note
    again.verify(NoteKey.from_text(SIGNER.key.text), [NoteKey.from_text(WITNESS.witness_key.text)])
    assert again.signed_at(WITNESS.witness_key) == 1_780_000_000


def test_a_cosignature_is_over_time_and_text():
    """A plain verifier accepts it over the specified message; with another time it does not hold."""
    note = SIGNER.checkpoint(TREE.head())
    line = WITNESS.cosign(note, at_s=99)
    message = b"cosignature/v1\ntime 99\n" + note.text.encode()
    Ed25519PublicKey.from_public_bytes(WITNESS.public).verify(line.signature[8:], message)
    moved = type(line)(line.name, line.key_id, (100).to_bytes(8, "big") + line.signature[8:])
    assert not Checkpoint(note.origin, note.head, (moved,)).signed_by(WITNESS.witness_key)


def test_any_changed_byte_is_refused():
    """No single changed byte leaves a checkpoint that is read and verifies."""
    raw = SIGNER.checkpoint(TREE.head()).to_bytes()
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(InvalidError):
            Checkpoint.from_bytes(changed).verify(SIGNER.key)


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"a\n1\n\n", b"a b\n1\nAA==\n\n", b"\xff", b"x" * 70_000])
def test_what_is_no_checkpoint_is_refused(raw):
    """Bytes of any other form end in one clean error."""
    with pytest.raises(InvalidError) as refusal:
        Checkpoint.from_bytes(raw)
    assert refusal.value.code == "checkpoint_invalid"


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "x" * 201])
def test_names_that_would_confuse_a_note_are_refused(name):
    """A name never holds what separates it from the rest of its line."""
    with pytest.raises(InvalidError):
        NoteSigner(name, bytes(32))


def test_a_witness_follows_growth_and_nothing_else():
    """First sight and growth are accepted; a smaller log, a same-sized other one and a fork are refused."""
    old, new = SIGNER.checkpoint(TREE.head(10)), SIGNER.checkpoint(TREE.head(40))
    judge(None, old, ())
    judge(old, new, TREE.prove_consistency(10))
    judge(old, old, ())
    with pytest.raises(ConflictError) as refusal:
        judge(new, old, ())
    assert refusal.value.code == "checkpoint_old"
    other = LogTree(leaf_hash(bytes([number, 1])) for number in range(40))
    for size in (10, 40):
        with pytest.raises(ForkError):
            judge(old, SIGNER.checkpoint(other.head(size)), other.prove_consistency(10, size))
    with pytest.raises(ForkError):
        judge(old, new, ())
    judge(SIGNER.checkpoint(TreeHead(0, EMPTY_ROOT)), new, ())
