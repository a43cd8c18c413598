"""`/v1/datanets…` and `/v1/reviews…`: pools over HTTP: look, submit, review, appeal, freeze.

A key acts as the contributor of its name. Cards, versions and entries are for every key; a submission only for the key
that made it, a datanet's rules and reviewers only for its owner's key. Nothing here is paid for by being done.
"""

# Annotations stay live here: FastAPI resolves them, and those of a route may name what its function encloses.

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Final, TypeVar

import msgspec
from fastapi import Depends, FastAPI
from fastapi.responses import Response

from headwater.core.canonical import digest, parse_canonical, refuse_deep
from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.core.ids import ContributorId, contributor_id
from headwater.core.instants import format_instant, parse_instant
from headwater.core.limits import REQUEST_DEPTH_MAX, REQUEST_SIZE_BYTES_MAX
from headwater.core.money import parse_units
from headwater.gateway.bodies import body_up_to
from headwater.gateway.datanet_fields import NewAppeal, NewDatanet, NewReviewers, NewSubmission, NewVote
from headwater.gateway.native import Service, json_response
from headwater.registry import License, owned_equally, unenrolled
from headwater.registry.datanet import Card, Datanet, UseTerms
from headwater.registry.datanet_manifest import difference
from headwater.registry.review import Vote
from headwater.registry.review_scores import measure
from headwater.registry.submission import read_submission_id
from headwater.store.datanet_intake import Intake, Read
from headwater.store.datanet_store import DatanetStore, Kept, Version
from headwater.store.feedback_store import KEYS_NAMESPACE
from headwater.store.key_store import KeyRecord
from headwater.store.review_settling import Reviewing
from headwater.store.submission_store import Offered, Submission

ROWS_MAX: Final = 10_000
PAGE_MAX: Final = 1_000
PAGE: Final = 100
_SOURCE: Final = "POST /v1/datanets"

Fields = TypeVar("Fields", bound=msgspec.Struct)


def datanet_routes(app: FastAPI, service: Service) -> None:
    """Add the routes."""
    desk = _Desk(service)
    Payer = Annotated[KeyRecord, Depends(service.payer)]
    Keyed: list[Any] = [Depends(service.payer)]  # a key is needed, whichever it is
    Body = Annotated[bytes, Depends(body_up_to(REQUEST_SIZE_BYTES_MAX))]

    @app.get("/v1/datanets", response_class=Response, tags=["datanets"], dependencies=Keyed)
    def every() -> Response:
        """The datanets kept here."""
        return json_response({"datanets": [_shown(kept) for kept in desk.datanets.all()]})

    @app.post("/v1/datanets", response_class=Response, tags=["datanets"])
    def create(raw: Body, key: Payer) -> Response:
        """Make a datanet that this key owns; it has no reviewers yet."""
        return json_response(_shown(desk.create(_fields(raw, NewDatanet), key)), 201)

    @app.get("/v1/datanets/{name}", response_class=Response, tags=["datanets"], dependencies=Keyed)
    def one(name: str) -> Response:
        """A datanet's card, rules, versions and how far its submissions are."""
        kept = desk.datanets.get(name)
        versions = [_version(version) for version in desk.datanets.versions(kept)]
        counts = desk.reviewing.submissions.counts(kept.number)
        commitment = desk.reviewing.reviews.commitment(kept.number)
        return json_response(
            {**_shown(kept), "versions": versions, "submissions": counts, "gold_commitment": commitment}
        )

    @app.put("/v1/datanets/{name}/reviewers", response_class=Response, tags=["datanets"])
    def reviewers(name: str, raw: Body, key: Payer) -> Response:
        """Change who may be drawn; for the owner's key."""
        kept = desk.owned(name, key)
        return json_response({"reviewers": desk.set_reviewers(kept, _fields(raw, NewReviewers))})

    @app.post("/v1/datanets/{name}/freeze", response_class=Response, tags=["datanets"])
    def freeze(name: str, key: Payer) -> Response:
        """Freeze the members as a signed version; for the owner's key. Unchanged, the newest is given again."""
        kept = desk.owned(name, key)
        version = desk.datanets.freeze(kept.datanet.id, service.flow.parts.signer, desk.now())
        return json_response(_version(version), 200 if version.manifest.version == kept.version else 201)

    @app.get("/v1/datanets/{name}/versions/{version}", response_class=Response, tags=["datanets"], dependencies=Keyed)
    def version(name: str, version: int) -> Response:
        """A version's manifest, signature and charter."""
        kept = desk.datanets.get(name)
        found = desk.datanets.version(kept, _number(version))
        charter = desk.datanets.charter(kept, found.manifest.charter_digest)
        return json_response({**_version(found), "charter": msgspec.Raw(charter)})

    @app.get(
        "/v1/datanets/{name}/versions/{version}/entries", response_class=Response, tags=["datanets"], dependencies=Keyed
    )
    def entries(name: str, version: int) -> Response:
        """The leaves of a version, one line each: their RFC 6962 root is the manifest's."""
        kept = desk.datanets.get(name)
        found = desk.datanets.version(kept, _number(version))
        lines = b"".join(entry.to_bytes() + b"\n" for entry in desk.datanets.entries(kept, found.manifest.version))
        return Response(lines, media_type="application/jsonl")

    @app.get("/v1/datanets/{name}/diff", response_class=Response, tags=["datanets"], dependencies=Keyed)
    def diff(name: str, before: int, after: int) -> Response:
        """What one version has that another has not."""
        kept = desk.datanets.get(name)
        sides = [desk.datanets.version(kept, _number(number)).manifest for number in (before, after)]
        old, new = (desk.datanets.entries(kept, one.version) for one in sides)
        return json_response(asdict(difference(sides[0], old, sides[1], new)))

    @app.post("/v1/datanets/{name}/submissions", response_class=Response, tags=["datanets"])
    def submit(name: str, raw: Body, key: Payer) -> Response:
        """Submit rows as this key's contributor. The same rows again are the same batch."""
        return json_response(desk.submit(name, raw, key), 201)

    @app.get("/v1/datanets/{name}/submissions", response_class=Response, tags=["datanets"])
    def submissions(name: str, key: Payer, batch: str, after: int = 0, limit: int = PAGE) -> Response:
        """What became of the rows of a batch of this key."""
        kept, found = desk.datanets.get(name), desk.own_batch(batch, key)
        if not 1 <= limit <= PAGE_MAX or not 0 <= after < 2**62:
            raise InvalidError(f"limit {limit}, after {after}", code="page_invalid", fix=f"ask for 1 to {PAGE_MAX}")
        rows = desk.reviewing.submissions.select(kept.number, batch=found, after=after, limit=limit)
        return json_response(
            {"submissions": [_submission(one) for one in rows], "next": rows[-1].number if len(rows) == limit else None}
        )

    @app.post("/v1/datanets/{name}/submissions/{id}/withdraw", response_class=Response, tags=["datanets"])
    def withdraw(name: str, id: str, key: Payer) -> Response:
        """Take a submission of this key back, before it has ended."""
        desk.within(name, id)
        desk.own(id, key)
        return json_response(_submission(desk.reviewing.withdraw(id, _contributor(key), desk.now())))

    @app.post("/v1/datanets/{name}/submissions/{id}/appeal", response_class=Response, tags=["datanets"])
    def appeal(name: str, id: str, raw: Body, key: Payer) -> Response:
        """Appeal a refusal of this key's submission, or an acceptance into this key's datanet. Once."""
        desk.within(name, id)
        desk.settle()
        reason = _fields(raw, NewAppeal).reason
        value, source = desk.public_value()
        found = desk.reviewing.appeal(id, _contributor(key), reason, desk.now(), public_value=value, source=source)
        return json_response(_submission(found))

    @app.get("/v1/reviews/next", response_class=Response, tags=["review"])
    def next_task(key: Payer, datanet: str = "", limit: int = 1) -> Response:
        """What this key is asked to look at."""
        desk.settle()
        if not 1 <= limit <= PAGE:
            raise InvalidError(f"limit {limit}", code="page_invalid", fix=f"ask for 1 to {PAGE}")
        number = desk.datanets.get(datanet).number if datanet else None
        tasks = desk.reviewing.reviews.next(_contributor(key), number, limit)
        return json_response({"tasks": [asdict(desk.reviewing.question(task)) for task in tasks]})

    @app.post("/v1/reviews/{task}", response_class=Response, tags=["review"])
    def decide(task: str, raw: Body, key: Payer) -> Response:
        """Vote on a task: accept, or refuse with reasons. A vote stays."""
        fields = _fields(raw, NewVote)
        vote = Vote(_contributor(key), fields.verdict, tuple(fields.reasons), fields.note)
        slashed = desk.reviewing.vote(task, vote, desk.now())
        desk.settle()
        return json_response({"task": task, "slashed": None if slashed is None else asdict(slashed)})

    @app.get("/v1/reviews/accuracy", response_class=Response, tags=["review"])
    def accuracy(key: Payer) -> Response:
        """How this key does as a reviewer, and what that pays."""
        reviews, me = desk.reviewing.reviews, _contributor(key)
        right, answered = reviews.agreement(me)
        gold = reviews.gold_record(me)
        return json_response(
            {
                **asdict(measure(me, reviews.reports())),
                "gold": {"answered": gold.answered, "right": gold.right},
                "outcomes": {"answered": answered, "as_decided": right},
                "unpaid_tasks": reviews.unpaid().get(me, 0),
                "slashes": [asdict(slash) for slash, _ in reviews.slashes(me)],
            }
        )


class _Desk:
    """What the routes share."""

    def __init__(self, service: Service) -> None:
        self._parts = service.flow.parts
        self._intake = Intake(self._parts.calls.db, self._parts.registry)
        self.datanets: DatanetStore = self._intake.datanets
        self.reviewing = Reviewing(self._parts.calls.db, self._parts.registry)

    def now(self) -> int:
        """The machine's clock."""
        return self._parts.now_ns()

    def public_value(self) -> tuple[str, str]:
        """What reviewers are drawn by, and where it can be looked up."""
        head = self._parts.log.head()
        return f"{head.size}:{head.root.hex()}", "head of the receipts' log, size:root"

    def settle(self) -> None:
        """Do what is due."""
        value, source = self.public_value()
        self.reviewing.settle(self.now(), public_value=value, source=source)

    def create(self, fields: NewDatanet, key: KeyRecord) -> Kept:
        """A datanet owned by the key's contributor."""
        uses = tuple(
            UseTerms(
                one.use,
                parse_units(one.price_floor),
                None if one.expires_at is None else parse_instant(one.expires_at),
                one.condition,
                tuple(one.holders),
            )
            for one in fields.uses
        )
        card = Card(
            title=fields.title,
            license_expression=fields.license,
            uses=uses,
            summary=fields.summary,
            languages=tuple(fields.languages),
            keywords=tuple(fields.keywords),
            terms=fields.terms,
            url=fields.url,
            citation=fields.citation,
        )
        now = self.now()
        made = Datanet(fields.name, _contributor(key), self._parts.signer.address, now, card)
        with self._parts.calls.db.transaction():
            self._parts.registry.add_contributor(unenrolled(KEYS_NAMESPACE, key.key_id))
            return self.datanets.create(made, now)

    def owned(self, name: str, key: KeyRecord) -> Kept:
        """A datanet of the key.

        Raises:
            RefusedError: ``datanet_not_yours``.
        """
        kept = self.datanets.get(name)
        if kept.datanet.owner != _contributor(key):
            raise RefusedError(f"{name} is not this key's", code="datanet_not_yours", fix="ask its owner")
        return kept

    def set_reviewers(self, kept: Kept, fields: NewReviewers) -> list[str]:
        """Add and remove reviewers; gives who may be drawn then."""
        now, reviews, registry = self.now(), self.reviewing.reviews, self._parts.registry
        with self._parts.calls.db.transaction():
            for one in fields.add:
                if one.startswith("key_"):
                    registry.add_contributor(unenrolled(KEYS_NAMESPACE, one))
                reviewer = registry.contributor(_named(one)).id
                if reviewer == kept.datanet.owner:
                    raise InvalidError(
                        "the owner as reviewer", code="reviewer_is_owner", fix="let somebody else review"
                    )
                reviews.add_reviewer(kept.number, reviewer, now)
            for one in fields.remove:
                reviews.remove_reviewer(kept.number, _named(one), now)
        return list(reviews.reviewers(kept.number))

    def submit(self, name: str, raw: bytes, key: KeyRecord) -> dict[str, Any]:
        """Take rows in, and draw their reviewers."""
        fields = _fields(raw, NewSubmission)
        if not 1 <= len(fields.rows) <= ROWS_MAX:
            raise InvalidError(f"{len(fields.rows)} rows", code="nothing_to_submit", fix=f"send 1 to {ROWS_MAX}")
        kept, me = self.datanets.get(name), unenrolled(KEYS_NAMESPACE, key.key_id)
        card = kept.datanet.card
        license = License(fields.license or card.license_expression, frozenset(one.use for one in card.uses))
        source = digest(raw)
        offered = Offered(kept.number, "document", owned_equally([me.id]), license, _SOURCE, source, len(fields.rows))
        batch = self._intake.open(kept, offered, [me], self.now())
        taken = self._intake.take(kept, batch, _rows(fields, batch.place), self.now)
        self.settle()
        return {"batch": taken.batch.id, "rows": taken.batch.rows, "unchanged": taken.batch.unchanged} | {
            "counts": dict(taken.counts)
        }

    def own_batch(self, batch: str, key: KeyRecord) -> int:
        """The number of a batch of the key.

        Raises:
            MissingError: ``batch_missing``, also when it is somebody else's.
        """
        found = self.reviewing.submissions.batch(batch)
        if [one.contributor_id for one in found.offered.owners] != [_contributor(key)]:
            raise MissingError(f"no batch {batch[:60]!r}", code="batch_missing", fix="use the id that submitting gave")
        return found.number

    def within(self, name: str, id: str) -> None:
        """Refuse a submission that is not one to the datanet of this name.

        Raises:
            MissingError: ``submission_missing``.
        """
        if self.reviewing.submissions.get(id).datanet != self.datanets.get(name).number:
            raise MissingError(f"no submission {id} to {name[:80]}", code="submission_missing", fix="check its datanet")

    def own(self, id: str, key: KeyRecord) -> None:
        """Refuse a submission that is not the key's, as if it did not exist."""
        self.own_batch(read_submission_id(id)[0], key)


def _contributor(key: KeyRecord) -> ContributorId:
    return contributor_id(KEYS_NAMESPACE, key.key_id)


def _named(reviewer: str) -> ContributorId:
    """The contributor that an id names: its own, or that of the key that acts as it."""
    return contributor_id(KEYS_NAMESPACE, reviewer) if reviewer.startswith("key_") else ContributorId(reviewer)


def _rows(fields: NewSubmission, place: int) -> Iterator[Read]:
    for number, row in enumerate(fields.rows[place:], start=place + 1):
        yield Read(row.title or f"row {number}", row.text.encode(), number)


def _fields(raw: bytes, kind: type[Fields]) -> Fields:
    """The fields of a body.

    Raises:
        InvalidError: ``request_invalid``.
    """
    try:
        refuse_deep(raw, REQUEST_DEPTH_MAX)
        return msgspec.json.decode(raw, type=kind)
    except (InvalidError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidError(
            f"the body is not what is asked for: {str(error)[:200]}",
            code="request_invalid",
            fix=f"send an object with {', '.join(kind.__struct_fields__)}",
        ) from None


def _number(version: int) -> int:
    """A version's number that a database can look for."""
    return version if 0 < version < 2**31 else 0


def _shown(kept: Kept) -> dict[str, Any]:
    return {**kept.datanet.to_json(), "digest": kept.datanet.digest, "members": kept.members, "version": kept.version}


def _version(version: Version) -> dict[str, Any]:
    manifest = parse_canonical(version.raw)
    return {"manifest": manifest, "digest": version.manifest.digest, "signature": version.signature}


def _submission(one: Submission) -> dict[str, Any]:
    return {
        "id": one.id,
        "number": one.number,
        "title": one.title,
        "content_digest": one.content_digest,
        "state": one.state,
        "decided_by": one.decided_by or None,
        "reasons": list(one.reasons),
        "deadline": None if one.due_at_ns is None else format_instant(one.due_at_ns),
        "lineage": one.lineage or None,
        "contribution": one.contribution,
    }
