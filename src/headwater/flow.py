"""The path of one cent, in one file: read this first.

    call -> attribution -> receipt -> split -> ledger          (here, per call)
    epoch -> settlement -> claim                               (`settle.py` in this layer, per window)

1. `open` admits a call: registered prompt and sources pass the licence gate, the prompt is laid out in
   parts, and the price of the longest answer is reserved.
2. `answer` streams the model's tokens; before the last piece leaves, the answer is in the journal and its
   price is charged, in one commit.
3. `attribute` runs later: it measures who supplied the bits, divides the price, signs the receipt, appends
   it durably to the log and books the payouts. Whatever is interrupted starts again from the journal.

Invariants: a call is charged at most once and only if it answered; a receipt exists before its payouts are
booked; the log, not the database, decides which receipt a call has.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import NamedTuple

from headwater.attribution.account import Rules, attribute
from headwater.attribution.bits import Attribution, Share
from headwater.attribution.budget import Budget
from headwater.attribution.evidence import (
    Answer,
    answer_bytes,
    layout_bytes,
    prompt_ids,
    read_answer,
    read_layout,
)
from headwater.attribution.layout import Layout, Part, Scorer
from headwater.attribution.learned import Influence, LearnedRules, spread_learned
from headwater.attribution.reference import Reference
from headwater.attribution.reproduced import Copied, copied_tokens
from headwater.attribution.spans import CreditRules, SpanIndex
from headwater.core.canonical import digest
from headwater.core.errors import (
    HeadwaterError,
    InvalidError,
    InvariantError,
    MissingError,
    RefusedError,
    UpstreamError,
)
from headwater.core.ids import AccountId, CallId, ContributionId, call_id
from headwater.core.limits import SOURCES_MAX
from headwater.ledger import payouts
from headwater.models.backend import Backend, Piece, Sampling
from headwater.models.chatml import render_chat
from headwater.receipts import (
    ModelUse,
    Receipt,
    ReceiptAttribution,
    ReceiptOwner,
    ReceiptShare,
    Signer,
    Usage,
    issue,
    microbits,
)
from headwater.registry import account_for, permits
from headwater.retrieval import PassageIndex
from headwater.splits import COMMONS, MEASURING, UNMEASURED, Measuring, Plan, Policy, Prices, divide_receipt, payouts_of
from headwater.store.call_store import CallRecord, CallState, CallStore
from headwater.store.consent_store import ConsentStore
from headwater.store.key_store import KeyRecord
from headwater.store.ledger_store import Ledger
from headwater.store.receipt_log import ReceiptLog
from headwater.store.registry_store import RegistryStore
from headwater.store.signals import agreed, register_words

COPY_RULES = CreditRules()
"""What a repeated run of words must be worth before it is paid; its digest stands in every receipt."""

LEARNED_RULES = LearnedRules()
"""How an adapter's bits are shared among what it was trained on."""

Scores = Callable[[Sequence[int], Sequence[int]], tuple[Sequence[Influence], str, int]]
"""(prompt, answer) to the influence of each training contribution, the index's digest and its seed."""


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter on top of a served model."""

    name: str  # as the scorer knows it
    contribution: ContributionId
    digest: str  # of its factors
    trained_on: tuple[ContributionId, ...]
    scores: Scores | None  # None without an influence index: then nobody's part is known


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model name that callers may use, and what stands behind it."""

    name: str
    backend: Backend
    scorer: Scorer
    reference: Reference
    prices: Prices
    base_model: ContributionId | None  # registered base model, for the residual
    prompt: ContributionId | None = None  # registered prompt put before every conversation
    sources: int = 0  # registered passages offered to every answer
    measuring: Measuring = MEASURING  # what attribution of a call may cost
    adapter: ServedAdapter | None = None


Parameters = tuple[tuple[str, int | str], ...]
"""Parameters of a receipt, sorted by name."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True, slots=True)
class CallRequest:
    """What a caller asks, after the wire format has been read."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    body_digest: str  # of the request as sent; the idempotency key is bound to it
    idempotency_key: str | None = None
    sources: int | None = None  # overrides the model's number
    prompt: ContributionId | None = None  # overrides the model's prompt
    contribute: bool | None = None  # whether the caller's words may be registered; None leaves it to the key's consent


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call that was admitted and paid for up to its ceiling."""

    record: CallRecord
    served: ServedModel
    layout: Layout
    prompt: tuple[int, ...]  # token ids, exactly what the model and the scorer read
    sampling: Sampling
    words_license: str | None = None  # under which the caller's words are registered; None for not at all


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything the path runs on; built once by the layer above."""

    registry: RegistryStore
    passages: PassageIndex | None
    models: Mapping[str, ServedModel]
    ledger: Ledger
    calls: CallStore
    log: ReceiptLog
    signer: Signer
    policy: Policy
    now_ns: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    spans: SpanIndex | None = None  # registered texts, for answers that repeat them
    consents: ConsentStore | None = None  # callers who let their words be registered; without it nobody's are


class _Given:
    """An answer while it is being given."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._text = ""
        self._bytes = 0
        self.token_ids: list[int] = []
        self._token_ends: list[int] = []

    def take(self, piece: Piece) -> None:
        self._text += piece.text
        self._bytes += len(piece.text.encode("utf-8", "surrogatepass"))
        self.token_ids += piece.token_ids
        self._token_ends += [self._bytes] * len(piece.token_ids)

    def answer(self, finish_reason: str) -> Answer:
        return Answer(self._text, tuple(self.token_ids), tuple(self._token_ends), finish_reason, self._prompt_tokens)


class Flow:
    """The path, run on `parts`. Safe to call from several threads; `attribute` is meant for one worker."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    # 1. The call

    def open(self, request: CallRequest, key: KeyRecord) -> OpenCall | CallRecord:
        """Admit a call and reserve its ceiling price.

        Returns:
            The open call, or the record of the finished one when the idempotency key was used before with this body.

        Raises:
            MissingError: no such model, prompt or contribution.
            RefusedError: not enough credit, or a licence that does not permit it.
            InvalidError: the prompt and the longest answer do not fit the model's window.
            ConflictError: the idempotency key belongs to another body or to a call still running.
        """
        served = self._served(request.model)
        layout = self._layout(request, served)
        prompt = prompt_ids(layout, served.backend.tokenize)
        window = served.backend.context_tokens_max
        if len(prompt) + request.sampling.max_tokens > window:
            raise InvalidError(
                f"the prompt has {len(prompt)} tokens and max_tokens is {request.sampling.max_tokens}; "
                f"the window of {served.name} is {window}",
                code="context_length_exceeded",
                fix="shorten the conversation, ask for fewer sources or lower max_tokens",
            )
        begun = self.parts.calls.begin(
            call_id=call_id(self.parts.random_bytes(16)),
            key_id=key.key_id,
            idempotency_key=request.idempotency_key,
            request_digest=request.body_digest,
            model=served.name,
            ceiling_units=self._ceiling(served, len(prompt), request.sampling.max_tokens),
            asset=self.parts.policy.currency,
            at_ns=self.parts.now_ns(),
        )
        if begun.replayed:
            return begun.call
        consents = self.parts.consents
        words_license = agreed(consents, key.key_id, request.contribute) if consents else None
        return OpenCall(begun.call, served, layout, prompt, request.sampling, words_license)

    def _ceiling(self, served: ServedModel, prompt_tokens: int, answer_tokens: int) -> int:
        """The most a call can cost, with what measuring it may add."""
        price = served.prices.price(prompt_tokens, answer_tokens)
        return price + served.measuring.limit_units(price, self.parts.policy)

    def plan(self, served: ServedModel, layout: Layout, prompt_tokens: int, answer_tokens: int) -> Plan:
        """What will be spent on measuring an answer of so many tokens; the same before the call and after it."""
        price = served.prices.price(prompt_tokens, answer_tokens)
        of_players = 0
        if served.measuring.scored_token_units:  # else nobody asks
            of_players = sum(len(served.backend.tokenize(p.text, control=p.control)) for p in layout.players)
        return served.measuring.plan(
            players=len(layout.players),
            fixed_tokens=prompt_tokens - of_players,
            player_tokens=of_players,
            answer_tokens=answer_tokens,
            limit_units=served.measuring.limit_units(price, self.parts.policy),
        )

    def _layout(self, request: CallRequest, served: ServedModel) -> Layout:
        """The prompt in parts: template and caller's words are fixed, registered prompt and sources are players."""
        offer = served.prices.price(0, 1)
        wanted = served.sources if request.sources is None else request.sources
        if wanted > SOURCES_MAX:
            raise InvalidError(
                f"{wanted} sources asked for", code="sources_too_many", fix=f"ask for at most {SOURCES_MAX}"
            )
        messages = list(request.messages)
        prompt_id = request.prompt or served.prompt
        if prompt_id is not None:
            messages.insert(0, Message("system", self._prompt_text(prompt_id)))
        asked = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        parts = [] if served.adapter is None else [self._adapter(served.adapter, offer)]
        for number, piece in enumerate(render_chat(messages, system_default=None)):
            if piece.message == 0 and prompt_id is not None:
                parts.append(self._player(prompt_id, piece.text, offer))
                continue
            if piece.message is not None and piece.message == asked:
                parts += self._sources(piece.text, wanted, offer)
            parts.append(Part(f"fixed-{number}", "", piece.text, fixed=True, control=piece.control))
        return Layout(tuple(parts))

    def _prompt_text(self, prompt_id: ContributionId) -> str:
        kind = self.parts.registry.get(prompt_id).kind
        if kind != "prompt":
            raise InvalidError(
                f"{prompt_id} is a {kind}", code="prompt_invalid", fix="give the id of a contribution of kind prompt"
            )
        return self.parts.registry.text(prompt_id).strip()

    def _sources(self, question: str, wanted: int, offer_units: int) -> list[Part]:
        """Registered passages for a question, each headed by the title of the contribution it is from."""
        if not wanted or self.parts.passages is None:
            return []
        return [
            self._player(
                found.contribution_id,
                f"{self.parts.registry.get(found.contribution_id).title}: {found.text.strip()}\n\n",
                offer_units,
            )
            for found in self.parts.passages.search(
                question, wanted, now_ns=self.parts.now_ns(), offer_units=offer_units
            )
        ]

    def _player(self, contribution_id: ContributionId, text: str, offer_units: int) -> Part:
        contribution = self.parts.registry.get(contribution_id)
        refusal = permits(contribution, "ground", self.parts.now_ns(), offer_units)
        if refusal is not None:
            raise RefusedError(str(refusal), code=refusal.code, fix="use a contribution whose licence permits it")
        owner = "+".join(sorted(o.contributor_id for o in contribution.owners))
        return Part(contribution.id, owner, text, registered_at_ns=contribution.registered_at_ns)

    def _adapter(self, adapter: ServedAdapter, offer_units: int) -> Part:
        """The adapter as a player: weights that are there or not."""
        return replace(self._player(adapter.contribution, "", offer_units), kind="adapter", adapter=adapter.name)

    # 2. The answer

    def answer(self, call: OpenCall) -> Generator[Piece]:
        """The model's answer, piece by piece. The last piece is given only after the charge is durable.

        A caller who leaves early pays for what was generated; a model that fails costs nothing.

        Raises:
            UpstreamError: the model failed.
        """
        given = _Given(len(call.prompt))
        settled = False
        try:
            with closing(call.served.backend.generate(call.prompt, call.sampling)) as pieces:
                for piece in pieces:
                    given.take(piece)
                    if piece.finish_reason is not None:
                        self._charge(call, given.answer(piece.finish_reason))
                        settled = True
                    yield piece
            if not settled:
                raise UpstreamError("the model stopped without a reason", code="model_failed", fix="try again")
        except GeneratorExit:
            if not settled:
                self._cut_short(call, given)
            raise
        except BaseException as error:
            if not settled:
                with suppress(HeadwaterError):  # a disk that fails twice: the reservation is given back by `resume`
                    self.release(call.record.call_id, getattr(error, "code", "internal_error"))
            raise

    def _charge(self, call: OpenCall, answer: Answer) -> None:
        self.parts.calls.answered(
            call.record.call_id,
            answer=answer_bytes(answer, self.parts.random_bytes(16)),
            evidence=layout_bytes(call.layout, self.parts.random_bytes(16)),
            price_units=self._price(call.served, call.layout, answer),
            at_ns=self.parts.now_ns(),
        )
        if call.words_license is not None:
            with suppress(HeadwaterError):  # an answer that is paid for never fails for the sake of its question
                self._register_words(call, call.words_license)

    def _price(self, served: ServedModel, layout: Layout, answer: Answer) -> int:
        """Tokens, and measuring who supplied them."""
        tokens = len(answer.token_ids)
        measuring = self.plan(served, layout, answer.prompt_tokens, tokens).cost_units if tokens else 0
        return served.prices.price(answer.prompt_tokens, tokens) + measuring

    def _register_words(self, call: OpenCall, license_expression: str) -> None:
        """Register what the caller wrote, with its consent."""
        register_words(
            self.parts.registry,
            tuple(part.text for part in call.layout.parts if part.fixed and not part.control),
            key_id=call.record.key_id,
            license_expression=license_expression,
            now_ns=self.parts.now_ns(),
        )

    def _cut_short(self, call: OpenCall, given: _Given) -> None:
        if given.token_ids:
            self._charge(call, given.answer("cancelled"))
        else:
            self.release(call.record.call_id)

    def release(self, call: CallId, failure: str = "no_answer") -> None:
        """Give back the reservation of a call that did not answer; `failure` is a stable code."""
        self.parts.calls.release(call, failure=failure, at_ns=self.parts.now_ns())

    # 3. Attribution, receipt, split, ledger

    def attribute(self, call: CallId) -> Receipt:
        """Measure an answered call, issue its receipt and book its payouts. Doing it again changes nothing."""
        record = self.parts.calls.get(call)
        if record.state not in (CallState.ANSWERED, CallState.ATTRIBUTED):
            raise MissingError(
                f"{call} has no answer to attribute", code="call_not_answered", fix="wait for the answer"
            )
        logged = self.parts.log.in_force(call)
        if logged is not None:
            receipt = Receipt.from_bytes(logged.raw)
        else:
            receipt = self._receipt(record)
            signed = issue(receipt, self.parts.signer)
            self.parts.log.append(signed.raw, signed.signature)
        if record.state is CallState.ANSWERED:
            self._book(record, receipt)
        return receipt

    def replay(self, call: CallId) -> Receipt:
        """Measure an answered call again from the journal, and give the receipt that follows; nothing is written.

        Raises:
            MissingError: its evidence has been erased.
        """
        record = self.parts.calls.get(call)
        if record.answer is None or record.evidence is None:
            raise MissingError(
                f"the evidence of {call} has been erased", code="evidence_erased", fix="its receipt still verifies"
            )
        logged = self.parts.log.in_force(call)
        if logged is not None:
            record = replace(record, updated_at_ns=Receipt.from_bytes(logged.raw).issued_at_ns)
        return self._receipt(record)

    def _receipt(self, record: CallRecord) -> Receipt:
        served = self._served(record.model)
        if record.answer is None or record.evidence is None or record.price_units is None:
            raise InvariantError(f"{record.call_id} is answered without evidence", code="evidence_missing")
        answer = read_answer(record.answer)
        layout = read_layout(record.evidence)
        tokens = len(answer.token_ids)
        plan = self.plan(served, layout, answer.prompt_tokens, tokens) if tokens else UNMEASURED
        if plan.passes:
            account = self._account(served, plan, *self._measure(served, layout, answer, plan))
        else:
            account = self._account(served, plan, None, None, ())
        division = divide_receipt(record.price_units, account, self.parts.policy)
        return Receipt(
            call_id=record.call_id,
            issued_at_ns=record.updated_at_ns,  # when it was answered: the same on every attempt
            operator=self.parts.signer.address,
            payer=pseudonym(record.key_id),
            model=ModelUse(served.name, served.backend.digest, served.adapter.digest if served.adapter else None),
            request_digest=digest(record.evidence),
            answer_digest=digest(record.answer),
            usage=Usage(answer.prompt_tokens, len(answer.token_ids)),
            currency=self.parts.policy.currency,
            price=record.price_units,
            policy_digest=self.parts.policy.digest,
            registry_digest=self.parts.registry.digest(),
            attribution=account,
            payouts=payouts_of(division),
        )

    def _measure(
        self, served: ServedModel, layout: Layout, answer: Answer, plan: Plan
    ) -> tuple[Attribution, str | None, Parameters]:
        """The bit account of an answer, the digest of the span index that was read for it, and what was learned by."""
        policy = self.parts.policy
        rules = Rules(policy.model_weight_ppm, policy.evidence_floor_millibits)
        copied, index_digest = self._copied(layout, answer)
        found = attribute(
            served.scorer,
            layout,
            answer.token_ids,
            budget=Budget(plan.passes),
            reference=served.reference,
            rules=rules,
            copied=copied,
        )
        if served.adapter is None:
            return found, index_digest, ()
        found, learned = self._learned(served, served.adapter, found, layout, answer, rules)
        return found, index_digest, learned

    def _learned(
        self,
        served: ServedModel,
        adapter: ServedAdapter,
        found: Attribution,
        layout: Layout,
        answer: Answer,
        rules: Rules,
    ) -> tuple[Attribution, Parameters]:
        """The account with the adapter's bits shared among what it was trained on, and by which index."""
        influences: Sequence[Influence] = [Influence(name, 0.0, 0.0, 0.0) for name in adapter.trained_on]
        used: Parameters = (("learned_rules", LEARNED_RULES.digest),)
        if adapter.scores is not None:
            read = prompt_ids(layout, served.backend.tokenize)
            influences, index_digest, seed = adapter.scores(read, answer.token_ids)
            used = (("influence_index", index_digest), ("influence_seed", seed), *used)
        spread = spread_learned(
            found,
            adapter.contribution,
            influences,
            LEARNED_RULES,
            model_weight_ppm=rules.model_weight_ppm,
            evidence_floor_millibits=rules.evidence_floor_millibits,
            measured=adapter.scores is not None,
        )
        return spread, used

    def _copied(self, layout: Layout, answer: Answer) -> tuple[tuple[Copied, ...], str | None]:
        """Answer tokens that repeat registered texts which were not in the context."""
        spans = self.parts.spans
        if spans is None:
            return (), None
        trace = spans.trace(answer.text)
        credit = spans.credit(trace, COPY_RULES, exclude=[part.id for part in layout.players])
        return copied_tokens(credit.pieces, answer.token_ends), credit.manifest

    def _owners(self, contribution_id: ContributionId) -> tuple[ReceiptOwner, ...]:
        registry = self.parts.registry
        return tuple(
            ReceiptOwner(account_for(registry.contributor(o.contributor_id)), o.contributor_id, o.share_ppb)
            for o in registry.get(contribution_id).owners
        )

    def _base_account(self, served: ServedModel) -> AccountId:
        """Who is paid for bits that no contribution supplied: the base model's owner, or the commons."""
        if self.parts.policy.residual != "base_model" or served.base_model is None:
            return COMMONS
        return self._owners(served.base_model)[0].account

    def _account(
        self,
        served: ServedModel,
        plan: Plan,
        found: Attribution | None,
        index_digest: str | None,
        learned: Parameters,
    ) -> ReceiptAttribution:
        policy = self.parts.policy
        shares = tuple(self._share(share) for share in found.shares) if found else ()
        base = microbits(found.base_bits) if found else 0
        return ReceiptAttribution(
            estimator=found.estimator if found else "none",
            version=found.version if found else "1",
            grade=found.grade if found else "A",
            parameters=(
                ("attribution_units", plan.cost_units),
                ("copy_rules", COPY_RULES.digest),
                ("evidence_floor_millibits", policy.evidence_floor_millibits),
                *learned,
                ("passes", found.passes if found else 0),
                ("passes_allowed", plan.passes),
                ("passes_wanted", plan.passes_wanted),
                ("players", found.players if found else 0),
            ),
            seed=0,
            reference_digest=served.reference.digest,
            index_digest=index_digest,
            scorer_digest=served.scorer.digest,
            tokens=found.tokens if found else 0,
            base_microbits=base,
            total_microbits=base + sum(share.microbits for share in shares if share.channel != "reproduced"),
            model_weight_ppm=policy.model_weight_ppm,
            shares=shares,
            residual_ppb=found.residual_ppb if found else 10**9,
            residual_account=self._base_account(served),
        )

    def _share(self, share: Share) -> ReceiptShare:
        contribution = self.parts.registry.get(ContributionId(share.part_id))
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

    def _book(self, record: CallRecord, receipt: Receipt) -> None:
        """Post the payouts and mark the call, in one commit."""
        amounts = [(payout.account, payout.amount) for payout in receipt.payouts]
        drafts = payouts(amounts, asset=record.asset, receipt_id=receipt.id)
        self.parts.calls.attributed(record.call_id, receipt.id, drafts, at_ns=self.parts.now_ns())

    def resume(self) -> tuple[CallId, ...]:
        """After a restart: settle what dead processes left reserved, and name the calls that still lack a receipt."""
        return self.parts.calls.recover(at_ns=self.parts.now_ns()).to_attribute

    def _served(self, name: str) -> ServedModel:
        served = self.parts.models.get(name)
        if served is None:
            raise MissingError(
                f"the model {name[:80]!r} does not exist",
                code="model_not_found",
                fix=f"choose one of {', '.join(sorted(self.parts.models))}",
            )
        return served


def pseudonym(key_id: str) -> str:
    """The payer's name in receipts: the same for every call of a key, and no way back to the key."""
    return "pay_" + sha256(b"headwater payer\x00" + key_id.encode()).hexdigest()[:32]
