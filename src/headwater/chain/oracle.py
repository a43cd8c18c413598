"""What a transaction costs on the chain that is connected: its base fee, and its GasPriceOracle when it has one.

An OP-Stack rollup has the oracle at a fixed address and says there which rule is in force and at what prices. Any
other chain has no code at that address and no data fee. The rules themselves are `headwater.settlement.fees`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from headwater.chain.client import web3_address
from headwater.chain.sender import RevertedError, Sender
from headwater.core.errors import UpstreamError
from headwater.core.keccak import keccak256
from headwater.settlement.fees import FeeParameters, Fork

ORACLE: Final = "0x420000000000000000000000000000000000000F"
L1_BLOCK: Final = "0x4200000000000000000000000000000000000015"
_FORKS: Final = ((Fork.JOVIAN, "isJovian()"), (Fork.ISTHMUS, "isIsthmus()"), (Fork.FJORD, "isFjord()"))


def read_fees(sender: Sender) -> FeeParameters:
    """The prices of the newest block.

    Raises:
        UpstreamError: the node failed, or the oracle is of a kind from before Ecotone.
    """
    web3 = sender.web3
    block: Any = sender.read(lambda: web3.eth.get_block("latest"), "reading the newest block")
    tip: Any = sender.read(lambda: web3.eth.max_priority_fee, "reading the tip")
    fees = FeeParameters(int(block.get("baseFeePerGas", 0) or 0), int(tip))
    if not sender.read(lambda: web3.eth.get_code(web3_address(ORACLE)), "looking for a GasPriceOracle"):
        return fees
    fork = _fork(sender)
    fees = replace(
        fees,
        fork=fork,
        l1_base_fee_wei=_number(sender, ORACLE, "l1BaseFee()"),
        l1_blob_base_fee_wei=_number(sender, ORACLE, "blobBaseFee()"),
        base_fee_scalar=_number(sender, ORACLE, "baseFeeScalar()"),
        blob_base_fee_scalar=_number(sender, ORACLE, "blobBaseFeeScalar()"),
    )
    if fork >= Fork.ISTHMUS:
        fees = replace(
            fees,
            operator_fee_scalar=_number(sender, L1_BLOCK, "operatorFeeScalar()"),
            operator_fee_constant=_number(sender, L1_BLOCK, "operatorFeeConstant()"),
        )
    if fork >= Fork.JOVIAN:
        fees = replace(fees, da_footprint_scalar=_number(sender, L1_BLOCK, "daFootprintGasScalar()"))
    return fees


def oracle_l1_fee(sender: Sender, unsigned: bytes) -> int:
    """The data fee that the chain's own oracle tells for an unsigned transaction, wei."""
    padded = unsigned.ljust(-(-len(unsigned) // 32) * 32, b"\0")
    data = (32).to_bytes(32, "big") + len(unsigned).to_bytes(32, "big") + padded
    answer = _ask(sender, ORACLE, "getL1Fee(bytes)", data)
    if answer is None:
        raise _unreadable("getL1Fee(bytes)")
    return int.from_bytes(answer, "big")


def _fork(sender: Sender) -> Fork:
    # An oracle does not know the names of upgrades that came after it, so from the newest down.
    for fork, question in _FORKS:
        answer = _ask(sender, ORACLE, question)
        if answer and any(answer):
            return fork
    if any(_ask(sender, ORACLE, "isEcotone()") or b""):
        return Fork.ECOTONE
    raise UpstreamError(
        "the chain's GasPriceOracle is from before Ecotone",
        code="oracle_unknown",
        fix="give the prices by hand, or use a chain that has been upgraded",
    )


def _number(sender: Sender, address: str, question: str) -> int:
    answer = _ask(sender, address, question)
    if answer is None:
        raise _unreadable(question)
    return int.from_bytes(answer, "big")


def _ask(sender: Sender, address: str, question: str, data: bytes = b"") -> bytes | None:
    """The first word of an answer; None when the contract does not know the question."""
    call: Any = {"to": web3_address(address), "data": "0x" + (keccak256(question.encode())[:4] + data).hex()}
    try:
        answer = bytes(sender.read(lambda: sender.web3.eth.call(call), f"asking {question}"))
    except RevertedError:
        return None
    return answer[:32] if len(answer) >= 32 else None


def _unreadable(question: str) -> UpstreamError:
    return UpstreamError(
        f"the chain's fee contracts do not answer {question}",
        code="oracle_unknown",
        fix="give the prices by hand, or ask another node",
    )
