"""Permit2 and the x402 proxy on an anvil node, for payments by `upto`.

Permit2 comes from an npm package that has its creation code. It is deployed, and what stands there is put at Permit2's
address, with the domain separator that its constructor computed for the one address replaced by that of the other.
HEADWATER_PERMIT2 names the folder: `npm pack @uniswap/universal-router@1.6.0`, unpacked. The proxy is a double
(`UptoProxy.vy`), because no package has its bytecode.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

from headwater.chain.build_contracts import compile_source
from headwater.core.keccak import keccak256

sys.path.insert(0, str(Path(__file__).parents[1] / "chain"))

from chain_nodes import ask

PERMIT2 = "0x000000000022D473030F116dDEE9F6B43aC78BA3"
PROXY = "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002"


def permit2_code() -> str:
    """Permit2's creation code, 0x hex."""
    folder = os.environ.get("HEADWATER_PERMIT2")
    found = sorted(Path(folder).glob("**/Permit2__factory.ts")) if folder else []
    if not found:
        pytest.skip("no Permit2: npm pack @uniswap/universal-router@1.6.0, unpack it and name it in HEADWATER_PERMIT2")
    match = re.search(r'_bytecode =\s*"(0x[0-9a-f]+)"', found[0].read_text("utf-8"))
    assert match is not None
    return match[1]


def _runtime(url: str, sender: str, code: str) -> str:
    """What Permit2's constructor leaves, as it would stand at Permit2's address."""
    sent = ask(url, "eth_sendTransaction", {"from": sender, "data": code, "gas": hex(9_000_000)})
    until = time.monotonic() + 10
    while (receipt := ask(url, "eth_getTransactionReceipt", sent)) is None and time.monotonic() < until:
        time.sleep(0.05)
    address = receipt["contractAddress"]
    fields = keccak256(b"EIP712Domain(string name,uint256 chainId,address verifyingContract)") + keccak256(b"Permit2")
    here, there = (
        keccak256(
            fields + int(ask(url, "eth_chainId"), 16).to_bytes(32, "big") + bytes.fromhex(at[2:]).rjust(32, b"\0")
        )
        for at in (address, PERMIT2)
    )
    runtime: str = ask(url, "eth_getCode", address, "latest")
    assert runtime.count(here.hex()) == 1, "not Permit2"
    return runtime.replace(here.hex(), there.hex())


def install_permit2(url: str, code: str) -> None:
    """Put Permit2 and the double of the proxy where x402 looks for them."""
    ask(url, "anvil_setCode", PERMIT2, _runtime(url, ask(url, "eth_accounts")[0], code))
    source = Path(__file__).parents[1] / "gateway" / "UptoProxy.vy"
    runtime = compile_source("UptoProxy", source, [source]).bytecode_runtime
    ask(url, "anvil_setCode", PROXY, runtime if isinstance(runtime, str) else "0x" + bytes(runtime).hex())
