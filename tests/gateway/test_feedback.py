"""Feedback, consent and withdrawal over HTTP: whose, how often, what is kept, and that nobody is paid for it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from headwater.registry.feedback import PER_HOUR_MAX, judge, read_feedback
from headwater.store.consent_store import ConsentStore
from headwater.store.feedback_store import FeedbackStore
from toy.desk import Desk


def asked(desk: Desk, text: str = "what is a river, in a few words?", secret: str | None = None, **extra: Any) -> str:
    """The id of an answered call whose receipt is final."""
    messages = [{"role": "user", "content": text}]
    given = desk.client(secret).chat.completions.create(model="toy", messages=messages, max_tokens=8, **extra)
    desk.settled()
    return str(given.headwater["receipt"])


def send(
    desk: Desk,
    body: object,
    *,
    path: str = "/v1/feedback",
    method: str = "POST",
    secret: str | None = None,
    **headers: str,
) -> tuple[int, Any]:
    """Status and body of a request."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {secret or desk.secret}", "Content-Type": "application/json", **headers}
    request = urllib.request.Request(desk.url + path, raw, given, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_correction_becomes_a_pair_of_the_callers(desk: Desk) -> None:
    """It is registered under the key, linked to the receipt, waits for review, and is not paid."""
    call = asked(desk)
    before = desk.toy.ledger.balance(desk.key.account, desk.toy.currency).balance_units
    transfers = desk.toy.db.query("SELECT count(*) FROM transfers")

    status, body = send(desk, {"receipt": call, "rating": "down", "correction": "Water that runs to the sea."})

    assert status == 201
    assert (body["review"], body["copied_from"], body["paid"]) == ("pending", None, "0")
    registry = desk.toy.registry
    contribution = registry.get(body["contribution"])
    said = read_feedback(registry.content(contribution.id))
    assert contribution.kind == "feedback"
    assert contribution.license.uses == {"train"}
    assert registry.contributor(contribution.owners[0].contributor_id).name == desk.key.key_id
    assert (said.prompt, said.chosen) == ("what is a river, in a few words?", "Water that runs to the sea.")
    assert said.rejected
    assert said.receipt == desk.get(f"/v1/receipts/{call}")["id"]
    assert desk.toy.ledger.balance(desk.key.account, desk.toy.currency).balance_units == before
    assert desk.toy.db.query("SELECT count(*) FROM transfers") == transfers
    assert desk.get(f"/v1/feedback/{contribution.id}") == body


def test_feedback_is_idempotent(desk: Desk) -> None:
    """The same key and body give the first answer; the same key with another body is refused; so are words twice."""
    call = asked(desk)
    body = {"receipt": call, "correction": "Something else entirely."}

    first = send(desk, body, **{"Idempotency-Key": "one"})
    again = send(desk, body, **{"Idempotency-Key": "one"})
    other = send(desk, {**body, "comment": "hm"}, **{"Idempotency-Key": "one"})
    twice = send(desk, body)

    assert (first[0], again[0], other[0], twice[0]) == (201, 200, 409, 200)
    assert first[1] == again[1] == twice[1]
    assert other[1]["code"] == "idempotency_conflict"


def test_only_the_payer_of_an_answer_judges_it(desk: Desk) -> None:
    """Another key's receipt looks like one that does not exist, and its feedback cannot be read."""
    call = asked(desk)
    stranger, _ = desk.toy.key("another")

    assert send(desk, {"receipt": call, "rating": "up"}, secret=stranger)[0] == 404
    mine = send(desk, {"receipt": call, "rating": "up"})[1]["contribution"]
    assert send(desk, b"", path=f"/v1/feedback/{mine}", method="GET", secret=stranger)[0] == 404
    assert send(desk, {"receipt": call, "rating": "up"}, secret="hw_test_" + "a" * 43)[0] == 401


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ({}, "feedback_invalid"),
        ({"rating": "great"}, "feedback_invalid"),
        ({"rating": 5}, "request_invalid"),
        ({"correction": "a", "preferred": "b"}, "feedback_invalid"),
        ({"correction": "x" * 30_000}, "feedback_invalid"),
        ({"rating": "up", "reward": "1"}, "unknown_parameter"),
        ({"receipt": None, "rating": "up"}, "request_invalid"),
        ({"correction": "a\x00b"}, "feedback_invalid"),
    ],
)
def test_feedback_that_says_nothing_or_too_much_is_refused(shared: Desk, extra: dict[str, Any], code: str) -> None:
    """Each refusal has a code, and nothing is registered."""
    call = asked(shared)
    count = shared.toy.registry.counts().get("feedback", 0)

    status, body = send(shared, {"receipt": call, **extra})

    assert (status, body["code"]) == (400, code)
    assert shared.toy.registry.counts().get("feedback", 0) == count


def test_bodies_that_are_no_objects_are_refused(shared: Desk) -> None:
    """Deep, long and foreign JSON end as errors, not as failures."""
    assert send(shared, b"[" * 100_000)[0] == 400
    assert send(shared, b"[1]")[0] == 400
    assert send(shared, b"\xff\xfe")[0] == 400
    assert send(shared, b'{"receipt": "' + b"x" * 200_000 + b'"}')[0] == 413


def test_copied_feedback_is_declined_at_once(desk: Desk) -> None:
    """The same lesson from another key, in another spelling, names its original and will not be trained on."""
    question, lesson = "what is a river, please?", "A stream of water."
    first = send(desk, {"receipt": asked(desk, question), "correction": lesson})[1]
    secret, _ = desk.toy.key("copier")
    copy = send(desk, {"receipt": asked(desk, question, secret), "correction": "a STREAM  of water."}, secret=secret)[1]

    assert copy["copied_from"] == first["contribution"]
    assert copy["review"] == "declined"


def test_feedback_is_limited_in_number(desk: Desk) -> None:
    """A key that gives too much in an hour is told to come back; others are not affected."""
    store = FeedbackStore(desk.toy.db, desk.toy.registry)
    call = asked(desk)
    receipt = desk.get(f"/v1/receipts/{call}")["id"]
    now = desk.toy.flow.parts.now_ns()
    for n in range(PER_HOUR_MAX):
        said = judge(receipt, "q", "a", correction=f"better {n}")
        store.give(said, key_id=desk.key.key_id, request_digest=f"d{n}", now_ns=now, reviewed=True)

    status, body = send(desk, {"receipt": call, "rating": "down"})
    secret, _ = desk.toy.key("another")

    assert (status, body["code"]) == (429, "rate_limit_exceeded")
    assert send(desk, {"receipt": asked(desk, secret=secret), "rating": "down"}, secret=secret)[0] == 201


def test_personal_data_is_not_registered(desk: Desk) -> None:
    """Addresses and cards in the prompt or in the correction are replaced before anything is stored."""
    call = asked(desk, "I am ada@example.org, what is a river?")
    made = send(desk, {"receipt": call, "correction": "Ask bob@example.org or 4111 1111 1111 1111."})[1]

    text = desk.toy.registry.text(made["contribution"])

    assert "example.org" not in text
    assert "4111" not in text
    assert "[e-mail]" in text


def test_prompts_are_registered_only_with_consent(desk: Desk) -> None:
    """By default nothing is; a standing consent or the call's own word registers it, under the licence given."""
    registry = desk.toy.registry
    before = registry.counts().get("prompt", 0)

    asked(desk, "how does a river find its way to the sea?")
    assert registry.counts().get("prompt", 0) == before

    assert send(desk, {"license": "CC-BY-4.0"}, path="/v1/consent", method="PUT")[1]["registered"] is True
    asked(desk, "how does the rain find its way, ada@example.org, to the river?")
    found = registry.contributions(kind="prompt")[-1]
    assert registry.counts()["prompt"] == before + 1
    assert found.license.expression == "CC-BY-4.0"
    assert "example.org" not in registry.text(found.id)
    assert registry.contributor(found.owners[0].contributor_id).name == desk.key.key_id

    asked(desk, "this one is private, even so, thank you", extra_body={"headwater": {"contribute": False}})
    assert registry.counts()["prompt"] == before + 1

    assert send(desk, b"", path="/v1/consent", method="DELETE")[1]["registered"] is False
    asked(desk, "and this one comes after consent was ended")
    assert registry.counts()["prompt"] == before + 1
    asked(desk, "but this one says for itself that it may", extra_body={"headwater": {"contribute": True}})
    assert registry.counts()["prompt"] == before + 2


def test_what_was_given_can_be_withdrawn_by_its_giver_alone(desk: Desk) -> None:
    """A withdrawn contribution is on record as such; a stranger cannot withdraw it."""
    made = send(desk, {"receipt": asked(desk), "correction": "A better answer."})[1]["contribution"]
    path = f"/v1/contributions/{made}/withdraw"
    stranger, _ = desk.toy.key("another")

    assert send(desk, {}, path=path, secret=stranger)[0] == 404
    assert send(desk, {"reason": "changed my mind"}, path=path)[1] == {"contribution": made, "withdrawn": True}
    assert ConsentStore(desk.toy.db).withdrawn([made]) == {made: "changed my mind"}


def test_a_bad_licence_is_no_consent(shared: Desk) -> None:
    """Consent needs a licence that means something."""
    status, body = send(shared, {"license": "whatever you like"}, path="/v1/consent", method="PUT")

    assert (status, body["code"]) == (400, "license_unknown")
    assert shared.get("/v1/consent")["registered"] is False
