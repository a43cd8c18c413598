"""keccak-256 of very many short messages at once: sixteen messages side by side in compiled code.

A message shorter than 136 bytes takes one permutation. The state holds word `w` of message `lane` at
``16 * w + lane``, so that the compiler works on as many messages per instruction as the machine's
vectors hold; a round is written out once, and no value of it leaves the registers but the state.

Compiled on first use and kept on disk. Knows nothing of trees beyond the two shapes it hashes:
32-byte leaves and 64-byte nodes, whose last 8 bytes are sums (`headwater.settlement.tree`). Source of the
permutation: FIPS 202, section 3.2, with keccak's own padding byte 0x01.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

compiled: Any = njit(cache=True, nogil=True)

LANES = 16
STATE_WORDS = 25 * LANES
PAD_LAST_WORD = 16
"""The word that holds byte 135, the last of a block."""

U1, U63 = np.uint64(1), np.uint64(63)
LAST_BIT = np.uint64(0x80 << 56)

ROUND_CONSTANTS = np.array(
    [
        0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000, 0x000000000000808B,
        0x0000000080000001, 0x8000000080008081, 0x8000000000008009, 0x000000000000008A, 0x0000000000000088,
        0x0000000080008009, 0x000000008000000A, 0x000000008000808B, 0x800000000000008B, 0x8000000000008089,
        0x8000000000008003, 0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
        0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
    ],
    dtype=np.uint64,
)  # fmt: skip


@compiled
def permute(state):
    """Run keccak-f[1600] on all sixteen messages of `state`, (400,) uint64, in place."""
    for number in range(24):
        constant = ROUND_CONSTANTS[number]
        for lane in range(LANES):
            a00 = state[lane]
            a01 = state[16 + lane]
            a02 = state[32 + lane]
            a03 = state[48 + lane]
            a04 = state[64 + lane]
            a05 = state[80 + lane]
            a06 = state[96 + lane]
            a07 = state[112 + lane]
            a08 = state[128 + lane]
            a09 = state[144 + lane]
            a10 = state[160 + lane]
            a11 = state[176 + lane]
            a12 = state[192 + lane]
            a13 = state[208 + lane]
            a14 = state[224 + lane]
            a15 = state[240 + lane]
            a16 = state[256 + lane]
            a17 = state[272 + lane]
            a18 = state[288 + lane]
            a19 = state[304 + lane]
            a20 = state[320 + lane]
            a21 = state[336 + lane]
            a22 = state[352 + lane]
            a23 = state[368 + lane]
            a24 = state[384 + lane]
            c0 = a00 ^ a05 ^ a10 ^ a15 ^ a20
            c1 = a01 ^ a06 ^ a11 ^ a16 ^ a21
            c2 = a02 ^ a07 ^ a12 ^ a17 ^ a22
            c3 = a03 ^ a08 ^ a13 ^ a18 ^ a23
            c4 = a04 ^ a09 ^ a14 ^ a19 ^ a24
            d0 = c4 ^ ((c1 << U1) | (c1 >> U63))
            d1 = c0 ^ ((c2 << U1) | (c2 >> U63))
            d2 = c1 ^ ((c3 << U1) | (c3 >> U63))
            d3 = c2 ^ ((c4 << U1) | (c4 >> U63))
            d4 = c3 ^ ((c0 << U1) | (c0 >> U63))
            b00 = a00 ^ d0
            t = a05 ^ d0
            b16 = (t << np.uint64(36)) | (t >> np.uint64(28))
            t = a10 ^ d0
            b07 = (t << np.uint64(3)) | (t >> np.uint64(61))
            t = a15 ^ d0
            b23 = (t << np.uint64(41)) | (t >> np.uint64(23))
            t = a20 ^ d0
            b14 = (t << np.uint64(18)) | (t >> np.uint64(46))
            t = a01 ^ d1
            b10 = (t << np.uint64(1)) | (t >> np.uint64(63))
            t = a06 ^ d1
            b01 = (t << np.uint64(44)) | (t >> np.uint64(20))
            t = a11 ^ d1
            b17 = (t << np.uint64(10)) | (t >> np.uint64(54))
            t = a16 ^ d1
            b08 = (t << np.uint64(45)) | (t >> np.uint64(19))
            t = a21 ^ d1
            b24 = (t << np.uint64(2)) | (t >> np.uint64(62))
            t = a02 ^ d2
            b20 = (t << np.uint64(62)) | (t >> np.uint64(2))
            t = a07 ^ d2
            b11 = (t << np.uint64(6)) | (t >> np.uint64(58))
            t = a12 ^ d2
            b02 = (t << np.uint64(43)) | (t >> np.uint64(21))
            t = a17 ^ d2
            b18 = (t << np.uint64(15)) | (t >> np.uint64(49))
            t = a22 ^ d2
            b09 = (t << np.uint64(61)) | (t >> np.uint64(3))
            t = a03 ^ d3
            b05 = (t << np.uint64(28)) | (t >> np.uint64(36))
            t = a08 ^ d3
            b21 = (t << np.uint64(55)) | (t >> np.uint64(9))
            t = a13 ^ d3
            b12 = (t << np.uint64(25)) | (t >> np.uint64(39))
            t = a18 ^ d3
            b03 = (t << np.uint64(21)) | (t >> np.uint64(43))
            t = a23 ^ d3
            b19 = (t << np.uint64(56)) | (t >> np.uint64(8))
            t = a04 ^ d4
            b15 = (t << np.uint64(27)) | (t >> np.uint64(37))
            t = a09 ^ d4
            b06 = (t << np.uint64(20)) | (t >> np.uint64(44))
            t = a14 ^ d4
            b22 = (t << np.uint64(39)) | (t >> np.uint64(25))
            t = a19 ^ d4
            b13 = (t << np.uint64(8)) | (t >> np.uint64(56))
            t = a24 ^ d4
            b04 = (t << np.uint64(14)) | (t >> np.uint64(50))
            state[lane] = b00 ^ (~b01 & b02) ^ constant
            state[16 + lane] = b01 ^ (~b02 & b03)
            state[32 + lane] = b02 ^ (~b03 & b04)
            state[48 + lane] = b03 ^ (~b04 & b00)
            state[64 + lane] = b04 ^ (~b00 & b01)
            state[80 + lane] = b05 ^ (~b06 & b07)
            state[96 + lane] = b06 ^ (~b07 & b08)
            state[112 + lane] = b07 ^ (~b08 & b09)
            state[128 + lane] = b08 ^ (~b09 & b05)
            state[144 + lane] = b09 ^ (~b05 & b06)
            state[160 + lane] = b10 ^ (~b11 & b12)
            state[176 + lane] = b11 ^ (~b12 & b13)
            state[192 + lane] = b12 ^ (~b13 & b14)
            state[208 + lane] = b13 ^ (~b14 & b10)
            state[224 + lane] = b14 ^ (~b10 & b11)
            state[240 + lane] = b15 ^ (~b16 & b17)
            state[256 + lane] = b16 ^ (~b17 & b18)
            state[272 + lane] = b17 ^ (~b18 & b19)
            state[288 + lane] = b18 ^ (~b19 & b15)
            state[304 + lane] = b19 ^ (~b15 & b16)
            state[320 + lane] = b20 ^ (~b21 & b22)
            state[336 + lane] = b21 ^ (~b22 & b23)
            state[352 + lane] = b22 ^ (~b23 & b24)
            state[368 + lane] = b23 ^ (~b24 & b20)
            state[384 + lane] = b24 ^ (~b20 & b21)


@compiled
def reversed_bytes(word):
    """A big-endian word as a number, or the other way round."""
    word = ((word & np.uint64(0x00FF00FF00FF00FF)) << np.uint64(8)) | (
        (word >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
    )
    word = ((word & np.uint64(0x0000FFFF0000FFFF)) << np.uint64(16)) | (
        (word >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    )
    return (word << np.uint64(32)) | (word >> np.uint64(32))


@compiled
def hash_nodes(below, parents, absent, above):
    """Hash the pairs under `parents` of one row into the row above.

    Args:
        below: (n, 4) uint64, the hashes of a row as they lie in memory.
        parents: (m,) int64 places of the row above; children are at 2p and 2p + 1.
        absent: (4,) uint64, what stands where `below` has ended.
        above: (n', 4) uint64, written at `parents`.
    """
    state = np.empty(STATE_WORDS, dtype=np.uint64)
    size, rows = parents.shape[0], below.shape[0]
    sums = np.empty(LANES, dtype=np.uint64)
    for first in range(0, size, LANES):
        count = min(LANES, size - first)
        state[:] = 0
        for lane in range(count):
            left = 2 * parents[first + lane]
            for i in range(4):
                state[LANES * i + lane] = below[left, i] if left < rows else absent[i]
                state[LANES * (4 + i) + lane] = below[left + 1, i] if left + 1 < rows else absent[i]
            sums[lane] = reversed_bytes(state[LANES * 3 + lane]) + reversed_bytes(state[LANES * 7 + lane])
            state[LANES * 8 + lane] = U1
            state[LANES * PAD_LAST_WORD + lane] = LAST_BIT
        permute(state)
        for lane in range(count):
            for i in range(3):
                above[parents[first + lane], i] = state[LANES * i + lane]
            above[parents[first + lane], 3] = reversed_bytes(sums[lane])


@compiled
def hash_all_nodes(below, absent, above):
    """`hash_nodes` for every place of the row above, (ceil(n / 2), 4)."""
    hash_nodes(below, np.arange(above.shape[0]), absent, above)


@compiled
def hash_leaves(indices, addresses, amounts, row):
    """Hash leaves into the row of leaves.

    Args:
        indices: (m,) int64 places, 0..2^32-1.
        addresses: (m, 20) uint8.
        amounts: (m,) uint64.
        row: (n, 4) uint64, written at `indices`; a leaf of the zero address is absent and written as zeros.
    """
    state = np.empty(STATE_WORDS, dtype=np.uint64)
    size = indices.shape[0]
    message = np.zeros(40, dtype=np.uint8)
    message[32] = 0x01
    for first in range(0, size, LANES):
        count = min(LANES, size - first)
        state[:] = 0
        for lane in range(count):
            at = first + lane
            for i in range(4):
                message[i] = (indices[at] >> (24 - 8 * i)) & 0xFF
            for i in range(20):
                message[4 + i] = addresses[at, i]
            for i in range(8):
                message[24 + i] = (amounts[at] >> np.uint64(56 - 8 * i)) & np.uint64(0xFF)
            for i in range(5):
                word = np.uint64(0)
                for byte in range(8):
                    word |= np.uint64(message[8 * i + byte]) << np.uint64(8 * byte)
                state[LANES * i + lane] = word
            state[LANES * PAD_LAST_WORD + lane] = LAST_BIT
        permute(state)
        for lane in range(count):
            at = first + lane
            nobody = True
            for i in range(20):
                nobody = nobody and addresses[at, i] == 0
            for i in range(3):
                row[indices[at], i] = np.uint64(0) if nobody else state[LANES * i + lane]
            row[indices[at], 3] = np.uint64(0) if nobody else reversed_bytes(amounts[at])


@compiled
def hash_messages(messages, digests):
    """Hash messages of one size.

    Args:
        messages: (n, size) uint8, size < 136.
        digests: (n, 4) uint64, written.
    """
    state = np.empty(STATE_WORDS, dtype=np.uint64)
    size = messages.shape[1]
    for first in range(0, messages.shape[0], LANES):
        count = min(LANES, messages.shape[0] - first)
        state[:] = 0
        for lane in range(count):
            for at in range(size):
                state[LANES * (at // 8) + lane] |= np.uint64(messages[first + lane, at]) << np.uint64(8 * (at % 8))
            state[LANES * (size // 8) + lane] ^= U1 << np.uint64(8 * (size % 8))
            state[LANES * PAD_LAST_WORD + lane] ^= LAST_BIT
        permute(state)
        for lane in range(count):
            for i in range(4):
                digests[first + lane, i] = state[LANES * i + lane]
