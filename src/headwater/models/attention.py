"""Causal attention of tokens that sit in a tree: a node's tokens see its ancestors and themselves.

Keys and values stay where their node wrote them; nothing is gathered and no mask is made. Work goes
in blocks of 48 query lanes (tokens x the heads that share a key head), with scores held as (key,
lane): so the softmax runs along keys in order, lane by lane, and both products are register tiles.
A lane's result depends only on its query and the keys it sees, in order: not on how the path to it
is cut into nodes, nor on its neighbours.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from headwater.models.elementwise import LOG2_E, ONE, exp2
from headwater.models.tiles import LANES, float_tile

QUERY_LANES = 3 * LANES
TILE_ROWS = 8

_tile_8x3, _tile_1x3 = float_tile(TILE_ROWS, 3), float_tile(1, 3)


@njit(cache=True, nogil=True, error_model="numpy")
def tree_attention(  # type: ignore[no-untyped-def]
    projected, heads, kv_heads, head_width, row_of, size_of, segment_of, key_at, value_at, length_of, keys_max, out
):
    """Attention outputs of a group of nodes.

    Args:
        projected: (rows, >= heads * head_width) float32; the queries, rotated, come first.
        heads, kv_heads, head_width: ints; ``heads / kv_heads`` heads share a key head.
        row_of, size_of: (nodes,) first row and token count of each node.
        segment_of: (nodes + 1,) ranges in the three that follow; a node's own segment is its last.
        key_at, value_at: (segments,) addresses of (tokens, kv_heads * head_width) float32.
        length_of: (segments,) tokens.
        keys_max: the longest path, in tokens.
        out: (rows, heads * head_width) float32, written for the nodes' rows.
    """
    shared = heads // kv_heads
    tokens_per_block = QUERY_LANES // shared
    kv_width = kv_heads * head_width
    queries = np.zeros((head_width, QUERY_LANES), dtype=np.float32)
    scores = np.empty((keys_max, QUERY_LANES), dtype=np.float32)
    mixed = np.empty((head_width, QUERY_LANES), dtype=np.float32)
    peak = np.empty(QUERY_LANES, dtype=np.float32)
    total = np.empty(QUERY_LANES, dtype=np.float32)
    query_at, score_at, mixed_at = queries.ctypes.data, scores.ctypes.data, mixed.ctypes.data
    scale = LOG2_E / np.sqrt(np.float32(head_width))
    for node in range(len(row_of)):
        first, last = segment_of[node], segment_of[node + 1]
        before = 0
        for segment in range(first, last - 1):
            before += length_of[segment]
        for start in range(0, size_of[node], tokens_per_block):
            stop = min(start + tokens_per_block, size_of[node])
            lanes = (stop - start) * shared
            for kv in range(kv_heads):
                queries[:, lanes:] = 0.0
                for token in range(start, stop):
                    for head in range(shared):
                        lane = (token - start) * shared + head
                        column = (kv * shared + head) * head_width
                        for i in range(head_width):
                            queries[i, lane] = projected[row_of[node] + token, column + i] * scale
                key = 0
                for segment in range(first, last):
                    count = stop if segment == last - 1 else length_of[segment]
                    at = key_at[segment] + 4 * kv * head_width
                    done = 0
                    while done + TILE_ROWS <= count:
                        _tile_8x3(
                            at + 4 * done * kv_width,
                            kv_width,
                            1,
                            query_at,
                            QUERY_LANES,
                            head_width,
                            score_at + 4 * (key + done) * QUERY_LANES,
                            QUERY_LANES,
                            0,
                        )
                        done += TILE_ROWS
                    while done < count:
                        _tile_1x3(
                            at + 4 * done * kv_width,
                            kv_width,
                            1,
                            query_at,
                            QUERY_LANES,
                            head_width,
                            score_at + 4 * (key + done) * QUERY_LANES,
                            QUERY_LANES,
                            0,
                        )
                        done += 1
                    key += count
                for token in range(start, stop):  # a token sees no later key of its own node
                    lane = (token - start) * shared
                    for later in range(before + token + 1, key):
                        for head in range(shared):
                            scores[later, lane + head] = -np.inf
                for lane in range(QUERY_LANES):
                    peak[lane] = scores[0, lane]
                    total[lane] = 0.0
                for k in range(1, key):
                    for lane in range(QUERY_LANES):
                        peak[lane] = max(peak[lane], scores[k, lane])
                for k in range(key):
                    for lane in range(QUERY_LANES):
                        weight = exp2(scores[k, lane] - peak[lane])
                        scores[k, lane] = weight
                        total[lane] += weight
                for token in range(start, stop):
                    lane = (token - start) * shared
                    for later in range(before + token + 1, key):
                        for head in range(shared):
                            scores[later, lane + head] = 0.0
                for i in range(0, head_width, TILE_ROWS):
                    key = 0
                    for segment in range(first, last):
                        count = stop if segment == last - 1 else length_of[segment]
                        at = value_at[segment] + 4 * (kv * head_width + i)
                        _tile_8x3(
                            at,
                            1,
                            kv_width,
                            score_at + 4 * key * QUERY_LANES,
                            QUERY_LANES,
                            count,
                            mixed_at + 4 * i * QUERY_LANES,
                            QUERY_LANES,
                            segment - first,
                        )
                        key += count
                for lane in range(QUERY_LANES):
                    total[lane] = ONE / total[lane]
                for token in range(start, stop):
                    for head in range(shared):
                        lane = (token - start) * shared + head
                        column = (kv * shared + head) * head_width
                        for i in range(head_width):
                            out[row_of[node] + token, column + i] = mixed[i, lane] * total[lane]
