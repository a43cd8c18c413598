"""The roll of voters and the manifest of rails, without a chain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import ConflictError, InvalidError, MissingError
from headwater.core.keccak import keccak256
from headwater.rails import Issued, RailsManifest, VoterRoll, cluster_key, digest_bytes, digest_text

ADDRESSES = [f"0x{number + 1:040x}" for number in range(40)]


def climbed(cluster: str, voter: str, proof: tuple[bytes, ...]) -> bytes:
    """The root by the words of the contract."""
    node = keccak256(b"\x00" + cluster_key(cluster) + bytes.fromhex(voter[2:]))
    for sibling in proof:
        low, high = sorted((node, sibling))
        node = keccak256(b"\x01" + low + high)
    return node


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=13))
def test_every_voter_proves_its_cluster(sizes):
    """Whatever the clusters, each address has a path to the root, and no path for another cluster."""
    free = iter(ADDRESSES)
    clusters = {f"ctr_{number}": [next(free) for _ in range(size)] for number, size in enumerate(sizes)}
    roll = VoterRoll.build(clusters)

    assert roll.clusters_count == len(sizes)
    for cluster, addresses in clusters.items():
        for address in addresses:
            assert roll.cluster_of(address) == cluster
            assert climbed(cluster, address, roll.proof(address)) == roll.root
            assert climbed("ctr_other", address, roll.proof(address)) != roll.root
    assert VoterRoll.build(dict(reversed(clusters.items()))).root == roll.root


def test_an_account_in_two_clusters_makes_no_roll():
    """Otherwise one person could be two."""
    with pytest.raises(InvalidError, match="ctr_a"):
        VoterRoll.build({"ctr_a": [ADDRESSES[0]], "ctr_b": [ADDRESSES[0]]})
    with pytest.raises(InvalidError):
        VoterRoll.build({})
    with pytest.raises(MissingError):
        VoterRoll.build({"ctr_a": [ADDRESSES[0]]}).proof(ADDRESSES[1])


def test_a_manifest_comes_back_and_refuses_a_second_of_a_kind(tmp_path):
    """What was saved is read; a rail or a subject that is there is not replaced."""
    share = Issued("dn_1", ADDRESSES[3], "Demo", "D", 10, "")
    one = RailsManifest(1, ADDRESSES[0], 7).with_rail("bond", ADDRESSES[1]).with_share(share)
    one.save(tmp_path / "rails.json")
    read = RailsManifest.load(tmp_path / "rails.json")

    assert read == one
    assert read.share_of(ADDRESSES[3].upper().replace("0X", "0x")) == share
    with pytest.raises(ConflictError):
        read.with_rail("bond", ADDRESSES[2])
    with pytest.raises(ConflictError):
        read.with_share(share)
    for missing in (lambda: read.address_of("stream"), lambda: read.share_of("dn_2")):
        with pytest.raises(MissingError):
            missing()
    with pytest.raises(MissingError):
        RailsManifest.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"schema": "other"}')
    with pytest.raises(InvalidError):
        RailsManifest.load(tmp_path / "bad.json")


def test_digests_go_both_ways():
    """What is no digest is refused with what it was."""
    assert digest_text(digest_bytes("sha256:" + "ab" * 32)) == "sha256:" + "ab" * 32
    with pytest.raises(InvalidError, match="nonsense"):
        digest_bytes("nonsense")
