"""Documents that are registered while a gateway runs: found, and traced, once it is reloaded."""

from __future__ import annotations

import errno
import gc
import json
import threading
import time
import urllib.error
import weakref
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from headwater.attribution.spans import Document, SpanIndex
from headwater.cli.home import Home
from headwater.cli.serve import gateway
from headwater.core.money import PPB
from headwater.flow import Flow
from headwater.gateway.admin import admin_routes
from headwater.gateway.administration import Administration
from headwater.gateway.reindex import Indexes
from headwater.gateway.reload import Reloader
from headwater.registry import Ownership, unenrolled
from headwater.registry.intake import Candidate
from headwater.retrieval import PassageIndex, load_embedder, open_index
from headwater.settings import Settings
from headwater.store.audit_trail import AuditTrail
from headwater.store.consent_store import ConsentStore
from headwater.store.key_limits import KeyLimits
from headwater.store.registry_store import RegistryStore
from toy.desk import Desk, open_desk

MOSS = "Moss grows on the shaded side of every tree in the old forest, and it never hurries for anyone at all."
ASK = {"model": "toy-grounded", "max_tokens": 150, "messages": [{"role": "user", "content": "moss on a shaded tree"}]}


def register(registry: RegistryStore, title: str, text: str) -> None:
    """One more document, by whoever is called like it."""
    owner = unenrolled("toy", f"Writer of {title}")
    one = Candidate(
        where=title,
        kind="document",
        title=title,
        content=text.encode(),
        owners=(Ownership(owner.id, PPB),),
        license_expression="CC0-1.0",
        uses=frozenset(("ground", "reproduce")),
        registered_at_ns=2,
        source="toy",
    )
    assert not registry.admit([one], [owner]).problems


@dataclass
class Shelf:
    """A gateway whose indexes can be made to fail, to wait and to be watched."""

    desk: Desk
    secret: str
    folder: Path
    trail: AuditTrail
    fails: list[OSError] = field(default_factory=list)  # what the next updates of the spans raise, after half the work
    free: threading.Event = field(default_factory=threading.Event)  # cleared, making an index waits
    waiting: threading.Event = field(default_factory=threading.Event)
    at_once: list[int] = field(default_factory=list)  # how many were at it, each time
    flow: Flow | None = None

    def reload(self) -> Any:
        """The answer to a reload."""
        headers = {"Authorization": f"Bearer {self.secret}"}
        with urlopen(Request(self.desk.url + "/v1/admin/reload", b"", headers, method="POST"), timeout=30) as response:
            return json.load(response)["changes"]

    def refused(self) -> tuple[int, str]:
        """Status and message of a reload that fails."""
        with pytest.raises(urllib.error.HTTPError) as error:
            self.reload()
        body = json.load(error.value)
        return error.value.code, f"{body['code']}: {body['detail']}"

    def titles(self) -> list[str]:
        """What an answer's sources are called."""
        with self.desk.post(ASK) as response:
            return [source["title"] for source in json.load(response)["headwater"]["sources"]]

    def receipt(self, call: str) -> Any:
        """The receipt of a call, once there is one."""
        self.desk.settled()
        return self.desk.get(f"/v1/receipts/{call}")["receipt"]


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """A gateway over a toy home with the retriever and the span index of any home."""
    folder, busy = tmp_path / "passages", [0]
    made: list[Shelf] = []
    with SpanIndex.create(tmp_path / "spans") as spans:

        def late(app: Any, service: Any) -> None:
            parts = service.flow.parts

            def documents() -> list[Any]:
                return parts.registry.contributions(kind="document")

            def opened(current: PassageIndex | None) -> PassageIndex:
                if not made:
                    return open_index(folder, documents(), parts.registry.text, now_ns=3)
                shelf = made[0]
                busy[0] += 1
                shelf.at_once.append(busy[0])
                shelf.waiting.set()
                assert shelf.free.wait(20)
                try:
                    return open_index(folder, documents(), parts.registry.text, now_ns=3, current=current)
                finally:
                    busy[0] -= 1

            def update(index: SpanIndex) -> None:
                for one in documents():
                    index.add(
                        Document(
                            one.id, one.owners[0].contributor_id, one.registered_at_ns, parts.registry.content(one.id)
                        )
                    )
                if made and made[0].fails:
                    raise made[0].fails.pop()

            def state() -> Hashable:
                return parts.registry.digest()

            update(spans)
            first = opened(None)
            trail = AuditTrail(parts.calls.db)
            acts = Administration(
                service.keys, parts.ledger, trail, parts.policy.currency, time.time_ns, parts.random_bytes
            )
            reloader = Reloader(None, trail, time.time_ns)
            reloader.indexes = Indexes(first, opened, spans, update, state=state, folder=folder)
            service.flow.take_over(first, reloader.indexes.spans)
            admin_routes(acts, reloader)(app, service)
            found.extend((trail, service.flow))

        found: list[Any] = []
        with open_desk(tmp_path / "home", more=[late]) as desk:
            secret, _ = desk.toy.keys.create("operator", bytes(range(32)), 1, limits=KeyLimits(routes=("admin",)))
            made.append(Shelf(desk, secret, folder, found[0], flow=found[1]))
            made[0].free.set()
            yield made[0]


def test_what_is_registered_is_found_after_a_reload(shelf: Shelf) -> None:
    """The answer and the trail say how many documents there were and are; a second reload has nothing to change."""
    register(shelf.desk.toy.registry, "Moss", MOSS)
    before = shelf.titles()
    changes = shelf.reload()

    assert "Moss" not in before
    assert "Moss" in shelf.titles()
    assert (changes["documents"]["before"], changes["documents"]["after"]) == (3, 4)
    assert (changes["traced_documents"]["before"], changes["traced_documents"]["after"]) == (3, 4)
    assert shelf.trail.entries(limit=1)[0].detail == changes
    assert shelf.reload() == {}


def test_a_call_that_has_begun_is_measured_on_what_it_began_with(shelf: Shelf) -> None:
    """Its receipt names the index of before, though it ended after the reload; the next one names the new."""
    held = {**ASK, "messages": [{"role": "user", "content": "[hold] moss on a shaded tree"}]}
    register(shelf.desk.toy.registry, "Moss", MOSS)
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(lambda: json.load(shelf.desk.post(held)))
        until = time.monotonic() + 10
        while not shelf.desk.toy.model.started:
            assert time.monotonic() < until
            time.sleep(0.005)
        changes = shelf.reload()["traced_documents"]["index_digest"]
        shelf.desk.toy.model.held.set()
        old = begun.result(20)["headwater"]["receipt"]
    with shelf.desk.post(ASK) as response:
        new = json.load(response)["headwater"]["receipt"]

    named = [shelf.receipt(call)["attribution"]["index_digest"] for call in (old, new)]
    assert named == [changes["from"], changes["to"]]


def test_calls_are_answered_while_an_index_is_made(shelf: Shelf) -> None:
    """They look in the old one, and see the new one as soon as there is one."""
    register(shelf.desk.toy.registry, "Moss", MOSS)
    shelf.free.clear()
    with ThreadPoolExecutor(1) as pool:
        reloading = pool.submit(shelf.reload)
        assert shelf.waiting.wait(10)
        meanwhile = shelf.titles()
        shelf.free.set()
        reloading.result(20)

    assert "Moss" not in meanwhile
    assert "Moss" in shelf.titles()


def test_one_reload_waits_for_another(shelf: Shelf) -> None:
    """Of several at once, one takes the documents over and the others find nothing to do."""
    register(shelf.desk.toy.registry, "Moss", MOSS)
    shelf.free.clear()
    with ThreadPoolExecutor(3) as pool:
        reloading = [pool.submit(shelf.reload) for _ in range(3)]
        assert shelf.waiting.wait(10)
        time.sleep(0.1)
        shelf.free.set()
        changes = [one.result(20) for one in reloading]

    assert [bool(one) for one in changes].count(True) == 1
    assert shelf.at_once == [1, 1, 1]


def test_an_index_that_cannot_be_made_leaves_the_old_one(shelf: Shelf) -> None:
    """A disk that is full half way is told, nothing of the new is seen, and the next reload is whole."""
    register(shelf.desk.toy.registry, "Moss", MOSS)
    assert shelf.flow is not None
    shelf.fails.append(OSError(errno.ENOSPC, "No space left on device"))
    parts, entries = shelf.flow.parts, len(shelf.trail.entries(limit=9))
    status, message = shelf.refused()

    assert (status, message.split(":")[0]) == (503, "reindex_failed")
    assert "No space left on device" in message
    assert shelf.flow.parts is parts
    assert len(shelf.trail.entries(limit=9)) == entries
    assert "Moss" not in shelf.titles()
    assert shelf.reload()["traced_documents"]["after"] == 4
    assert "Moss" in shelf.titles()


def test_what_was_replaced_is_let_go(shelf: Shelf) -> None:
    """Neither memory nor the cache folder keeps an index that nobody looks in."""
    assert shelf.flow is not None
    shelf.titles()
    shelf.desk.settled()
    parts = shelf.flow.parts
    old = [weakref.ref(parts.passages), weakref.ref(parts.spans)]
    del parts
    register(shelf.desk.toy.registry, "Moss", MOSS)
    digest = shelf.reload()["documents"]["index_digest"]
    shelf.titles()
    shelf.desk.settled()
    gc.collect()

    assert [one() for one in old] == [None, None]
    assert [place.name for place in shelf.folder.iterdir()] == [digest["to"].removeprefix("sha256:")]


@pytest.mark.skipif(load_embedder() is None, reason="the static embeddings are not installed")
def test_the_retriever_of_a_home_is_made_anew(tmp_path: Path) -> None:
    """With embeddings, the way `headwater serve` puts it together: a document withdrawn is gone too."""
    file = tmp_path / "upstreams.toml"
    file.write_text('[upstream.a]\nbase_url = "http://127.0.0.1:9/v1"\n')
    settings = Settings(home=tmp_path / "home", local_model=False, upstreams=str(file))
    with Home(settings, writer=True) as home:
        register(home.registry, "Rivers", "A river begins at its headwater and ends in the sea.")
        reloader = Reloader(None, AuditTrail(home.db), time.time_ns)
        with gateway(home, None, quiet=True, reloader=reloader) as (app, _):
            assert reloader.indexes is not None
            register(home.registry, "Moss", MOSS)
            (rivers,) = [one.id for one in home.registry.contributions() if one.title == "Rivers"]
            ConsentStore(home.db).withdraw(rivers, "its owner", "", 3)
            register(home.registry, "Stones", "A stone rolls in the river until it is round and smooth.")
            renewed = reloader.indexes.renew()
            assert renewed is not None
            app.flow.take_over(renewed.passages, renewed.spans)
            renewed.in_force()

            assert app.flow.parts.passages is not None
            best = app.flow.parts.passages.search(
                "On which side of a tree does moss grow?", 1, now_ns=3, offer_units=10**9
            )
            assert "Moss" in best[0].text
            assert reloader.indexes.renew() is None
            assert [renewed.changes["documents"][when] for when in ("before", "after")] == [1, 2]
            assert rivers not in [one.contribution_id for one in app.flow.parts.passages.tables.entries]
