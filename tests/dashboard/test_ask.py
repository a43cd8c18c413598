"""Asking on the page: streamed, charged, coloured by supplier, seen by its payer alone, and inert whatever it says."""

from __future__ import annotations

import json
import time

import pytest

from headwater.attribution.evidence import read_answer
from headwater.attribution.token_account import TokenAccount
from headwater.core.ids import ContributionId, contribution_id
from headwater.core.money import NANO
from headwater.receipts import Receipt
from headwater.registry import owned_equally, unenrolled
from headwater.registry.intake import Candidate
from headwater.store.account_store import AccountStore

QUESTION = "what does a river do in the sea?"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>{{7*7}}"


def test_an_answer_streams_and_is_charged_to_the_payer(shared):
    """The page's question goes through the gateway: events come, the key pays, and the call is the key's."""
    who = shared.caller()
    before = shared.toy.spent(shared.key)
    body = {"model": "toy", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "stream": True}
    reply = who.send("/ask/stream", body)

    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert shared.toy.calls.get(reply.headers["headwater-receipt"]).key_id == shared.key.key_id
    assert shared.toy.spent(shared.key) > before


def test_tokens_add_up_to_what_the_receipt_says(shared):
    """Supplier by supplier, the bits of the tokens sum to the bits of the receipt, and the texts to the answer."""
    who = shared.caller()
    call = shared.ask(who, QUESTION)
    data = who.get(f"/ask/calls/{call}.json").json
    receipt = Receipt.from_bytes(shared.toy.log.in_force(call).raw)
    rows = data["measured"]["tokens"]

    assert "".join(row["text"] for row in rows) == data["text"]
    share_of = {s["number"]: s["microbits"] for s in data["measured"]["suppliers"]}
    for number, microbits in share_of.items():
        assert abs(sum(row["microbits"].get(number, 0) for row in rows) - microbits) <= len(rows)
    copied = sum(s.microbits for s in receipt.attribution.shares if s.channel == "reproduced")
    base = sum(row["microbits"].get("base", 0) for row in rows)
    assert abs(base + copied - receipt.attribution.base_microbits) <= 2 * len(rows)
    assert sum(s["weight_ppb"] for s in data["measured"]["suppliers"]) + data["measured"]["residual_ppb"] == 10**9


def test_each_token_names_its_supplier_beside_its_colour(shared):
    """A token's supplier is in its data, its runs are marked by number, and every supplier has a card."""
    who = shared.caller()
    page = who.get(f"/ask/calls/{shared.ask(who, QUESTION)}")

    tokens = [a for _, a in page.elements if "token" in (a.get("class") or "").split()]
    cards = {a["data-number"] for _, a in page.elements if "supplier" in (a.get("class") or "").split()}
    assert {a["data-main"] for a in tokens} - {"base", "rest"} <= cards
    assert all(json.loads(a["data-bits"]) and a["role"] == "button" for a in tokens)
    assert "Licence" in page.text


def test_only_the_payer_sees_a_call(shared):
    """To another key, to nobody and to the operator a call looks like one that does not exist."""
    call = shared.ask(shared.caller(), QUESTION)
    other = shared.caller(shared.toy.key("another")[0])

    for path in (f"/ask/calls/{call}", f"/ask/calls/{call}/answer", f"/ask/calls/{call}/passages/ctb_x"):
        assert other.get(path).status == 404
        assert shared.visitor().get(path, accept="application/json").status == 401
    assert other.post(f"/ask/calls/{call}/feedback", {"rating": "up"}).status == 404
    assert call not in other.get("/ask").text


def test_a_call_without_credit_is_refused_as_over_http(shared):
    """The gateway's own error comes through: nothing is answered and nothing is kept."""
    secret, _ = shared.toy.key("poor", units=1)
    body = {"model": "toy-dear", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    reply = shared.caller(secret).send("/ask/stream", body)

    assert reply.status == 402
    assert reply.json["error"]["code"] == "insufficient_credit"


def test_a_page_cannot_be_used_as_somebody_elses_key(shared):
    """Headers that a browser sends cannot choose another payer, and without a session nothing is asked."""
    secret, _ = shared.toy.key("victim")
    who = shared.visitor()
    who.get("/ask")
    body = {"model": "toy", "messages": [{"role": "user", "content": "hello"}]}

    assert who.send("/ask/stream", body, authorization=f"Bearer {secret}").status == 401
    assert who.send("/ask/stream", body, **{"headwater.payer": "key_x"}).status == 401


def test_thumbs_and_corrections_become_feedback(shared):
    """What is said of an answer is registered by the gateway; what says nothing is refused in the gateway's words."""
    who = shared.caller()
    call, another = shared.ask(who, QUESTION), shared.ask(who, QUESTION)
    words = {"rating": "down", "correction": "It flows into the sea."}
    given = who.post(f"/ask/calls/{call}/feedback", words, accept="application/json").json

    assert shared.toy.registry.get(ContributionId(given["contribution"])).kind == "feedback"
    assert "Thank you" in who.post(f"/ask/calls/{another}/feedback", {"rating": "up"}).text
    refused = who.post(f"/ask/calls/{another}/feedback", {})
    assert refused.status == 400
    assert "Thank you" not in refused.text


def test_a_passage_opens_at_its_place_in_its_document(shared):
    """The link of a passage leads to its document, with the passage marked and the rest around it."""
    who = shared.caller()
    call = shared.ask(who, QUESTION)
    supplier = next(s for s in who.get(f"/ask/calls/{call}.json").json["measured"]["suppliers"] if s["passages"])
    target = who.get(f"/ask/calls/{call}/passages/{supplier['contribution']}").headers["location"]
    text = who.get(target.replace("#passage", "").replace("?", ".json?")).json["text"]

    assert text is None or supplier["passages"][0].removeprefix(f"{supplier['title']}: ").strip() == text["passage"]


def test_erased_words_are_gone_from_the_page_too(site):
    """Once a call's text is forgotten, its page and its token account are without it; its sums stay."""
    who = site.caller()
    call = site.ask(who, QUESTION)
    accounts = AccountStore(site.site.db)
    assert accounts.get(call) is not None
    site.toy.calls.forget(call, at_ns=time.time_ns())
    data = who.get(f"/ask/calls/{call}.json").json

    assert (data["text"], data["question"], data["measured"]["tokens"]) == (None, None, [])
    assert accounts.get(call) is None
    assert all(supplier["passages"] == [] for supplier in data["measured"]["suppliers"])


def test_token_accounts_are_unreadable_without_their_payers_key(site):
    """The account is encrypted at rest, and erasing the payer's key erases it."""
    call = site.ask(site.caller(), QUESTION)
    accounts = AccountStore(site.site.db)
    [(sealed,)] = site.toy.db.query("SELECT sealed FROM token_accounts WHERE call_id = ?", (call,))
    tokens = TokenAccount.from_bytes(accounts.get(call)).tokens

    assert tokens == len(read_answer(site.toy.calls.get(call).answer).token_ids)
    with pytest.raises(Exception, match="no account"):
        TokenAccount.from_bytes(sealed)
    site.toy.calls.forget_owner(site.key.key_id, at_ns=time.time_ns())
    assert accounts.get(call) is None


def test_hostile_titles_names_terms_texts_and_questions_are_inert(site):
    """Whatever people write is text on every page that shows it: no element and no attribute comes of it."""
    owner = unenrolled("test", HOSTILE)
    text = f"a river {HOSTILE} runs"
    offered = Candidate(
        *("hostile", "document", HOSTILE, text.encode(), owned_equally([owner.id]), "CC0-1.0"),
        *(frozenset({"ground", "train", "reproduce"}), 1, HOSTILE),
        terms=HOSTILE,
    )
    assert site.toy.registry.admit([offered], [owner]).problems == ()
    id = contribution_id("document", text.encode())
    site.toy.flow.parts.passages._documents[id] = text
    secret, key = site.toy.key("<b>caller</b>", units=100 * NANO)
    who = site.caller(secret)
    call = site.ask(who, f"river runs {HOSTILE}")
    receipt = site.toy.calls.get(call).receipt_id
    assert key.key_id

    for path in (
        *("/ask", f"/ask/calls/{call}", f"/ask/calls/{call}/answer", f"/receipts/{receipt}", f"/contributions/{id}"),
        *("/contributions", "/search?q=%3Cscript%3E", f"/contributors/{owner.id}", "/contributors", "/receipts"),
    ):
        page = who.get(path)
        assert page.status == 200, path
        for tag, attributes in page.elements:
            assert not any(name.startswith("on") for name in attributes), (path, tag, attributes)
            assert tag != "script" or (attributes.get("src") or "").startswith("/static/"), path
            assert attributes.get("src") != "x"
        assert "49" not in page.text or "{{7*7}}" in page.text or HOSTILE[:8] not in page.text
    assert "&lt;script&gt;alert(1)" in who.get(f"/contributions/{id}").text
