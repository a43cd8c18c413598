"""Reading GGUF files: against the reference writer, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headwater.core.errors import HeadwaterError, InvalidError, MissingError
from headwater.models.gguf_file import open_gguf
from headwater.models.weights import coded_matrix


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A file by the reference writer with one tensor in each kind, and the numbers it was made from."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "small.gguf"
    numbers = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 100000.0)
    writer.add_array("tokenizer.ggml.tokens", ["a", "Ġb", "é"])
    writer.add_array("tokenizer.ggml.token_type", [1, 3, 1])
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_tensor("f32", numbers)
    writer.add_tensor("f16", numbers.astype(np.float16))
    for kind in ("Q4_0", "Q4_1", "Q8_0", "Q5_0"):
        label = getattr(gguf.GGMLQuantizationType, kind)
        writer.add_tensor(kind, gguf.quants.quantize(numbers, label), raw_dtype=label)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, numbers


def test_metadata_is_read(written) -> None:
    """Numbers, texts, lists and flags come back."""
    file = open_gguf(written[0])

    assert file.value("general.architecture") == "llama"
    assert file.value("llama.block_count") == 2
    assert file.value("llama.rope.freq_base") == 100000.0
    assert file.value("tokenizer.ggml.tokens") == ("a", "Ġb", "é")
    assert file.value("tokenizer.ggml.token_type") == (1, 3, 1)
    assert file.value("tokenizer.ggml.add_bos_token") is False


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantised_tensors_decode_as_the_reference_decodes_them(written, kind: str) -> None:
    """Both the dense form and the coded form equal the reference's numbers."""
    gguf = pytest.importorskip("gguf")
    path, numbers = written
    label = getattr(gguf.GGMLQuantizationType, kind)
    expected = gguf.quants.dequantize(gguf.quants.quantize(numbers, label), label)
    file = open_gguf(path)

    assert np.array_equal(file.tensor(kind), expected)
    assert np.array_equal(coded_matrix(file, kind).dense(), expected)


def test_plain_tensors_are_read_as_they_are(written) -> None:
    """float32 and float16 tensors keep their values and their shape."""
    path, numbers = written
    file = open_gguf(path)

    assert np.array_equal(file.tensor("f32"), numbers)
    assert np.array_equal(file.tensor("f16"), numbers.astype(np.float16).astype(np.float32))


def test_what_is_not_there_or_not_known_is_named(written) -> None:
    """Missing keys and tensors, and kinds that are not decoded, say so."""
    file = open_gguf(written[0])

    with pytest.raises(MissingError, match=r"llama\.nothing"):
        file.value("llama.nothing")
    with pytest.raises(MissingError, match="blk"):
        file.tensor("blk.0.attn_q.weight")
    with pytest.raises(InvalidError, match="kind 6"):
        file.tensor("Q5_0")
    with pytest.raises(InvalidError, match="F32"):
        coded_matrix(file, "f32")


def test_damaged_files_are_refused(written, tmp_path: Path) -> None:
    """A file cut at any point, and bytes that are something else, raise our errors and nothing else."""
    data = written[0].read_bytes()
    for size in (0, 1, 5, 30, 200, 500, len(data) - 200):
        cut = tmp_path / f"cut-{size}.gguf"
        cut.write_bytes(data[:size])
        with pytest.raises(HeadwaterError):
            open_gguf(cut).tensor("Q8_0")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK" + data[2:])
    with pytest.raises(InvalidError, match="PK"):
        open_gguf(other)
    with pytest.raises(MissingError):
        open_gguf(tmp_path / "nowhere.gguf")


@pytest.mark.model
def test_the_demo_model_decodes_as_the_reference_decodes_it() -> None:
    """Tensors of each kind in the shipped file equal the reference reader's."""
    gguf = pytest.importorskip("gguf")
    from headwater.models.smollm import smollm_path

    file = open_gguf(smollm_path())
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm_path()).tensors}
    assert set(reference) == set(file.tensors)
    for name in ("blk.0.attn_q.weight", "blk.29.ffn_down.weight", "blk.7.attn_norm.weight", "token_embd.weight"):
        assert np.array_equal(
            file.tensor(name), gguf.quants.dequantize(reference[name].data, reference[name].tensor_type)
        )
