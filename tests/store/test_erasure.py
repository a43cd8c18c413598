"""Withdrawal and erasure on a real home: what is taken back is neither served nor paid, and its bytes are gone."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from headwater.attribution.spans import Document, SpanIndex
from headwater.core.errors import ConflictError, MissingError
from headwater.core.ids import ContributionId
from headwater.flow import CallRequest, Message
from headwater.models import Sampling
from headwater.receipts import Receipt
from headwater.retrieval import open_index
from headwater.store.consent_store import ConsentStore
from headwater.store.erasure import Places, erase
from toy.home import DOCUMENTS, ToyHome, open_home

QUESTION = "what does a river do in the sea?"


def ask(toy: ToyHome) -> Receipt:
    """One paid, grounded answer."""
    _, key = toy.key()
    request = CallRequest("toy-grounded", (Message("user", QUESTION),), Sampling(12), "sha256:" + "0" * 64)
    opened = toy.flow.open(request, key)
    for _ in toy.flow.answer(opened):
        pass
    return toy.flow.attribute(opened.record.call_id)


def rivers(toy: ToyHome) -> ContributionId:
    """The document that answers the question."""
    return next(c.id for c in toy.registry.contributions() if c.title == "Rivers")


def used(receipt: Receipt) -> set[str]:
    """What a receipt names."""
    return {share.contribution for share in receipt.attribution.shares}


def test_what_is_withdrawn_is_not_served_from_the_next_call_on_and_old_receipts_stay(tmp_path):
    """The index still holds it; the call asks for consent at its own instant."""
    with open_home(tmp_path) as toy:
        before, wanted = ask(toy), rivers(toy)
        assert wanted in used(before)
        assert ConsentStore(toy.db).withdraw(wanted, "its owner", "", time.time_ns())
        after = ask(toy)

        assert wanted not in used(after)
        assert Receipt.from_bytes(toy.log.get(before.id).raw) == before


def test_a_takedown_suspends_use_and_a_retraction_restores_it(tmp_path):
    """Filed twice it is one notice; once retracted it cannot be countered."""
    with open_home(tmp_path) as toy:
        consents, wanted = ConsentStore(toy.db), rivers(toy)
        filed, new = consents.file_takedown(wanted, "a claimant", "copied from me", time.time_ns())
        again, newer = consents.file_takedown(wanted, "a claimant", "copied from me", time.time_ns())

        assert (new, newer) == (True, False)
        assert filed == again
        assert wanted not in used(ask(toy))
        consents.retract(filed.notice, time.time_ns())
        assert wanted in used(ask(toy))
        with pytest.raises(ConflictError) as late:
            consents.counter(filed.notice, "too late", time.time_ns())
        assert late.value.code == "notice_state"


def test_erasing_leaves_no_byte_of_it_in_any_file_of_the_home(tmp_path):
    """Database, write-ahead log, retrieval cache, span journal and segments are searched for the words themselves."""
    words = DOCUMENTS["Rivers"].encode()
    needle = b"A river begins at its headwater"
    with open_home(tmp_path) as toy:
        receipt, wanted = ask(toy), rivers(toy)
        documents = toy.registry.contributions(kind="document")
        open_index(tmp_path / "passages", documents, toy.registry.text, now_ns=time.time_ns())
        with SpanIndex.create(tmp_path / "spans") as index:
            index.add(Document(c.id, "o", 0, toy.registry.content(c.id)) for c in documents)
        places = Places(
            toy.db, toy.registry, toy.calls, ConsentStore(toy.db), tmp_path / "passages", tmp_path / "spans"
        )
        assert any(needle in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        done = erase(places, wanted, by_whom="its owner", reason="personal", now_ns=time.time_ns())
        again = erase(places, wanted, by_whom="its owner", reason="personal", now_ns=time.time_ns())

        assert (done.new, done.calls_count, done.waiting_count, done.spans_count) == (True, 1, 0, 1)
        assert (again.new, again.calls_count, again.spans_count) == (False, 0, 0)
        with pytest.raises(MissingError) as gone:
            toy.registry.content(wanted)
        assert gone.value.code == "content_erased"
        assert toy.registry.get(wanted).content_digest.startswith("sha256:")
        assert Receipt.from_bytes(toy.log.get(receipt.id).raw) == receipt
        assert toy.calls.check() == ()
        holding = [p.name for p in tmp_path.rglob("*") if p.is_file() and needle in p.read_bytes()]
        assert holding == []
        with SpanIndex.open(tmp_path / "spans") as index:
            assert index.trace(words).spans == ()
            assert index.verify() == ()
            assert index.stats().documents == len(DOCUMENTS) - 1


def test_bytes_can_only_be_emptied_by_an_erasure_that_is_on_record(tmp_path):
    """The file itself refuses: whoever writes to it by hand leaves a trace or does nothing."""
    with open_home(tmp_path) as toy:
        with pytest.raises(ConflictError):
            toy.db.execute("UPDATE contents SET bytes = ?", (b"",))
        assert toy.registry.text(rivers(toy)) == DOCUMENTS["Rivers"]
