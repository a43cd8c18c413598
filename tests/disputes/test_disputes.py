"""Disputes from the bond to the outcome: what is disputed is held, handed over once, and nothing is lost on the way."""

from __future__ import annotations

import pytest
from court import BOND, Bench, bench

from headwater.core.errors import ConflictError, InvalidError, RefusedError
from headwater.core.instants import DAY_NS
from headwater.core.money import NANO, PPB
from headwater.disputes import Disputes
from headwater.receipts import Receipt
from headwater.registry import Ownership
from headwater.registry.dispute import Case, Claim
from headwater.splits import recompute_split
from headwater.store.consent_store import ConsentStore


def thief_case(here: Bench) -> tuple[Case, str, str]:
    """A dispute by the victim of whoever registered "Rivers"; with the thief's and the victim's accounts."""
    rivers = here.document()
    thief = here.toy.registry.get(rivers).owners[0].contributor_id
    victim = here.person("The Victim")
    claim = Claim("registration", rivers, (Ownership(victim, PPB),))
    case = here.disputes.open(claim, victim, here.credit("victim").account, "published a year before, see the archive")
    return case, f"escrow:{thief}", f"escrow:{victim}"


def paid_for(receipt: Receipt, here: Bench) -> int:
    """What a receipt pays for "Rivers"."""
    return sum(p.amount for p in receipt.payouts if p.contribution == here.document())


def test_the_thief_who_registered_first_loses_everything_that_has_not_settled(tmp_path):
    """Held at once, also for answers that come later; handed to the victim when the time to appeal is over."""
    with bench(tmp_path) as here:
        judges = here.judges(5)
        first = here.ask()
        case, thief, victim = thief_case(here)
        account = case.challenger_account

        assert here.units(thief) == 0
        assert here.units(f"disputed:{case.id}") == paid_for(first, here) > 0
        assert here.units(f"disputed:{case.id}.challenger") == BOND
        second = here.ask()
        assert here.units(thief) == paid_for(second, here)
        here.passes(7)
        assert here.units(thief) == 0
        case = here.disputes.store.get(case.id)
        assert case.phase == "voting"
        assert set(case.sitting.members) <= set(judges)
        here.vote(case.id, upholds=True)
        assert here.disputes.store.get(case.id).verdict == "upheld"
        here.passes(5)

        assert here.disputes.store.get(case.id).phase == "closed"
        assert here.units(victim) == paid_for(first, here) + paid_for(second, here)
        assert here.units(f"disputed:{case.id}") == here.units(f"disputed:{case.id}.challenger") == 0
        assert here.units(account) == 100 * NANO - 2 * NANO  # two votes made a majority; the fees were its bond's
        third = here.ask()
        assert here.units(victim) == sum(paid_for(one, here) for one in (first, second, third))
        assert here.toy.registry.owner_history(here.document())[-1][0] == f"dispute:{case.id}"
        newest = Receipt.from_bytes(here.toy.log.in_force(first.call_id).raw)
        assert newest.payouts == recompute_split(newest, here.books.policy_text(newest.policy_digest))
        assert here.sound()


def test_a_dispute_that_is_rejected_gives_all_back_and_pays_the_other_side(tmp_path):
    """The respondent answered with a bond; the challenger's pays the panel and what is left is the respondent's."""
    with bench(tmp_path) as here:
        here.judges(5)
        receipt = here.ask()
        case, thief, victim = thief_case(here)
        respondent = here.credit("respondent").account
        here.disputes.answer(case.id, respondent, "signed commits of three years")
        with pytest.raises(ConflictError):
            here.disputes.answer(case.id, here.credit("another").account, "me too")
        here.passes(7)
        here.vote(case.id, upholds=False)
        here.passes(5)

        assert here.units(thief) == paid_for(receipt, here)
        assert here.units(victim) == 0
        assert here.units(case.challenger_account) == 100 * NANO - BOND
        assert here.units(respondent) == 100 * NANO + BOND - 2 * NANO
        assert here.toy.registry.owner_history(here.document())[1:] == ()
        assert here.sound()


def test_one_appeal_goes_to_a_larger_panel_of_others_and_is_final(tmp_path):
    """Who wins the appeal gets the loser's bonds; nobody sits twice."""
    with bench(tmp_path) as here:
        here.judges(9)
        here.ask()
        case, _, victim = thief_case(here)
        here.disputes.answer(case.id, here.credit("respondent").account, "mine")
        here.passes(7)
        here.vote(case.id, upholds=False)
        with pytest.raises(ConflictError):
            here.disputes.appeal(case.id, "respondent", "the winner may not")
        here.disputes.appeal(case.id, "challenger", "the first panel overlooked the archive")
        here.disputes.settle_due()
        now = here.disputes.store.get(case.id)
        assert len(now.sitting.members) == 5
        assert not set(now.sitting.members) & set(now.first[0].members)
        here.vote(case.id, upholds=True)
        done = here.disputes.store.get(case.id)

        assert (done.phase, done.verdict) == ("closed", "upheld")
        assert here.units(victim) > 0
        fees = (2 + 3) * NANO
        assert here.units(case.challenger_account) == 100 * NANO + BOND - fees
        with pytest.raises(ConflictError):
            here.disputes.appeal(case.id, "respondent", "again")
        assert here.sound()


def test_a_case_that_nobody_judges_ends_by_itself_with_everything_as_it_was(tmp_path):
    """No reviewers at all: panels stay empty, rounds run out, bonds and money go back."""
    with bench(tmp_path) as here:
        receipt = here.ask()
        case, thief, _ = thief_case(here)
        here.passes(case.rules.longest_ns // DAY_NS + 1)
        done = here.disputes.store.get(case.id)

        assert (done.phase, done.verdict) == ("closed", "undecided")
        assert here.units(thief) == paid_for(receipt, here)
        assert here.units(case.challenger_account) == 100 * NANO
        assert here.sound()


def test_a_clock_that_leaps_or_goes_back_takes_no_time_away(tmp_path):
    """A year ahead counts as a day, a year back as nothing; a restart changes neither."""
    with bench(tmp_path) as here:
        here.judges(3)
        case, *_ = thief_case(here)
        here.clock[0] += 365 * DAY_NS
        Disputes(here.disputes.court).settle_due()
        here.clock[0] -= 700 * DAY_NS
        Disputes(here.disputes.court).settle_due()
        assert here.disputes.store.get(case.id).phase == "evidence"
        here.clock[0] += 335 * DAY_NS
        here.passes(6)
        assert here.disputes.store.get(case.id).phase == "voting"


def test_nobody_judges_their_own_case_nor_that_of_whom_they_act_together_with(tmp_path):
    """Owners, claimants and everybody of their clusters are never drawn, whatever the value that draws."""
    with bench(tmp_path) as here:
        judges = list(here.judges(6))
        thief = here.toy.registry.get(here.document()).owners[0].contributor_id
        here.clusters |= {judges[0]: "gang", thief: "gang", judges[1]: "pair", judges[2]: "pair"}
        here.disputes.store.add_reviewer(thief, here.credit("thief").account, 0)
        case, *_ = thief_case(here)
        here.passes(7)
        members = here.disputes.store.get(case.id).sitting.members

        assert len(members) == 3
        assert not {judges[0], thief, case.challenger} & set(members)
        assert len({judges[1], judges[2]} & set(members)) <= 1


def test_only_those_with_standing_and_a_bond_may_open_and_only_once(tmp_path):
    """Strangers, empty pockets and second disputes about the same thing are refused, and leave nothing behind."""
    with bench(tmp_path) as here:
        here.ask()
        stranger, rivers = here.person("A Stranger"), here.document()
        victim = here.person("The Victim")
        claim = Claim("registration", rivers, (Ownership(victim, PPB),))
        with pytest.raises(RefusedError) as nobody:
            here.disputes.open(claim, stranger, here.credit("s").account, "because")
        assert nobody.value.code == "no_standing"
        poor = here.toy.key("poor", 1)[1].account
        with pytest.raises(RefusedError) as short:
            here.disputes.open(claim, victim, poor, "because")
        assert short.value.code == "insufficient_credit"
        assert here.disputes.store.cases() == ()
        here.disputes.open(claim, victim, here.credit("v").account, "because")
        with pytest.raises(ConflictError) as twice:
            here.disputes.open(claim, victim, here.credit("w").account, "because")
        assert twice.value.code == "dispute_open"
        with pytest.raises(InvalidError):
            Claim("registration", rivers, (Ownership(victim, PPB - 1),))


def test_a_share_of_one_receipt_can_be_found_to_be_nobodys(tmp_path):
    """The payer of the call disputes one share; upheld, its bits are the base model's and the others keep theirs."""
    with bench(tmp_path) as here:
        here.judges(3)
        receipt = here.ask()
        payer = here.toy.calls.get(receipt.call_id).payer
        claim = Claim("receipt", here.document(), receipt=receipt.id)
        case = here.disputes.open(claim, here.person("A Caller"), payer, "it was not used")
        others = {p.account: p.amount for p in receipt.payouts if p.account.startswith("contributor:")}
        here.passes(7)
        here.vote(case.id, upholds=True)
        here.passes(5)
        newest = Receipt.from_bytes(here.toy.log.in_force(receipt.call_id).raw)

        assert here.document() not in {s.contribution for s in newest.attribution.shares}
        assert newest.attribution.total_microbits == receipt.attribution.total_microbits
        assert newest.price == receipt.price
        assert all(
            amount >= others[account]
            for account, amount in ((p.account, p.amount) for p in newest.payouts)
            if account in others
        )
        assert here.units(f"disputed:{case.id}") == 0
        assert here.sound()


def test_a_countered_takedown_is_decided_by_its_dispute(tmp_path):
    """While it is disputed the text stays down; rejected, it is served again."""
    with bench(tmp_path) as here:
        here.judges(3)
        rivers, consents = here.document(), ConsentStore(here.toy.db)
        owner = here.person("Claimant")
        here.toy.registry.change_owners(here.document("Clouds"), (Ownership(owner, PPB),), cause="a gift", now_ns=1)
        notice = consents.file_takedown(rivers, "Claimant", "copied from Clouds", here.books.now_ns())[0].notice
        consents.counter(notice, "it is mine", here.books.now_ns())
        case = here.disputes.open(Claim("registration", rivers), owner, here.credit("c").account, "x", notice=notice)
        assert consents.takedown(notice).state(here.books.now_ns()) == "disputed"
        here.passes(7)
        here.vote(case.id, upholds=False)
        here.passes(5)
        assert consents.takedown(notice).state(here.books.now_ns()) == "restored"
        assert rivers in {s.contribution for s in here.ask().attribution.shares}


def test_withdrawing_before_a_panel_sits_costs_no_fees(tmp_path):
    """Nobody answered: the whole bond comes back, and the money with it."""
    with bench(tmp_path) as here:
        here.judges(3)
        receipt = here.ask()
        case, thief, _ = thief_case(here)
        assert here.disputes.withdraw(case.id).phase == "closed"
        assert here.units(case.challenger_account) == 100 * NANO
        assert here.units(thief) == paid_for(receipt, here)
        assert here.sound()
