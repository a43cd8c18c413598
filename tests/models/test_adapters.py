from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, InvariantError, MissingError
from headwater.models.adapters import LINEAGE_FILE, SIGNATURE_FILE, AdapterStore
from headwater.models.lora import CONFIG_FILE, WEIGHTS_FILE, Lora, peft_bytes
from headwater.receipts.signing import KeySigner
from headwater.registry.lineage import HeldOut, Lineage, TrainedOn, read_lineage, signing_digest

BASE = "sha256:" + "b" * 64
SIGNER = KeySigner(b"\x05" * 32)


def _lora(seed: int) -> Lora:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 64)).astype(np.float32), rng.normal(size=(64, 2)).astype(np.float32)
    return Lora(f"a{seed}", BASE, 2, 4.0, {"model.layers.0.self_attn.o_proj": (a, b)}, 2.0)


def _lineage(lora: Lora, files: dict[str, bytes]) -> Lineage:
    nothing = HeldOut(0, 0, 0, 0, 0)
    return Lineage(
        name=lora.name,
        base_name="tiny",
        base_digest=BASE,
        parent=None,
        adapter_digest=lora.digest,
        files=tuple(sorted((name, digest(raw)) for name, raw in files.items())),
        recipe={"seed": 0},
        code_version="test",
        code_digest=BASE,
        data_digest=BASE,
        order_digest=BASE,
        trained_on=(TrainedOn("ctb_" + "1" * 32, BASE, 2, 30),),
        left_out=0,
        steps=4,
        checkpoints=((0, BASE),),
        before=nothing,
        after=nothing,
        operator=SIGNER.address,
    )


def _publish(store: AdapterStore, seed: int, *, signer: KeySigner = SIGNER):
    lora = _lora(seed)
    files = dict(zip((WEIGHTS_FILE, CONFIG_FILE), peft_bytes(lora, "tiny"), strict=True))
    lineage = _lineage(lora, files)
    draft = store.folder / f".draft-{seed}"
    draft.mkdir(parents=True)
    return store.publish(draft, lineage, signer.sign(signing_digest(lineage.to_bytes())), files)


def test_a_published_adapter_is_found_by_name_and_by_contribution(tmp_path):
    """Both give the same signed record and the same factors."""
    store = AdapterStore(tmp_path)
    stored = _publish(store, 1)

    assert store.names() == ("a1",)
    assert store.get(stored.contribution) == store.get("a1") == stored
    assert store.load("a1").digest == _lora(1).digest


def test_only_whole_folders_are_adapters(tmp_path):
    """Trainings at work, drafts and folders without a record are not listed and not served."""
    store = AdapterStore(tmp_path)
    _publish(store, 1)
    (tmp_path / ".a2-123").mkdir()
    (tmp_path / "a3").mkdir()

    assert store.names() == ("a1",)
    for name in ("a3", ".a2-123", "../a1", "a1/", "", "ctb_" + "0" * 32):
        with pytest.raises(MissingError):
            store.get(name)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE, LINEAGE_FILE, SIGNATURE_FILE])
def test_an_altered_file_is_never_loaded(tmp_path, name):
    """One changed character in any file of an adapter is noticed."""
    store = AdapterStore(tmp_path)
    _publish(store, 1)
    path = tmp_path / "a1" / name
    raw = bytearray(path.read_bytes())
    at = len(raw) - 10
    raw[at] = ord("1") if raw[at] != ord("1") else ord("2")
    path.write_bytes(raw)

    with pytest.raises((InvalidError, InvariantError)):
        AdapterStore(tmp_path).load("a1")


def test_a_record_signed_by_somebody_else_is_refused(tmp_path):
    """The operator that the record names must have signed it."""
    with pytest.raises(InvalidError) as refused:
        _publish(AdapterStore(tmp_path), 1, signer=KeySigner(b"\x06" * 32))
    assert refused.value.code == "lineage_signature_wrong"


def test_the_least_recently_used_give_way(tmp_path):
    """Memory stays under its cap, the adapter in use stays, and one that left is loaded again."""
    store = AdapterStore(tmp_path, memory_bytes_max=2 * _lora(1).size_bytes)
    for seed in (1, 2, 3):
        _publish(store, seed)

    for name in ("a1", "a2", "a1", "a3"):
        store.load(name)

    assert store.resident() == ("a1", "a3")
    assert store.memory_bytes() <= 2 * _lora(1).size_bytes
    assert store.load("a2").digest == _lora(2).digest
    assert store.resident() == ("a3", "a2")


def test_two_adapters_cannot_share_a_name(tmp_path):
    """The second one is a conflict; the first stays."""
    store = AdapterStore(tmp_path)
    first = _publish(store, 1)
    files = dict(zip((WEIGHTS_FILE, CONFIG_FILE), peft_bytes(_lora(1), "tiny"), strict=True))
    other = replace(first.lineage, steps=5)
    (tmp_path / ".draft").mkdir()

    with pytest.raises(ConflictError):
        store.publish(tmp_path / ".draft", other, SIGNER.sign(signing_digest(other.to_bytes())), files)
    assert store.get("a1") == first


def test_a_record_has_one_form(tmp_path):
    """Bytes with a field too many, too few or of another version are not a record."""
    raw = _publish(AdapterStore(tmp_path), 1).lineage.to_bytes()

    assert read_lineage(raw).to_bytes() == raw
    for wrong in (
        raw[:-1],
        raw.replace(b"adapter/1", b"adapter/2"),
        raw.replace(b'"steps":4', b'"steps":4,"t":1'),
        b"{}",
    ):
        with pytest.raises(HeadwaterError):
            read_lineage(wrong)
