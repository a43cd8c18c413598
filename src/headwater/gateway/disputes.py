"""Routes of disputes, enrolment and consent. A key stakes its own credit, and speaks for whom it was let speak for.

Registers are public to every key: disputes with their evidence and votes, and enrolments with their statements, because
whoever may be concerned must be able to see them. What belongs to somebody is changed only by a key that speaks for it.
"""

# Annotations stay live here: FastAPI resolves them, and those of a route may name what its function encloses.

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response

from headwater.core.canonical import refuse_deep
from headwater.core.errors import InvalidError, RefusedError
from headwater.core.ids import ContributionId, ContributorId, contributor_id
from headwater.disputes import Disputes
from headwater.gateway.bodies import body_up_to
from headwater.gateway.native import Routes, Service, json_response
from headwater.registry import Ownership
from headwater.registry.dispute import Case, Claim, Kind
from headwater.registry.enrolment import Method, Proof
from headwater.store.consent_store import ConsentStore
from headwater.store.enrolment_store import Enrolments, Record
from headwater.store.feedback_store import KEYS_NAMESPACE
from headwater.store.key_store import KeyRecord

BODY_BYTES_MAX: Final = 128 * 1024
Fields = TypeVar("Fields", bound=msgspec.Struct)


class OwnerFields(msgspec.Struct, forbid_unknown_fields=True):
    """One owner of a claim."""

    contributor: str
    share_ppb: int


class ClaimFields(msgspec.Struct, forbid_unknown_fields=True):
    """A new dispute."""

    kind: Kind
    contribution: str
    by: str
    statement: str
    owners: list[OwnerFields] = []
    receipt: str | None = None
    replacement: str | None = None
    notice: str | None = None


class Words(msgspec.Struct, forbid_unknown_fields=True):
    """Something said."""

    text: str


class VoteFields(msgspec.Struct, forbid_unknown_fields=True):
    """A vote of a member of a panel."""

    by: str
    upholds: bool
    reason: str


class NewEnrolment(msgspec.Struct, forbid_unknown_fields=True):
    """A new claim to be a contributor."""

    contributor: str
    address: str


class ProofFields(msgspec.Struct, forbid_unknown_fields=True):
    """A proof of an enrolment."""

    method: Method
    text: str = ""
    key: str = ""
    commit: str = ""


class NoticeFields(msgspec.Struct, forbid_unknown_fields=True):
    """A takedown notice."""

    claimant: str
    reason: str


@dataclass(frozen=True, slots=True)
class Matters:
    """What the routes work on; built by the layer above."""

    disputes: Disputes
    enrolments: Enrolments
    consents: ConsentStore
    case_json: Callable[[Case], dict[str, Any]]
    record_json: Callable[[Record], dict[str, Any]]
    consent_json: Callable[[ContributionId], Any]
    erase: Callable[[ContributionId, str, str], dict[str, Any]]  # (contribution, by whom, reason)
    now_ns: Callable[[], int]

    def speaks(self, key: KeyRecord, contributor: str) -> ContributorId:
        """The contributor, when the key speaks for it.

        Raises:
            RefusedError: it does not.
        """
        who = ContributorId(contributor)
        own = contributor_id(KEYS_NAMESPACE, key.key_id)
        if who != own and not self.enrolments.speaks(who, key.account):
            raise RefusedError(
                f"this key does not speak for {who[:60]}",
                code="not_its_spokesman",
                fix=f"use a key that does, ask the operator for `enrol speak`, or act as {own}",
            )
        return who

    def check_owner(self, key: KeyRecord, contribution: str) -> ContributionId:
        """The contribution, when the key speaks for one of its owners.

        Raises:
            MissingError: no such contribution.
            RefusedError: somebody else's.
        """
        one = self.disputes.court.books.registry.get(ContributionId(contribution))
        own = contributor_id(KEYS_NAMESPACE, key.key_id)
        owners = [owner.contributor_id for owner in one.owners]
        if own not in owners and not any(self.enrolments.speaks(owner, key.account) for owner in owners):
            raise RefusedError(
                f"this key speaks for no owner of {one.id}", code="not_its_spokesman", fix="use a key that does"
            )
        return one.id


def matters_routes(matters: Matters) -> Routes:
    """The routes, for `create_app(more=…)`."""

    def add(app: FastAPI, service: Service) -> None:
        def payer(request: Request) -> KeyRecord:
            return service.payer(request)

        Payer = Annotated[KeyRecord, Depends(payer)]
        _dispute_routes(app, matters, Payer)
        _enrolment_routes(app, matters, Payer)
        _consent_routes(app, matters, Payer)

    return add


def _dispute_routes(app: FastAPI, matters: Matters, Payer: Any) -> None:
    Body = Annotated[bytes, Depends(body_up_to(BODY_BYTES_MAX))]
    disputes, tags = matters.disputes, ["disputes"]

    def told(case: Case, status: int = 200) -> Response:
        return json_response(matters.case_json(case), status)

    @app.get("/v1/disputes", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def cases(_: Payer) -> Response:
        """Every dispute, oldest first."""
        return json_response({"data": [matters.case_json(case) for case in disputes.store.cases()]})

    @app.get("/v1/disputes/{id}", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def case(id: str, _: Payer) -> Response:
        """One dispute: claim, evidence, panels, votes, verdict and what is held."""
        return told(disputes.store.get(id))

    @app.post("/v1/disputes", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def open_case(raw: Body, key: Payer) -> Response:
        """Open a dispute; the bond is taken from this key's credit, and what is disputed is held back at once."""
        fields = _read(raw, ClaimFields)
        claim = Claim(
            fields.kind,
            ContributionId(fields.contribution),
            tuple(Ownership(ContributorId(o.contributor), o.share_ppb) for o in fields.owners),
            fields.receipt,
            None if fields.replacement is None else ContributionId(fields.replacement),
        )
        challenger = matters.speaks(key, fields.by)
        return told(disputes.open(claim, challenger, key.account, fields.statement, notice=fields.notice), 201)

    @app.post("/v1/disputes/{id}/answer", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def answer(id: str, raw: Body, key: Payer) -> Response:
        """Answer as an owner of what is disputed, with a bond as large from this key's credit."""
        matters.check_owner(key, disputes.store.get(id).claim.contribution)
        return told(disputes.answer(id, key.account, _read(raw, Words).text))

    @app.post("/v1/disputes/{id}/evidence", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def evidence(id: str, raw: Body, key: Payer) -> Response:
        """Add a piece of evidence, before a panel is drawn."""
        return told(disputes.evidence(id, key.account, _read(raw, Words).text))

    @app.post("/v1/disputes/{id}/votes", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def vote(id: str, raw: Body, key: Payer) -> Response:
        """Vote as a member of the panel that sits, with the key whose account the reviewer is paid to."""
        fields = _read(raw, VoteFields)
        if disputes.store.account_of(ContributorId(fields.by)) != key.account:
            raise RefusedError(
                f"this key is not {fields.by[:60]}'s", code="not_its_spokesman", fix="vote with the reviewer's own key"
            )
        return told(disputes.vote(id, ContributorId(fields.by), fields.upholds, fields.reason))

    @app.post("/v1/disputes/{id}/appeal", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def appeal(id: str, raw: Body, key: Payer) -> Response:
        """Appeal as the side that lost, with a further bond from the account it staked from."""
        found = disputes.store.get(id)
        if key.account not in (found.challenger_account, found.respondent_account):
            raise RefusedError(f"this key is no side of {id}", code="not_a_side", fix="appeal with the key that staked")
        side = "challenger" if key.account == found.challenger_account else "respondent"
        return told(disputes.appeal(id, side, _read(raw, Words).text))  # type: ignore[arg-type]


def _enrolment_routes(app: FastAPI, matters: Matters, Payer: Any) -> None:
    Body = Annotated[bytes, Depends(body_up_to(BODY_BYTES_MAX))]
    office, tags = matters.enrolments, ["enrolment"]

    def told(record: Record, status: int = 200) -> Response:
        return json_response(matters.record_json(record), status)

    @app.get("/v1/enrolments", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def claims(_: Payer) -> Response:
        """The public register of claims, oldest first."""
        return json_response({"data": [matters.record_json(one) for one in office.claims(matters.now_ns())]})

    @app.post("/v1/enrolments", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def open_claim(raw: Body, _: Payer) -> Response:
        """Begin to claim what waits under a name; the answer holds the statement to sign or to publish."""
        fields = _read(raw, NewEnrolment)
        return told(office.open(ContributorId(fields.contributor), fields.address, matters.now_ns()), 201)

    @app.post("/v1/enrolments/{id}/proofs", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def prove(id: str, raw: Body, _: Payer) -> Response:
        """Prove a claim: an armoured or wallet's signature, or a domain, in `text`; a commit object in `commit`."""
        fields = _read(raw, ProofFields)
        proof = Proof(fields.method, fields.text, fields.key, fields.commit.encode("utf-8", "surrogateescape"))
        return told(office.prove(id, proof, matters.now_ns()))

    @app.post("/v1/enrolments/{id}/objections", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def object_to(id: str, raw: Body, key: Payer) -> Response:
        """Object to a claim in its public period: reviewers must then decide."""
        return told(office.object(id, key.account, _read(raw, Words).text, matters.now_ns()))


def _consent_routes(app: FastAPI, matters: Matters, Payer: Any) -> None:
    Body = Annotated[bytes, Depends(body_up_to(BODY_BYTES_MAX))]
    tags = ["consent"]

    @app.get("/v1/contributions/{id}/consent", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def standing(id: str, _: Payer) -> Response:
        """Whether a contribution may be used, notices against it, and who has owned it."""
        one = matters.disputes.court.books.registry.get(ContributionId(id))
        return json_response(matters.consent_json(one.id))

    @app.post("/v1/contributions/{id}/erase", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def erase(id: str, raw: Body, key: Payer) -> Response:
        """Withdraw and erase a contribution that this key speaks for; digests stay, past receipts verify."""
        return json_response(matters.erase(matters.check_owner(key, id), key.account, _read(raw, Words).text))

    @app.post("/v1/contributions/{id}/takedowns", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def takedown(id: str, raw: Body, key: Payer) -> Response:
        """File a notice: the contribution is suspended at once. The key is kept with the claimant's name."""
        fields = _read(raw, NoticeFields)
        one = matters.disputes.court.books.registry.get(ContributionId(id))
        claimant = f"{fields.claimant} ({key.account})"
        filed, new = matters.consents.file_takedown(one.id, claimant, fields.reason, matters.now_ns())
        body = {"notice": filed.notice, "state": filed.state(matters.now_ns())}
        return json_response(body, 201 if new else 200)

    @app.post("/v1/contributions/{id}/takedowns/{notice}/counter", response_class=Response, tags=tags)  # type: ignore[arg-type]
    def counter(id: str, notice: str, raw: Body, key: Payer) -> Response:
        """Counter a notice against a contribution that this key speaks for."""
        if matters.check_owner(key, id) != matters.consents.takedown(notice).contribution:
            raise InvalidError(f"{notice} is not about {id[:60]}", code="request_invalid", fix="name its contribution")
        found = matters.consents.counter(notice, _read(raw, Words).text, matters.now_ns())
        return json_response({"notice": notice, "state": found.state(matters.now_ns())})


def _read(raw: bytes, kind: type[Fields]) -> Fields:
    try:
        refuse_deep(raw)
        return msgspec.json.decode(raw or b"{}", type=kind)
    except (InvalidError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidError(
            f"the body is not right: {str(error)[:200]}",
            code="request_invalid",
            fix=f"send an object with {', '.join(kind.__struct_fields__)}",
        ) from None
