"""Low-rank adapters as values, and the files they travel in: PEFT's folder of safetensors and JSON.

An adapter adds ``scale * B @ A`` to some projections of a base model. Rows are in the published order
(rotary halves one after the other); `stored_rows` gives them in the order of GGUF files, in which
`weights` keeps query and key rows. Knows nothing of torch, of serving or of who trained what.

Source: Hu et al., 2021, LoRA; the safetensors layout: header size (u64), JSON header, tensor bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.core.canonical import refuse_deep
from headwater.core.errors import InvalidError, MissingError
from headwater.models.weights import LlamaShape

Matrix = NDArray[np.float32]

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
RANK_MAX = 256
FILE_SIZE_BYTES_MAX = 512 * 2**20
_HEADER_SIZE_BYTES_MAX = 4 * 2**20
_TENSOR = re.compile(r"base_model\.model\.(model\.layers\.(\d{1,4})\.([a-z_.]+))\.lora_([AB])\.weight")
_MODULE = re.compile(r"model\.layers\.(\d{1,4})\.([a-z_.]+)")
_KINDS = {"F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2)}


@dataclass(frozen=True)
class Lora:
    """An adapter. `tensors`: PEFT module name, such as ``model.layers.3.self_attn.q_proj``, to (A, B)."""

    name: str
    base_digest: str  # of the weights it was trained on, ``sha256:…``
    rank: int
    alpha: float
    tensors: Mapping[str, tuple[Matrix, Matrix]]  # A (rank, inputs), B (outputs, rank); sorted by layer
    scale: float  # what B @ A is multiplied by: alpha / rank, or alpha / sqrt(rank) where the file says so

    @cached_property
    def digest(self) -> str:
        """SHA-256 of scale and tensors, whatever file they came in."""
        state = hashlib.sha256(b"headwater lora 1\x00" + struct.pack("<d", self.scale))
        for module in sorted(self.tensors):
            for part in self.tensors[module]:
                state.update(f"{module} {part.shape}\x00".encode())
                state.update(np.ascontiguousarray(part, dtype="<f4").tobytes())
        return "sha256:" + state.hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors in memory."""
        return sum(a.nbytes + b.nbytes for a, b in self.tensors.values())


def split_module(module: str) -> tuple[int, str]:
    """Layer number and projection of a PEFT module name.

    >>> split_module("model.layers.3.self_attn.q_proj")
    (3, 'self_attn.q_proj')
    """
    found = _MODULE.fullmatch(module)
    if found is None or found[2] not in PROJECTIONS:
        raise InvalidError(
            f"module {module[:120]!r} is not a projection of a llama layer",
            code="lora_module_unknown",
            fix=f"adapt {', '.join(PROJECTIONS)} of numbered layers only",
        )
    return int(found[1]), found[2]


def projection_shape(shape: LlamaShape, projection: str) -> tuple[int, int]:
    """(outputs, inputs) of a projection of this model."""
    kv = shape.kv_heads * shape.head_width
    return {
        "self_attn.q_proj": (shape.width, shape.width),
        "self_attn.k_proj": (kv, shape.width),
        "self_attn.v_proj": (kv, shape.width),
        "self_attn.o_proj": (shape.width, shape.width),
        "mlp.gate_proj": (shape.hidden, shape.width),
        "mlp.up_proj": (shape.hidden, shape.width),
        "mlp.down_proj": (shape.width, shape.hidden),
    }[projection]


def check_fit(lora: Lora, shape: LlamaShape, base_digest: str) -> None:
    """Refuse an adapter that does not belong on these weights.

    Raises:
        InvalidError: trained on other weights, a layer the model lacks, a matrix of the wrong shape, or a
            number that is not finite.
    """
    if lora.base_digest != base_digest:
        raise InvalidError(
            f"adapter {lora.name!r} was trained on {lora.base_digest}, these weights are {base_digest}",
            code="adapter_base_mismatch",
            fix="serve it on the base it was trained on, or train it again on this one",
        )
    if not lora.tensors:
        raise InvalidError(f"adapter {lora.name!r} adapts nothing", code="lora_invalid", fix="train it again")
    for module, (a, b) in lora.tensors.items():
        layer, projection = split_module(module)
        outputs, inputs = projection_shape(shape, projection)
        if layer >= shape.layers or a.shape != (lora.rank, inputs) or b.shape != (outputs, lora.rank):
            raise InvalidError(
                f"{module} of adapter {lora.name!r} has A {a.shape} and B {b.shape}; this model of {shape.layers} "
                f"layers takes ({lora.rank}, {inputs}) and ({outputs}, {lora.rank})",
                code="lora_shape_wrong",
                fix="use an adapter of this model",
            )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise InvalidError(
                f"{module} of adapter {lora.name!r} holds numbers that are not finite",
                code="lora_not_finite",
                fix="train it again with a lower learning rate",
            )


def stored_rows(matrix: Matrix, heads: int) -> Matrix:
    """Rows of a query or key matrix from the published order (halves) to that of GGUF files (pairs)."""
    width = matrix.shape[0] // heads
    halves = matrix.reshape(heads, 2, width // 2, *matrix.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(matrix.shape)


def published_rows(matrix: Matrix, heads: int) -> Matrix:
    """Rows of a query or key matrix from the order of GGUF files (pairs) to the published one (halves)."""
    width = matrix.shape[0] // heads
    pairs = matrix.reshape(heads, width // 2, 2, *matrix.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(matrix.shape)


def heads_of(shape: LlamaShape, projection: str) -> int | None:
    """How many heads' rows must be reordered between files; None for a projection without positions."""
    return {"self_attn.q_proj": shape.heads, "self_attn.k_proj": shape.kv_heads}.get(projection)


def peft_bytes(lora: Lora, base_name: str) -> tuple[bytes, bytes]:
    """(adapter_model.safetensors, adapter_config.json) of an adapter; the same adapter gives the same bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    at = 0
    for module in sorted(lora.tensors, key=split_module):
        for letter, matrix in zip("AB", lora.tensors[module], strict=True):
            raw = np.ascontiguousarray(matrix, dtype="<f4").tobytes()
            name = f"base_model.model.{module}.lora_{letter}.weight"
            header[name] = {"dtype": "F32", "shape": list(matrix.shape), "data_offsets": [at, at + len(raw)]}
            parts.append(raw)
            at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    layers = sorted({split_module(module)[0] for module in lora.tensors})
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "layers_to_transform": layers,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "lora_dropout": 0,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": sorted({module.rsplit(".", 1)[1] for module in lora.tensors}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": not math.isclose(lora.scale, lora.alpha / lora.rank),
        "headwater_base_digest": lora.base_digest,
        "headwater_name": lora.name,
    }
    return struct.pack("<Q", len(text)) + text + b"".join(parts), json.dumps(config, indent=1).encode() + b"\n"


def read_peft(folder: Path, *, base_digest: str | None = None) -> Lora:
    """The adapter in a PEFT folder.

    Args:
        folder: holds ``adapter_model.safetensors`` and ``adapter_config.json``.
        base_digest: of the weights it belongs on, for a folder that does not say so itself.

    Raises:
        MissingError: a file is missing.
        InvalidError: damaged, of another kind of adapter, or of a base that is not stated.
    """
    config = _config(folder / CONFIG_FILE)
    rank, alpha = config["r"], float(config["lora_alpha"])
    named = config.get("headwater_base_digest", base_digest)
    if not isinstance(named, str):
        raise InvalidError(
            f"{folder.name} does not name the weights it was trained on",
            code="adapter_base_unknown",
            fix="give the digest of the base model's weights",
        )
    found: dict[str, dict[str, Matrix]] = {}
    for name, matrix in _safetensors(folder / WEIGHTS_FILE).items():
        matched = _TENSOR.fullmatch(name)
        if matched is None:
            raise _invalid(folder / WEIGHTS_FILE, f"tensor {name[:120]!r} is not a LoRA factor of a llama layer")
        split_module(matched[1])
        found.setdefault(matched[1], {})[matched[4]] = matrix
    for module, pair in found.items():
        if (
            set(pair) != {"A", "B"}
            or pair["A"].ndim != 2
            or pair["A"].shape[0] != rank
            or pair["B"].shape[1:] != (rank,)
        ):
            raise _invalid(folder / WEIGHTS_FILE, f"{module} does not have A (rank, inputs) and B (outputs, rank)")
    tensors = {module: (found[module]["A"], found[module]["B"]) for module in sorted(found, key=split_module)}
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Lora(str(config.get("headwater_name", folder.name)), named, rank, alpha, tensors, scale)


def _config(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(
            f"no {path.name} in {path.parent}", code="adapter_missing", fix="give a folder in PEFT's format"
        ) from None
    try:
        refuse_deep(raw)
        config = json.loads(raw)
        rank, alpha = config["r"], config["lora_alpha"]
        plain = config.get("peft_type") == "LORA" and isinstance(rank, int) and isinstance(alpha, int | float)
    except (ValueError, KeyError, TypeError, InvalidError) as error:
        raise _invalid(path, f"not the configuration of a LoRA adapter: {error}") from None
    if not plain or not 1 <= rank <= RANK_MAX or not math.isfinite(alpha) or isinstance(rank, bool):
        raise _invalid(path, f"type {config.get('peft_type')!r}, rank {rank!r}, alpha {alpha!r}")
    for field in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "lora_bias"):
        if config.get(field):
            raise _invalid(path, f"{field} is set, which is not supported")
    return dict(config)


def _safetensors(path: Path) -> dict[str, Matrix]:
    try:
        size_bytes = path.stat().st_size
        raw = path.read_bytes() if size_bytes <= FILE_SIZE_BYTES_MAX else b""
    except FileNotFoundError:
        raise MissingError(
            f"no {path.name} in {path.parent}", code="adapter_missing", fix="give a folder in PEFT's format"
        ) from None
    if size_bytes > FILE_SIZE_BYTES_MAX:
        raise _invalid(path, f"{size_bytes} bytes, over the limit of {FILE_SIZE_BYTES_MAX}")
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or not 2 <= length <= min(_HEADER_SIZE_BYTES_MAX, len(raw) - 8):
        raise _invalid(path, "the header is cut short or too long")
    try:
        refuse_deep(raw[8 : 8 + length])
        header = json.loads(raw[8 : 8 + length])
        header.pop("__metadata__", None)
        return {name: _tensor(entry, raw, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, InvalidError) as error:
        raise _invalid(path, f"the header or a tensor is damaged: {error}") from None


def _tensor(entry: dict[str, Any], raw: bytes, start: int) -> Matrix:
    layout, width = _KINDS[entry["dtype"]]
    begin, end = entry["data_offsets"]
    rows, columns = entry["shape"]
    if not 0 <= begin <= end <= len(raw) - start or end - begin != rows * columns * width or rows < 1 or columns < 1:
        raise ValueError(f"a tensor of shape {rows} x {columns} lies at {begin}..{end}")
    flat = np.frombuffer(raw, dtype=layout, count=rows * columns, offset=start + begin)
    if entry["dtype"] == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(flat.reshape(rows, columns), dtype=np.float32)


def _invalid(path: Path, why: str) -> InvalidError:
    return InvalidError(
        f"{path.name}: {why}", code="lora_invalid", fix="give a LoRA adapter of a llama model in PEFT's format"
    )
