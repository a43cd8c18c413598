"""Compiled contracts on a real node, with the bare machine's interface: every call is a transaction in a block."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.contracts.bare_evm import Refused, reason_of

GAS = 15_000_000


class AnvilNode:
    """A node that takes anybody's word for who sends, mines at once, and asks no fee."""

    def __init__(self, binary: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [
                *(str(binary), "--port", str(port), "--silent", "--auto-impersonate", "--hardfork", "prague"),
                *("--block-base-fee-per-gas", "0", "--gas-price", "0", "--prune-history"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._line: http.client.HTTPConnection | None = None
        until = time.monotonic() + 20
        while True:
            try:
                self.ask("eth_chainId")
                break
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    self.close()
                    raise
                self._line = None
                time.sleep(0.05)
        self.ask("anvil_setBlockTimestampInterval", 0)

    def close(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.wait(10)

    def post(self, body: object) -> Any:
        """One request, or several at once."""
        if self._line is None:
            parts = urlsplit(self.url)
            self._line = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        self._line.request("POST", "/", json.dumps(body), {"content-type": "application/json"})
        return json.loads(self._line.getresponse().read())

    def ask(self, method: str, *params: Any) -> Any:
        """The result of one call; it must succeed."""
        answer = self.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]


class AnvilBare:
    """The node put back to a snapshot, seen as the bare machine is."""

    def __init__(self, node: AnvilNode, snapshot: list[str]) -> None:
        self._node = node
        assert node.ask("evm_revert", snapshot[0])
        snapshot[0] = node.ask("evm_snapshot")  # a snapshot serves once
        node.ask("anvil_setBlockTimestampInterval", 0)
        self.now_s = int(node.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        self.jump(1)

    def jump(self, seconds: int) -> None:
        """Move the clock: the next blocks have that time."""
        self.now_s += seconds
        self._node.ask("evm_setNextBlockTimestamp", self.now_s)
        self._node.ask("evm_mine")

    def call(self, sender: str, to: str, data: bytes) -> bytes:
        """The answer to a call; nothing stays."""
        message = {"from": sender, "to": to, "data": "0x" + data.hex(), "gas": hex(GAS)}
        answer = self._node.post({"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": [message, "latest"]})
        if "error" in answer:
            told = answer["error"].get("data") or "0x"
            raise Refused(reason_of(bytes.fromhex(told.removeprefix("0x"))))
        return bytes.fromhex(answer["result"].removeprefix("0x"))

    def send(self, sender: str, to: str, data: bytes) -> bytes:
        """The answer to a transaction, which is mined and must do what the call before it did."""
        refused: Refused | None = None
        output = b""
        try:
            output = self.call(sender, to, data)
        except Refused as error:
            refused = error
        message = {"from": sender, "to": to, "data": "0x" + data.hex(), "gas": hex(GAS), "gasPrice": "0x0"}
        mined = self._node.ask("eth_sendTransaction", message)
        until = time.monotonic() + 10
        while (receipt := self._node.ask("eth_getTransactionReceipt", mined)) is None:
            assert time.monotonic() < until, "never mined"
            time.sleep(0.001)
        block = self._node.ask("eth_getBlockByNumber", "latest", False)
        assert int(block["timestamp"], 16) == self.now_s
        assert (receipt["status"] == "0x1") == (refused is None), (receipt["status"], refused)
        if refused is not None:
            raise refused
        return output
