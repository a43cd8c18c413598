"""Answers with an adapter: its bits in the receipt, shared among what it learned from, or withheld."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files

import numpy as np
import pytest
from numpy.typing import NDArray

from headwater.attribution.learned import Influence
from headwater.core.ids import ContributionId
from headwater.core.money import PPB
from headwater.flow import ServedAdapter
from headwater.receipts import Receipt
from headwater.registry import Ownership, Use, unenrolled
from headwater.registry.intake import Candidate
from headwater.splits.receipt_split import recompute_split
from toy.desk import Desk
from toy.model import ToyModel

ADAPTER_DIGEST = "sha256:" + "a" * 64
INDEX_DIGEST = "sha256:" + "c" * 64
GAIN_BITS = 3.0  # a token, of the adapter


class AdaptedToy(ToyModel):
    """A toy whose answers are likelier with the adapter."""

    def score_with(
        self, contexts: Sequence[Sequence[int]], answer: Sequence[int], adapters: Sequence[tuple[str, ...]]
    ) -> NDArray[np.float64]:
        """Without an adapter every token is `GAIN_BITS` less likely."""
        plain = self.score(contexts, answer)
        return plain - GAIN_BITS * np.array([[not names] for names in adapters], dtype=float)


def register(desk: Desk, kind: str, title: str, uses: frozenset[Use]) -> ContributionId:
    """A contribution of somebody of its own."""
    owner = unenrolled("toy", f"Maker of {title}")
    candidate = Candidate(
        where=title,
        kind=kind,  # type: ignore[arg-type]
        title=title,
        content=f"{kind} {title}".encode(),
        owners=(Ownership(owner.id, PPB),),
        license_expression="CC0-1.0",
        uses=uses,
        registered_at_ns=1,
        source="test",
    )
    return desk.toy.registry.admit([candidate], [owner]).accepted[0].contribution.id


@pytest.fixture
def answered(desk: Desk) -> Callable[..., tuple[Receipt, dict[str, ContributionId]]]:
    """Serves an adapter with some scores, asks it, and gives the receipt."""

    def run(scores: Callable[..., object] | None = None, uses: frozenset[Use] = frozenset({"ground"})):  # type: ignore[no-untyped-def]
        names = {
            "adapter": register(desk, "adapter", "said", uses),
            "river": register(desk, "document", "river rows", frozenset({"train"})),
            "cloud": register(desk, "feedback", "cloud rows", frozenset({"train"})),
        }
        models = desk.toy.flow.parts.models
        asked = None if scores is None else partial(scores, names)
        trained_on = (names["river"], names["cloud"])
        adapter = ServedAdapter("said", names["adapter"], ADAPTER_DIGEST, trained_on, asked)  # type: ignore[arg-type]
        models["toy+said"] = replace(  # type: ignore[index]
            models["toy"], name="toy+said", scorer=AdaptedToy(), adapter=adapter
        )
        question = [{"role": "user", "content": "a river begins where"}]
        given = desk.client().chat.completions.create(model="toy+said", messages=question, max_tokens=20)
        desk.settled()
        record = desk.toy.calls.get(given.headwater["receipt"])
        assert record.receipt_id is not None, desk.app.worker.state()
        receipt = Receipt.from_bytes(desk.toy.log.get(record.receipt_id).raw)
        assert desk.toy.flow.replay(record.call_id) == receipt
        text = files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8")
        assert recompute_split(receipt, text) == receipt.payouts
        return receipt, names

    return run


def test_an_adapters_bits_go_to_what_it_learned_from(answered) -> None:  # type: ignore[no-untyped-def]
    """The receipt names the adapter, the index and the rules, and pays trainer and writers, not those in doubt."""

    def scores(
        names: dict[str, ContributionId], prompt: Sequence[int], answer: Sequence[int]
    ) -> tuple[list[Influence], str, int]:
        assert prompt
        assert len(answer) == 20
        found = [Influence(names["river"], 3.0, 2.0, 4.0), Influence(names["cloud"], 1.0, -1.0, 3.0)]
        return found, INDEX_DIGEST, 7

    receipt, names = answered(scores)

    shares = {share.contribution: share for share in receipt.attribution.shares}
    parameters = dict(receipt.attribution.parameters)
    assert receipt.model.adapter == ADAPTER_DIGEST
    assert parameters["influence_index"] == INDEX_DIGEST
    assert parameters["influence_seed"] == 7
    assert {share.channel for share in shares.values()} == {"learned"}
    assert sum(share.microbits for share in shares.values()) == round(GAIN_BITS * 20 * 1e6)
    assert shares[names["adapter"]].microbits == round(GAIN_BITS * 20 * 1e6 * 0.2)
    assert shares[names["river"]].microbits == 3 * shares[names["cloud"]].microbits
    assert shares[names["cloud"]].weight_ppb == 0
    paid = {payout.contribution for payout in receipt.payouts if payout.contribution}
    assert paid == {names["adapter"], names["river"]}


def test_without_an_index_only_the_trainers_part_is_paid(answered) -> None:  # type: ignore[no-untyped-def]
    """Nobody knows whose the rest is, so it is the residual's, and the trainer gains nothing by not measuring."""
    receipt, names = answered(None)

    paid = {payout.contribution for payout in receipt.payouts if payout.contribution}
    assert paid == {names["adapter"]}
    assert "influence_index" not in dict(receipt.attribution.parameters)
    assert {share.contribution for share in receipt.attribution.shares} == set(names.values())


def test_an_adapter_answers_only_where_its_licence_permits(desk: Desk, answered) -> None:  # type: ignore[no-untyped-def]
    """An adapter that may not be used for answers is refused like any source."""
    with pytest.raises(Exception, match="permits"):
        answered(None, frozenset({"train"}))
