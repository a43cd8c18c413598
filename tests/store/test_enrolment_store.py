"""Enrolment on a ledger: nobody's escrow moves before everybody could object, and then all of it, once."""

from __future__ import annotations

import pytest

from headwater.core.errors import ConflictError, RefusedError, UpstreamError
from headwater.core.ids import AccountId, ContributorId
from headwater.core.instants import DAY_NS
from headwater.core.money import PPB
from headwater.ledger import correction, deposit
from headwater.receipts import KeySigner
from headwater.receipts.signing import recover_address
from headwater.registry import Ownership, checksum_address, unenrolled
from headwater.registry.enrolment import Proof, Seams, personal_digest
from headwater.registry.intake import Candidate
from headwater.store.cluster_store import ClusterStore
from headwater.store.database import Database
from headwater.store.dispute_store import DisputeStore
from headwater.store.enrolment_lookup import fetch
from headwater.store.enrolment_store import Enrolments
from headwater.store.ledger_store import Ledger
from headwater.store.outbound import Reply
from headwater.store.registry_store import RegistryStore

ADA, EVE = unenrolled("t", "Ada"), unenrolled("t", "Eve")
WALLET = KeySigner(b"\x07" * 32)
HERE, THERE = "0x" + "11" * 20, "0x" + "22" * 20


class Office:
    """Enrolments over a ledger in which Ada has 500 nano in escrow."""

    def __init__(self, path):
        self.db = Database(path / "headwater.db")
        self.registry, self.ledger = RegistryStore(self.db), Ledger(self.db)
        self.registry.add_contributors([ADA, EVE])
        drafts = [
            deposit("payer:k", 500, asset="USD", cause="d"),
            correction("payer:k", f"escrow:{ADA.id}", 500, asset="USD", cause="c"),
        ]
        self.ledger.post(drafts, key="d", at_ns=1)
        self.seams = Seams(recover_address, lambda _: (), lambda *_: b"")
        self.enrolments = Enrolments(self.db, self.registry, self.ledger, "USD", self.seams)
        self.now = 10**18

    def waits(self, days):
        """Days pass, one by one."""
        granted = []
        for _ in range(days):
            self.now += DAY_NS
            granted += self.enrolments.settle_due(self.now)
        return granted

    def has(self, account):
        """Nano units."""
        return self.ledger.balance(account, "USD").balance_units

    def proved(self, address=HERE):
        """A claim of Ada's that her wallet proves."""
        record = self.enrolments.open(ADA.id, address, self.now)
        signature = WALLET.sign(personal_digest(record.claim.statement.encode())).hex()
        return self.enrolments.prove(record.claim.id, Proof("wallet", signature), self.now)


@pytest.fixture
def office(tmp_path):
    made = Office(tmp_path)
    yield made
    assert made.ledger.check() == ()
    made.db.close()


def test_an_anchored_proof_releases_escrow_when_the_period_is_over(office):
    """Not a day earlier, all of it, and never again."""
    office.enrolments.anchor(ADA.id, "wallet", WALLET.address, "the wallet of her publications", office.now)
    record = office.proved()
    assert (record.state, record.standing.proved) == ("waiting", True)
    assert office.waits(6) == []
    assert office.has(f"contributor:{ADA.id}") == 0
    [(claim, units)] = office.waits(1)

    assert (claim.id, units) == (record.claim.id, 500)
    assert office.has(f"contributor:{ADA.id}") == 500
    assert office.has(f"escrow:{ADA.id}") == 0
    assert office.registry.contributor(ADA.id).payout_address == checksum_address(HERE)
    assert office.waits(30) == []
    with pytest.raises(ConflictError):
        office.enrolments.open(ADA.id, THERE, office.now)


def test_a_proof_of_something_that_nobody_knew_before_proves_nothing(office):
    """Any wallet can sign; without an anchor two reviewers must vouch, and anchors come before claims."""
    record = office.proved()
    assert not record.standing.proved
    with pytest.raises(RefusedError) as late:
        office.enrolments.anchor(ADA.id, "wallet", WALLET.address, "now I say so", office.now)
    assert late.value.code == "anchor_late"
    assert office.waits(14) == []
    assert office.enrolments.get(record.claim.id, office.now).state == "refused"
    assert office.has(f"escrow:{ADA.id}") == 500


def test_two_reviewers_may_vouch_and_one_may_not_vouch_twice(office):
    """Reviewers of disputes only, and never the claimant."""
    judges = [ContributorId(f"ctr_{i:032x}") for i in range(2)]
    for judge in (*judges, ADA.id):
        DisputeStore(office.db).add_reviewer(judge, AccountId("payer:j"), 1)
    record = office.enrolments.open(ADA.id, HERE, office.now)
    office.enrolments.vouch(record.claim.id, judges[0], True, "met her", office.now)
    for who, error in ((judges[0], ConflictError), (ADA.id, RefusedError), (EVE.id, RefusedError)):
        with pytest.raises(error):
            office.enrolments.vouch(record.claim.id, who, True, "again", office.now)
    office.enrolments.vouch(record.claim.id, judges[1], True, "know her", office.now)
    assert len(office.waits(7)) == 1


def test_who_was_found_to_act_with_others_waits_twice_as_long_unless_they_said_so(office):
    """A shared key is a sign; a word of one's own before it is found is the amnesty."""
    office.enrolments.anchor(ADA.id, "wallet", WALLET.address, "known", office.now)
    office.proved()
    signs = ClusterStore(office.db)
    signs.add(ADA.id, "funding", "one purse", "seen", office.now)
    signs.add(EVE.id, "funding", "one purse", "seen", office.now)
    assert office.waits(13) == []
    assert len(office.waits(1)) == 1


def test_an_objection_leaves_a_proved_claim_to_the_reviewers_and_then_it_lapses(office):
    """Somebody objects on the last day: nothing is paid unless two more vouch than do not."""
    office.enrolments.anchor(ADA.id, "wallet", WALLET.address, "known", office.now)
    record = office.proved()
    office.waits(6)
    office.enrolments.object(record.claim.id, "Eve", "that wallet was stolen", office.now)
    assert office.waits(6) == []
    assert office.enrolments.get(record.claim.id, office.now).state == "contested"
    assert office.waits(2) == []
    assert office.enrolments.get(record.claim.id, office.now).standing.ended == "refused"


def test_two_proved_claims_contradict_each_other(office):
    """Whoever has the key may change the address only by persuading people."""
    office.enrolments.anchor(ADA.id, "wallet", WALLET.address, "known", office.now)
    first, second = office.proved(HERE), office.proved(THERE)
    assert {r.state for r in office.enrolments.claims(office.now)} == {"contested"}
    assert first.claim.id != second.claim.id
    assert office.waits(20) == []


def test_co_authors_change_their_shares_by_the_signatures_of_all(office):
    """Once; the same signatures later, when owners have changed again, are worth nothing."""
    signers = {ADA.id: KeySigner(b"\x01" * 32), EVE.id: KeySigner(b"\x02" * 32)}
    for name, signer in signers.items():
        office.registry.enroll(name, signer.address)
    candidate = Candidate("w", "document", "t", b"words", (Ownership(ADA.id, PPB),), "CC0-1.0", frozenset(), 1, "s")
    [admitted] = office.registry.admit([candidate]).accepted
    one, halves = admitted.contribution.id, (Ownership(ADA.id, PPB // 2), Ownership(EVE.id, PPB // 2))
    digest_before = office.registry.digest()
    statement = office.enrolments.agreement(one, halves).statement.encode()
    signatures = [signer.sign(personal_digest(statement)).hex() for signer in signers.values()]
    with pytest.raises(RefusedError):
        office.enrolments.agree(one, halves, signatures[:1], office.now)
    assert office.enrolments.agree(one, halves, signatures, office.now).owners == halves
    assert office.registry.get(one).owners == halves
    assert office.registry.digest() != digest_before
    assert [c.id for c in office.registry.contributions(owner=EVE.id)] == [one]
    with pytest.raises(RefusedError):
        office.enrolments.agree(one, halves, signatures, office.now)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:127.0.0.1", "0.0.0.0", "224.0.0.1"],
)
def test_a_domain_that_points_inside_is_never_connected_to(address):
    """One private address among public ones is enough; nothing is sent."""
    with pytest.raises(RefusedError) as inside:
        fetch("example.org", "/", resolve=lambda *_: ("93.184.216.34", address))
    assert inside.value.code == "address_private"


@pytest.mark.parametrize(
    "domain", ["example.org:8443", "user@example.org", "example.org/x", "[::1", "", "exam ple.org"]
)
def test_what_is_no_domain_is_not_looked_up(domain):
    """No other port, no user, no path: nothing is resolved."""
    asked = []
    with pytest.raises(UpstreamError) as refused:
        fetch(domain, "/", resolve=lambda *which: asked.append(which) or ())
    assert (refused.value.code, asked) == ("domain_unreachable", [])


def test_a_domain_without_an_address_is_unreachable():
    """Its code says so."""
    with pytest.raises(UpstreamError) as refused:
        fetch("example.org", "/", resolve=lambda *_: ())
    assert refused.value.code == "domain_unreachable"


@pytest.mark.parametrize("reply", [Reply(301, b""), Reply(200, b"x", whole=False), Reply(404, b"none")])
def test_only_a_whole_answer_with_status_200_counts(reply, monkeypatch):
    """A redirect is not followed, and what was cut by size or time is not believed."""
    monkeypatch.setattr("headwater.store.outbound.request", lambda *_, **__: reply)
    with pytest.raises(UpstreamError) as refused:
        fetch("example.org", "/")
    assert refused.value.code == "domain_unreachable"
