# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Tree
@license Apache-2.0
@notice The payout tree as the chain sees it: what a leaf, a node and a root are.
@dev A module. A Merkle-sum tree whose nodes are one word each: 192 bits of a hash and, in the low 64 bits, the
     sum of all amounts below.

         leaf = keccak(index u32 | account 160 | amount u64) with its low 64 bits replaced by the amount
         node = keccak(left | right)                         with its low 64 bits replaced by both sums
         root = keccak(domain | depth | top)

     The three hash 32, 64 and 96 bytes, so none can stand for another. The root holds the depth, so a leaf has
     one place and one length of path. A position without a leaf is a zero word. Sums are never wrapped: a path
     over sums beyond 64 bits is refused. Two trees with one root take 2^96 hashes to find.
"""

# ------------------------------------------------------------------ imports

import Money as money

uses: money

# ------------------------------------------------------------------ constants

TAG: constant(bytes32) = keccak256("headwater.payout.v2")
DEPTH_MAX: constant(uint256) = 32
MASK_64: constant(uint256) = 2**64 - 1
HASH: constant(uint256) = max_value(uint256) - (2**64 - 1)  # the part of a word that is a hash

# ------------------------------------------------------------------ reading

@external
@view
def domain_of(epoch: uint256) -> bytes32:
    """
    @notice What a root is bound to: this chain, this contract, this token and one epoch.
    @param epoch Its number.
    @return Digest that is hashed together with the depth and the top of the tree.
    @custom:security Follows the chain id, so a fork of the chain cannot reuse proofs.
    """
    return self._domain(epoch)

# ------------------------------------------------------------------ internal

@internal
@view
def _domain(epoch: uint256) -> bytes32:
    return keccak256(abi_encode(TAG, chain.id, self, money.TOKEN.address, epoch))


@internal
@view
def _bind(epoch: uint256, depth: uint256, top: uint256) -> bytes32:
    return keccak256(abi_encode(self._domain(epoch), depth, top))


@internal
@pure
def _leaf(index: uint256, record: uint256) -> uint256:
    """
    @dev The word of a leaf; `record` is its account 160 | amount 64.
    """
    return convert(keccak256(convert(index << 224 | record, bytes32)), uint256) & HASH | record & MASK_64


@internal
@view
def _prove(
    epoch: uint256, root: bytes32, position: uint256, height: uint256, node: uint256, path: DynArray[uint256, DEPTH_MAX]
):
    """
    @dev Climbs from `node` at `position` of the row at `height` to the root, or reverts. A position that the
         path does not use up is refused, so every node has one position.
    """
    top: uint256 = node
    place: uint256 = position
    total: uint256 = node & MASK_64
    for sibling: uint256 in path:
        total = unsafe_add(total, sibling & MASK_64)
        if place & 1 == 0:
            top = convert(keccak256(abi_encode(top, sibling)), uint256) & HASH | total
        else:
            top = convert(keccak256(abi_encode(sibling, top)), uint256) & HASH | total
        place >>= 1
    assert place == 0, "Tree: beyond the tree"
    assert total <= MASK_64 and self._bind(epoch, unsafe_add(height, len(path)), top) == root, "Tree: proof does not reach the root"
