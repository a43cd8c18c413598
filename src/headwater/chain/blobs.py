"""Transactions with blobs (EIP-4844): whether a chain takes them, signing, sending, and getting the blobs back.

Commitments and proofs come from c-kzg with the public set-up that eth-account brings along. A node keeps blobs for
about eighteen days, and hands them out through its beacon interface, not through JSON-RPC; development nodes do both.
A blob that comes back is only taken when its commitment is the one in the transaction.
"""

from __future__ import annotations

import json
import time
import urllib.request
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from headwater.chain.oracle import ORACLE
from headwater.chain.sender import RevertedError, Sender, Sent, translated
from headwater.core.errors import MissingError, RefusedError, UpstreamError
from headwater.settlement.publication import data_gas

SLOT_S: Final = 12
_ANSWER_BYTES_MAX: Final = 32 * 2**20
_FEE_MARGIN: Final = 2  # the blob base fee doubles in six full blocks
_GONE: Final = "blobs are kept for some weeks only: ask an archive, or watch where the operator keeps a copy"


def blob_base_fee(sender: Sender) -> int | None:
    """Wei per blob gas; None when the chain takes no blobs (a rollup, an embedded chain, an old node)."""
    web3: Any = sender.web3
    block = sender.read(lambda: web3.eth.get_block("latest"), "reading the newest block")
    if block.get("excessBlobGas") is None or sender.read(lambda: web3.eth.get_code(ORACLE), "looking for a rollup"):
        return None
    with translated("reading the blob base fee"):
        answer: Any = web3.provider.make_request("eth_blobBaseFee", [])
    return int(answer["result"], 16) if "result" in answer else None


def refuse_without_blobs(sender: Sender) -> int:
    """Wei per blob gas.

    Raises:
        RefusedError: the chain takes no blobs.
        MissingError: c-kzg is not installed.
    """
    fee = blob_base_fee(sender)
    if fee is None:
        raise RefusedError(
            f"chain {sender.chain_id} takes no blobs", code="blobs_unsupported", fix="publish --to calldata or a folder"
        )
    _setup()
    return fee


def send_blobs(sender: Sender, to: str, data: bytes, blobs: tuple[bytes, ...], what: str) -> Sent:
    """Send a transaction that carries `data` and `blobs`, and wait for it.

    It is not kept in the outbox: after a crash the caller looks on the chain before it sends anew. What is sent
    twice costs its fee twice and changes nothing.

    Raises:
        RefusedError: there is no key, or the chain takes no blobs.
        UpstreamError: the node failed, or did not mine it in time.
    """
    import ckzg

    if sender.signer is None:
        raise RefusedError(f"{what} needs a key", code="signer_missing", fix="give the poster's key")
    web3: Any = sender.web3
    blob_fee = refuse_without_blobs(sender)
    commitments = [ckzg.blob_to_kzg_commitment(blob, _setup()) for blob in blobs]
    with translated(what):
        base, tip = web3.eth.get_block("latest").get("baseFeePerGas", 0), web3.eth.max_priority_fee
        nonce = web3.eth.get_transaction_count(sender.signer.address, "pending")
    signed = sender.signer.sign_transaction(
        {
            "type": 3,
            "chainId": sender.chain_id,
            "nonce": nonce,
            "to": to,
            "value": 0,
            "data": "0x" + data.hex(),
            "gas": data_gas(data) * 6 // 5,
            "maxFeePerGas": int(2 * base + tip),
            "maxPriorityFeePerGas": int(tip),
            "maxFeePerBlobGas": max(1, blob_fee * _FEE_MARGIN),
            "blobVersionedHashes": ["0x" + versioned_hash(one).hex() for one in commitments],
        }
    )
    sent_hash = _broadcast(sender, signed, blobs, commitments, what)
    return _wait(sender, sent_hash, what)


def read_blobs(sender: Sender, transaction: Any, *, beacon: str | None = None) -> tuple[bytes, ...]:
    """The blobs of a transaction, each compared with its hash there.

    Args:
        transaction: as JSON-RPC gives it.
        beacon: address of a beacon node; without one only a development node is asked.

    Raises:
        MissingError: nobody has them any more, or no beacon node was named.
        UpstreamError: the beacon node failed.
    """
    wanted = [bytes.fromhex(str(one)[2:]) for one in transaction.get("blobVersionedHashes") or ()]
    with translated("reading blobs"):
        answer: Any = sender.web3.provider.make_request("anvil_getBlobsByTransactionHash", [transaction["hash"]])  # type: ignore[arg-type]
    given = answer.get("result") or []
    if not given and beacon is not None:
        block: Any = sender.read(
            lambda: sender.web3.eth.get_block(int(transaction["blockNumber"], 16)), "reading a block"
        )
        given = _from_beacon(beacon.rstrip("/"), int(block["timestamp"]))
    held = {_hash_of(blob): blob for blob in (bytes.fromhex(str(one)[2:]) for one in given)}
    if not wanted or any(one not in held for one in wanted):
        raise MissingError(
            f"the blobs of transaction {transaction['hash']} are not to be had",
            code="blobs_missing",
            fix=_GONE if beacon else "name a beacon node with --beacon; " + _GONE,
        )
    return tuple(held[one] for one in wanted)


def versioned_hash(commitment: bytes) -> bytes:
    """What a transaction names a blob by."""
    return b"\x01" + sha256(commitment).digest()[1:]


def _hash_of(blob: bytes) -> bytes:
    import ckzg

    return versioned_hash(ckzg.blob_to_kzg_commitment(blob, _setup()))


def _broadcast(sender: Sender, signed: bytes, blobs: tuple[bytes, ...], commitments: list[bytes], what: str) -> str:
    """Send signed bytes with their blobs, in the form of the newest fork, or else of the first one with blobs."""
    import ckzg
    import rlp

    body = rlp.decode(signed[1:])
    cells = [proof for blob in blobs for proof in ckzg.compute_cells_and_kzg_proofs(blob, _setup())[1]]
    whole = [ckzg.compute_blob_kzg_proof(blob, one, _setup()) for blob, one in zip(blobs, commitments, strict=True)]
    forms = ([body, b"\x01", list(blobs), commitments, cells], [body, list(blobs), commitments, whole])
    refused: UpstreamError | None = None
    for form in forms:  # one signature, one hash: at most one of them is mined
        try:
            with translated(what):
                sent: Any = sender.web3.eth.send_raw_transaction(signed[:1] + rlp.encode(form))
        except RevertedError:
            raise
        except UpstreamError as error:
            refused = refused or error
            continue
        return "0x" + bytes(sent).hex()
    assert refused is not None
    raise refused


def _wait(sender: Sender, transaction_hash: str, what: str) -> Sent:
    from web3.exceptions import TransactionNotFound

    end = time.monotonic() + sender.patience.receipt_timeout_s
    while True:
        try:
            with translated(what):
                try:
                    receipt: Any = sender.web3.eth.get_transaction_receipt(transaction_hash)  # type: ignore[arg-type]
                    height = sender.web3.eth.block_number
                except TransactionNotFound:
                    receipt = None
        except UpstreamError:
            if time.monotonic() > end:
                raise
            receipt = None
        if receipt is not None and height >= receipt["blockNumber"] + sender.patience.confirmations:
            blob_wei = int(receipt.get("blobGasUsed", 0)) * int(receipt.get("blobGasPrice", 0))
            fee = receipt["gasUsed"] * receipt["effectiveGasPrice"] + blob_wei
            return Sent(transaction_hash, receipt["blockNumber"], receipt["gasUsed"], fee, (), None)
        if time.monotonic() > end:
            raise UpstreamError(
                f"{what}: transaction {transaction_hash} was not mined in time",
                code="receipt_timeout",
                fix="look it up before you publish again",
            )
        time.sleep(sender.patience.poll_s)


def _from_beacon(address: str, timestamp_s: int) -> list[str]:
    genesis = int(_get(f"{address}/eth/v1/beacon/genesis")["data"]["genesis_time"])
    return [str(blob) for blob in _get(f"{address}/eth/v1/beacon/blobs/{(timestamp_s - genesis) // SLOT_S}")["data"]]


def _get(address: str) -> Any:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return json.loads(answer.read(_ANSWER_BYTES_MAX))
    except (OSError, ValueError) as error:  # the address may hold an access token
        raise UpstreamError(
            f"the beacon node failed: {type(error).__name__}", code="beacon_unavailable", fix="check --beacon"
        ) from None


@cache
def _setup() -> Any:
    try:
        import ckzg
        import eth_account
    except ImportError:
        raise MissingError("blobs need c-kzg", code="ckzg_missing", fix="pip install 'headwater[chain]'") from None
    place = Path(eth_account.__file__).parent / "typed_transactions/blob_transactions/kzg_trusted_setup.txt"
    return ckzg.load_trusted_setup(str(place), 0)
