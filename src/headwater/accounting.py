"""The bit account of an answered call, as its receipt states it: measured, or judged from the texts alone.

An answer of a model whose log-probabilities we have is measured (grades A and B); any other is judged by its words
(grade C). Several answers to one prompt make one account; earlier answers of ours hand their part on to who supplied
them; parts of one contribution are one share. Knows nothing of money beyond what measuring may cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from headwater.attribution.account import Rules, attribute
from headwater.attribution.bits import Attribution, Share
from headwater.attribution.budget import Budget
from headwater.attribution.combining import combine, settle_parts
from headwater.attribution.evidence import Answer, Choice, prompt_ids
from headwater.attribution.layout import Layout, Scorer, contribution_of
from headwater.attribution.learned import Influence, LearnedRules, spread_learned
from headwater.attribution.passing_on import Earlier, pass_on
from headwater.attribution.reproduced import Copied, copied_tokens
from headwater.attribution.spans import CreditRules, SpanIndex, SpanView, Trace
from headwater.attribution.spans.reference import default_reference
from headwater.attribution.surrogate import SHIPPED, attribute_text
from headwater.core.canonical import digest_of
from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId, ContributionId
from headwater.receipts import ReceiptAttribution, ReceiptOwner, ReceiptShare, microbits
from headwater.registry import Contribution, account_for
from headwater.registry.consent import IN_FORCE, earns
from headwater.serving import AnyModel, OutsideModel, Parameters, ServedAdapter, ServedModel
from headwater.splits import COMMONS, UNMEASURED, Plan, Policy
from headwater.store.consent_store import ConsentStore
from headwater.store.registry_store import RegistryStore

COPY_RULES = CreditRules()
"""What a repeated run of words must be worth before it is paid; its digest stands in every receipt."""

LEARNED_RULES = LearnedRules()
"""How an adapter's bits are shared among what it was trained on."""

NO_DIGEST = "sha256:" + "0" * 64
"""Where there is nothing to digest: no scorer was asked, no table read."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found, and by what."""

    found: Attribution | None  # None: nothing was measured, all of it is the residual's
    scorer_digest: str = NO_DIGEST
    reference_digest: str = NO_DIGEST
    index_digest: str | None = None
    parameters: Parameters = ()


@dataclass(frozen=True, slots=True)
class Accounting:
    """Makes the accounts of calls."""

    registry: RegistryStore
    policy: Policy
    spans: SpanIndex | SpanView | None
    consents: ConsentStore | None = None  # what was withdrawn, erased or taken down; without it nothing was
    at_ns: int = 0  # when the call was answered

    def account(
        self, served: AnyModel, layout: Layout, answer: Answer, plan: Plan, earlier: Mapping[str, Earlier]
    ) -> ReceiptAttribution:
        """The account of an answer.

        Args:
            plan: what may be spent on it.
            earlier: who supplied those parts of the prompt that are earlier answers of ours.
        """
        return self.state(served, plan, self.measure(served, layout, answer, plan, earlier))

    def measure(
        self, served: AnyModel, layout: Layout, answer: Answer, plan: Plan, earlier: Mapping[str, Earlier]
    ) -> Measured:
        """What was found, token by token too; `state` makes the receipt's account of it."""
        measured = self._measured(served, layout, answer, plan)
        if measured.found is not None:
            found = replace(measured.found, shares=pass_on(measured.found.shares, earlier))
            turns = {part.id for part in layout.players if part.kind == "turn"}
            nobodys = turns | self._passed_on_too_late(earlier)
            measured = replace(
                measured,
                found=settle_parts(
                    found, lambda name: None if name in nobodys else contribution_of(name), self._owner, self._rules()
                ),
            )
        passed = (("passed_on", len(earlier)),) if earlier else ()
        return replace(measured, parameters=(*measured.parameters, *passed))

    def _passed_on_too_late(self, earlier: Mapping[str, Earlier]) -> set[str]:
        """Sources of earlier answers that were taken back since, or whose licence is over."""
        named = sorted({part for one in earlier.values() for part, _, _ in one.weights})
        known = self.registry.get_many([ContributionId(name) for name in named])
        earning = set(self._earns(known))
        return {one.id for one in known if one.id not in earning}

    def _earns(self, known: Sequence[Contribution]) -> list[ContributionId]:
        """Those that earn at the instant of the answer."""
        standings = {} if self.consents is None else self.consents.standing([one.id for one in known])
        return [one.id for one in known if earns(one, self.at_ns, standings.get(one.id, IN_FORCE)) is None]

    def _owner(self, contribution: str) -> str:
        """Whose a contribution is, as receipts are read: all owners, joined."""
        return "+".join(sorted(o.contributor_id for o in self.registry.get(ContributionId(contribution)).owners))

    def _measured(self, served: AnyModel, layout: Layout, answer: Answer, plan: Plan) -> Measured:
        if isinstance(served, ServedModel):
            known = Measured(None, served.scorer.digest, served.reference.digest)
            if not plan.passes:
                return known
            found, index_digest, learned = self._of_ours(served, layout, answer, plan)
            return replace(known, found=found, index_digest=index_digest, parameters=learned)
        if not isinstance(served, OutsideModel):
            return Measured(None)
        if served.scorer is not None and is_chatml(layout):
            known = Measured(None, served.scorer.digest)
            return replace(known, found=self._of_scorer(served.scorer, layout, answer, plan)) if plan.passes else known
        return self._of_words(layout, answer)

    def _of_ours(
        self, served: ServedModel, layout: Layout, answer: Answer, plan: Plan
    ) -> tuple[Attribution | None, str | None, Parameters]:
        """The account on the weights that answered, what copies registered texts, and what was learned."""
        found: list[Attribution] = []
        index_digest: str | None = None
        learned: Parameters = ()
        for choice in answer.choices:
            if not choice.token_ids:
                continue
            one, index_digest = self._of_choice(served, layout, choice, plan)
            if served.adapter is not None:
                one, learned = self._learned(served, served.adapter, one, layout, choice)
            found.append(one)
        return (combine(found, self._rules()) if found else None), index_digest, learned

    def _not_earning(self, trace: Trace) -> list[ContributionId]:
        """Documents that an answer repeats and that were taken back before it, or whose licence was over."""
        held = {span.document_id for span in trace.spans} | {span.cluster_id or "" for span in trace.spans}
        known = self.registry.get_many([ContributionId(one) for one in sorted(held - {""})])
        earning = set(self._earns(known))
        return [one.id for one in known if one.id not in earning]

    def _of_choice(
        self, served: ServedModel, layout: Layout, choice: Choice, plan: Plan
    ) -> tuple[Attribution, str | None]:
        copied: tuple[Copied, ...] = ()
        index_digest: str | None = None
        if self.spans is not None:
            trace = self.spans.trace(choice.text)
            there = sorted({part.contribution for part in layout.players if part.contribution is not None})
            credit = self.spans.credit(trace, COPY_RULES, exclude=[*there, *self._not_earning(trace)])
            copied, index_digest = copied_tokens(credit.pieces, choice.token_ends), credit.manifest
        found = attribute(
            served.scorer,
            layout,
            choice.token_ids,
            budget=Budget(plan.passes),
            reference=served.reference,
            rules=self._rules(),
            copied=copied,
        )
        return found, index_digest

    def _of_scorer(self, scorer: Scorer, layout: Layout, answer: Answer, plan: Plan) -> Attribution | None:
        """The account of another server's answer, on its own log-probabilities."""
        read = [scorer.tokenize(choice.text, control=False) for choice in answer.choices]
        found = [
            attribute(scorer, layout, tokens, budget=Budget(plan.passes), rules=self._rules())
            for tokens in read
            if tokens
        ]
        return combine(found, self._rules()) if found else None

    def _of_words(self, layout: Layout, answer: Answer) -> Measured:
        """The account from the texts alone."""
        known = Measured(
            None,
            reference_digest=default_reference().digest,
            parameters=(("calibration", digest_of([repr(SHIPPED)])),),
        )
        try:
            found = attribute_text(layout, "\n\n".join(c.text for c in answer.choices), rules=self._rules())
        except InvalidError as error:
            if error.code != "answer_empty":
                raise
            return known  # nothing was said: a call of a tool without arguments, or an answer without words
        return replace(known, found=found)

    def _learned(
        self, served: ServedModel, adapter: ServedAdapter, found: Attribution, layout: Layout, choice: Choice
    ) -> tuple[Attribution, Parameters]:
        """The account with the adapter's bits shared among what it was trained on, and by which index."""
        influences: Sequence[Influence] = [Influence(name, 0.0, 0.0, 0.0) for name in adapter.trained_on]
        used: Parameters = (("learned_rules", LEARNED_RULES.digest),)
        if adapter.scores is not None:
            read = prompt_ids(layout, served.backend.tokenize)
            influences, index_digest, seed = adapter.scores(read, choice.token_ids)
            used = (("influence_index", index_digest), ("influence_seed", seed), *used)
        rules = self._rules()
        spread = spread_learned(
            found,
            adapter.contribution,
            influences,
            LEARNED_RULES,
            model_weight_ppm=rules.model_weight_ppm,
            evidence_floor_millibits=rules.evidence_floor_millibits,
            measured=adapter.scores is not None,
            copy_of=adapter.copy_of,
        )
        return spread, used

    def _rules(self) -> Rules:
        return Rules(self.policy.model_weight_ppm, self.policy.evidence_floor_millibits)

    # As a receipt has it

    def state(self, served: AnyModel, plan: Plan, measured: Measured) -> ReceiptAttribution:
        """The account as a receipt has it."""
        found = measured.found
        shares = tuple(self._share(share) for share in found.shares) if found else ()
        base = microbits(found.base_bits) if found else 0
        parameters = {
            "attribution_units": plan.cost_units,
            "copy_rules": COPY_RULES.digest,
            "evidence_floor_millibits": self.policy.evidence_floor_millibits,
            "passes": found.passes if found else 0,
            "passes_allowed": plan.passes,
            "passes_wanted": plan.passes_wanted,
            "players": found.players if found else 0,
            **dict(measured.parameters),
        }
        return ReceiptAttribution(
            estimator=found.estimator if found else "none",
            version=found.version if found else "1",
            grade=found.grade if found else "A",
            parameters=tuple(sorted(parameters.items())),
            seed=0,
            reference_digest=measured.reference_digest,
            index_digest=measured.index_digest,
            scorer_digest=measured.scorer_digest,
            tokens=found.tokens if found else 0,
            base_microbits=base,
            total_microbits=base + sum(share.microbits for share in shares if share.channel != "reproduced"),
            model_weight_ppm=self.policy.model_weight_ppm,
            shares=shares,
            residual_ppb=found.residual_ppb if found else 10**9,
            residual_account=self._base_account(served),
        )

    def _share(self, share: Share) -> ReceiptShare:
        contribution = self.registry.get(ContributionId(share.part_id))
        return ReceiptShare(
            contribution=contribution.id,
            kind=contribution.kind,
            channel=share.channel,
            weight_ppb=share.weight_ppb,
            microbits=microbits(share.bits),
            low_microbits=microbits(share.low_bits),
            high_microbits=microbits(share.high_bits),
            owners=self._owners(contribution.id),
        )

    def _owners(self, contribution_id: ContributionId) -> tuple[ReceiptOwner, ...]:
        return tuple(
            ReceiptOwner(account_for(self.registry.contributor(o.contributor_id)), o.contributor_id, o.share_ppb)
            for o in self.registry.get(contribution_id).owners
        )

    def _base_account(self, served: AnyModel) -> AccountId:
        """Who is paid for bits that no contribution supplied: the base model's owner, or the commons."""
        if self.policy.residual != "base_model" or served.base_model is None:
            return COMMONS
        return self._owners(served.base_model)[0].account


def is_chatml(layout: Layout) -> bool:
    """Whether a prompt is laid out as a model reads it, template and all."""
    return any(part.control for part in layout.parts)


def plan_of(served: AnyModel, layout: Layout, prompt_tokens: int, answer_tokens: int, policy: Policy) -> Plan:
    """What will be spent on measuring an answer of so many tokens; the same before the call and after it."""
    tokenize: Callable[..., Sequence[int]]
    if isinstance(served, ServedModel):
        tokenize = served.backend.tokenize
    elif isinstance(served, OutsideModel) and served.scorer is not None and is_chatml(layout):
        tokenize = served.scorer.tokenize
    else:
        return UNMEASURED
    if not answer_tokens:
        return UNMEASURED
    price = served.prices.price(prompt_tokens, answer_tokens)
    of_players = 0
    if served.measuring.scored_token_units:  # else nobody asks
        of_players = sum(len(tokenize(part.text, control=part.control)) for part in layout.players)
    return served.measuring.plan(
        players=len(layout.players),
        fixed_tokens=max(0, prompt_tokens - of_players),
        player_tokens=of_players,
        answer_tokens=answer_tokens,
        limit_units=served.measuring.limit_units(price, policy),
    )
