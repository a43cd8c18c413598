"""`headwater epoch audit` against a chain over JSON-RPC, and with answers measured again."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files

import pytest

from headwater.chain import Chain, EmbeddedChain
from headwater.cli import home as home_module
from headwater.cli.epoch import app
from headwater.core.canonical import canonical, digest_of
from headwater.flow import CallRequest, Message
from headwater.models import Sampling
from headwater.receipts import Receipt
from headwater.receipts.checkpoint import NoteSigner
from headwater.registry import describe
from headwater.settle import Books, Settlement
from headwater.store.epoch_export import write_export
from headwater.store.epoch_store import EpochStore
from headwater.store.object_store import LocalStore
from toy.home import open_home
from toy.model import ToyModel

POLICY = files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8")


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A home with one posted epoch of three calls, its export, and its chain served over JSON-RPC."""
    folder = tmp_path_factory.mktemp("town")
    with open_home(folder / "home") as toy, EmbeddedChain(seed=b"\x05" * 32) as embedded:
        chain = Chain(embedded.provider(), embedded.accounts[0], poll_s=0.01)
        chain.deploy(guardian=embedded.accounts[1].address, cap=10**12, delay_s=60)
        clock = toy.flow.parts.now_ns
        epochs = EpochStore(toy.db)
        addresses = {"operator:compute": "0x" + "a0" * 20, "operator:platform": "0x" + "a1" * 20}
        books = Books(toy.registry, toy.ledger, toy.log, epochs, toy.currency, 0, addresses, lambda _: POLICY, clock)
        settlement = Settlement(books, chain)
        for question in ("what does a river do?", "say hello", "where is the sea?"):
            _, key = toy.key()
            request = CallRequest("toy", (Message("user", question),), Sampling(12), "sha256:" + "0" * 64)
            opened = toy.flow.open(request, key)
            for _ in toy.flow.answer(opened):
                pass
            toy.flow.attribute(opened.record.call_id)
        record = settlement.close()
        settlement.post(1)
        write_export(
            LocalStore(folder / "export"), toy.log, record, [], operator=toy.flow.parts.signer.address,
            currency=toy.currency, signer=NoteSigner("example.org/log", bytes(range(32))),
            policies={toy.flow.parts.policy.digest: POLICY},
            registry=[(one.id, digest_of(describe(one))) for one in toy.registry.contributions()],
        )  # fmt: skip
        yield toy, folder / "export", embedded.serve(), chain.manifest.payout


def audit(capsys, *words):
    """Exit status and report of an audit."""
    status = app(
        ["audit", "1", "--processes", "1", "--json", *map(str, words)],
        result_action="return_value",
        exit_on_error=False,
    )
    printed = capsys.readouterr()
    return status, json.loads(printed.out or printed.err)


def test_the_root_is_looked_up_on_the_chain(town, capsys):
    """With an address to ask, the chain's root and data hash are compared and the report says so."""
    _, export, rpc, contract = town
    status, report = audit(capsys, "--from", export, "--all", "--rpc", rpc, "--contract", contract)
    assert (status, report["passed"], report["problems"]) == (0, True, [])
    assert "root and data hash are the chain's" in report["checked"]
    assert (report["receipts"], report["receipts_in_full"]) == (3, 3)


def test_a_manifest_that_is_not_the_posted_one_is_found_on_the_chain(town, capsys, tmp_path):
    """Another time of closing changes no total, but the chain holds another digest; another root differs too."""
    _, export, rpc, contract = town
    copied = tmp_path / "export"
    for path in export.rglob("*"):
        if path.is_file():
            (copied / path.relative_to(export)).parent.mkdir(parents=True, exist_ok=True)
            (copied / path.relative_to(export)).write_bytes(path.read_bytes())
    file = copied / "epochs" / "1.json"
    value = json.loads(file.read_bytes())
    file.write_bytes(canonical(value | {"closed_at": "2026-01-01T00:00:00.000000000Z"}))
    status, report = audit(capsys, "--from", copied, "--rpc", rpc, "--contract", contract)
    assert status == 1
    assert [problem["code"] for problem in report["problems"]] == ["data_hash_differs"]
    file.write_bytes(canonical(value | {"tree_root": "11" * 32}))
    status, report = audit(capsys, "--from", copied, "--rpc", rpc, "--contract", contract)
    assert status == 1
    assert {"data_hash_differs", "root_differs", "tree_root_differs"} <= {p["code"] for p in report["problems"]}


def test_a_contract_that_is_none_is_an_error(town, capsys):
    """An address without a payout contract proves nothing: the audit ends with an error, not with a pass."""
    _, export, rpc, _ = town
    status, report = audit(capsys, "--from", export, "--rpc", rpc, "--contract", "0x" + "12" * 20)
    assert status == 1
    assert report.get("error", {}).get("code") or report["problems"]


class Bent(ToyModel):
    """The toy model, a little surer of everything."""

    def score(self, contexts, answer):
        """Every token a quarter more likely."""
        return super().score(contexts, answer) + 0.25


@contextmanager
def given(value=None, **_):
    """What a home would have loaded."""
    yield value


def test_answers_are_measured_again_from_the_homes_evidence(town, capsys, monkeypatch):
    """Bit for bit as many as were asked for; a model that scores otherwise is found out, an erased call passed over."""
    toy, export, _, _ = town
    served = toy.flow.parts.models
    monkeypatch.setattr(home_module, "models", lambda _: given(served))
    monkeypatch.setattr(home_module, "spans", lambda *_, **__: given())
    arguments = ("--from", export, "--home", toy.path, "--recompute-attribution")
    status, report = audit(capsys, *arguments, 2)
    assert (status, report["problems"]) == (0, [])
    assert "2 answers measured again from disclosed evidence" in report["checked"]

    bent = {name: replace(one, scorer=Bent()) for name, one in served.items()}
    monkeypatch.setattr(home_module, "models", lambda _: given(bent))
    status, report = audit(capsys, *arguments, 1)
    assert status == 1
    assert {problem["code"] for problem in report["problems"]} == {"measured_differs"}
    assert any(problem["where"].endswith("attribution.total_microbits") for problem in report["problems"])

    monkeypatch.setattr(home_module, "models", lambda _: given(served))
    toy.calls.forget(Receipt.from_bytes(toy.log.at(0).raw).call_id, at_ns=toy.flow.parts.now_ns())
    status, report = audit(capsys, *arguments, 3)
    assert (status, report["problems"]) == (0, [])
    assert "2 answers measured again from disclosed evidence" in report["checked"]
