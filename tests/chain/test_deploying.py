"""`headwater chain deploy` against a node, with a key from the environment."""

from __future__ import annotations

import json

import pytest
from chain_nodes import anvil, ask

from headwater.chain import Chain, Manifest, derived_signer
from headwater.cli.main import main
from headwater.core.keccak import keccak256

SEED = b"\x35" * 32


@pytest.mark.anvil
def test_a_deployment_on_a_node_is_written_and_used(tmp_path, monkeypatch, capsys):
    """Deployed, staked and funded with a key that is nowhere in the home; the outbox is empty afterwards."""
    key = keccak256(b"headwater.embedded.account" + bytes(4) + SEED).hex()
    owner = derived_signer(SEED, 0).address

    def run(*tokens: str, status: int = 0):
        with pytest.raises(SystemExit) as ended:
            main([*tokens, "--json", "--home", str(tmp_path / "home")])
        said = capsys.readouterr()
        assert ended.value.code == status, said.err
        return json.loads(said.out or said.err)

    with anvil(tmp_path, more=("--block-time", "1")) as url:
        ask(url, "anvil_setBalance", owner, hex(10**21))
        monkeypatch.setenv("HEADWATER_RPC_URL", url)
        monkeypatch.setenv("HEADWATER_CHAIN_KEY", key)
        made = run("chain", "deploy", "--guardian", derived_signer(SEED, 1).address, "--confirmations", "1")
        run("chain", "stake", "100")
        run("chain", "fund", "7.5")
        state = run("chain", "status")
        again = run("chain", "deploy", "--guardian", owner, status=1)

        manifest = Manifest.load(tmp_path / "home/deployment.json")
        assert made["contracts"]["Payout"]["address"] == manifest.payout == state["payout"]
        assert (state["owner"], state["staked_token_units"]) == (owner, "100000000")
        assert (state["funded_token_units"], state["confirmations"]) == ("7500000", 1)
        assert Chain(url, manifest=manifest).status().funded == 7_500_000
        assert again["error"]["code"] == "deployment_exists"
    text = "".join(path.read_text("utf-8", "replace") for path in (tmp_path / "home").rglob("*") if path.is_file())
    assert key not in text
