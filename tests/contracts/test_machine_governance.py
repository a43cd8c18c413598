"""Random histories of Governance against sets of people: one vote each, a quorum of people, a timelock, no surprise."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from tests.contracts.bare_evm import RailMachine, run_rail

from headwater.chain import Deployments
from headwater.core.keccak import keccak256
from headwater.rails import VoterRoll, cluster_key, governance_domain, sign_roll

VOTE_S, DELAY_S, QUORUM = 100, 200, 5_000
LAPSE_S = DELAY_S + 7 * 86_400
CLUSTER_OF = {0: "a", 1: "a", 2: "b", 3: "c", 4: "d"}
"""Account -> person; two accounts are one person's, account 5 is nobody's."""
VOTER, POLICY = st.integers(0, 5), st.integers(1, 4)
SEED = b"\x55" * 32


@dataclass
class Draft:
    """One proposal."""

    policy: int
    replaces: int
    by: str
    until: int
    votes: dict[str, bool] = field(default_factory=dict)
    closed: str = ""


class GovernanceMachine(RailMachine):
    """Five accounts of four people; the last one guards and registers."""

    @initialize()
    def begin(self) -> None:
        """A roll that counts."""
        self.start()
        clusters: dict[str, list[str]] = {}
        for number, cluster in CLUSTER_OF.items():
            clusters.setdefault(cluster, []).append(self.people[number])
        self.roll = VoterRoll.build(clusters)
        key = keccak256(b"headwater.embedded.account" + (5).to_bytes(4, "big") + SEED)
        domain = governance_domain(480_001, self.rail_address)
        signature = sign_roll(self.roll, 1, domain, key)
        self.rail.send(self.people[3], "post_roll", self.roll.root, self.roll.clusters_count, signature)
        self.bare.jump(DELAY_S)
        self.drafts: list[Draft] = []
        self.policy = 1

    def state(self, draft: Draft) -> str:
        """How far a proposal is, by the rules."""
        if draft.closed:
            return draft.closed
        if self.now_s < draft.until:
            return "voting"
        yes = sum(draft.votes.values())
        if yes * 2 <= len(draft.votes) or len(draft.votes) * 10_000 < self.roll.clusters_count * QUORUM:
            return "rejected"
        if draft.replaces != self.policy:
            return "lapsed"
        waited = self.now_s - draft.until
        return "waiting" if waited < DELAY_S else "ready" if waited < LAPSE_S else "lapsed"

    def proof(self, who: int) -> tuple[bytes, list[bytes]]:
        """An account's cluster and path; an outsider borrows another's."""
        voter = self.people[who if who in CLUSTER_OF else 0]
        return cluster_key(CLUSTER_OF.get(who, "a")), list(self.roll.proof(voter))

    @rule(who=VOTER, policy=POLICY, impact=st.sampled_from([b"\7" * 32, b"\7" * 32, bytes(32)]))
    def propose(self, who: int, policy: int, impact: bytes) -> None:
        """Somebody proposes; without a simulation, a place on the roll or a change there is no proposal."""
        cluster = CLUSTER_OF.get(who, "")
        open_one = any(d.by == cluster and self.state(d) in ("voting", "waiting", "ready") for d in self.drafts)
        allowed = bool(cluster) and not open_one and policy != self.policy and impact != bytes(32)
        key, path = self.proof(who)
        if self.expect(allowed, self.people[who], "propose", _digest(policy), impact, "", 1, key, path):
            self.drafts.append(Draft(policy, self.policy, cluster, self.now_s + VOTE_S))

    @rule(which=st.integers(0, 9), who=VOTER, support=st.sampled_from([True, True, True, False]))
    def vote(self, which: int, who: int, support: bool) -> None:
        """Somebody votes, once a person."""
        if not self.drafts:
            return
        draft, cluster = self.drafts[which % len(self.drafts)], CLUSTER_OF.get(who, "")
        allowed = self.state(draft) == "voting" and bool(cluster) and cluster not in draft.votes
        key, path = self.proof(who)
        if self.expect(allowed, self.people[who], "vote", which % len(self.drafts) + 1, key, support, path):
            draft.votes[cluster] = support

    @rule(which=st.integers(0, 9))
    def execute(self, which: int) -> None:
        """Anybody puts in force what is ready."""
        if self.drafts:
            draft = self.drafts[which % len(self.drafts)]
            ready = self.state(draft) == "ready"
            if self.expect(ready, self.people[4], "execute", which % len(self.drafts) + 1):
                draft.closed, self.policy = "executed", draft.policy

    @rule(which=st.integers(0, 9), who=st.sampled_from([5, 5, 0]))
    def strike(self, which: int, who: int) -> None:
        """The guardian ends what is open."""
        if self.drafts and which > 6:
            draft = self.drafts[which % len(self.drafts)]
            allowed = who == 5 and self.state(draft) in ("voting", "waiting", "ready")
            if self.expect(allowed, self.people[who], "strike", which % len(self.drafts) + 1, b"\1" * 32):
                draft.closed = "struck"

    @rule(seconds=st.sampled_from([1, VOTE_S, DELAY_S, DELAY_S, LAPSE_S]))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.bare.jump(seconds)

    @invariant()
    def as_voted(self) -> None:
        """The policy in force is the one that people put there."""
        if not hasattr(self, "policy"):
            return
        type(self).steps += 1
        assert self.rail.read("policy") == _digest(self.policy)
        for id, draft in enumerate(self.drafts, 1):
            if id == 1 + self.steps % len(self.drafts):
                assert STATES[self.rail.read("status", id)] == self.state(draft)
                assert self.rail.read("proposals", id)[6:8] == (
                    sum(draft.votes.values()),
                    len(draft.votes) - sum(draft.votes.values()),
                )


STATES = ("unknown", "voting", "waiting", "ready", "executed", "rejected", "struck", "lapsed")


def _digest(policy: int) -> bytes:
    return bytes([policy]) * 32


def _make(chain, _token):
    from headwater.chain import derived_signer

    contracts = Deployments(chain)
    registrar = derived_signer(SEED, 5).address
    made = contracts.create("Governance", contracts.me, registrar, registrar, _digest(1), VOTE_S, DELAY_S, QUORUM)
    return "Governance", made.address


def test_policies_change_as_people_voted(hostile_artifact):
    """Short histories agree with the model."""
    assert run_rail(GovernanceMachine, hostile_artifact, _make, examples=5, steps=30) >= 100


@pytest.mark.slow
def test_policies_change_as_people_voted_over_long_histories(hostile_artifact):
    """Two thousand steps."""
    assert run_rail(GovernanceMachine, hostile_artifact, _make, examples=30, steps=80) >= 2_000
