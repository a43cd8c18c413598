"""Consent that is taken back, and takedowns whose state follows from their instants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.ids import ContributionId, ContributorId
from headwater.registry import License, contribute, owned_equally
from headwater.registry.consent import (
    COUNTER_NS,
    SUSPENDING,
    WAIT_NS,
    Standing,
    Takedown,
    adapter_standing,
    earns,
    usable,
)

NOW = 10**18
ONE = contribute(
    "document",
    b"words",
    title="t",
    owners=owned_equally([ContributorId("ctr_" + "a" * 32)]),
    license=License("LicenseRef-test", frozenset(("ground", "train")), 0, NOW + 100),
    registered_at_ns=0,
    source="",
)


def notice(**changes: object) -> Takedown:
    """A notice filed now."""
    return Takedown("td_1", ONE.id, "somebody", "mine", NOW, **changes)  # type: ignore[arg-type]


def test_a_withdrawal_ends_every_use_from_its_instant_on_and_not_before():
    """The snapshot before it may still use the text; from that instant on nothing may."""
    gone = Standing(withdrawn_at_ns=NOW, reason="moved")

    assert usable(ONE, "ground", NOW - 1, gone) is None
    refused = usable(ONE, "train", NOW, gone)
    assert refused is not None
    assert refused.code == "contribution_withdrawn"
    assert "moved" in refused.message


def test_a_licence_that_is_over_ends_use_and_pay_at_the_instant_of_the_call():
    """Expiry is judged when something is used, not when it was indexed; a use never granted is still paid for."""
    assert usable(ONE, "ground", NOW + 99) is None
    assert usable(ONE, "ground", NOW + 100).code == "license_expired"
    assert earns(ONE, NOW + 99) is None  # `reproduce` is not permitted, its owner is paid all the same
    assert earns(ONE, NOW + 99, Standing(erased_at_ns=NOW)).code == "contribution_erased"


def test_a_takedown_suspends_at_once_and_restores_only_after_an_unanswered_counter_notice():
    """Without counter it stays down for good; with one the claimant has so long to open a dispute."""
    filed = notice()
    countered = notice(counter="it is mine", countered_at_ns=NOW + 5)

    assert filed.state(NOW) == "suspended"
    assert filed.state(NOW + COUNTER_NS) == "removed"
    assert countered.state(NOW + 5 + WAIT_NS - 1) == "countered"
    assert countered.state(NOW + 5 + WAIT_NS) == "restored"
    assert countered.deadline_ns(NOW + 6) == NOW + 5 + WAIT_NS
    assert notice(counter="x", countered_at_ns=NOW, dispute="dsp_1").state(NOW + 9 * WAIT_NS) == "disputed"
    assert notice(counter="x", countered_at_ns=NOW, dispute="dsp_1", upheld=True).state(NOW) == "removed"
    assert notice(retracted_at_ns=NOW + 1).state(NOW + COUNTER_NS) == "retracted"


@given(now=st.integers(NOW, NOW + 5 * COUNTER_NS), later=st.integers(0, COUNTER_NS))
def test_a_takedown_ends_by_itself(now, later):
    """Whatever happens, a notice without a dispute is over after both periods, and over it stays."""
    for one in (notice(), notice(counter="x", countered_at_ns=NOW + later)):
        if now >= NOW + COUNTER_NS + WAIT_NS:
            assert one.deadline_ns(now) is None
            assert one.state(now) == one.state(now + 10 * WAIT_NS)


@pytest.mark.parametrize("state", sorted(SUSPENDING))
def test_whatever_is_down_is_put_to_no_use(state):
    """Every suspending state refuses every use, with the notice in the message."""
    made = {
        "suspended": notice(),
        "countered": notice(counter="x", countered_at_ns=NOW),
        "disputed": notice(counter="x", countered_at_ns=NOW, dispute="d"),
        "removed": notice(counter="x", countered_at_ns=NOW, dispute="d", upheld=True),
    }[state]
    refused = usable(ONE, "ground", NOW, Standing(takedowns=(made,)))

    assert made.state(NOW) == state
    assert refused is not None
    assert refused.code == "contribution_taken_down"
    assert "td_1" in refused.message


def test_an_adapter_that_learned_from_withdrawn_data_stops_unless_the_rule_says_otherwise():
    """Flag and serve differ in what is erased: only `serve` serves an adapter trained on erased bytes."""
    a, b = ContributionId("ctb_a"), ContributionId("ctb_b")
    gone, erased = {a: Standing(withdrawn_at_ns=1)}, {b: Standing(withdrawn_at_ns=1, erased_at_ns=1)}

    assert adapter_standing([a, b], {}, 5).serves
    assert not adapter_standing([a, b], gone, 5).serves
    assert adapter_standing([a, b], gone, 5).flagged[0][0] == a
    assert adapter_standing([a, b], gone, 5, "flag").serves
    assert not adapter_standing([a, b], erased, 5, "flag").serves
    assert adapter_standing([a, b], erased, 5, "serve") == adapter_standing([a, b], erased, 5, "serve")
    assert adapter_standing([a, b], erased, 5, "serve").serves
