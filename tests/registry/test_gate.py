"""The licence gate."""

from __future__ import annotations

from hypothesis import given
from hypothesis.strategies import frozensets, integers, none, one_of, sampled_from

from headwater.core.ids import ContributorId
from headwater.registry import USES, Contribution, License, contribute, owned_equally, permits, permitted
from headwater.registry.license import Use

NOW = 1_000


def under(
    uses: frozenset[Use], expires_at_ns: int | None = None, floor_units: int = 0, content: bytes = b"x"
) -> Contribution:
    """A document under these terms."""
    terms = License("LicenseRef-test", uses, floor_units, expires_at_ns)
    owner = ContributorId("ctr_" + "a" * 32)
    return contribute(
        "document", content, title="t", owners=owned_equally([owner]), license=terms, registered_at_ns=0, source=""
    )


@given(
    uses=frozensets(sampled_from(USES)),
    use=sampled_from(USES),
    expires=one_of(none(), integers(0, 2_000)),
    floor=integers(0, 10),
    offer=one_of(none(), integers(0, 10)),
)
def test_the_gate_opens_exactly_when_every_term_is_met(
    uses: frozenset[Use], use: Use, expires: int | None, floor: int, offer: int | None
) -> None:
    """Use listed, not expired, and the floor met where a price is known: all three, or a refusal."""
    allowed = use in uses and (expires is None or expires > NOW) and (offer is None or offer >= floor)

    assert (permits(under(uses, expires, floor), use, NOW, offer) is None) == allowed


def test_a_refusal_says_which_term_was_not_met() -> None:
    """Each reason has its code, and the message names the licence or the amounts."""
    everything = frozenset(USES)
    cases = (
        (under(frozenset({"train"})), None, "use_not_permitted", "permits train, not ground"),
        (under(frozenset()), None, "use_not_permitted", "permits nothing"),
        (under(everything, expires_at_ns=NOW), None, "license_expired", "1970-01-01T00:00:00.000001000Z"),
        (under(everything, floor_units=2_000_000), 1_000_000, "price_below_floor", "offers 0.0010"),
    )
    for contribution, offer, code, words in cases:
        refusal = permits(contribution, "ground", NOW, offer)
        assert refusal is not None
        assert (refusal.code, refusal.contribution_id) == (code, contribution.id)
        assert words in refusal.message


def test_a_list_is_parted_and_keeps_its_order() -> None:
    """Everything ends on one side; the order is the order given."""
    open_ones = [under(frozenset({"ground"}), content=bytes([i])) for i in range(3)]
    shut = [under(frozenset(), content=bytes([9 + i])) for i in range(2)]

    allowed, refused = permitted([open_ones[2], shut[1], open_ones[0], shut[0], open_ones[1]], "ground", NOW)

    assert allowed == (open_ones[2], open_ones[0], open_ones[1])
    assert [refusal.contribution_id for refusal in refused] == [shut[1].id, shut[0].id]
