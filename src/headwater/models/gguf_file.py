"""Reads GGUF files: metadata, tensor directory, and tensors as float32.

The file is memory-mapped and read-only; nothing is copied until a tensor is asked for. Only the
tensor kinds met in small instruct models are decoded (F32, F16, Q4_0, Q4_1, Q8_0); another kind is
refused by name. Knows nothing of what the tensors mean.

Source: the GGUF format, version 3 (little-endian), and the block layouts of ggml's quantised kinds.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError, MissingError

MAGIC = b"GGUF"
VERSION = 3
BLOCK = 32  # weights per quantised block
STRING, ARRAY = 8, 9  # the two value kinds that are not plain numbers
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}

Q4_1 = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("codes", "u1", BLOCK // 2)])
Q4_0 = np.dtype([("scale", "<f2"), ("codes", "u1", BLOCK // 2)])
Q8_0 = np.dtype([("scale", "<f2"), ("codes", "i1", BLOCK)])
KINDS: dict[int, tuple[str, np.dtype[Any], int]] = {
    0: ("F32", np.dtype("<f4"), 1),
    1: ("F16", np.dtype("<f2"), 1),
    2: ("Q4_0", Q4_0, BLOCK),
    3: ("Q4_1", Q4_1, BLOCK),
    8: ("Q8_0", Q8_0, BLOCK),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies in the file."""

    name: str
    shape: tuple[int, ...]  # rows first, the reverse of the order in the file
    kind: int
    offset_bytes: int  # from the start of the file


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An open file: its metadata and its tensors."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]
    data: memoryview

    def value(self, key: str) -> Any:
        """One metadata value.

        Raises:
            MissingError: the file does not have it.
        """
        if key not in self.metadata:
            raise MissingError(
                f"{self.path.name} has no metadata {key!r}",
                code="gguf_key_missing",
                fix="use a GGUF file of the llama architecture",
            )
        return self.metadata[key]

    def blocks(self, name: str) -> tuple[str, NDArray[Any]]:
        """Kind name and raw blocks of a tensor, a view of the file: (rows, blocks per row) records, or numbers."""
        if name not in self.tensors:
            raise MissingError(
                f"{self.path.name} has no tensor {name!r}",
                code="gguf_tensor_missing",
                fix="use a GGUF file of the llama architecture",
            )
        entry = self.tensors[name]
        if entry.kind not in KINDS:
            raise InvalidError(
                f"tensor {name!r} is of ggml kind {entry.kind}, which is not read here",
                code="gguf_kind_unknown",
                fix="convert the file to F32, F16, Q4_0, Q4_1 or Q8_0",
            )
        label, dtype, per_block = KINDS[entry.kind]
        columns = entry.shape[-1]
        if columns % per_block:
            raise InvalidError(
                f"tensor {name!r} has {columns} columns, not a multiple of {per_block}",
                code="gguf_invalid",
                fix="the file is damaged: fetch it again",
            )
        count = int(np.prod(entry.shape)) // per_block
        end = entry.offset_bytes + count * dtype.itemsize
        if end > len(self.data):
            raise InvalidError(
                f"tensor {name!r} ends at byte {end}, past the end of the file at {len(self.data)}",
                code="gguf_invalid",
                fix="the file is cut short: fetch it again",
            )
        flat = np.frombuffer(self.data, dtype=dtype, count=count, offset=entry.offset_bytes)
        return label, flat.reshape((*entry.shape[:-1], columns // per_block))

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, rows first: what the served weights stand for, exactly."""
        label, blocks = self.blocks(name)
        if label == "F32":
            return np.ascontiguousarray(blocks, dtype=np.float32)
        if label == "F16":
            return blocks.astype(np.float32)
        scale = blocks["scale"].astype(np.float32)[..., None]
        if label == "Q8_0":
            values = blocks["codes"].astype(np.float32) * scale
        else:
            codes = nibbles(blocks["codes"]).astype(np.float32)
            values = (
                codes * scale + blocks["minimum"].astype(np.float32)[..., None]
                if label == "Q4_1"
                else (codes - np.float32(8)) * scale
            )
        return np.ascontiguousarray(values.reshape(self.tensors[name].shape), dtype=np.float32)


def nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(…, 16) packed bytes to (…, 32) codes 0..15: low nibbles are the first half of a block, high ones the second."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


class _Cursor:
    """Reads header values one after the other."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def take(self, size: int) -> memoryview:
        if size < 0 or self.at + size > len(self.data):
            raise InvalidError(
                f"{self.path.name} ends inside its header, at byte {len(self.data)}",
                code="gguf_invalid",
                fix="the file is cut short: fetch it again",
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self) -> str:
        return bytes(self.take(self.number("<Q"))).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in SCALARS:
                layout = SCALARS[inner]
                raw = self.take(count * struct.calcsize(layout))
                return tuple(item[0] for item in struct.iter_unpack(layout, raw))
            return tuple(self.value(inner) for _ in range(count))
        if kind not in SCALARS:
            raise InvalidError(
                f"{self.path.name} has a metadata value of unknown kind {kind}",
                code="gguf_invalid",
                fix="use a GGUF file of version 3",
            )
        return self.number(SCALARS[kind])


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file and read its header.

    Raises:
        MissingError: no such file.
        InvalidError: it is not GGUF version 3, or it is cut short.
    """
    try:
        with path.open("rb") as handle:
            data = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise MissingError(
            f"no model file at {path}", code="model_missing", fix="give the path of a GGUF file"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidError(
            f"{path} cannot be read as a file: {error}", code="gguf_invalid", fix="give the path of a GGUF file"
        ) from error
    cursor = _Cursor(data, path)
    magic = bytes(cursor.take(4))
    version = cursor.number("<I")
    if magic != MAGIC or version != VERSION:
        raise InvalidError(
            f"{path.name} starts with {magic!r} version {version}, not {MAGIC!r} version {VERSION}",
            code="gguf_invalid",
            fix="give the path of a GGUF file",
        )
    tensor_count, value_count = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("<I"))
    listed = []
    for _ in range(tensor_count):
        name, dimensions = cursor.text(), cursor.number("<I")
        shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
        listed.append((name, shape, cursor.number("<I"), cursor.number("<Q")))
    alignment = int(metadata.get("general.alignment", 32))
    start = -(-cursor.at // alignment) * alignment
    tensors = {name: TensorEntry(name, shape, kind, start + offset) for name, shape, kind, offset in listed}
    return GgufFile(path, metadata, tensors, data)
