"""What a call that another server answers is: held, used, charged, and the receipt that says so.

A form for each kind of receipt is made once and filled in for every call. Knows nothing of leases, logs or books.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from msgspec import Struct

from headwater.core.ids import CallId, ReceiptId, call_id, pseudonym
from headwater.ledger import transfer_id
from headwater.receipts import Issued, ModelUse, Receipt, ReceiptAttribution, ReceiptForm, Signer, Usage
from headwater.splits import COMMONS, Policy, ResidualSplit
from headwater.store.call_store import FinishedCall
from headwater.store.key_store import KeyRecord
from headwater.store.metered_store import Metered, metered_key

LANE: Final = "metered"
"""How receipts of this path are marked, so that a restart knows which to book."""

FORMS_MAX: Final = 10_000
"""Forms of receipts that are remembered: one for each payer, model and state of the registry in use."""

_NO_DIGEST: Final = "sha256:" + "0" * 64


class Hold(Struct, frozen=True, gc=False):
    """Credit held for one call at work."""

    call_id: CallId
    key: KeyRecord
    units: int
    began_ns: int


class Used(Struct, frozen=True, gc=False):
    """What a call turned out to be."""

    model: str
    model_digest: str
    request_digest: str
    answer_digest: str
    prompt_tokens: int
    completion_tokens: int
    price_units: int
    usage_from: str  # "upstream" when it said so within bounds, "bound" when it said more, "count" when we counted


class Charged(Struct, frozen=True, gc=False):
    """A call whose receipt is durable."""

    call_id: CallId
    receipt_id: ReceiptId
    price_units: int


_Kind = tuple[str, str, str, str, str]
"""What the receipts of one form share: key id, model, its digest, whence the usage is, digest of the registry."""


class MeteredReceipts:
    """Makes the receipts of such calls. Belongs to one event loop."""

    def __init__(self, policy: Policy, signer: Signer, registry_digest: Callable[[], str]) -> None:
        self._policy, self._signer, self._registry_digest = policy, signer, registry_digest
        self._attribution = _nobody(policy)
        self._split = ResidualSplit(policy)
        self._forms: dict[_Kind, ReceiptForm] = {}

    def receipt(self, hold: Hold, used: Used, now_ns: int) -> tuple[Issued, Metered]:
        """The signed receipt of a call that ended at `now_ns`, and what the books need of it."""
        key_id = hold.key.key_id
        kind = (key_id, used.model, used.model_digest, used.usage_from, self._registry_digest())
        form = self._forms.get(kind) or self._form(kind)
        payouts = self._split.payouts(used.price_units)
        issued = form.issue(
            call_id=hold.call_id,
            issued_at_ns=now_ns,
            request_digest=used.request_digest,
            answer_digest=used.answer_digest,
            usage=(used.prompt_tokens, used.completion_tokens),
            price=used.price_units,
            payouts=payouts,
        )
        call = FinishedCall(
            call_id=hold.call_id,
            key_id=key_id,
            model=used.model,
            asset=self._policy.currency,
            price_units=used.price_units,
            reserve_id=transfer_id(metered_key(hold.call_id), 0),
            receipt_id=issued.id,
            request_digest=used.request_digest,
            answer_digest=used.answer_digest,
            began_ns=hold.began_ns,
            at_ns=now_ns,
        )
        return issued, Metered(call, tuple([(account, amount) for account, amount, _, _ in payouts]))

    def _form(self, kind: _Kind) -> ReceiptForm:
        """The form of a payer's receipts for a model, made from one of them."""
        key_id, model, model_digest, usage_from, registry_digest = kind
        sample = Receipt(
            call_id=call_id(bytes(16)),
            issued_at_ns=0,
            operator=self._signer.address,
            payer=pseudonym(key_id),
            model=ModelUse(model, model_digest, None),
            request_digest=_NO_DIGEST,
            answer_digest=_NO_DIGEST,
            usage=Usage(0, 0),
            currency=self._policy.currency,
            price=0,
            policy_digest=self._policy.digest,
            registry_digest=registry_digest,
            attribution=replace(self._attribution, parameters=(("lane", LANE), ("usage", usage_from))),
            payouts=(),
        )
        if len(self._forms) >= FORMS_MAX:
            self._forms.clear()
        form = self._forms[kind] = ReceiptForm(sample, self._signer)
        return form


def _nobody(policy: Policy) -> ReceiptAttribution:
    """The attribution of an answer in which nothing registered was offered: all of it is the residual."""
    return ReceiptAttribution(
        estimator="none",
        version="1",
        grade="A",
        parameters=(),
        seed=0,
        reference_digest=_NO_DIGEST,
        index_digest=None,
        scorer_digest=_NO_DIGEST,
        tokens=0,
        base_microbits=0,
        total_microbits=0,
        model_weight_ppm=policy.model_weight_ppm,
        shares=(),
        residual_ppb=10**9,
        residual_account=COMMONS,
    )


def is_metered(receipt: Receipt) -> bool:
    """Whether a receipt was made on this path, before its books."""
    return dict(receipt.attribution.parameters).get("lane") == LANE


def metered_of(receipt: Receipt, identity: ReceiptId, key_id: str, began_ns: int) -> Metered:
    """What the books need of a receipt."""
    call = FinishedCall(
        call_id=receipt.call_id,
        key_id=key_id,
        model=receipt.model.name,
        asset=receipt.currency,
        price_units=receipt.price,
        reserve_id=transfer_id(metered_key(receipt.call_id), 0),
        receipt_id=identity,
        request_digest=receipt.request_digest,
        answer_digest=receipt.answer_digest,
        began_ns=began_ns,
        at_ns=receipt.issued_at_ns,
    )
    return Metered(call, tuple((payout.account, payout.amount) for payout in receipt.payouts))
