"""Writes adapters as GGUF files, the form the in-process server loads.

The file has the metadata of an adapter and, for each adapted projection, its two factors as F32, with
query and key rows in the order of the base file. Knows nothing of PEFT's files.
"""

from __future__ import annotations

import struct

import numpy as np

from headwater.models.gguf_file import MAGIC, STRING, VERSION
from headwater.models.lora import Lora, heads_of, split_module, stored_rows
from headwater.models.weights import ARCHITECTURE, LlamaShape

ALIGNMENT = 32
_FLOAT32_VALUE, _F32_TENSOR = 6, 0
_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_bytes(lora: Lora, shape: LlamaShape) -> bytes:
    """The GGUF file of an adapter of a model of this shape; the same adapter gives the same bytes."""
    factors: list[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = []
    for module in sorted(lora.tensors, key=split_module):
        layer, projection = split_module(module)
        a, b = lora.tensors[module]
        heads = heads_of(shape, projection)
        name = f"blk.{layer}.{_TENSORS[projection]}.weight"
        factors += [(f"{name}.lora_a", a), (f"{name}.lora_b", b if heads is None else stored_rows(b, heads))]
    values = [
        _text("general.architecture", ARCHITECTURE),
        _text("general.type", "adapter"),
        _text("general.name", lora.name),
        _text("adapter.type", "lora"),
        # The server multiplies by alpha / rank; written so that this is the adapter's own scale.
        _string("adapter.lora.alpha") + struct.pack("<If", _FLOAT32_VALUE, lora.scale * lora.rank),
    ]
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(factors), len(values)), *values]
    data: list[bytes] = []
    at = 0
    for name, matrix in factors:
        raw = np.ascontiguousarray(matrix, dtype="<f4").tobytes()
        rows, columns = matrix.shape
        head.append(_string(name) + struct.pack("<IQQIQ", 2, columns, rows, _F32_TENSOR, at))
        padded = raw + b"\x00" * (-len(raw) % ALIGNMENT)
        data.append(padded)
        at += len(padded)
    header = b"".join(head)
    return header + b"\x00" * (-len(header) % ALIGNMENT) + b"".join(data)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _text(key: str, value: str) -> bytes:
    return _string(key) + struct.pack("<I", STRING) + _string(value)
