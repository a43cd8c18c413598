from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import HeadwaterError, InvalidError, MissingError
from headwater.models.gguf_file import open_gguf
from headwater.models.lora import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Lora,
    check_fit,
    peft_bytes,
    projection_shape,
    published_rows,
    read_peft,
    split_module,
    stored_rows,
)
from headwater.models.lora_gguf import gguf_bytes
from headwater.models.weights import tiny_weights

WEIGHTS = tiny_weights(0)


def _lora(rank: int = 2, scale: float = 2.0) -> Lora:
    rng = np.random.default_rng(1)
    tensors = {}
    for module in (
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.k_proj",
        "model.layers.1.mlp.down_proj",
    ):
        outputs, inputs = projection_shape(WEIGHTS.shape, split_module(module)[1])
        a, b = (rng.normal(size=size).astype(np.float32) for size in ((rank, inputs), (outputs, rank)))
        tensors[module] = (a, b)
    return Lora("mine", WEIGHTS.digest, rank, scale * rank, tensors, scale)


def _write(folder, lora):
    weights, config = peft_bytes(lora, "tiny")
    (folder / WEIGHTS_FILE).write_bytes(weights)
    (folder / CONFIG_FILE).write_bytes(config)
    return folder


def test_an_adapter_survives_its_files(tmp_path):
    """What is read back has the same digest, scale and factors."""
    lora = _lora()

    read = read_peft(_write(tmp_path, lora))

    assert read.digest == lora.digest
    assert (read.name, read.base_digest, read.rank, read.scale) == ("mine", WEIGHTS.digest, 2, 2.0)
    assert all(np.array_equal(read.tensors[m][i], lora.tensors[m][i]) for m in lora.tensors for i in (0, 1))


def test_the_weights_file_is_read_by_the_reference_library(tmp_path):
    """safetensors' own reader finds PEFT's names and the same numbers."""
    safetensors = pytest.importorskip("safetensors.numpy")
    lora = _lora()

    found = safetensors.load_file(_write(tmp_path, lora) / WEIGHTS_FILE)

    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    assert np.array_equal(found[name], lora.tensors["model.layers.1.mlp.down_proj"][1])
    assert len(found) == 6


def test_half_precision_files_are_read(tmp_path):
    """Files that the reference library wrote in float16 or bfloat16 give the same factors in float32."""
    safetensors = pytest.importorskip("safetensors.numpy")
    lora = _lora()
    _write(tmp_path, lora)
    tensors = safetensors.load_file(tmp_path / WEIGHTS_FILE)
    safetensors.save_file({name: value.astype(np.float16) for name, value in tensors.items()}, tmp_path / WEIGHTS_FILE)

    read = read_peft(tmp_path)

    for module, factors in lora.tensors.items():
        for mine, theirs in zip(factors, read.tensors[module], strict=True):
            assert np.array_equal(mine.astype(np.float16).astype(np.float32), theirs)


def test_the_gguf_file_is_read_by_the_reference_library(tmp_path):
    """gguf's own reader finds the metadata of an adapter and factors whose key rows are in the base file's order."""
    gguf = pytest.importorskip("gguf")
    lora, path = _lora(scale=3.0), tmp_path / "lora.gguf"
    path.write_bytes(gguf_bytes(lora, WEIGHTS.shape))

    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}

    assert reader.fields["adapter.type"].contents() == "lora"
    assert reader.fields["adapter.lora.alpha"].contents() == 6.0
    assert np.array_equal(tensors["blk.1.ffn_down.weight.lora_a"], lora.tensors["model.layers.1.mlp.down_proj"][0])
    key = lora.tensors["model.layers.1.self_attn.k_proj"][1]
    width = WEIGHTS.shape.head_width
    half = [head * width + part * width // 2 + n for head in range(2) for n in range(width // 2) for part in (0, 1)]
    assert np.array_equal(tensors["blk.1.attn_k.weight.lora_b"], key[half])


def test_our_own_reader_reads_it_too(tmp_path):
    """The project's GGUF reader gives the factors back."""
    lora, path = _lora(), tmp_path / "lora.gguf"
    path.write_bytes(gguf_bytes(lora, WEIGHTS.shape))

    file = open_gguf(path)

    assert np.array_equal(file.tensor("blk.0.attn_q.weight.lora_a"), lora.tensors["model.layers.0.self_attn.q_proj"][0])


@given(heads=st.integers(1, 6), half=st.integers(1, 8), columns=st.integers(1, 3))
def test_row_orders_are_each_others_inverse(heads, half, columns):
    """Publishing stored rows and storing published ones loses nothing."""
    matrix = np.arange(heads * 2 * half * columns, dtype=np.float32).reshape(-1, columns)

    assert np.array_equal(published_rows(stored_rows(matrix, heads), heads), matrix)
    assert np.array_equal(stored_rows(published_rows(matrix, heads), heads), matrix)


@given(data=st.data())
def test_damaged_files_are_refused_cleanly(tmp_path_factory, data):
    """Whatever byte is changed or wherever the file is cut, the outcome is our own error or a readable adapter."""
    folder = _write(tmp_path_factory.mktemp("lora"), _lora())
    name = data.draw(st.sampled_from([WEIGHTS_FILE, CONFIG_FILE]))
    raw = bytearray((folder / name).read_bytes())
    at = data.draw(st.integers(0, min(len(raw), 900) - 1))
    if data.draw(st.booleans()):
        raw[at] ^= data.draw(st.integers(1, 255))
    else:
        del raw[at:]
    (folder / name).write_bytes(raw)

    refused = None
    try:
        read_peft(folder)
    except HeadwaterError as error:
        refused = error.code

    assert refused in (None, "lora_invalid", "adapter_base_unknown", "lora_module_unknown")


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"r": 0},
        {"r": True},
        {"lora_alpha": "8"},
        {"use_dora": True},
        {"rank_pattern": {"q": 4}},
        {"modules_to_save": ["lm_head"]},
        {"r": 3},
    ],
)
def test_other_kinds_of_adapter_are_refused(tmp_path, change):
    """What this project would apply wrongly is refused, not applied wrongly."""
    folder = _write(tmp_path, _lora())
    config = json.loads((folder / CONFIG_FILE).read_text()) | change
    (folder / CONFIG_FILE).write_text(json.dumps(config))

    with pytest.raises(InvalidError):
        read_peft(folder)


def test_rank_stabilised_scale_is_honoured(tmp_path):
    """alpha / sqrt(rank) where the configuration says so."""
    folder = _write(tmp_path, _lora())
    config = json.loads((folder / CONFIG_FILE).read_text()) | {"use_rslora": True}
    (folder / CONFIG_FILE).write_text(json.dumps(config))

    assert read_peft(folder).scale == pytest.approx(4.0 / np.sqrt(2))


def test_missing_files_and_unknown_bases_are_told(tmp_path):
    """A folder without weights, and one that does not name its base, are different errors."""
    with pytest.raises(MissingError):
        read_peft(tmp_path)
    folder = _write(tmp_path, _lora())
    config = json.loads((folder / CONFIG_FILE).read_text())
    del config["headwater_base_digest"]
    (folder / CONFIG_FILE).write_text(json.dumps(config))

    with pytest.raises(InvalidError, match="does not name"):
        read_peft(folder)
    assert read_peft(folder, base_digest=WEIGHTS.digest).base_digest == WEIGHTS.digest


def test_an_adapter_that_does_not_fit_is_refused():
    """Other weights, a layer too many, a wrong width or a number that is none."""
    lora, shape = _lora(), WEIGHTS.shape
    check_fit(lora, shape, WEIGHTS.digest)
    a, b = lora.tensors["model.layers.0.self_attn.q_proj"]

    for wrong, code in (
        (replace(lora, base_digest="sha256:" + "0" * 64), "adapter_base_mismatch"),
        (replace(lora, tensors={}), "lora_invalid"),
        (replace(lora, tensors={"model.layers.9.self_attn.q_proj": (a, b)}), "lora_shape_wrong"),
        (replace(lora, tensors={"model.layers.0.mlp.down_proj": (a, b)}), "lora_shape_wrong"),
        (replace(lora, tensors={"model.layers.0.self_attn.q_proj": (a * np.float32("nan"), b)}), "lora_not_finite"),
        (replace(lora, tensors={"lm_head": (a, b)}), "lora_module_unknown"),
    ):
        with pytest.raises(InvalidError) as refused:
            check_fit(wrong, shape, WEIGHTS.digest)
        assert refused.value.code == code


def test_a_header_that_promises_too_much_is_refused(tmp_path):
    """A length or offset beyond the file is not believed."""
    folder = _write(tmp_path, _lora())
    raw = (folder / WEIGHTS_FILE).read_bytes()
    for wrong in (struct.pack("<Q", 2**60) + raw[8:], raw[:7], b""):
        (folder / WEIGHTS_FILE).write_bytes(wrong)
        with pytest.raises(InvalidError):
            read_peft(folder)
