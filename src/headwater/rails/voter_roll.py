"""The roll of voters: one vote for each cluster of accounts that belong to one person.

    leaf = keccak(0x00 | cluster 32 | voter 20)      node = keccak(0x01 | lower | higher), ordered by value

A cluster is named by the keccak of its id. It may have several accounts that can vote for it, and still one vote; an
account stands in one cluster. Stake, shares and volume appear nowhere. Signed by the registrar (EIP-712).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headwater.core.address import parse_address
from headwater.core.errors import InvalidError, MissingError
from headwater.core.keccak import keccak256
from headwater.settlement.typed_data import SigningDomain, address_word, digest, sign, word

MEMBERS_MAX = 2**20
_ROLL = "Roll(uint256 number,bytes32 root,uint256 clusters)"
_VOTE = "Vote(uint256 proposal,bytes32 cluster,address voter,bool support)"


@dataclass(frozen=True, slots=True)
class VoterRoll:
    """Who may vote, as (cluster id, address) sorted by leaf."""

    members: tuple[tuple[str, str], ...]
    rows: tuple[tuple[bytes, ...], ...]  # of the tree, leaves first

    @classmethod
    def build(cls, clusters: Mapping[str, Iterable[str]]) -> VoterRoll:
        """The roll of some clusters: cluster id -> addresses that may vote for it.

        Raises:
            InvalidError: nobody, too many, or an address in two clusters.
        """
        placed: dict[str, str] = {}
        for cluster, addresses in clusters.items():
            for address in addresses:
                plain = "0x" + parse_address(address).hex()
                if placed.setdefault(plain, cluster) != cluster:
                    raise InvalidError(
                        f"{address} is in {placed[plain]} and in {cluster}",
                        code="roll_overlaps",
                        fix="one account, one cluster: merge the clusters or leave it out",
                    )
        if not 0 < len(placed) <= MEMBERS_MAX:
            raise InvalidError(f"{len(placed)} voters", code="roll_invalid", fix=f"give 1 to {MEMBERS_MAX}")
        members = sorted(((c, a) for a, c in placed.items()), key=lambda one: _leaf(*one))
        rows = [tuple(_leaf(*one) for one in members)]
        while len(rows[-1]) > 1:
            row = rows[-1]
            paired = [_node(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]
            rows.append(tuple(paired + ([row[-1]] if len(row) % 2 else [])))
        return cls(tuple(members), tuple(rows))

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self.rows[-1][0]

    @property
    def clusters_count(self) -> int:
        """Votes there are."""
        return len({cluster for cluster, _ in self.members})

    def cluster_of(self, voter: str) -> str:
        """The cluster an address votes for.

        Raises:
            MissingError: it is not on the roll.
        """
        plain = "0x" + parse_address(voter).hex()
        for cluster, address in self.members:
            if address == plain:
                return cluster
        raise MissingError(f"{voter} is not on the roll", code="voter_missing", fix="ask the registrar")

    def proof(self, voter: str) -> tuple[bytes, ...]:
        """Siblings from the voter's leaf upwards.

        Raises:
            MissingError: it is not on the roll.
        """
        plain = "0x" + parse_address(voter).hex()
        place = self.members.index((self.cluster_of(voter), plain))
        path = []
        for row in self.rows[:-1]:
            if place ^ 1 < len(row):
                path.append(row[place ^ 1])
            place >>= 1
        return tuple(path)

    def as_json(self) -> dict[str, object]:
        """For publication: everybody can compare it with the registry's clusters and rebuild the root."""
        clusters: dict[str, list[str]] = {}
        for cluster, address in self.members:
            clusters.setdefault(cluster, []).append(address)
        return {"schema": "headwater.roll/1", "root": self.root.hex(), "clusters": dict(sorted(clusters.items()))}


def cluster_key(cluster: str) -> bytes:
    """The 32 bytes that stand for a cluster on chain."""
    return keccak256(cluster.encode("utf-8"))


def sign_roll(roll: VoterRoll, number: int, domain: SigningDomain, key: bytes) -> bytes:
    """The registrar's signature of the roll that gets this number."""
    words = word(number) + roll.root + word(roll.clusters_count)
    return sign(digest(domain, _ROLL, words), key)


def sign_vote(proposal: int, cluster: str, voter: str, support: bool, domain: SigningDomain, key: bytes) -> bytes:
    """A vote that anybody may send."""
    words = word(proposal) + cluster_key(cluster) + address_word(voter) + word(int(support))
    return sign(digest(domain, _VOTE, words), key)


def governance_domain(chain_id: int, contract: str) -> SigningDomain:
    """Where rolls and votes are signed for."""
    return SigningDomain("headwater governance", "1", chain_id, contract)


def _leaf(cluster: str, address: str) -> bytes:
    return keccak256(b"\x00" + cluster_key(cluster) + bytes.fromhex(address[2:]))


def _node(left: bytes, right: bytes) -> bytes:
    return keccak256(b"\x01" + min(left, right) + max(left, right))
