"""The division in words: one sentence a line, for people who were paid or who paid."""

from __future__ import annotations

from collections import defaultdict

from headwater.core.money import BPS, format_units
from headwater.splits.policy import COMMONS, Policy
from headwater.splits.waterfall import CONTRIBUTORS, GRADE_DISCOUNT, RESIDUAL, Division


def explain(division: Division, policy: Policy) -> tuple[str, ...]:
    """One sentence for each line of a division, in the order money left the price."""
    rules = {line.name: line for line in policy.lines}
    totals: defaultdict[str, int] = defaultdict(int)
    payees: defaultdict[str, set[str]] = defaultdict(set)
    for payout in division.payouts:
        totals[payout.line] += payout.amount_units
        payees[payout.line].add(payout.account)
    sentences = [f"The caller paid {_money(division.price_units, policy)}."]
    for name, amount in totals.items():
        match name:
            case "contributors":
                sentences.append(
                    f"{_money(amount, policy)} went to {_people(len(payees[CONTRIBUTORS]))} whose contributions changed"
                    " the answer, each by its share of the bits."
                )
            case "residual":
                accounts = ", ".join(sorted(payees[RESIDUAL]))
                to = "the commons" if payees[RESIDUAL] == {COMMONS} else f"the base model's account ({accounts})"
                sentences.append(
                    f"{_money(amount, policy)} could be traced to no registered contribution and went to {to}."
                )
            case "grade_discount":
                sentences.append(
                    f"{_money(totals[GRADE_DISCOUNT], policy)} went to the commons because the shares were"
                    " not measured exactly."
                )
            case "attribution":
                sentences.append(f"{_money(amount, policy)} paid for measuring who supplied the answer.")
            case _:
                line = rules[name]
                percent = f"{line.bps * 100 // BPS}.{line.bps % 100:02d}"  # exact: bps are hundredths of a percent
                sentences.append(
                    f"{_money(amount, policy)} ({percent} % of the price) went to"
                    f" {_people(len(payees[name])) if line.payees else line.account}: {line.rule}."
                )
    return tuple(sentences)


def _money(units: int, policy: Policy) -> str:
    return f"{format_units(units)} {policy.currency}"


def _people(count: int) -> str:
    return "1 account" if count == 1 else f"{count} accounts"
