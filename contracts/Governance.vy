# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Governance
@license Apache-2.0
@notice Which policy is in force: proposed with a simulation of what it would do, voted on by people, in force after a
        timelock.
@dev A policy is named by the SHA-256 of its canonical bytes; how money is divided stays a matter of that document and
     of the receipts that name it. A proposal also carries the digest of a report that ran the economy under the policy
     in force and under the proposed one, so that everybody votes on the same figures and can run them again. A change
     counts from its execution on and never before.

     One cluster of accounts that belong to one person has one vote. The *roll* is a Merkle tree over (cluster, voter),
     signed by the registrar; a new one waits out the timelock, in which the guardian can strike it, and a proposal
     keeps the roll that was in force when it was made. Nothing is weighted by stake, shares or volume.

         leaf = keccak(0x00 | cluster 32 | voter 20)      node = keccak(0x01 | lower | higher), ordered by value
"""

# ------------------------------------------------------------------ imports

import Stewards as stewards

initializes: stewards
exports: stewards.__interface__

# ------------------------------------------------------------------ constants

PROPOSE: constant(uint256) = 1  # pause flags
EXECUTE: constant(uint256) = 2

WHOLE: constant(uint256) = 10_000  # basis points
DEPTH_MAX: constant(uint256) = 40
TIME_MIN_S: constant(uint256) = 60
TIME_MAX_S: constant(uint256) = 60 * 86400

VOTING: constant(uint256) = 1  # status of a proposal
WAITING: constant(uint256) = 2
READY: constant(uint256) = 3
EXECUTED: constant(uint256) = 4
REJECTED: constant(uint256) = 5
STRUCK: constant(uint256) = 6
LAPSED: constant(uint256) = 7

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
DOMAIN_NAME: constant(bytes32) = keccak256("headwater governance")
DOMAIN_VERSION: constant(bytes32) = keccak256("1")
ROLL_TYPE: constant(bytes32) = keccak256("Roll(uint256 number,bytes32 root,uint256 clusters)")
VOTE_TYPE: constant(bytes32) = keccak256("Vote(uint256 proposal,bytes32 cluster,address voter,bool support)")
HALF_ORDER: constant(uint256) = (max_value(uint256) - 432420386565659656852420866394968145598) // 2  # of secp256k1

# ------------------------------------------------------------------ immutables

VOTE_S: immutable(uint256)
DELAY_S: immutable(uint256)
QUORUM_BPS: immutable(uint256)

# ------------------------------------------------------------------ structs

struct Roll:
    root: bytes32
    clusters: uint256
    counts_from: uint256  # seconds since 1970
    struck: bool


struct Proposal:
    policy: bytes32
    replaces: bytes32  # the policy in force when it was made: a later change makes it void
    impact: bytes32
    proposer: bytes32  # cluster
    roll: uint256
    votes_until: uint256  # seconds since 1970
    votes_for: uint256
    votes_against: uint256
    closed: uint256  # EXECUTED or STRUCK, 0 until then

# ------------------------------------------------------------------ state

registrar: public(address)
policy: public(bytes32)
policy_since: public(uint256)  # seconds since 1970
rolls: public(HashMap[uint256, Roll])
roll_count: public(uint256)  # numbers are 1 to this
proposals: public(HashMap[uint256, Proposal])
proposal_count: public(uint256)  # ids are 1 to this
latest_of: public(HashMap[bytes32, uint256])  # cluster -> its newest proposal
cluster_voted: public(HashMap[uint256, HashMap[bytes32, bool]])
voter_voted: public(HashMap[uint256, HashMap[address, bool]])

# ------------------------------------------------------------------ events

event RollPosted:
    number: indexed(uint256)
    root: bytes32
    clusters: uint256
    counts_from: uint256


event RollStruck:
    number: indexed(uint256)


event Proposed:
    id: indexed(uint256)
    policy: indexed(bytes32)
    impact: bytes32
    cluster: bytes32
    roll: uint256
    votes_until: uint256
    link: String[256]


event Voted:
    id: indexed(uint256)
    cluster: indexed(bytes32)
    support: bool


event Struck:
    id: indexed(uint256)
    reason: bytes32


event PolicySet:
    policy: indexed(bytes32)
    replaced: indexed(bytes32)
    id: indexed(uint256)
    since: uint256


event RegistrarSet:
    registrar: indexed(address)

# ------------------------------------------------------------------ constructor

@deploy
def __init__(
    owner: address,
    guardian: address,
    registrar: address,
    policy: bytes32,
    vote_s: uint256,
    delay_s: uint256,
    quorum_bps: uint256,
):
    """
    @notice Sets roles, the first policy and the times for ever.
    @param owner Names the registrar, lifts a pause.
    @param guardian Strikes a roll or a proposal that waits, pauses.
    @param registrar Signs rolls.
    @param policy Digest of the policy in force at first.
    @param vote_s Seconds of voting, 60 to 60 days.
    @param delay_s Seconds of the timelock after a vote and after a roll, 60 to 60 days.
    @param quorum_bps Part of all clusters that must have voted, 1 to 10,000 basis points.
    """
    stewards.__init__(owner, guardian)
    assert policy != empty(bytes32), "Governance: no policy"
    assert vote_s >= TIME_MIN_S and vote_s <= TIME_MAX_S, "Governance: voting time out of range"
    assert delay_s >= TIME_MIN_S and delay_s <= TIME_MAX_S, "Governance: delay out of range"
    assert quorum_bps > 0 and quorum_bps <= WHOLE, "Governance: quorum out of range"
    VOTE_S = vote_s
    DELAY_S = delay_s
    QUORUM_BPS = quorum_bps
    self.registrar = registrar
    self.policy = policy
    self.policy_since = block.timestamp
    log RegistrarSet(registrar=registrar)
    log PolicySet(policy=policy, replaced=empty(bytes32), id=0, since=block.timestamp)

# ------------------------------------------------------------------ the roll

@external
def post_roll(root: bytes32, clusters: uint256, signature: Bytes[65]) -> uint256:
    """
    @notice Posts the next roll of voters that the registrar has signed.
    @param root Of the tree over all clusters.
    @param clusters How many there are; the quorum is a part of them.
    @param signature EIP-712 signature of Roll by the registrar, r 32 | s 32 | v 1.
    @return Number of the roll.
    @custom:security Anybody may send it. The signature names the number, so it counts once. It counts after the
        delay, in which anybody can compare it with the published clusters and the guardian can strike it.
    """
    number: uint256 = self.roll_count + 1
    assert root != empty(bytes32) and clusters > 0, "Governance: empty roll"
    self._only_signed(keccak256(abi_encode(ROLL_TYPE, number, root, clusters)), self.registrar, signature)
    counts_from: uint256 = block.timestamp + DELAY_S
    self.roll_count = number
    self.rolls[number] = Roll(root=root, clusters=clusters, counts_from=counts_from, struck=False)
    log RollPosted(number=number, root=root, clusters=clusters, counts_from=counts_from)
    return number


@external
def strike_roll(number: uint256):
    """
    @notice Strikes a roll that does not count yet.
    @param number Of the roll.
    @custom:security Guardian only, and only before it counts.
    """
    assert msg.sender == stewards.guardian, "Governance: not the guardian"
    assert self.rolls[number].root != empty(bytes32), "Governance: unknown roll"
    assert block.timestamp < self.rolls[number].counts_from, "Governance: roll counts already"
    self.rolls[number].struck = True
    log RollStruck(number=number)


@external
def set_registrar(registrar: address):
    """
    @notice Names who signs rolls.
    @param registrar Any address; zero ends new rolls.
    @custom:security Owner only. Rolls wait out the delay whoever signs them.
    """
    stewards._only_owner()
    self.registrar = registrar
    log RegistrarSet(registrar=registrar)

# ------------------------------------------------------------------ proposals

@external
def propose(
    policy: bytes32,
    impact: bytes32,
    link: String[256],
    roll: uint256,
    cluster: bytes32,
    proof: DynArray[bytes32, DEPTH_MAX],
) -> uint256:
    """
    @notice Proposes a policy, with what a simulation says of it.
    @param policy Digest of its canonical bytes.
    @param impact Digest of the report that compares it with the policy in force.
    @param link Where both can be read; only for people.
    @param roll Number of the newest roll that counts.
    @param cluster The caller's cluster.
    @param proof Siblings from the caller's leaf upwards.
    @return Id of the proposal.
    @custom:security Anybody on the roll, one at a time. Without the digest of a report there is no proposal.
    """
    stewards._runs(PROPOSE)
    assert policy != empty(bytes32) and policy != self.policy, "Governance: nothing to change"
    assert impact != empty(bytes32), "Governance: no simulated impact"
    assert roll == self._roll_in_force(), "Governance: not the roll in force"
    self._only_member(roll, cluster, msg.sender, proof)
    before: uint256 = self.latest_of[cluster]
    assert before == 0 or self._status(before) > READY, "Governance: another one is open"
    id: uint256 = self.proposal_count + 1
    votes_until: uint256 = block.timestamp + VOTE_S
    self.proposal_count = id
    self.latest_of[cluster] = id
    self.proposals[id] = Proposal(
        policy=policy,
        replaces=self.policy,
        impact=impact,
        proposer=cluster,
        roll=roll,
        votes_until=votes_until,
        votes_for=0,
        votes_against=0,
        closed=0,
    )
    log Proposed(
        id=id, policy=policy, impact=impact, cluster=cluster, roll=roll, votes_until=votes_until, link=link
    )
    return id


@external
def vote(id: uint256, cluster: bytes32, support: bool, proof: DynArray[bytes32, DEPTH_MAX]):
    """
    @notice Casts the vote of the caller's cluster.
    @param id Of the proposal.
    @param cluster The caller's cluster.
    @param support For or against.
    @param proof Siblings from the caller's leaf upwards, in the proposal's roll.
    @custom:security One vote for a cluster and for an account; it cannot be changed.
    """
    self._vote(id, cluster, msg.sender, support, proof)


@external
def vote_signed(
    id: uint256,
    cluster: bytes32,
    voter: address,
    support: bool,
    proof: DynArray[bytes32, DEPTH_MAX],
    signature: Bytes[65],
):
    """
    @notice Casts a vote that its voter has signed, so that voting needs no ether.
    @param id Of the proposal.
    @param cluster The voter's cluster.
    @param voter Who signed.
    @param support For or against.
    @param proof Siblings from the voter's leaf upwards, in the proposal's roll.
    @param signature EIP-712 signature of Vote by the voter, r 32 | s 32 | v 1.
    @custom:security Anybody may send it; the signature names proposal and side, and counts once.
    """
    self._only_signed(keccak256(abi_encode(VOTE_TYPE, id, cluster, voter, support)), voter, signature)
    self._vote(id, cluster, voter, support, proof)


@external
def execute(id: uint256):
    """
    @notice Puts a policy in force that was voted for and has waited.
    @param id Of the proposal.
    @custom:security Anybody, after the timelock and before it has lapsed. Refused when another policy came into
        force since it was proposed: what was simulated would not be what changes. Stops while paused.
    """
    stewards._runs(EXECUTE)
    assert self._status(id) == READY, "Governance: not ready"
    one: Proposal = self.proposals[id]
    self.proposals[id].closed = EXECUTED
    self.policy = one.policy
    self.policy_since = block.timestamp
    log PolicySet(policy=one.policy, replaced=one.replaces, id=id, since=block.timestamp)


@external
def strike(id: uint256, reason: bytes32):
    """
    @notice Ends a proposal before it is in force.
    @param id Of the proposal.
    @param reason Digest of the published reason.
    @custom:security Guardian only: it can keep things as they are and change nothing.
    """
    assert msg.sender == stewards.guardian, "Governance: not the guardian"
    assert reason != empty(bytes32), "Governance: no reason"
    status: uint256 = self._status(id)
    assert status >= VOTING and status <= READY, "Governance: not open"
    self.proposals[id].closed = STRUCK
    log Struck(id=id, reason=reason)

# ------------------------------------------------------------------ reading

@external
@view
def status(id: uint256) -> uint256:
    """
    @notice How far a proposal is.
    @param id Of the proposal.
    @return 0 unknown, 1 voting, 2 waiting, 3 ready, 4 executed, 5 rejected, 6 struck, 7 lapsed.
    @custom:security As of now.
    """
    return self._status(id)


@external
@view
def roll_in_force() -> uint256:
    """
    @notice The newest roll that counts.
    @return Its number, 0 when there is none.
    @custom:security As of now.
    """
    return self._roll_in_force()


@external
@view
def times() -> (uint256, uint256, uint256):
    """
    @notice The rules of a vote.
    @return Seconds of voting, seconds of the timelock, and the quorum in basis points.
    @custom:security Fixed when the contract was made.
    """
    return VOTE_S, DELAY_S, QUORUM_BPS


@external
@view
def domain_separator() -> bytes32:
    """
    @notice What rolls and votes are signed for: this chain and this contract.
    @return EIP-712 domain separator.
    @custom:security Follows the chain id.
    """
    return self._domain()

# ------------------------------------------------------------------ internal

@internal
@view
def _roll_in_force() -> uint256:
    """
    @dev Rolls are few and most count; of the newest sixteen the first that does. Waiting ones are looked past.
    """
    number: uint256 = self.roll_count
    for _: uint256 in range(16):
        if number == 0:
            break
        if not self.rolls[number].struck and block.timestamp >= self.rolls[number].counts_from:
            return number
        number -= 1
    return 0


@internal
@view
def _status(id: uint256) -> uint256:
    one: Proposal = self.proposals[id]
    if one.votes_until == 0:
        return 0
    if one.closed != 0:
        return one.closed
    if block.timestamp < one.votes_until:
        return VOTING
    cast: uint256 = one.votes_for + one.votes_against
    if one.votes_for <= one.votes_against or cast * WHOLE < self.rolls[one.roll].clusters * QUORUM_BPS:
        return REJECTED
    if one.replaces != self.policy:
        return LAPSED
    if block.timestamp < one.votes_until + DELAY_S:
        return WAITING
    if block.timestamp >= one.votes_until + DELAY_S + max(DELAY_S, 7 * 86400):
        return LAPSED
    return READY


@internal
@view
def _only_member(roll: uint256, cluster: bytes32, voter: address, proof: DynArray[bytes32, DEPTH_MAX]):
    node: bytes32 = keccak256(concat(b"\x00", cluster, convert(voter, bytes20)))
    for sibling: bytes32 in proof:
        if convert(node, uint256) < convert(sibling, uint256):
            node = keccak256(concat(b"\x01", node, sibling))
        else:
            node = keccak256(concat(b"\x01", sibling, node))
    assert node == self.rolls[roll].root, "Governance: not on the roll"


@internal
def _vote(id: uint256, cluster: bytes32, voter: address, support: bool, proof: DynArray[bytes32, DEPTH_MAX]):
    assert self._status(id) == VOTING, "Governance: not voting"
    self._only_member(self.proposals[id].roll, cluster, voter, proof)
    assert not self.cluster_voted[id][cluster], "Governance: cluster has voted"
    assert not self.voter_voted[id][voter], "Governance: account has voted"
    self.cluster_voted[id][cluster] = True
    self.voter_voted[id][voter] = True
    if support:
        self.proposals[id].votes_for += 1
    else:
        self.proposals[id].votes_against += 1
    log Voted(id=id, cluster=cluster, support=support)


@internal
@view
def _domain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE, DOMAIN_NAME, DOMAIN_VERSION, chain.id, self))


@internal
@view
def _only_signed(terms: bytes32, signer: address, signature: Bytes[65]):
    assert len(signature) == 65, "Governance: signature is cut"
    s: uint256 = extract32(signature, 32, output_type=uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    assert s <= HALF_ORDER, "Governance: signature is not in lower form"
    who: address = ecrecover(
        keccak256(concat(b"\x19\x01", self._domain(), terms)), v, extract32(signature, 0, output_type=uint256), s
    )
    assert who != empty(address) and who == signer, "Governance: not signed"
