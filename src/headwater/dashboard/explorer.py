"""The explorer: what is registered, measured, settled and posted, for anybody to look at.

Contributions are public by their record; their text is shown where the licence permits `reproduce`, and to owners
and the operator. Receipts are listed by their place in the log, without saying whose they are. Lists go by keyset.
"""

# Annotations stay live here: FastAPI resolves them.

import re
from typing import Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from headwater.core.errors import HeadwaterError
from headwater.core.ids import ContributionId
from headwater.dashboard.explorer_epochs import epoch_routes
from headwater.dashboard.lineage import lineage_drawing, lineage_of
from headwater.dashboard.pages import Area, Link, Pages
from headwater.dashboard.sessions import Session
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.registry import Contribution
from headwater.store import exploring
from headwater.store.datanet_store import DatanetStore
from headwater.store.readings_registry import names, titles

PAGE: Final = 50
WORDS_MAX: Final = 120
TEXT_SHOWN: Final = 12_000
"""Characters of a document that are shown around the place that is asked for."""

_EPOCH: Final = re.compile(r"(?:epoch\s*)?#?(\d{1,9})", re.IGNORECASE)
_PLACES: Final = (
    (re.compile(r"ctb_[0-9a-f]{32}"), "/contributions/"),
    (re.compile(r"ctr_[0-9a-f]{32}"), "/contributors/"),
    (re.compile(r"call_[0-9a-f]{32}"), "/ask/calls/"),
    (re.compile(r"[0-9a-f]{64}"), "/receipts/"),
)


def area(site: Site, pages: Pages) -> Area:
    """The routes of the start, the search and everything that is listed."""
    router = APIRouter()
    log = site.flow.parts.log

    @router.get("/", response_class=Response)
    def start(request: Request) -> Response:
        last = site.epochs.last()
        data = {
            "receipts": len(log),
            "contributions": sum(count for _, count in exploring.kinds(site.db)),
            "contributors": exploring.count_contributors(site.db),
            "epoch": None if last is None else last.epoch,
            "models": list(site.gateway.model_names),
        }
        return pages.show(request, "explorer/start.html", say("common.name"), data)

    @router.get("/explore", response_class=Response)
    def explore(request: Request) -> Response:
        last = site.epochs.last()
        data = {
            "kinds": [{"kind": kind, "count": count} for kind, count in exploring.kinds(site.db)],
            "receipts": len(log),
            "contributors": exploring.count_contributors(site.db),
            "datanets": len(DatanetStore(site.db).all()),
            "adapters": len(site.adapters.names()),
            "epochs": 0 if last is None else last.epoch,
        }
        return pages.show(request, "explorer/explore.html", say("explorer.title"), data)

    @router.get("/search", response_class=Response)
    def search(request: Request, q: str = Query("", max_length=WORDS_MAX)) -> Response:
        words = q.strip()
        for form, path in _PLACES:
            if form.fullmatch(words):
                return RedirectResponse(path + words, 303)
        if (number := _EPOCH.fullmatch(words)) is not None:
            return RedirectResponse(f"/epochs/{int(number[1])}", 303)
        found = exploring.contributions(site.db, words=words, limit=PAGE) if words else ()
        people = exploring.contributors_named(site.db, words, PAGE) if words else ()
        data = {
            "q": words,
            "contributions": [_listed(one) for one in found],
            "people": [{"id": id, "name": name} for id, name in people],
        }
        return pages.show(request, "explorer/search.html", say("explorer.search_title"), data)

    @router.get("/contributions", response_class=Response)
    def contributions(
        request: Request,
        kind: str = Query("", max_length=40),
        q: str = Query("", max_length=WORDS_MAX),
        before: int = 0,
    ) -> Response:
        found = exploring.contributions(
            site.db, kind=kind, words=q.strip(), before=before or exploring.NEWEST, limit=PAGE + 1
        )
        data = {
            "kind": kind,
            "q": q.strip(),
            "kinds": [{"kind": name, "count": count} for name, count in exploring.kinds(site.db)],
            "contributions": [_listed(one) for one in found[:PAGE]],
            "older": found[PAGE - 1].number if len(found) > PAGE else None,
            "at_start": not before,
        }
        return pages.show(request, "explorer/contributions.html", say("explorer.contributions"), data)

    @router.get("/contributions/{id}", response_class=Response)
    def contribution(
        request: Request, id: str, begin: int = Query(0, alias="from", ge=0), end: int = Query(0, alias="to", ge=0)
    ) -> Response:
        found = site.registry.get(ContributionId(id))
        data = _record(site, found)
        data["text"] = _text(site, found, begin, end) if may_read(pages.session(request), found) else None
        data["lineage"] = lineage_of(site, found.id) if found.kind == "adapter" else None
        drawing = lineage_drawing(data["lineage"], data["lineage_titles"]) if data["lineage"] else None
        frame = {} if request.scope.get("headwater.json") or drawing is None else {"drawing": drawing}
        return pages.show(request, "explorer/contribution.html", found.title, data | frame)

    @router.get("/adapters", response_class=Response)
    def adapters(request: Request) -> Response:
        found = []
        for name in site.adapters.names():
            stored = site.adapters.get(name)
            lineage = stored.lineage
            found.append(
                {
                    "name": name,
                    "contribution": stored.contribution,
                    "base": lineage.base_name,
                    "parent": lineage.parent,
                    "trained_on": len(lineage.trained_on),
                    "steps": lineage.steps,
                    "loss_before_micronats": lineage.before.loss_micronats,
                    "loss_after_micronats": lineage.after.loss_micronats,
                }
            )
        return pages.show(request, "explorer/adapters.html", say("explorer.adapters"), {"adapters": found})

    @router.get("/datanets", response_class=Response)
    def datanets(request: Request) -> Response:
        found = [
            {
                "name": kept.datanet.name,
                "id": kept.datanet.id,
                "title": kept.datanet.card.title,
                "summary": kept.datanet.card.summary,
                "license": kept.datanet.card.license_expression,
                "members": kept.members,
                "version": kept.version,
            }
            for kept in DatanetStore(site.db).all()
        ]
        return pages.show(request, "explorer/datanets.html", say("explorer.datanets"), {"datanets": found})

    @router.get("/datanets/{name}", response_class=Response)
    def datanet(request: Request, name: str) -> Response:
        store = DatanetStore(site.db)
        kept = store.get(name)
        members = store.members(kept)[:PAGE]
        title = titles(site.db, tuple(members))
        data = {
            "charter": kept.datanet.to_json(),
            "id": kept.datanet.id,
            "members": kept.members,
            "shown": [{"id": one, "title": title.get(one, one)} for one in members],
            "versions": [
                {
                    "version": version.manifest.version,
                    "size": version.manifest.size,
                    "size_bytes": version.manifest.size_bytes,
                    "root": version.manifest.root,
                    "frozen_at_ns": version.manifest.frozen_at_ns,
                    "signature": version.signature,
                }
                for version in reversed(store.versions(kept))
            ],
        }
        return pages.show(request, "explorer/datanet.html", kept.datanet.card.title, data)

    epoch_routes(router, site, pages)
    return Area("explorer", router, (Link("/explore", "explorer.link"),))


def may_read(session: Session | None, contribution: Contribution) -> bool:
    """Whether a contribution's text is shown: its licence lets it be quoted, or it is theirs."""
    if "reproduce" in contribution.license.uses and contribution.kind in ("document", "prompt", "tool"):
        return True
    if session is None:
        return False
    owners = {owner.contributor_id for owner in contribution.owners}
    return session.role == "contributor" and session.subject in owners


def _listed(one: exploring.Listed) -> dict[str, Any]:
    return {
        "id": one.id,
        "kind": one.kind,
        "title": one.title,
        "license": one.license,
        "registered_at_ns": one.registered_at_ns,
        "size_bytes": one.size_bytes,
    }


def _record(site: Site, found: Contribution) -> dict[str, Any]:
    name = names(site.db, tuple(owner.contributor_id for owner in found.owners))
    terms = found.license
    data: dict[str, Any] = {
        "id": found.id,
        "kind": found.kind,
        "title_": found.title,
        "content_digest": found.content_digest,
        "size_bytes": found.size_bytes,
        "registered_at_ns": found.registered_at_ns,
        "source": found.source,
        "metadata": dict(found.metadata),
        "owners": [
            {"id": o.contributor_id, "name": name.get(o.contributor_id, o.contributor_id), "share_ppb": o.share_ppb}
            for o in found.owners
        ],
        "license": {
            "expression": terms.expression,
            "uses": sorted(terms.uses),
            "price_floor_units": terms.price_floor_units,
            "expires_at_ns": terms.expires_at_ns,
            "terms": terms.terms,
        },
        "lineage_titles": {},
    }
    if found.kind == "adapter":
        lineage = lineage_of(site, found.id)
        if lineage is not None:
            data["lineage_titles"] = titles(site.db, tuple(row["contribution"] for row in lineage["trained_on"]))
    return data


def _text(site: Site, found: Contribution, begin: int, end: int) -> dict[str, Any] | None:
    """A window of a document, with the passage that is asked for apart."""
    try:
        text = site.registry.text(found.id)
    except (HeadwaterError, UnicodeDecodeError):
        return None  # erased, or no text
    begin, end = min(begin, len(text)), min(max(begin, end), len(text))
    low = max(0, begin - TEXT_SHOWN // 3)
    high = min(len(text), max(end, low) + TEXT_SHOWN)
    return {
        "before": text[low:begin] if end else "",
        "passage": text[begin:end],
        "after": text[end:high] if end else text[:high],
        "cut_before": low > 0,
        "cut_after": high < len(text),
    }
