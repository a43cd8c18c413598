"""The twelve questions, as data: changes of a base scenario by row, figures by column, assumptions in words.

Knows nothing of how questions are asked; `questions.ask` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headwater.economy.scenario import policy_of

Figures = Mapping[str, float]
Cell = Callable[[Figures, Figures], float]
"""A column: from the figures of a run and those of the row it is compared with, for the same seed."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the runs that answer it."""

    number: str
    text: str
    base: Mapping[str, Any]
    rows: tuple[tuple[str, Mapping[str, Any]], ...]
    columns: tuple[tuple[str, str, Cell], ...]  # (header, unit, cell); unit is %, $, x or a word
    assumption: str
    output: str  # the figure whose factors are shown
    factors_at: int = 0  # row at which factors are screened
    factors: tuple[tuple[str, float, float, bool], ...] = ()  # ranges beside the common ones
    screen_days: int = 60  # length of the small runs that screen factors


def _of(name: str) -> Cell:
    return lambda got, _: got[name]


def _ratio(name: str) -> Cell:
    """A figure beside that of the first row, less one."""
    return lambda got, first: got[name] / first[name] - 1.0 if first[name] else 0.0


def _shared(*names: str) -> Cell:
    return lambda got, _: sum(got.get(f"share:{name}", 0.0) for name in names)


def _loss(got: Figures, first: Figures) -> float:
    return 1.0 - got["honest_earned"] / first["honest_earned"]


def _attackers_part(got: Figures, _: Figures) -> float:
    return got["attack_income"] / max(1e-9, got["attack_income"] + got["honest_earned"])


def _kept_cost(got: Figures, first: Figures) -> float:
    kept = got["active"] - first["active"]
    return got["subsidy"] / kept if kept >= 1 else float("nan")


BASE = {"contributors": 4_000, "users": 4_000, "apps": 100, "run.days": 120}
_OURS = {"policy": "default", "split.rule": "dedup-shapley"}
_STORE = {
    "policy": policy_of({"store": 0.30, "platform": 0.05, "app": 0.35, "compute": 0.15}),
    "split.rule": "dedup-shapley",
}
_OPENLEDGER = {
    "policy": policy_of({"platform": 0.10, "model": 0.20, "stakers": 0.20}), "split.rule": "proportional",
}  # fmt: skip
_ATTACK = {"attack.accounts": 200, "account_cost_nano": 10_000_000}
_ATTACKS: tuple[tuple[str, dict[str, Any]], ...] = (
    # An attacker whose every contribution is refused: the same rows, nothing earned.
    ("nobody attacks", {"attack.kind": "spam", "detection": 1.0}),
    ("wash", {"attack.kind": "wash", "attack.payers": 20}),
    ("a tenth of use in one account", {"attack.kind": "sybil", "attack.accounts": 1}),
    ("a tenth of use in 200 accounts", {"attack.kind": "sybil"}),
    ("copies", {"attack.kind": "duplicate"}),
    ("spam", {"attack.kind": "spam", "detection": 0.5}),
    ("bait", {"attack.kind": "stuffing", "intensity": 30.0}),
    ("bribed reviewers", {"attack.kind": "collusion"}),
)
ATTACKS = _ATTACKS
"""Every attack that the simulator knows, by name, and the assumptions that make it."""

_FLAT = {"price.rule": "subscription", "subscription_day_nano": 5_000_000}
_TWO = {"fee_payer": "payee", "settle.mode": "threshold"}

QUESTIONS: dict[str, Question] = {
    q.number: q
    for q in (
        Question(
            "Q1", "Do micro-rewards scale?",
            {},
            (
                ("10^4 users, 10^4 contributors", {"users": 10_000, "contributors": 10_000, "mode": "pool"}),
                ("10^5 users, 10^4 contributors", {"users": 100_000, "contributors": 10_000, "mode": "pool"}),
                ("10^6 users, 10^4 contributors", {"users": 1_000_000, "contributors": 10_000, "mode": "pool"}),
                ("10^7 users, 10^4 contributors", {"users": 10_000_000, "contributors": 10_000, "mode": "pool"}),
                ("10^5 users, 10^5 contributors", {"users": 100_000, "contributors": 100_000, "mode": "pool"}),
                ("10^6 users, 10^6 contributors", {"users": 1_000_000, "contributors": 1_000_000, "mode": "pool"}),
                *(
                    (f"{users} users, 10^4 contributors, single calls, {label}",
                     {"users": n, "contributors": 10_000, "split.rule": rule})
                    for users, n in (("10^4", 10_000), ("10^5", 100_000))
                    for rule, label in (("dedup-shapley", "each divided alone"), ("pooled", "one pool a month"))
                ),
            ),
            (
                ("fees", "%", _of("fees_share")), ("earned", "%", _of("contributors_earned_share")),
                ("received", "%", _of("contributors_received_share")), ("median a month", "$", _of("median_month")),
                ("mean a month", "$", _of("mean_month")), ("over $1 a month", "%", _of("above_dollar_share")),
                ("ever paid", "%", _of("ever_paid_share")), ("cost of effort", "%", _of("cost_share")),
            ),
            "But for the last four rows calls are paid as their daily mean (pool mode): expected pay, without the luck "
            "of single calls. Contributions are drawn on by a Pareto law whose exponent does not change with size. A "
            "monthly pool counts uses and measures no bits, so it leaves nothing to the base model.",
            "median_month",
        ),
        Question(
            "Q2", "What fee and threshold kill them?",
            {},
            tuple(
                (f"fee ${fee:g}, {label}", {"fee_nano": round(fee * 1e9), **changes})
                for fee in (0.001, 0.01, 0.05, 0.25)
                for label, changes in (
                    ("cumulative, pushed at T* by the line", {}),
                    ("threshold $0.10", {**_TWO, "threshold_nano": 100_000_000}),
                    ("threshold $1", {**_TWO, "threshold_nano": 1_000_000_000}),
                    ("threshold $10", {**_TWO, "threshold_nano": 10_000_000_000}),
                )
            ),
            (
                ("received", "%", _of("contributors_received_share")), ("waiting", "%", _of("waiting_share")),
                ("fees", "%", _of("fees_share")), ("unreachable", "%", _of("unreachable_share")),
                ("ever paid", "%", _of("ever_paid_share")), ("delay", "days", _of("delay_days")),
            ),
            "Owners vanish at 10 % a year and half have enrolled at the start; claims happen at 15 % a week if "
            "they are "
            "worth five fees.",
            "contributors_received_share",
            factors=(("settle.enrolled_share", 0.1, 0.9, False),),
        ),
        Question(
            "Q3", "Who captures the money?",
            {},
            (
                ("ours: 20 % compute, 5 % platform, 1 % settlement", _OURS),
                ("store-like: 30 % store, 5 % platform, 35 % app, 15 % compute", _STORE),
                ("OpenLedger's example: 10 % platform, 20 % model, 20 % stakers", _OPENLEDGER),
            ),
            (
                ("contributors earn", "%", _of("contributors_earned_share")),
                ("and have received", "%", _of("contributors_received_share")),
                ("nobody in particular", "%", _shared("base_model", "commons")),
                ("platform and store", "%", _shared("platform", "store", "settlement")),
                ("app", "%", _shared("app")), ("compute", "%", _shared("compute", "infra")),
                ("model and stakers", "%", _shared("model", "stakers")),
                ("cost of effort", "%", _of("cost_share")), ("Theil between layers", "%", _of("theil_between")),
            ),
            "The same usage and evidence under three policies; a third of answers owe nothing to any source. "
            "OpenLedger's "
            "lines are its published example; its per-token weights are not public, so evidence is shared in "
            "proportion.",
            "contributors_earned_share",
        ),
        Question(
            "Q4", "Does the coordinator concentrate?",
            {"run.days": 1095, "contributors": 1_000, "users": 1_000, "apps": 300, "coordinators.compete": True},
            tuple(
                (f"{n} coordinator{'s' * (n > 1)}, {'portable' if portable else 'locked in'}",
                 {"agents.coordinators": n, "portability": portable})
                for n in (1, 2, 5, 20)
                for portable in ((True, False) if n > 1 else (True,))
            ),
            (
                ("HHI", "x", _of("coordinator_hhi")), ("Nakamoto", "", _of("coordinator_nakamoto")),
                ("take after 3 years", "%", _of("coordinator_take")),
                ("contributors earn", "%", _of("contributors_earned_share")),
            ),
            "Apps choose by take, size and taste; coordinators keep moving their take while it pays, up to what "
            "the cap leaves. "
            "How much size attracts (0.3) is a guess.",
            "coordinator_take",
            screen_days=720,
            factors_at=3,
            factors=(
                ("coordinators.network", 0.0, 1.5, False), ("coordinators.take_weight", 2.0, 60.0, True),
                ("coordinators.switch_cost", 0.5, 6.0, False),
            ),
        ),
        Question(
            "Q5", "Stacked mark-ups or one capped sum?",
            {"demand.shape": "linear"},
            (
                ("one base, lines capped", {}),
                *((f"{n} seller{'s' * (n > 1)} on top of each other", {"markup_layers": n}) for n in range(1, 6)),
            ),
            (
                ("calls made", "%", _of("made_share")), ("calls", "%", _ratio("calls")),
                ("contributors earn of what callers pay", "%", _of("contributors_earned_share")),
                ("sellers take", "%", _shared("sellers")),
                ("contributors' income", "%", _ratio("honest_earned")),
                ("surplus a wish", "$", _of("surplus_per_wish")),
            ),
            "Linear demand with a mean worth of 2 cents a call; each seller knows it and sets the mark-up best "
            "for itself.",
            "surplus_per_wish",
            factors_at=2,
            factors=(("demand.value_nano", 5e6, 8e7, True),),
        ),
        Question(
            "Q6", "What does asking people cost?",
            {"demand.shape": "exponential", "calls_per_day": 6.0, "activity_spread": 0.8},
            (
                ("one mandate, no questions", {}),
                ("a question every 100 calls", {"attention.mode": "prompt", "calls_per_prompt": 100}),
                ("a question every 10 calls", {"attention.mode": "prompt", "calls_per_prompt": 10}),
                ("a question every call", {"attention.mode": "prompt"}),
                ("every call, half a second at $5", {"attention.mode": "prompt", "decision_seconds": 0.5, "wage": 5.0}),
                ("every call, 20 decisions a day", {"attention.mode": "prompt", "prompts_per_day": 20.0}),
            ),
            (
                ("calls made", "%", _of("made_share")), ("given up undecided", "%", _of("undecided_share")),
                ("attention a call", "$", _of("attention_per_call")), ("surplus a wish", "$", _of("surplus_per_wish")),
                ("contributors' income", "%", _ratio("honest_earned")),
            ),
            "A decision takes 2 seconds at $15 an hour, and people stop deciding after about five a day; a "
            "question is only "
            "asked at the first call it covers and also refuses calls worth less than their price.",
            "surplus_per_wish",
            factors_at=3,
            factors=(
                ("attention.decision_seconds", 0.2, 5.0, True), ("attention.prompts_per_day", 1.0, 50.0, True),
                ("demand.value_nano", 5e6, 8e7, True),
            ),
        ),
        Question(
            "Q7", "Do rewards change what people contribute?",
            {"run.days": 365, "calls_per_day": 3.0, "demand.quality_pull": 0.0},
            tuple(
                (f"elasticity {e:g}, noticed from ${s:g}, crowding {c:+g}",
                 {"elasticity": e, "salience_month_nano": round(s * 1e9), "crowding": c})
                for e, s, c in (
                    (0.1, 1, 0), (0.1, 0.1, 0), (1.0, 1, 0), (1.0, 0.1, 0), (2.9, 0.1, 0), (0.1, 0.1, -0.5),
                    (1.0, 0.1, -0.5),
                )
            ),
            (
                ("mean effort", "x", _of("effort")), ("Gini of effort", "", _of("gini_effort")),
                ("still active", "%", _of("active_share")), ("newcomers kept", "%", _of("survival")),
                ("over $1 a month", "%", _of("above_dollar_share")), ("Gini of pay", "", _of("gini_earned")),
            ),
            "Pay that is not noticed changes nothing; above that effort follows it with constant elasticity. "
            "Quality of single "
            "contributions does not depend on pay (Mason and Watts), so only quantity moves.",
            "effort",
            factors=(("supply.crowding", -0.8, 0.4, False),),
        ),
        Question(
            "Q8", "What does each rail do to the distribution?",
            {"run.days": 365, "calls_per_day": 2.0, **_ATTACK, "attack.kind": "duplicate"},
            (
                ("none", {}), ("audits alone", {"rails.audit": True}), ("bonds", {"rails.bond": True}),
                ("vesting", {"rails.vest": True}), ("advances", {"rails.advance": True}),
                ("sold revenue", {"rails.revenue_share": True}), ("streams", {"rails.stream": True}),
                ("stakes", {"rails.stake": True}), ("token pool", {"rails.amm": True}),
                ("operators decide their take", {"rails.govern": "none"}),
                ("stake votes on it", {"rails.govern": "stake"}),
                ("accounts vote on it", {"rails.govern": "account"}),
                ("people vote on it", {"rails.govern": "cluster"}),
                ("the product's rails together", {
                    "rails.bond": True, "rails.vest": True, "rails.advance": True, "rails.revenue_share": True,
                    "rails.govern": "cluster",
                }),
            ),
            (
                ("contributors earn", "%", _of("contributors_earned_share")),
                ("Gini of earnings", "%", _of("gini_earned")),
                ("newcomers' part", "%", _of("newcomers_share")),
                ("operators take besides", "%", _of("operators_share")),
                ("attack, back per $", "x", _of("attack_return")),
                ("to speculators, net", "%", _of("speculators_share")),
                ("lenders, net", "%", _of("lenders_share")),
                ("held back", "%", _of("held_back_share")),
                ("daily variation of pay", "%", _of("pay_variation")),
                ("received", "%", _of("contributors_received_share")),
            ),
            "200 of 4,000 accounts offer copies, a tenth of them unrecognised, at a cent an account. Where somebody "
            "audits, an attacker's account is found with 1 % a day and an honest one wrongly with 0.02 %, of whom 80 % "
            "win their appeal; audits cost nothing here. A stake is 0.50 of the first pay; pay vests in 30 days; "
            "advances lend up to 70 % of what waits for 0.5 to 2.5 % and 1 % for risk. Operators ask for 2 points "
            "more each month; 5 % of contributors vote, operators are five people with 1,000 accounts and 30 % of "
            "stake. Stakers take 20 % and add nothing; buyers pay a year at 40 % discount for 30 % of pay; token "
            "traders trade at random and run together after a fall of a quarter in a week.",
            "contributors_earned_share",
            factors_at=13,
            factors=(
                ("rails.bond_nano", 1e7, 1e10, True), ("rails.audit_day", 1e-4, 0.1, True),
                ("rails.vest_days", 7.0, 120.0, False), ("rails.turnout", 0.001, 0.2, True),
                ("rails.discount_year", 0.1, 1.0, False),
            ),
        ),
        Question(
            "Q9", "Which attacks pay?",
            {},
            (
                *(
                    (f"{label}, {rule}", {**_ATTACK, "split.rule": rule, **changes})
                    for rule in ("dedup-shapley", "proportional", "pooled", "sqrt")
                    for label, changes in _ATTACKS
                ),
                *(
                    (f"{label}, {rule}, flat fee", {**_ATTACK, "split.rule": rule, **_FLAT, **changes})
                    for rule in ("pooled", "user-centric")
                    for label, changes in _ATTACKS[:2]
                ),
            ),
            (
                ("attacker's part of pay", "%", _attackers_part),
                ("return per $", "x", _of("attack_return")), ("honest people lose", "%", _loss),
                ("break-even cost an account", "$", lambda g, _: g["attack_income"] / max(1.0, g["attack_accounts"])),
                ("paid to nobody", "%", _shared("base_model", "commons")),
            ),
            "The attacker holds 200 of 4,000 accounts, a cent each; wash adds 20 payers at ten calls a day. "
            "Copies are recognised at "
            "90 %, spam at 50 %, nothing when reviewers are bribed; bait is retrieved 30 times as often as the "
            "mean. Losses are "
            "beside the same seed and rule when everything the attacker has is refused.",
            "attack_income",
            factors_at=4,
            factors=(("attack.detection", 0.0, 1.0, False), ("evidence.overlap", 0.0, 0.8, False)),
        ),
        Question(
            "Q10", "What do errors and delays of attribution cost?",
            {},
            (
                ("exact", {"noise": 1e-9}), ("bits off by 20 %", {"noise": 0.2}), ("bits off by 50 %", {"noise": 0.5}),
                *(
                    (f"bits off by {round(100 * noise)} %, {label}", {"noise": noise, "noise_correlation": part})
                    for noise, part, label in (
                        (0.2, 1.0, "always the same way"), (0.5, 0.5, "half of it always the same way"),
                        (0.5, 1.0, "always the same way"),
                    )
                ),
                ("10 % to the wrong name", {"misattributed": 0.1}), ("50 % to the wrong name", {"misattributed": 0.5}),
                ("10 % always to the same wrong name", {"misattributed": 0.1, "misattributed_always": True}),
                ("indexed after 30 days", {"noise": 1e-9, "index_lag_days": 30}),
            ),
            (
                ("misallocated", "%", _of("misallocated_share")), ("could dispute", "%", _of("disputes_share")),
                ("still active", "%", _of("active_share")), ("Gini of pay", "", _of("gini_earned")),
                ("supplied by nobody", "%", _of("residual_share")),
            ),
            "Errors of the first rows are independent from call to call and average out for whoever is used often; "
            "errors that are always the same for a contribution do not. Both are as likely up as down.",
            "misallocated_share",
            factors_at=6,
            factors=(
                ("evidence.noise_correlation", 0.0, 1.0, False), ("evidence.misattributed", 0.0, 0.5, False),
                ("evidence.noise", 0.0, 1.0, False),
            ),
        ),
        Question(
            "Q11", "Does a subsidy start an economy?",
            {"run.days": 540, "calls_per_day": 0.5, "supply.exit_day": 0.02},
            (
                ("none", {}), ("1 per unit earned, 90 days", {"subsidy.share": 1.0, "subsidy.days": 90}),
                ("4 per unit earned, 90 days", {"subsidy.share": 4.0, "subsidy.days": 90}),
                ("4 per unit earned, 360 days", {"subsidy.share": 4.0, "subsidy.days": 360}),
            ),
            (
                ("active at the end", "", _of("active")), ("newcomers kept", "%", _of("survival")),
                ("subsidy / paid", "%", lambda g, _: g["subsidy"] / g["paid"]),
                ("cost of a kept contributor", "$", _kept_cost),
                ("mean effort", "x", _of("effort")),
            ),
            "Demand does not depend on supply here, so a subsidy can only keep contributors, not bring callers.",
            "active_share",
            factors_at=2,
            factors=(("supply.exit_day", 0.002, 0.05, True), ("supply.cost_day_nano", 1e6, 3e7, True)),
        ),
        Question(
            "Q12", "Which split rule is best?",
            {"attack.kind": "duplicate", "attack.accounts": 200, "detection": 0.9, "overlap": 0.2},
            tuple(
                (rule, {"split.rule": rule})
                for rule in (
                    "dedup-shapley", "shapley", "banzhaf", "proportional", "equal", "winner-takes", "pooled", "sqrt",
                    "quadratic",
                )
            ),
            (
                ("Gini of pay", "", _of("gini_earned")), ("top 1 %", "%", _of("top1_share")),
                ("copier's part of pay", "%", _attackers_part),
                ("honest earn", "%", _of("contributors_earned_share")), ("still active", "%", _of("active_share")),
                ("simulator's time a call", "µs", _of("us_per_call")),
            ),
            "5 % of accounts copy the most used contributions and 90 % of copies are recognised; a fifth of "
            "every source's bits "
            "would have come from any other.",
            "attack_income",
            factors=(("attack.detection", 0.0, 1.0, False), ("evidence.overlap", 0.0, 0.8, False)),
        ),
    )
}  # fmt: skip
