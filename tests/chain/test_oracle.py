"""Prices read from a rollup's own oracle, on a node and over a socket."""

from __future__ import annotations

from pathlib import Path

import pytest
from chain_nodes import Proxy, Refusal, anvil, ask

from headwater.chain import Chain, EmbeddedChain
from headwater.chain.build_contracts import compile_source
from headwater.chain.oracle import L1_BLOCK, ORACLE, oracle_l1_fee, read_fees
from headwater.core.errors import UpstreamError
from headwater.core.keccak import keccak256
from headwater.settlement.fees import Fork, fjord_fee, l1_fee_unsigned

SEED = b"\x32" * 32
EMPTY = bytes.fromhex("dd80808094095e7baea6a6c7c4c2dfeb977efac326af552d878080808080")


@pytest.fixture
def embedded():
    """A chain in memory."""
    with EmbeddedChain(seed=SEED, clock_ns=lambda: 1_700_000_000 * 10**9) as chain:
        yield chain


def oracle(answers):
    """A rule that answers calls to the oracle's addresses; a question that is not there is a revert."""
    words = {"0x" + keccak256(name.encode())[:4].hex(): value for name, value in answers.items()}

    def rule(method, params, real):
        if method == "eth_getCode" and params[0].lower() == ORACLE.lower():
            return "0x01"
        if method == "eth_call" and params[0]["to"].lower() in (ORACLE.lower(), L1_BLOCK.lower()):
            value = words.get(params[0].get("data", params[0].get("input"))[:10])
            if value is None:
                raise Refusal({"code": 3, "message": "execution reverted", "data": "0x"})
            return "0x" + value.to_bytes(32, "big").hex()
        return real()

    return rule


def test_a_chain_without_an_oracle_has_no_data_fee(embedded):
    """Only base fee and tip are read."""
    fees = read_fees(Chain(embedded.provider()).sender)

    assert fees.fork is Fork.NONE
    assert fees.gas_price_wei > 0
    assert l1_fee_unsigned(EMPTY, fees) == 0


@pytest.mark.parametrize("newest", ["Ecotone", "Fjord", "Isthmus", "Jovian"])
def test_the_rule_in_force_is_the_newest_that_the_oracle_knows(embedded, newest):
    """An oracle of any age is read as far as it goes."""
    names = ["Ecotone", "Fjord", "Isthmus", "Jovian"]
    known = names[: names.index(newest) + 1]
    answers = {f"is{name}()": 1 for name in known}
    answers |= {"l1BaseFee()": 5, "blobBaseFee()": 6, "baseFeeScalar()": 7, "blobBaseFeeScalar()": 8}
    if "Isthmus" in known:
        answers |= {"operatorFeeScalar()": 9, "operatorFeeConstant()": 10}
    if "Jovian" in known:
        answers |= {"daFootprintGasScalar()": 11}
    proxy = Proxy(embedded.serve())
    proxy.rule = oracle(answers)
    fees = read_fees(Chain(proxy.url).sender)
    proxy.close()

    assert fees.fork is Fork[newest.upper()]
    assert (fees.l1_base_fee_wei, fees.l1_blob_base_fee_wei) == (5, 6)
    assert (fees.base_fee_scalar, fees.blob_base_fee_scalar) == (7, 8)
    assert (fees.operator_fee_scalar, fees.operator_fee_constant) == ((9, 10) if "Isthmus" in known else (0, 0))
    assert fees.da_footprint_scalar == (11 if newest == "Jovian" else 0)


@pytest.mark.parametrize("answers", [{}, {"isEcotone()": 0}, {"isFjord()": 1, "l1BaseFee()": 1}])
def test_an_oracle_that_is_too_old_or_broken_is_told(embedded, answers):
    """A rollup from before Ecotone, and one that does not answer, are errors and not free of charge."""
    proxy = Proxy(embedded.serve())
    proxy.rule = oracle(answers)
    with pytest.raises(UpstreamError) as refused:
        read_fees(Chain(proxy.url).sender)
    proxy.close()
    assert refused.value.code == "oracle_unknown"


@pytest.mark.anvil
def test_prices_come_from_the_contract_at_the_oracles_address(tmp_path):
    """A contract placed there tells its prices; what it says of a small transaction is what is computed."""
    source = Path(__file__).parent / "FeeOracle.vy"
    code = compile_source("FeeOracle", source, [source]).bytecode_runtime
    with anvil(tmp_path) as url:
        chain = Chain(url)
        assert read_fees(chain.sender).fork is Fork.NONE
        for address in (ORACLE, L1_BLOCK):
            ask(url, "anvil_setCode", address, code)
        fees = read_fees(chain.sender)

        assert (fees.fork, fees.da_footprint_scalar) == (Fork.JOVIAN, 400)
        assert (fees.operator_fee_scalar, fees.operator_fee_constant) == (7, 11)
        assert fjord_fee(0, fees) == 9_833_984_542  # of the receipt
        assert oracle_l1_fee(chain.sender, EMPTY) == l1_fee_unsigned(EMPTY, fees)
