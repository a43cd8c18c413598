"""Clusters: who acts together, what flows back to them, and what new accounts may be released."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from headwater.core.instants import DAY_NS
from headwater.registry.clusters import (
    Cluster,
    Flowed,
    Probation,
    SelfDealing,
    Sign,
    clusters,
    reward_allowed,
    self_dealing,
)

PEOPLE = ["a", "b", "c", "d", "e"]
signs = st.lists(
    st.builds(Sign, st.sampled_from(PEOPLE), st.sampled_from(["key", "address", "declared"]), st.sampled_from("xyz"),
              st.integers(0, 9)),
    max_size=12,
)  # fmt: skip


@given(signs)
def test_clusters_are_the_connected_people_whatever_the_order(given_):
    """Compared with reachability found by brute force: people are joined when a chain of shared values leads there."""
    found = clusters(given_)
    reach = {p: {p} for p in PEOPLE}
    for _ in PEOPLE:
        for one in given_:
            for two in given_:
                if (one.kind, one.value) == (two.kind, two.value):
                    both = reach[one.who] | reach[two.who]
                    for p in both:
                        reach[p] |= both
    wanted = {tuple(sorted(group)) for group in reach.values() if len(group) > 1}

    assert {one.members for one in found} == wanted
    assert clusters(reversed(given_)) == found
    assert sum(len(one.members) for one in found) == len({m for one in found for m in one.members})


def test_who_declares_a_cluster_before_it_is_found_keeps_the_short_probation():
    """The other way round, or with one who did not say so, it is held twice as long."""
    declared = [Sign("a", "declared", "us", 1), Sign("b", "declared", "us", 2)]
    shared = [Sign("a", "key", "k", 3), Sign("b", "key", "k", 4)]
    early = [Sign("a", "key", "k", 0), Sign("b", "key", "k", 1)]
    rules = Probation()

    for order in permutations(declared + shared):
        assert clusters(order)[0].declared
    assert not clusters(declared + early)[0].declared
    assert not clusters([*declared, *shared, Sign("c", "key", "k", 9)])[0].declared
    assert rules.release_at_ns(0, clusters(declared)[0]) == 14 * DAY_NS
    assert rules.release_at_ns(0, clusters(early)[0]) == 28 * DAY_NS
    assert rules.release_at_ns(0, None) == 14 * DAY_NS


@given(
    paid=st.integers(1, 10**12),
    back_ppm=st.integers(0, 10**6),
    rewarded=st.integers(0, 10**12),
    wanted=st.integers(0, 10**12),
)
def test_what_flows_back_to_a_payer_never_reaches_what_it_paid(paid, back_ppm, rewarded, wanted):
    """θ+σ < 1 for every cluster whose own payments come back to it, whatever rewards are asked for."""
    returned = paid * back_ppm // 10**6
    one = SelfDealing("cl_1", paid, returned, rewarded)
    allowed = reward_allowed(one, wanted)

    assert 0 <= allowed <= wanted
    if returned and allowed:
        assert returned + rewarded + allowed < paid
    if not returned:
        assert allowed == wanted


def test_self_dealing_is_seen_across_accounts_of_a_cluster():
    """A payer whose partner is paid by its calls is flagged; a stranger who is paid is not its own."""
    gang = Cluster("cl_g", ("contributor:ctr_1", "payer:k1"), ("funding",), False)
    flows = [Flowed("payer:k1", "contributor:ctr_1", 70), Flowed("payer:k1", "operator:p", 30),
             Flowed("payer:k2", "contributor:ctr_1", 10)]  # fmt: skip
    found = {one.cluster: one for one in self_dealing(flows, {"contributor:ctr_1": 5}, [gang])}

    assert (found["cl_g"].paid_units, found["cl_g"].returned_units, found["cl_g"].rewarded_units) == (100, 70, 5)
    assert found["cl_g"].flagged
    assert found["cl_g"].return_ppb == 750_000_000
    assert not found["payer:k2"].flagged


@given(st.dictionaries(st.sampled_from([f"escrow:{i}" for i in range(8)]), st.integers(0, 100), min_size=1))
def test_a_cluster_is_released_no_more_than_one_account(waiting):
    """However many accounts it has, together they get the cap, smallest first; nobody gets more than waits."""
    rules = Probation(cluster_units=60)
    of = {f"escrow:{i}": "cl_g" for i in range(5)}
    out = rules.released(waiting, of)

    assert all(0 <= out[a] <= waiting[a] for a in waiting)
    assert sum(out[a] for a in waiting if a in of) == min(60, sum(waiting[a] for a in waiting if a in of))
    assert all(out[a] == min(60, waiting[a]) for a in waiting if a not in of)
