"""Datanets and review over HTTP: a key acts as its contributor, and sees what is its own."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

import pytest

from headwater.core.ids import contributor_id
from headwater.receipts.log import LogTree, leaf_hash
from headwater.store.feedback_store import KEYS_NAMESPACE
from headwater.store.review_settling import Reviewing
from toy.desk import Desk

NET = {"name": "rivers", "title": "Rivers", "license": "CC0-1.0", "uses": [{"use": "ground", "price_floor": "0.01"}]}


def ask(desk: Desk, path: str, body: object = None, *, secret: str | None = None, method: str = "") -> tuple[int, Any]:
    """Status and body of a request; a GET unless there is a body."""
    raw = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {secret or desk.secret}", "Content-Type": "application/json"}
    verb = method or ("GET" if raw is None else "POST")
    try:
        with urllib.request.urlopen(
            urllib.request.Request(desk.url + path, raw, headers, method=verb), timeout=20
        ) as response:
            text = response.read()
            return response.status, json.loads(text) if text.startswith((b'{"', b"{}")) else text
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def new_key(desk: Desk) -> tuple[str, str]:
    """(secret, id) of one more key."""
    secret, record = desk.toy.keys.create("somebody", os.urandom(32), 1)
    return secret, record.key_id


def test_a_pool_is_made_reviewed_and_frozen_over_http(desk: Desk) -> None:
    """Owner, contributor and three reviewers are five keys; the entries' root is the signed manifest's."""
    assert ask(desk, "/v1/datanets", NET)[0] == 201
    contributor, reviewers = new_key(desk)[0], [new_key(desk) for _ in range(3)]
    changed = ask(desk, "/v1/datanets/rivers/reviewers", {"add": [id for _, id in reviewers]}, method="PUT")[1]
    assert changed == {"reviewers": sorted(contributor_id(KEYS_NAMESPACE, id) for _, id in reviewers)}
    own = {"add": [desk.key.key_id]}
    assert ask(desk, "/v1/datanets/rivers/reviewers", own, method="PUT")[1]["code"] == "reviewer_is_owner"

    rows = [{"text": f"river {number} " + " ".join(f"w{number}x{i}" for i in range(30))} for number in range(3)]
    status, sent = ask(desk, "/v1/datanets/rivers/submissions", {"rows": rows}, secret=contributor)
    again = ask(desk, "/v1/datanets/rivers/submissions", {"rows": rows}, secret=contributor)[1]
    assert (status, sent["rows"], again["batch"]) == (201, 3, sent["batch"])
    for secret, _ in reviewers:
        tasks = ask(desk, "/v1/reviews/next?limit=50", secret=secret)[1]["tasks"]
        assert len(tasks) == 3
        for task in tasks:
            given = ask(desk, f"/v1/reviews/{task['task']}", {"verdict": "accept"}, secret=secret)
            assert given == (200, {"task": task["task"], "slashed": None})
    page = ask(desk, f"/v1/datanets/rivers/submissions?batch={sent['batch']}", secret=contributor)[1]
    assert {one["state"] for one in page["submissions"]} == {"accepting"}
    assert ask(desk, f"/v1/datanets/rivers/submissions?batch={sent['batch']}")[0] == 404
    mine = page["submissions"][0]["id"]
    assert ask(desk, f"/v1/datanets/rivers/submissions/{mine}/withdraw", {})[0] == 404
    assert (
        ask(desk, f"/v1/datanets/rivers/submissions/{mine}/withdraw", {}, secret=contributor)[1]["state"] == "withdrawn"
    )
    assert ask(desk, "/v1/reviews/accuracy", secret=reviewers[0][0])[1]["outcomes"] == {"answered": 3, "as_decided": 3}

    assert ask(desk, "/v1/datanets/rivers/freeze", {}, secret=contributor)[1]["code"] == "datanet_not_yours"
    assert ask(desk, "/v1/datanets/rivers/freeze", {})[1]["code"] == "datanet_empty"  # the time to appeal is not over
    reviewing = Reviewing(desk.toy.db, desk.toy.registry)
    for day in range(1, 9):
        reviewing.settle(desk.app.flow.parts.now_ns() + day * 86_400 * 10**9, public_value="later", source="test")
    status, version = ask(desk, "/v1/datanets/rivers/freeze", {})
    assert (status, version["manifest"]["size"]) == (201, 2)
    leaves = ask(desk, "/v1/datanets/rivers/versions/1/entries")[1].splitlines()
    assert LogTree(leaf_hash(leaf) for leaf in leaves).root().hex() == version["manifest"]["root"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/datanets", {**NET, "name": "A B"}, "datanet_name_invalid"),
        ("/v1/datanets", {**NET, "license": "whatever"}, "license_unknown"),
        ("/v1/datanets", {**NET, "more": 1}, "request_invalid"),
        ("/v1/datanets", b"[" * 5_000, "request_invalid"),
        ("/v1/datanets/none/submissions", {"rows": [{"text": "x"}]}, "datanet_missing"),
        ("/v1/datanets/none/submissions", {"rows": []}, "nothing_to_submit"),
        ("/v1/datanets/none/submissions/sub_1/withdraw", {}, "submission_id_invalid"),
        ("/v1/datanets/none/submissions/sub_1/appeal", {"reason": "x"}, "submission_id_invalid"),
        ("/v1/reviews/rvt_1", {"verdict": "accept"}, "task_missing"),
        ("/v1/reviews/rvt_1", {"verdict": "refuse"}, "review_invalid"),
        ("/v1/reviews/next?limit=0", None, "page_invalid"),
        ("/v1/datanets/none/versions/99999999999999999999", None, "datanet_missing"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_code(shared: Desk, path: str, body: object, code: str) -> None:
    """Wrong input never reaches the disk, and nothing is a server's error."""
    status, said = ask(shared, path, body)

    assert (400 <= status < 500, said["code"]) == (True, code)
