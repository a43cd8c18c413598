"""The frozen reference: how likely each token is before anything is known of the question.

A unigram table over the model's own tokens. Bits are counted beyond it, so a common word is worth
little and a rare one much, whoever supplies it. Costs are kept as whole 64ths of a bit, so a table is
the same numbers on every machine, and its digest names it in receipts. After rounding the table sums to
one within 1 %: a constant that cancels between any two prompts. Pure.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError

STEPS_PER_BIT = 64
MAGIC = b"HWREF1\n"
NAME_BYTES_MAX = 200
VOCABULARY_MAX = 2**22
LOG_DIGITS = Context(prec=30)  # of the decimal logarithm: the same on every machine, unlike a float one


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """log2 r(token) for every token of one vocabulary. Build with the functions below."""

    log2_probs: NDArray[np.float64]  # (vocabulary,), all finite and <= 0, whole 64ths, read-only
    digest: str  # ``sha256:…`` of name and costs
    name: str

    def bits(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        """Cost of each token, ``-log2 r(token)``: (tokens,) bits >= 0.

        Raises:
            InvalidError: an id outside the vocabulary.
        """
        ids = np.asarray(token_ids, dtype=np.int64)
        outside = ids[(ids < 0) | (ids >= len(self.log2_probs))]
        if len(outside):
            raise InvalidError(
                f"token id {outside[0]} is outside 0..{len(self.log2_probs) - 1} of reference {self.name!r}",
                code="token_unknown",
                fix="use the reference made for this model's tokenizer",
            )
        costs: NDArray[np.float64] = -self.log2_probs[ids]
        return costs

    def to_bytes(self) -> bytes:
        """The table as a file, compressed: see `reference_from_bytes`."""
        name = self.name.encode("utf-8")
        body = zlib.compress(_shuffled(_costs(self.log2_probs)), 9)
        return MAGIC + struct.pack("<HI", len(name), len(self.log2_probs)) + name + body


def uniform_reference(vocabulary_size: int) -> Reference:
    """Every token equally likely: for models without a table of their own."""
    _check_size(vocabulary_size)
    return _reference([_cost(1, vocabulary_size)] * vocabulary_size, f"uniform-{vocabulary_size}")


def build_reference(counts: Sequence[int] | NDArray[np.int64], *, name: str) -> Reference:
    """The table of a corpus: add-one smoothed, ``r(t) = (count(t) + 1) / (total + vocabulary)``.

    Costs are rounded up or down to 64ths of a bit from logarithms computed in decimal, so the same
    counts give the same table, and digest, everywhere.

    Args:
        counts: (vocabulary,) how often each token occurs, >= 0.
        name: says what was counted; part of the digest.

    >>> build_reference([6, 0], name="example").log2_probs.tolist()
    [-0.1875, -3.0]
    """
    tallies = [int(count) for count in counts]
    _check_size(len(tallies))
    if min(tallies) < 0:
        raise InvalidError(f"a token count is {min(tallies)}", code="reference_invalid", fix="count occurrences, >= 0")
    total = sum(tallies) + len(tallies)
    cost_of = {tally: _cost(tally + 1, total) for tally in set(tallies)}
    return _reference([cost_of[tally] for tally in tallies], name)


def reference_from_bytes(data: bytes) -> Reference:
    """Read back what `Reference.to_bytes` wrote.

    Raises:
        InvalidError: not such a file, or a damaged one.
    """
    head = len(MAGIC) + struct.calcsize("<HI")
    if len(data) < head or not data.startswith(MAGIC):
        raise InvalidError(
            f"{data[:8]!r} does not start a reference table", code="reference_invalid", fix="build it again"
        )
    name_size, vocabulary = struct.unpack("<HI", data[len(MAGIC) : head])
    _check_size(vocabulary)
    inflate = zlib.decompressobj()
    try:
        name = data[head : head + name_size].decode("utf-8")
        raw = inflate.decompress(data[head + name_size :], 2 * vocabulary + 1)
    except (zlib.error, UnicodeDecodeError) as error:
        raise InvalidError(
            f"the reference table is damaged: {error}", code="reference_invalid", fix="build it again"
        ) from error
    if len(raw) != 2 * vocabulary or not inflate.eof:
        raise InvalidError(
            f"the reference table has {len(raw)} bytes for {vocabulary} tokens of 2",
            code="reference_invalid",
            fix="build it again",
        )
    planes = np.frombuffer(raw, dtype=np.uint8).reshape(2, vocabulary)
    return _reference((planes[0].astype(np.int64) * 256 + planes[1]).tolist(), name)


def _cost(part: int, whole: int) -> int:
    """``-log2(part / whole)`` in 64ths of a bit, to nearest."""
    ratio = LOG_DIGITS.divide(Decimal(whole), Decimal(part))
    bits = LOG_DIGITS.divide(LOG_DIGITS.ln(ratio), LOG_DIGITS.ln(Decimal(2)))
    return int(LOG_DIGITS.multiply(bits, Decimal(STEPS_PER_BIT)).to_integral_value())


def _reference(costs: list[int], name: str) -> Reference:
    size = len(name.encode("utf-8"))
    if not 1 <= size <= NAME_BYTES_MAX:
        raise InvalidError(
            f"the reference name has {size} bytes", code="reference_invalid", fix=f"use 1 to {NAME_BYTES_MAX}"
        )
    if not 0 <= min(costs) <= max(costs) < 2**16:
        raise InvalidError(
            f"a token costs {max(costs)} steps", code="reference_invalid", fix="costs are 0 to 1023 bits"
        )
    steps = np.array(costs, dtype=">u2")
    digest = hashlib.sha256(MAGIC + name.encode("utf-8") + b"\0" + steps.tobytes()).hexdigest()
    table = -(steps.astype(np.float64) / STEPS_PER_BIT)
    table.setflags(write=False)
    return Reference(table, f"sha256:{digest}", name)


def _costs(log2_probs: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(-log2_probs * STEPS_PER_BIT).astype(np.int64)


def _shuffled(costs: NDArray[np.int64]) -> bytes:
    """High bytes, then low bytes: they compress better apart."""
    return (costs >> 8).astype(np.uint8).tobytes() + (costs & 255).astype(np.uint8).tobytes()


def _check_size(vocabulary_size: int) -> None:
    if not 1 <= vocabulary_size <= VOCABULARY_MAX:
        raise InvalidError(
            f"a vocabulary of {vocabulary_size} tokens",
            code="reference_invalid",
            fix=f"use 1 to {VOCABULARY_MAX} tokens",
        )
