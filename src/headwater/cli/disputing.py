"""The court, the enrolment office and the consent desk of a home: composed here, used by commands and routes."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from headwater.cli.home import Home
from headwater.cli.settling import books
from headwater.core.canonical import refuse_deep
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.ids import AccountId, CallId, ContributionId, ContributorId
from headwater.core.instants import format_instant
from headwater.core.money import PPB, format_units
from headwater.disputes import Court, Disputes
from headwater.disputes import public_value as value_of
from headwater.receipts.signing import recover_address
from headwater.registry import Ownership
from headwater.registry.dispute import Case, Rules
from headwater.registry.enrolment import Seams
from headwater.settings import Settings
from headwater.store.cluster_store import ClusterStore
from headwater.store.consent_store import ConsentStore
from headwater.store.dispute_store import DisputeStore
from headwater.store.enrolment_lookup import fetch, text_records
from headwater.store.enrolment_store import Enrolments, Record
from headwater.store.erasure import Places

RULES_FILE: Final = "disputes.json"
"""Rules of disputes in a home, by the names of `registry.dispute.Rules`; without it the defaults hold."""


def rules_of(home: Home) -> Rules:
    """The rules that new disputes of a home are opened under.

    Raises:
        InvalidError: its file holds no rules.
    """
    path = home.path / RULES_FILE
    if not path.is_file():
        return Rules()
    try:
        raw = path.read_bytes()
        refuse_deep(raw)
        value = json.loads(raw)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise InvalidError(
            f"{RULES_FILE}: {str(error)[:100]}", code="dispute_invalid", fix="write an object of whole numbers"
        ) from None
    return Rules.from_json(value)


def disputes_of(home: Home, *, public_value: str | None = None) -> Disputes:
    """The disputes of a home; what holds or releases money needs the home opened as writer."""

    def payer_of(call: CallId) -> AccountId:
        try:
            return home.calls.get(call).payer
        except HeadwaterError:
            return AccountId("")  # not a call of ours any more: nobody has standing by it

    return Disputes(
        Court(
            books=books(home),
            database=home.db,
            signer=home.signer,
            rules=rules_of(home),
            clusters=ClusterStore(home.db).cluster_of,
            payer_of=payer_of,
            public_value=lambda: value_of(lambda: home.log.root(len(home.log)), public_value),
        )
    )


def enrolments_of(home: Home) -> Enrolments:
    """The enrolments of a home; domains are looked up on the network."""
    seams = Seams(recover_address, text_records, fetch)
    return Enrolments(home.db, home.registry, home.ledger, home.policy.currency, seams)


def places_of(home: Home) -> Places:
    """Where a home keeps bytes of contributions."""
    return Places(
        home.db, home.registry, home.calls, ConsentStore(home.db), home.path / "passages", home.path / "spans"
    )


def settle_matters(home: Home) -> dict[str, int]:
    """Do what is due of disputes and enrolments; gives how much of each. Needs the home opened as writer."""
    done = disputes_of(home).settle_due()
    granted = enrolments_of(home).settle_due(time.time_ns())
    return {
        "held": done.held,
        "drawn": done.drawn,
        "decided": done.decided,
        "closed": done.closed,
        "enrolled": len(granted),
    }


class Upkeep:
    """Does what is due every minute while a home is served; what fails is tried again the next time."""

    def __init__(self, home: Home, every_s: float = 60.0) -> None:
        self._home, self._every_s, self._over = home, every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                settle_matters(self._home)
            except HeadwaterError as error:
                logging.getLogger(__name__).warning("disputes and enrolments wait: %s [%s]", error.message, error.code)

    def __enter__(self) -> Upkeep:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def settle_before_close(chosen: Settings) -> None:
    """Do what is due before a window is closed, when anything is open: what is disputed must not settle.

    Raises:
        ConflictError: another process has the log; when it serves, it does this every minute.
    """
    with Home(chosen, create=False) as opened:
        waiting = DisputeStore(opened.db).cases(open_only=True)
    if waiting:
        with Home(chosen, writer=True, create=False) as opened:
            settle_matters(opened)


def owners_of(texts: tuple[str, ...]) -> tuple[Ownership, ...]:
    """Owners as a command line writes them: ``ctr_…`` alone, or ``ctr_…=PPB`` each.

    Raises:
        InvalidError: a share that is no number.
    """
    if len(texts) == 1 and "=" not in texts[0]:
        return (Ownership(ContributorId(texts[0]), PPB),)
    found = []
    for text in texts:
        name, mark, share = text.partition("=")
        if not mark or not share.isdigit():
            raise InvalidError(
                f"owner {text[:80]!r}", code="owner_invalid", fix="write ctr_…=SHARE, shares in ppb that sum to 10^9"
            )
        found.append(Ownership(ContributorId(name), int(share)))
    return tuple(found)


def case_json(case: Case, home: Home) -> dict[str, Any]:
    """A case for programs: money as decimal strings of nano units, instants of the deadline clock."""
    account = AccountId(f"disputed:{case.id}")
    deadline = case.deadline_ns()
    return {
        "dispute": case.id,
        "claim": case.claim.to_json(),
        "phase": case.phase,
        "verdict": case.verdict,
        "challenger": case.challenger,
        "account": case.challenger_account,
        "respondent": case.respondent_account,
        "bond_units": str(case.bond_units),
        "held_units": str(home.ledger.balance(account, home.policy.currency).balance_units),
        "opened_at": format_instant(case.opened_at_ns),
        "deadline": None if deadline is None else format_instant(deadline),
        "evidence": [{"at": format_instant(at), "by": by, "text": text} for at, by, text in case.evidence],
        "panels": [
            {
                "appeal": panel in case.second,
                "members": list(panel.members),
                "public_value": panel.public_value,
                "votes": [{"by": by, "upholds": upholds, "reason": reason} for by, upholds, reason in panel.votes],
            }
            for panel in (*case.first, *case.second)
        ],
        "appellant": case.appellant,
        "rules": case.rules.to_json(),
    }


def case_text(case: Case, home: Home) -> list[str]:
    """A case in a few lines."""
    value = case_json(case, home)
    lines = [
        f"{case.id}  {case.phase}{'' if case.verdict is None else ', ' + case.verdict}",
        f"  {case.claim.kind} of {case.claim.subject}, by {case.challenger}",
        f"  bond {format_units(case.bond_units)}, held back {format_units(int(value['held_units']))}",
    ]
    if value["deadline"] is not None:
        lines.append(f"  until {value['deadline']} of the deadline clock")
    lines += [f"  {row['by']}: {row['text']}" for row in value["evidence"]]
    for panel in value["panels"]:
        lines.append(f"  {'appeal ' if panel['appeal'] else ''}panel: {', '.join(panel['members']) or 'nobody'}")
        lines += [
            f"    {vote['by']} {'upholds' if vote['upholds'] else 'rejects'}: {vote['reason']}"
            for vote in panel["votes"]
        ]
    return lines


def record_json(record: Record) -> dict[str, Any]:
    """An enrolment for programs."""
    return {
        "enrolment": record.claim.id,
        "contributor": record.claim.contributor,
        "address": record.claim.address,
        "opened_at": format_instant(record.claim.opened_at_ns),
        "state": record.state,
        "proved": record.standing.proved,
        "shown": [{"kind": kind, "value": value} for kind, value in record.shown],
        "for": list(record.standing.for_),
        "against": list(record.standing.against),
        "objections": [{"by": by, "why": why} for by, why in record.objections],
        "statement": record.claim.statement,
    }


def consent_json(home: Home, contribution: ContributionId) -> Mapping[str, Any]:
    """What was said about a contribution since it was registered, for programs."""
    now = time.time_ns()
    standing = ConsentStore(home.db).standing([contribution]).get(contribution)
    stopped = None if standing is None else standing.stopped(now)
    return {
        "contribution": contribution,
        "usable": stopped is None,
        "why": None if stopped is None else {"code": stopped[0], "message": stopped[1]},
        "takedowns": [
            {
                "notice": one.notice,
                "claimant": one.claimant,
                "reason": one.reason,
                "state": one.state(now),
                "deadline": None if (until := one.deadline_ns(now)) is None else format_instant(until),
                "counter": one.counter,
                "dispute": one.dispute,
            }
            for one in (standing.takedowns if standing is not None else ())
        ],
        "owners": [
            {
                "cause": cause or "registered",
                "at": format_instant(at),
                "owners": [{"contributor": o.contributor_id, "share_ppb": o.share_ppb} for o in owners],
            }
            for cause, at, owners in home.registry.owner_history(contribution)
        ],
    }
