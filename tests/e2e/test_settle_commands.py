"""The commands of settlement on a toy home: plan, publish, watch, claim in every way, deploy, fund."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.chain.watching import Watcher
from headwater.cli.main import main
from headwater.core.errors import UpstreamError
from headwater.core.keccak import keccak256
from headwater.flow import CallRequest, Message
from headwater.models import Sampling
from toy.home import open_home


def run(capsys, *tokens: str, status: int = 0) -> object:
    """Run a command with --json; gives what it printed."""
    with pytest.raises(SystemExit) as ended:
        main([*tokens, "--json"])
    captured = capsys.readouterr()
    assert ended.value.code == status, (tokens, captured.out, captured.err)
    return json.loads(captured.out or captured.err)


def asked(path: Path) -> Path:
    """A home with two answered calls."""
    with open_home(path) as toy:
        _, key = toy.key()
        for question in ("what does a river do in the sea?", "where does the river end?"):
            request = CallRequest("toy-grounded", (Message("user", question),), Sampling(12), "sha256:" + "0" * 64)
            opened = toy.flow.open(request, key)
            for _ in toy.flow.answer(opened):
                pass
            toy.flow.attribute(opened.record.call_id)
    return path


@pytest.fixture
def town(tmp_path, monkeypatch, capsys) -> Path:
    """A home whose first epoch is active on its embedded chain."""
    monkeypatch.setenv("HEADWATER_HOME", str(asked(tmp_path / "town")))
    monkeypatch.setenv("HEADWATER_ROOT_DELAY_S", "0")
    monkeypatch.setenv("HEADWATER_MATURITY_S", "0")
    run(capsys, "epoch", "close")
    run(capsys, "epoch", "post")
    return tmp_path / "town"


def test_an_epoch_is_planned_and_claimed_in_every_way(town, tmp_path, capsys):
    """Plan and plot; a file for a wallet; a claim that a relayer sends for its fee; the rest claimed at once."""
    plan = run(capsys, "settle", "plan", "--gas-price", "0.00001", "--svg", str(tmp_path / "plot.svg"))
    due = {row["account"]: int(row["due_token_units"]) for row in plan["payees"]}
    sweep = [row["push"] for row in plan["sweep"]]

    assert plan["fee_share_ppb"] <= 10**7
    assert sweep == sorted(sweep, reverse=True)
    assert {row["push"] + row["claim"] + row["wait"] for row in plan["sweep"]} == {len(due)}
    assert (tmp_path / "plot.svg").read_text().count("<rect") == 3 * len(sweep) + 3
    dear = run(capsys, "settle", "plan", "--gas-price", "10")
    assert {row["action"] for row in dear["payees"]} == {"wait"}

    first, *others = sorted(due, key=lambda account: -due[account])
    written = run(capsys, "claim", "wallet", first, *others, "--to", str(tmp_path / "wallet.json"))
    assert json.loads((tmp_path / "wallet.json").read_text()) == written
    assert all(one["value"] == "0" and one["data"].startswith("0x") for one in written["transactions"])

    key = town / "payees" / f"{first.replace(':', '-')}.key"
    relayer = "0x" + "7e" * 20
    unsigned = run(capsys, "claim", "offer", first, "--relayer", relayer, "--fee", "0.0001")
    from eth_account import Account

    signed = Account.sign_typed_data(
        keccak_key(key), full_message=json.loads(json.dumps(unsigned["typed_data"]), parse_int=int)
    )
    offer = run(capsys, "claim", "offer", first, "--relayer", relayer, "--fee", "0.0001", "--payee-key", str(key))
    assert offer["fee_line"] == {
        "due": str(due[first]),
        "fee": "100",
        "arrives": str(due[first] - 100),
        "to": offer["offer"]["terms"]["account"],
    }
    if offer["offer"]["terms"]["deadline_s"] == unsigned["typed_data"]["message"]["deadline"]:
        assert offer["offer"]["signature"] == "0x" + bytes(signed.signature).hex()
    (tmp_path / "offer.json").write_text(json.dumps(offer))
    cheap = run(capsys, "claim", "relay", str(tmp_path / "offer.json"), "--ether", "99999999", status=1)
    assert cheap["error"]["code"] == "offer_refused"
    relayed = run(capsys, "claim", "relay", str(tmp_path / "offer.json"), "--any-fee")
    assert (relayed["token_units"], relayed["fee_token_units"]) == (str(due[first]), "100")

    many = run(capsys, "claim", "submit", *others)
    rows = many.get("claims", [many])
    assert sum(int(row["token_units"]) for row in rows) == sum(due[account] for account in others)
    assert run(capsys, "epoch", "sync")["problems"] == []
    assert run(capsys, "settle", "plan")["payees"] == []
    spoilt = offer["offer"] | {"terms": offer["offer"]["terms"] | {"fee": "99"}}
    (tmp_path / "offer.json").write_text(json.dumps(spoilt))
    refused = run(capsys, "claim", "relay", str(tmp_path / "offer.json"), "--any-fee", status=1)
    assert refused["error"]["code"] == "claim_to_not_signed"


def keccak_key(path: Path) -> str:
    """The hex of a key file."""
    return path.read_text().strip()


def test_a_recipient_counts_two_days_later(town, capsys):
    """The payee names somebody else; until then nothing changes."""
    key = next((town / "payees").glob("*.key"))
    found = run(capsys, "claim", "recipient", "0x" + "5c" * 20, "--payee-key", str(key))

    assert found["named"].lower() == "0x" + "5c" * 20
    assert found["now"] != found["named"]
    assert run(capsys, "claim", "recipient", "--account", found["now"]) == found
    assert run(capsys, "claim", "recipient", status=1)["error"]["code"] == "payee_missing"


def test_a_deployment_is_shown_funded_and_exported(town, tmp_path, capsys):
    """Status, a deposit, and the compiler input that gives the deployed code."""
    before = run(capsys, "chain", "status")
    run(capsys, "chain", "fund", "12.5")
    after = run(capsys, "chain", "status")
    exported = run(capsys, "chain", "export", str(tmp_path / "out"))

    assert int(after["funded_token_units"]) - int(before["funded_token_units"]) == 12_500_000
    assert before["newest_status"] == "active"
    assert exported["files"] == ["Payout.standard.json", "TestToken.standard.json", "contracts.json"]
    described = json.loads((tmp_path / "out/contracts.json").read_text())
    assert described["contracts"]["Payout"]["address"] == before["payout"]
    assert run(capsys, "chain", "fund", "0.0000001", status=1)["error"]["code"] == "amount_invalid"
    assert run(capsys, "chain", "deploy", "--guardian", "0x" + "11" * 20, status=1)["error"]["code"] == "rpc_missing"


def test_a_pending_root_is_watched_from_what_was_published(tmp_path, monkeypatch, capsys):
    """The published epoch is accepted; another manifest under its name is challenged, and the status says so."""
    path = asked(tmp_path / "town")
    monkeypatch.setenv("HEADWATER_HOME", str(path))
    monkeypatch.setenv("HEADWATER_ROOT_DELAY_S", "3600")
    monkeypatch.setenv("HEADWATER_MATURITY_S", "0")
    run(capsys, "epoch", "close")
    assert run(capsys, "settle", "plan")["post"] in (True, False)
    run(capsys, "epoch", "post")
    published = run(capsys, "settle", "publish", "--to", str(tmp_path / "public"))
    assert [row["epoch"] for row in published["epochs"]] == [1]
    assert published["epochs"][0]["changes_bytes"] > 0
    assert run(capsys, "settle", "watch")["done"] == "accepted"
    assert run(capsys, "settle", "watch", "--from", str(tmp_path / "public"))["done"] == "accepted"

    looks = iter([UpstreamError("the node is away", code="rpc_unreachable"), None])
    real = Watcher.turn

    def turn(watcher: Watcher) -> object:
        failure = next(looks, None)
        if failure is not None:
            raise failure
        return real(watcher)

    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt  # how a person ends it

    monkeypatch.setattr(Watcher, "turn", turn)
    monkeypatch.setattr("headwater.cli.watch.time.sleep", sleep)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(["settle", "watch", "--every-s", "7", "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["done"] == "accepted"
    assert "the node is away" in captured.err
    assert naps == [7, 7]

    manifest = tmp_path / "public/epochs/1.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"epoch":1', b'"epoch":2'))
    key = tmp_path / "watcher.key"
    key.touch(mode=0o600)
    key.write_text(keccak256(b"watcher").hex())
    told = run(capsys, "settle", "watch", "--from", str(tmp_path / "public"), status=1)
    assert (told["done"], [one["code"] for one in told["problems"]]) == ("reported", ["data_hash_differs"])
    found = run(capsys, "settle", "watch", "--from", str(tmp_path / "public"), "--key-file", str(key), status=1)
    assert found["done"] == "challenged"
    assert run(capsys, "chain", "status")["challenged_index"] == 0


def test_change_sets_are_published_on_the_chain_and_watched_from_there(tmp_path, monkeypatch, capsys):
    """Fees are shown before; a second run sends nothing; a watcher with the node accepts; blobs are refused."""
    monkeypatch.setenv("HEADWATER_HOME", str(asked(tmp_path / "town")))
    monkeypatch.setenv("HEADWATER_ROOT_DELAY_S", "3600")
    monkeypatch.setenv("HEADWATER_MATURITY_S", "0")
    run(capsys, "epoch", "close")
    quoted = run(capsys, "settle", "publish", "--to", "calldata", "--quote")
    assert (quoted["sent"], quoted["epochs"][0]["transactions"]) == (0, [])
    assert int(quoted["epochs"][0]["fees"]["calldata"]["total_wei"]) > 0
    assert run(capsys, "settle", "publish", "--to", "blob", status=1)["error"]["code"] == "blobs_unsupported"

    sent = run(capsys, "settle", "publish", "--to", "calldata")
    assert (sent["sent"], len(sent["epochs"][0]["transactions"])) == (1, 1)
    again = run(capsys, "settle", "publish", "--to", "calldata")
    assert (again["sent"], again["epochs"][0]["transactions"]) == (0, sent["epochs"][0]["transactions"])
    run(capsys, "epoch", "post")
    assert run(capsys, "settle", "watch", "--from", "chain")["done"] == "accepted"
