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

from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from headwater.accounting import Accounting, plan_of
from headwater.attribution.evidence import (
    Answer,
    Choice,
    answer_bytes,
    layout_bytes,
    prompt_ids,
    read_answer,
    read_layout,
)
from headwater.attribution.layout import Layout, Part
from headwater.attribution.passing_on import Earlier
from headwater.attribution.spans import SpanIndex, SpanView
from headwater.attribution.token_account import TokenAccount, token_account
from headwater.core.canonical import digest
from headwater.core.errors import (
    HeadwaterError,
    InvalidError,
    InvariantError,
    MissingError,
    RefusedError,
    UpstreamError,
)
from headwater.core.ids import CallId, call_id, pseudonym
from headwater.ledger import payouts
from headwater.models.backend import Piece, TokenLogprob
from headwater.offering import Offering, added_bytes_max
from headwater.receipts import ModelUse, Receipt, Signer, Usage, issue
from headwater.retrieval import PassageIndex
from headwater.serving import (
    AnyModel,
    CallRequest,
    EmbeddingModel,
    Message,
    Offered,
    OpenCall,
    OutsideCall,
    OutsideModel,
    Said,
    Scores,
    ServedAdapter,
    ServedModel,
)
from headwater.splits import Plan, Policy, divide_receipt, earlier_answer, payouts_of
from headwater.store.account_store import AccountStore
from headwater.store.call_store import Begun, CallRecord, CallState, CallStore
from headwater.store.consent_store import ConsentStore
from headwater.store.key_store import KeyRecord
from headwater.store.ledger_store import Ledger
from headwater.store.receipt_log import ReceiptLog
from headwater.store.registry_store import RegistryStore
from headwater.store.signals import agreed, register_words

__all__ = [
    "AnyModel",
    "CallRequest",
    "EmbeddingModel",
    "Flow",
    "Message",
    "OpenCall",
    "OutsideCall",
    "OutsideModel",
    "Parts",
    "Said",
    "Scores",
    "ServedAdapter",
    "ServedModel",
    "pseudonym",
]

ADDED_BYTES: Final = 64
"""What a message of ours adds to a request beside its text."""


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
    spans: SpanIndex | SpanView | None = None  # registered texts, for answers that repeat them
    consents: ConsentStore | None = None  # callers who let their words be registered; without it nobody's are
    others: Mapping[str, OutsideModel | EmbeddingModel] = field(default_factory=dict)  # models not in process


class _Given:
    """One answer while it is being given."""

    def __init__(self) -> None:
        self._text = ""
        self._bytes = 0
        self._token_ids: list[int] = []
        self._token_ends: list[int] = []

    def take(self, piece: Piece) -> None:
        self._text += piece.text
        self._bytes += len(piece.text.encode("utf-8", "surrogatepass"))
        self._token_ids += piece.token_ids
        self._token_ends += [self._bytes] * len(piece.token_ids)

    def choice(self, finish_reason: str) -> Choice:
        return Choice(self._text, tuple(self._token_ids), tuple(self._token_ends), finish_reason)


class Flow:
    """The path, run on `parts`. Safe to call from several threads; `attribute` is meant for one worker."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._accounts = AccountStore(parts.calls.db)
        self._begun_with: dict[CallId, SpanIndex | SpanView] = {}  # what calls at work are measured on
        self.before_charge: Callable[[str, int], None] | None = (
            None  # (key id, nano units); an error leaves it uncharged
        )
        self.in_doubt: Callable[[CallId], None] = lambda _: None  # told of a call that may have been reserved, or not

    def take_over(self, passages: PassageIndex | None, spans: SpanIndex | SpanView | None) -> None:
        """Look in other indexes from now on; a call that has begun is measured on what it began with."""
        self.parts = replace(self.parts, passages=passages, spans=spans)

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
        served, spans = self._served(request.model), self.parts.spans
        if not isinstance(served, ServedModel):
            raise _unknown(request.model)
        layout = self._offer(request, served, key).layout
        prompt = prompt_ids(layout, served.backend.tokenize)
        window = served.backend.context_tokens_max
        if len(prompt) + request.sampling.max_tokens > window:
            raise InvalidError(
                f"the prompt has {len(prompt)} tokens and max_tokens is {request.sampling.max_tokens}; "
                f"the window of {served.name} is {window}",
                code="context_length_exceeded",
                fix="shorten the conversation, ask for fewer sources or lower max_tokens",
            )
        answer_tokens = request.sampling.max_tokens * request.answers
        begun = self._begin(request, served, key, self._ceiling(served, len(prompt), answer_tokens))
        if begun.replayed:
            return begun.call
        if spans is not None:
            self._begun_with[begun.call.call_id] = spans
        words = self._words_license(request, key)
        return OpenCall(begun.call, served, layout, prompt, request.sampling, words, request.answers)

    def open_outside(self, request: CallRequest, key: KeyRecord) -> OutsideCall | CallRecord:
        """Admit a call that another server is to answer, with what is put before its question.

        The caller of this asks that server, and gives what it said to `charge`, or else calls `release`.

        Raises:
            As `open`, but the other server has its own window.
        """
        served = self._served(request.model)
        if not isinstance(served, OutsideModel):
            raise _unknown(request.model)
        offered = self._offer(request, served, key)
        added = len((offered.sources + offered.prompt).encode("utf-8", "replace"))
        prompt_tokens = request.size_bytes + (added and added + ADDED_BYTES)
        answer_tokens = request.sampling.max_tokens * request.answers
        begun = self._begin(request, served, key, self._ceiling(served, prompt_tokens, answer_tokens))
        if begun.replayed:
            return begun.call
        words = self._words_license(request, key)
        return OutsideCall(begun.call, served, offered.layout, offered, prompt_tokens, answer_tokens, words)

    def embed(self, request: CallRequest, key: KeyRecord) -> tuple[CallRecord, Answer, bool]:
        """Turn the texts of a request's messages into vectors, charge for them, and give what was said of them.

        Returns:
            The answered call; its answer, in whose `wire` the vectors are JSON, a row for each text; and whether it
            was answered before, under the request's idempotency key.

        Raises:
            As `open`.
        """
        served, tokens, price_units = self.embedding_price(request)
        begun = self._begin(request, served, key, price_units)
        if not begun.replayed:
            call = begun.call.call_id
            try:
                rows = [list(row) for row in served.embed([message.content for message in request.messages])]
                given = Answer("", (), (), "stop", tokens, wire=msgspec.json.encode(rows).decode())
                parts = [Part(f"text-{i}", "", m.content, fixed=True) for i, m in enumerate(request.messages)]
                self._charge(call, served, Layout(tuple(parts)), given)
            except BaseException as error:
                self.release(call, getattr(error, "code", "internal_error"))
                raise
        record = self.parts.calls.get(begun.call.call_id)
        if record.answer is None:
            raise InvariantError(f"{record.call_id} is answered and has no answer", code="answer_missing")
        return record, read_answer(record.answer), begun.replayed

    def embedding_price(self, request: CallRequest) -> tuple[EmbeddingModel, int, int]:
        """(model, tokens, nano units) of texts that are to be turned into vectors: no more and no less is charged.

        Raises:
            MissingError: ``model_not_found``.
        """
        served = self._served(request.model)
        if not isinstance(served, EmbeddingModel):
            raise _unknown(request.model)
        tokens = sum(len(served.tokenize(message.content)) for message in request.messages)
        return served, tokens, self._ceiling(served, tokens, 0)

    def _begin(self, request: CallRequest, served: AnyModel, key: KeyRecord, ceiling_units: int) -> Begun:
        call = call_id(self.parts.random_bytes(16))
        try:
            return self.parts.calls.begin(
                call_id=call,
                key_id=key.key_id,
                idempotency_key=request.idempotency_key,
                request_digest=request.body_digest,
                model=served.name,
                ceiling_units=ceiling_units,
                asset=self.parts.policy.currency,
                at_ns=self.parts.now_ns(),
            )
        except UpstreamError:  # the database may have been lost after it had taken the call
            self.in_doubt(call)
            raise

    def _offer(self, request: CallRequest, served: ServedModel | OutsideModel, key: KeyRecord) -> Offered:
        calls = self.parts.calls
        return Offering(
            registry=self.parts.registry,
            passages=self.parts.passages,
            now_ns=self.parts.now_ns(),
            offer_units=served.prices.price(0, 1),
            earlier=lambda text: calls.answer_to(key.key_id, text),
            consents=self.parts.consents,
        ).lay_out(request, served)

    def _words_license(self, request: CallRequest, key: KeyRecord) -> str | None:
        consents = self.parts.consents
        return agreed(consents, key.key_id, request.contribute) if consents else None

    def _ceiling(self, served: AnyModel, prompt_tokens: int, answer_tokens: int) -> int:
        """The most a call can cost, with what measuring it may add."""
        price = served.prices.price(prompt_tokens, answer_tokens)
        if isinstance(served, EmbeddingModel):
            return price
        return price + served.measuring.limit_units(price, self.parts.policy)

    def most(self, model: str, answer_tokens: int) -> int:
        """The most that a call to a model in process can cost, whatever its prompt, nano units.

        Raises:
            MissingError: ``model_not_found``.
        """
        served = self.parts.models.get(model)
        if served is None:
            raise _unknown(model)
        return self._ceiling(served, served.backend.context_tokens_max, answer_tokens)

    def most_outside(self, request: CallRequest) -> int:
        """The most that a call with sources to another server's model can cost, whatever is found, nano units.

        Raises:
            MissingError: ``model_not_found``, or no such contribution.
        """
        served = self._served(request.model)
        if not isinstance(served, OutsideModel):
            raise _unknown(request.model)
        added = added_bytes_max(self.parts.registry, request, served)
        answer_tokens = request.sampling.max_tokens * request.answers
        return self._ceiling(served, request.size_bytes + added + ADDED_BYTES, answer_tokens)

    def plan(self, served: AnyModel, layout: Layout, prompt_tokens: int, answer_tokens: int) -> Plan:
        """What will be spent on measuring an answer of so many tokens; the same before the call and after it."""
        return plan_of(served, layout, prompt_tokens, answer_tokens, self.parts.policy)

    # 2. The answer

    def answer(self, call: OpenCall) -> Generator[Piece]:
        """The model's answers, piece by piece, one after the other. The last piece is given only after the charge is
        durable; each answer's last piece has its finish reason.

        A caller who leaves early pays for what was generated; a model that fails costs nothing.

        Raises:
            UpstreamError: the model failed.
        """
        choices: list[Choice] = []
        logprobs: list[TokenLogprob] = []
        given = _Given()
        settled = False

        def answer_of(*more: Choice) -> Answer:
            every = [*choices, *more]
            first, others = every[0], tuple(every[1:])
            return Answer(
                *(first.text, first.token_ids, first.token_ends, first.finish_reason, len(call.prompt)),
                others=others,
                wire=msgspec.json.encode(logprobs).decode() if call.sampling.logprobs is not None else "",
            )

        try:
            for number in range(call.answers):
                given = _Given()
                sampling = replace(call.sampling, seed=(call.sampling.seed + number) % 2**32)
                with closing(call.served.backend.generate(call.prompt, sampling)) as pieces:
                    for piece in pieces:
                        given.take(piece)
                        logprobs += piece.logprobs
                        if piece.finish_reason is not None:
                            choices.append(given.choice(piece.finish_reason))
                            given = _Given()
                            if number + 1 == call.answers:
                                self.charge(call, answer_of())
                                settled = True
                        yield replace(piece, choice=number, last=settled) if call.answers > 1 or settled else piece
                if len(choices) != number + 1:
                    raise UpstreamError("the model stopped without a reason", code="model_failed", fix="try again")
        except GeneratorExit:
            if not settled:
                cut = given.choice("cancelled")
                more = (cut,) if cut.token_ids and len(choices) < call.answers else ()
                if choices or more:
                    self.charge(call, answer_of(*more))
                else:
                    self.release(call.record.call_id)
            raise
        except BaseException as error:
            if not settled:
                with suppress(HeadwaterError):  # a disk that fails twice: the reservation is given back by `resume`
                    self.release(call.record.call_id, getattr(error, "code", "internal_error"))
            raise

    def charge(self, call: OpenCall | OutsideCall, answer: Answer) -> CallRecord:
        """Keep an answer and charge for it; when this returns both are durable."""
        record = self._charge(call.record.call_id, call.served, call.layout, answer)
        if call.words_license is not None:
            with suppress(HeadwaterError):  # an answer that is paid for never fails for the sake of its question
                self._register_words(call, call.words_license)
        return record

    def _charge(self, call: CallId, served: AnyModel, layout: Layout, answer: Answer) -> CallRecord:
        price_units = self._price(served, layout, answer)
        if self.before_charge is not None:
            self.before_charge(self.parts.calls.get(call).key_id, price_units)
        return self.parts.calls.answered(
            call,
            answer=answer_bytes(answer, self.parts.random_bytes(16)),
            evidence=layout_bytes(layout, self.parts.random_bytes(16)),
            price_units=price_units,
            at_ns=self.parts.now_ns(),
            texts=[choice.text for choice in answer.choices],
        )

    def _price(self, served: AnyModel, layout: Layout, answer: Answer) -> int:
        """Tokens, and measuring who supplied them."""
        measuring = self.plan(served, layout, answer.prompt_tokens, answer.tokens).cost_units
        return served.prices.price(answer.prompt_tokens, answer.tokens) + measuring

    def _register_words(self, call: OpenCall | OutsideCall, license_expression: str) -> None:
        """Register what the caller wrote, with its consent."""
        register_words(
            self.parts.registry,
            tuple(part.text for part in call.layout.parts if part.fixed and not part.control),
            key_id=call.record.key_id,
            license_expression=license_expression,
            now_ns=self.parts.now_ns(),
        )

    def release(self, call: CallId, failure: str = "no_answer") -> None:
        """Give back the reservation of a call that did not answer; `failure` is a stable code."""
        self.parts.calls.release(call, failure=failure, at_ns=self.parts.now_ns())
        self._begun_with.pop(call, None)

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
            receipt, tokens = self._receipt(record)
            if tokens is not None:
                self._accounts.keep(record.call_id, record.key_id, tokens.to_bytes())
            signed = issue(receipt, self.parts.signer)
            self.parts.log.append(signed.raw, signed.signature)
        if record.state is CallState.ANSWERED:
            self._book(record, receipt)
        self._begun_with.pop(call, None)
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
        return self._receipt(record)[0]

    def _receipt(self, record: CallRecord) -> tuple[Receipt, TokenAccount | None]:
        """The receipt, and what it does not hold: who gave how much to each token."""
        served = self._served(record.model)
        if record.answer is None or record.evidence is None or record.price_units is None:
            raise InvariantError(f"{record.call_id} is answered without evidence", code="evidence_missing")
        answer = read_answer(record.answer)
        layout = read_layout(record.evidence)
        plan = self.plan(served, layout, answer.prompt_tokens, answer.tokens)
        parts = self.parts
        spans = self._begun_with.get(record.call_id, parts.spans)
        accounting = Accounting(parts.registry, parts.policy, spans, parts.consents, record.updated_at_ns)
        measured = accounting.measure(served, layout, answer, plan, self._earlier(layout))
        account = accounting.state(served, plan, measured)
        division = divide_receipt(record.price_units, account, self.parts.policy)
        adapter = served.adapter if isinstance(served, ServedModel) else None
        receipt = Receipt(
            call_id=record.call_id,
            issued_at_ns=record.updated_at_ns,  # when it was answered: the same on every attempt
            operator=self.parts.signer.address,
            payer=pseudonym(record.key_id),
            model=ModelUse(served.name, served.digest, adapter.digest if adapter else None),
            request_digest=digest(record.evidence),
            answer_digest=digest(record.answer),
            usage=Usage(answer.prompt_tokens, answer.tokens),
            currency=self.parts.policy.currency,
            price=record.price_units,
            policy_digest=self.parts.policy.digest,
            registry_digest=self.parts.registry.digest(),
            attribution=account,
            payouts=payouts_of(division),
        )
        return receipt, token_account(measured.found) if measured.found is not None else None

    def _earlier(self, layout: Layout) -> dict[str, Earlier]:
        """Who supplied the earlier answers in a prompt; one that has no receipt yet gets it now, before this one."""
        found: dict[str, Earlier] = {}
        for part in layout.players:
            if part.kind == "turn":
                with suppress(RefusedError, InvalidError, MissingError):  # it never will be: nobody is known for it
                    found[part.id] = earlier_answer(self.attribute(CallId(part.owner)))
        return found

    def _book(self, record: CallRecord, receipt: Receipt) -> None:
        """Post the payouts and mark the call, in one commit."""
        amounts = [(payout.account, payout.amount) for payout in receipt.payouts]
        drafts = payouts(amounts, asset=record.asset, receipt_id=receipt.id)
        self.parts.calls.attributed(record.call_id, receipt.id, drafts, at_ns=self.parts.now_ns())

    def resume(self) -> tuple[CallId, ...]:
        """After a restart: settle what dead processes left reserved, and name the calls that still lack a receipt."""
        return self.parts.calls.recover(at_ns=self.parts.now_ns()).to_attribute

    def _served(self, name: str) -> AnyModel:
        served = self.parts.models.get(name) or self.parts.others.get(name)
        if served is None:
            raise _unknown(name)
        return served


def _unknown(name: str) -> MissingError:
    """Without the names of one way's models: which others there are, only the gateway knows."""
    return MissingError(f"the model {name[:80]!r} does not exist", code="model_not_found", fix="see GET /v1/models")
