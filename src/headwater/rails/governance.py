"""Governance of the policy: proposals that carry a simulation's digest, votes of people, a timelock.

Digests are text (``sha256:…``). Knows nothing of what a policy says or how it was simulated: the caller brings both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwater.core.errors import MissingError
from headwater.rails.digests import digest_bytes, digest_text
from headwater.rails.seams import Contracts
from headwater.rails.voter_roll import VoterRoll, cluster_key, governance_domain
from headwater.settlement.typed_data import SigningDomain

STATES = ("unknown", "voting", "waiting", "ready", "executed", "rejected", "struck", "lapsed")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposal as of now."""

    id: int
    policy: str
    replaces: str
    impact: str  # digest of the report that compares the two
    roll: int
    votes_until_s: int
    votes_for: int
    votes_against: int
    state: str  # one of STATES


class Governance:
    """One Governance contract, seen by one account."""

    def __init__(self, contracts: Contracts, address: str) -> None:
        self._contracts = contracts
        self._rules = contracts.at("Governance", address)

    @classmethod
    def deploy(
        cls,
        contracts: Contracts,
        *,
        guardian: str,
        registrar: str,
        policy: str,
        vote_s: int,
        delay_s: int,
        quorum_bps: int,
        owner: str | None = None,
    ) -> Governance:
        """Deploy one.

        Args:
            registrar: signs rolls.
            policy: digest of the policy in force.
            delay_s: the timelock, of a vote's outcome and of a roll.
            quorum_bps: part of all clusters that must vote.

        Raises:
            RevertedError: a role or time that the contract refuses.
        """
        owner = owner or contracts.me
        made = contracts.create(
            "Governance", owner, guardian, registrar, digest_bytes(policy), vote_s, delay_s, quorum_bps
        )
        return cls(contracts, made.address)

    @property
    def address(self) -> str:
        """Of the contract."""
        return self._rules.address

    @property
    def domain(self) -> SigningDomain:
        """What rolls and votes are signed for."""
        return governance_domain(self._contracts.chain_id, self.address)

    def next_roll(self) -> int:
        """The number that the next roll is signed for."""
        return int(self._rules.read("roll_count")) + 1

    def post_roll(self, roll: VoterRoll, signature: bytes) -> int:
        """Post the next roll; gives its number."""
        sent = self._rules.send("post_roll", roll.root, roll.clusters_count, signature)
        return int(self._rules.told("RollPosted", sent)[0]["number"])

    def roll_in_force(self) -> int:
        """The number of the newest roll that counts, 0 when none does."""
        return int(self._rules.read("roll_in_force"))

    def propose(self, policy: str, impact: str, roll: VoterRoll, *, link: str = "") -> int:
        """Propose a policy with its simulated impact; the signer is on the roll. Gives the proposal's id.

        Raises:
            RevertedError: no roll counts, not on it, or nothing would change.
        """
        me = self._contracts.me
        sent = self._rules.send(
            "propose",
            digest_bytes(policy),
            digest_bytes(impact),
            link,
            self.roll_in_force(),
            cluster_key(roll.cluster_of(me)),
            list(roll.proof(me)),
        )
        return int(self._rules.told("Proposed", sent)[0]["id"])

    def vote(self, id: int, roll: VoterRoll, *, support: bool) -> Any:
        """Cast the vote of the signer's cluster; `roll` is the one that the proposal names."""
        me = self._contracts.me
        return self._rules.send("vote", id, cluster_key(roll.cluster_of(me)), support, list(roll.proof(me)))

    def vote_signed(self, id: int, roll: VoterRoll, voter: str, signature: bytes, *, support: bool) -> Any:
        """Cast a vote that somebody else has signed."""
        cluster = cluster_key(roll.cluster_of(voter))
        return self._rules.send("vote_signed", id, cluster, voter, support, list(roll.proof(voter)), signature)

    def execute(self, id: int) -> Any:
        """Put a policy in force that was voted for and has waited."""
        return self._rules.send("execute", id)

    def strike(self, id: int, reason: str) -> Any:
        """End a proposal; the signer is the guardian."""
        return self._rules.send("strike", id, digest_bytes(reason))

    def policy(self) -> tuple[str, int]:
        """The policy in force, and since when in seconds since 1970."""
        return digest_text(self._rules.read("policy")), int(self._rules.read("policy_since"))

    def proposal(self, id: int) -> Proposal:
        """A proposal as of now.

        Raises:
            MissingError: there is none of that number.
        """
        policy, replaces, impact, _, roll, until, votes_for, against, _ = self._rules.read("proposals", id)
        state = STATES[int(self._rules.read("status", id))]
        if state == "unknown":
            raise MissingError(f"no proposal {id}", code="proposal_missing", fix="see `headwater rails govern show`")
        return Proposal(
            id, digest_text(policy), digest_text(replaces), digest_text(impact), roll, until, votes_for, against, state
        )

    def proposals(self) -> tuple[Proposal, ...]:
        """Every proposal there was."""
        return tuple(self.proposal(id) for id in range(1, int(self._rules.read("proposal_count")) + 1))

    def status(self) -> dict[str, Any]:
        """The policy in force, roles and times."""
        policy, since_s = self.policy()
        vote_s, delay_s, quorum_bps = self._rules.read("times")
        return {
            "address": self.address,
            "policy": policy,
            "since_s": since_s,
            "vote_s": vote_s,
            "delay_s": delay_s,
            "quorum_bps": quorum_bps,
            "registrar": self._rules.read("registrar"),
            "guardian": self._rules.read("guardian"),
            "roll_in_force": self.roll_in_force(),
            "proposals": int(self._rules.read("proposal_count")),
        }
