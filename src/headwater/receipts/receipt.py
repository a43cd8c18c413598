"""The receipt, version 1: who asked what of which model, who supplied the answer, and who is paid for it.

One value, one text: a receipt's bytes are its RFC 8785 form, its id is their SHA-256, and the same
checks stand at the way in and at the way out. Sums must close: payouts make the price, weights and
residual make 10^9, owners make 10^9, and micro-bits conserve. Knows nothing of how payouts or
shares were computed, of signatures, of files or of chains.

Micro-bits: `microbits` rounds each measured part by itself, and the total is *defined* as the sum of
the base model's part and the parts of the players (grounded and learned shares), so it conserves
exactly. A reproduced share is a part of the base model's own bits and is not counted again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from headwater.core.canonical import Json, refuse_deep
from headwater.core.errors import InvalidError, InvariantError
from headwater.core.ids import AccountId, CallId, ContributionId, ContributorId, ReceiptId, receipt_id
from headwater.core.instants import format_instant, parse_instant
from headwater.core.limits import (
    CONTRIBUTION_OWNERS_MAX,
    RECEIPT_PARAMETERS_MAX,
    RECEIPT_PAYOUTS_MAX,
    RECEIPT_SHARES_MAX,
    RECEIPT_SIZE_BYTES_MAX,
)
from headwater.core.money import AMOUNT_MAX, PPB
from headwater.receipts import fields
from headwater.receipts.fields import integer, matching, null_or, one_of, record, rows

SCHEMA: Final = "headwater.receipt/1"
Channel = Literal["grounded", "learned", "reproduced"]
Grade = Literal["A", "B", "C"]

_PLAIN: Final = (
    "call_id",
    "operator",
    "payer",
    "request_digest",
    "answer_digest",
    "currency",
    "policy_digest",
    "registry_digest",
    "supersedes",
)
"""Fields that are the same text in the value and in the record."""

_KINDS: Final = ("document", "prompt", "feedback", "adapter", "base_model", "tool", "review")
"""Brackets outside strings; strings are matched whole, so that brackets inside them are passed over."""
_ENCODER: Final = msgspec.json.Encoder(order="sorted")
"""Equal to `core.canonical` on what the rules below let through, and many times faster; a test holds them together."""


@dataclass(frozen=True, slots=True)
class ModelUse:
    """The weights that answered."""

    name: str
    digest: str  # sha256:…
    adapter: str | None  # sha256:… of the adapter's weights


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the model counted them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ReceiptOwner:
    """One owner of a contribution when the answer was given."""

    account: AccountId
    contributor: ContributorId
    share_ppb: int  # owners of one contribution sum to 10^9


@dataclass(frozen=True, slots=True)
class ReceiptShare:
    """One contribution's part in the answer, in one channel."""

    contribution: ContributionId
    kind: str  # document, prompt, feedback, adapter, base_model, tool or review
    channel: Channel
    weight_ppb: int  # what it is paid on, 0..10^9
    microbits: int  # what it explained; may be negative, then its weight is 0
    low_microbits: int  # 95 % interval; equal to microbits when measured exactly
    high_microbits: int
    owners: tuple[ReceiptOwner, ...]


@dataclass(frozen=True, slots=True)
class ReceiptAttribution:
    """The bit account of the answer, and everything needed to measure it again."""

    estimator: str
    version: str
    grade: Grade
    parameters: tuple[tuple[str, int | str], ...]  # sorted by name
    seed: int
    reference_digest: str  # of the table that says what counts as zero bits
    index_digest: str | None  # of the span index, when one was read
    scorer_digest: str
    tokens: int  # of the answer, as scored
    base_microbits: int
    total_microbits: int
    model_weight_ppm: int  # what one bit of the base model weighs beside one bit of a contribution, 0..10^6
    shares: tuple[ReceiptShare, ...]
    residual_ppb: int
    residual_account: AccountId


@dataclass(frozen=True, slots=True)
class ReceiptPayout:
    """Decided for one account; the amounts of a receipt sum to its price."""

    account: AccountId
    amount: int  # nano units, >= 0
    line: str
    contribution: ContributionId | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the operator signs about one paid call."""

    call_id: CallId
    issued_at_ns: int
    operator: str  # address of the signer: 0x and 40 lower-case hex digits
    payer: str  # pseudonym
    model: ModelUse
    request_digest: str
    answer_digest: str
    usage: Usage
    currency: str
    price: int  # nano units of the currency
    policy_digest: str
    registry_digest: str
    attribution: ReceiptAttribution
    payouts: tuple[ReceiptPayout, ...]
    supersedes: ReceiptId | None = None  # the receipt of the same call that this one corrects

    def to_bytes(self) -> bytes:
        """The canonical bytes, checked before they leave: they are what is signed and logged.

        Raises:
            InvariantError: a field or a sum is wrong; the code says which, and nothing must be issued.
        """
        try:
            value = _to_json(self)
            _check(value)
        except InvalidError as error:
            raise InvariantError(
                f"receipt of {self.call_id}: {error.message}", code=error.code, fix=error.fix
            ) from error
        raw = _ENCODER.encode(value)
        if len(raw) > RECEIPT_SIZE_BYTES_MAX:
            raise InvariantError(f"receipt of {self.call_id} takes {len(raw)} bytes", code="receipt_too_large")
        return raw

    @classmethod
    def from_bytes(cls, raw: bytes) -> Receipt:
        """Read a receipt from exactly the bytes it was issued as.

        Raises:
            InvalidError: too large, not canonical, a field missing, unknown or of another form, or a sum that does not
                close; the message names the place.
        """
        if len(raw) > RECEIPT_SIZE_BYTES_MAX:
            raise InvalidError(
                f"receipt takes {len(raw)} bytes, the limit is {RECEIPT_SIZE_BYTES_MAX}",
                code="receipt_too_large",
                fix="use the bytes as they were issued",
            )
        refuse_deep(raw)
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise _not_canonical(f"not JSON: {error}") from None
        _check(value)
        if _ENCODER.encode(value) != raw:  # spacing, order, escapes and repeated keys all end here
            raise _not_canonical("JSON is not in RFC 8785 form")
        return _from_json(value)

    @property
    def id(self) -> ReceiptId:
        """SHA-256 of the canonical bytes."""
        return receipt_id(self.to_bytes())


def _not_canonical(message: str) -> InvalidError:
    return InvalidError(message, code="not_canonical", fix="use the bytes as they were issued")


_whole = integer(0)
_signed = integer(-fields.INTEGER_MAX)
_ppb = integer(0, PPB)
_contribution = matching(r"ctb_[0-9a-f]{32}", "a contribution id: ctb_ and 32 hex digits")

_OWNER = record(
    {
        "account": fields.account,
        "contributor": matching(r"ctr_[0-9a-f]{32}", "a contributor id: ctr_ and 32 hex digits"),
        "share_ppb": _ppb,
    }
)
_SHARE = record(
    {
        "contribution": _contribution,
        "kind": one_of(*_KINDS),
        "channel": one_of("grounded", "learned", "reproduced"),
        "weight_ppb": _ppb,
        "microbits": _signed,
        "low_microbits": _signed,
        "high_microbits": _signed,
        "owners": rows(_OWNER, 1, CONTRIBUTION_OWNERS_MAX),
    }
)
_ATTRIBUTION = record(
    {
        "estimator": fields.token,
        "version": fields.token,
        "grade": one_of("A", "B", "C"),
        "parameters": fields.mapping(
            r"[a-z][a-z0-9_]{0,63}", fields.either(_signed, fields.text), RECEIPT_PARAMETERS_MAX
        ),
        "seed": _whole,
        "reference_digest": fields.digest,
        "index_digest": null_or(fields.digest),
        "scorer_digest": fields.digest,
        "tokens": _whole,
        "base_microbits": _signed,
        "total_microbits": _signed,
        "model_weight_ppm": integer(0, 1_000_000),
        "shares": rows(_SHARE, 0, RECEIPT_SHARES_MAX),
        "residual_ppb": _ppb,
        "residual_account": fields.account,
    }
)
_PAYOUT = record(
    {
        "account": fields.account,
        "amount": fields.amount,
        "line": fields.text,
        "contribution": null_or(_contribution),
    }
)
_RECEIPT = record(
    {
        "schema": one_of(SCHEMA),
        "call_id": matching(r"call_[0-9a-f]{32}", "a call id: call_ and 32 hex digits"),
        "issued_at": fields.instant,
        "operator": fields.address,
        "payer": fields.text,
        "model": record({"name": fields.text, "digest": fields.digest, "adapter": null_or(fields.digest)}),
        "request_digest": fields.digest,
        "answer_digest": fields.digest,
        "usage": record({"prompt_tokens": _whole, "completion_tokens": _whole}),
        "currency": matching(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}", "a currency code such as USD"),
        "price": fields.amount,
        "policy_digest": fields.digest,
        "registry_digest": fields.digest,
        "attribution": _ATTRIBUTION,
        "payouts": rows(_PAYOUT, 0, RECEIPT_PAYOUTS_MAX),
        "supersedes": null_or(fields.hash32),
    }
)


def _check(value: Json) -> None:
    _RECEIPT(value, "$")
    account = value["attribution"]
    seen: set[tuple[str, str]] = set()
    weights, explained = account["residual_ppb"], account["base_microbits"]
    for i, share in enumerate(account["shares"]):
        where = f"$.attribution.shares[{i}]"
        _check_share(share, where)
        if (key := (share["contribution"], share["channel"])) in seen:
            raise _unsound(
                f"{where} repeats {key[0]} in the channel {key[1]}", "share_repeated", "merge the two shares"
            )
        seen.add(key)
        weights += share["weight_ppb"]
        if share["channel"] != "reproduced":
            explained += share["microbits"]
    if weights != PPB:
        raise _unsound(
            f"$.attribution: weights and residual sum to {weights} ppb", "weights_unequal", "they must sum to 10^9 ppb"
        )
    if explained != account["total_microbits"]:
        raise _unsound(
            f"$.attribution.total_microbits is {account['total_microbits']}, the parts sum to {explained} micro-bits",
            "microbits_unequal",
            "define the total as base_microbits plus the micro-bits of grounded and learned shares",
        )
    paid, price = sum(int(payout["amount"]) for payout in value["payouts"]), int(value["price"])
    if paid != price:
        raise _unsound(
            f"$.payouts sum to {paid} nano, the price is {price} nano", "payouts_unequal", "they must sum to the price"
        )


def _check_share(share: dict[str, Any], where: str) -> None:
    owned = sum(owner["share_ppb"] for owner in share["owners"])
    if owned != PPB:
        raise _unsound(f"{where}.owners sum to {owned} ppb", "owners_unequal", "owners must sum to 10^9 ppb")
    low, middle, high = share["low_microbits"], share["microbits"], share["high_microbits"]
    if not low <= middle <= high:
        raise _unsound(
            f"{where}: {middle} micro-bits is outside its interval {low} to {high}",
            "interval_invalid",
            "low_microbits <= microbits <= high_microbits",
        )
    if share["weight_ppb"] and low < 0:
        raise _unsound(
            f"{where} weighs {share['weight_ppb']} ppb, but its interval is {low} to {high} micro-bits",
            "share_unsupported",
            "a share whose interval goes below zero has weight 0",
        )


def _unsound(message: str, code: str, fix: str) -> InvalidError:
    return InvalidError(message, code=code, fix=fix)


def _to_json(receipt: Receipt) -> dict[str, Json]:
    account, model = receipt.attribution, receipt.model
    if not 0 <= receipt.issued_at_ns < 253_402_300_800 * 10**9:  # the year 10000
        raise fields.wrong(receipt.issued_at_ns, "$.issued_at", "an instant from 1970 to 9999 in nanoseconds")
    for where, units in [("$.price", receipt.price), *(("$.payouts", payout.amount) for payout in receipt.payouts)]:
        if type(units) is not int or not 0 <= units <= AMOUNT_MAX:
            raise fields.wrong(units, where, "an integer of nano units from 0 to 10^38 - 1")
    if len(parameters := dict(account.parameters)) != len(account.parameters):
        raise fields.wrong(account.parameters, "$.attribution.parameters", "names that differ")
    return {
        "schema": SCHEMA,
        "call_id": receipt.call_id,
        "issued_at": format_instant(receipt.issued_at_ns),
        "operator": receipt.operator,
        "payer": receipt.payer,
        "model": {"name": model.name, "digest": model.digest, "adapter": model.adapter},
        "request_digest": receipt.request_digest,
        "answer_digest": receipt.answer_digest,
        "usage": {
            "prompt_tokens": receipt.usage.prompt_tokens,
            "completion_tokens": receipt.usage.completion_tokens,
        },
        "currency": receipt.currency,
        "price": str(receipt.price),
        "policy_digest": receipt.policy_digest,
        "registry_digest": receipt.registry_digest,
        "attribution": {
            "estimator": account.estimator,
            "version": account.version,
            "grade": account.grade,
            "parameters": parameters,
            "seed": account.seed,
            "reference_digest": account.reference_digest,
            "index_digest": account.index_digest,
            "scorer_digest": account.scorer_digest,
            "tokens": account.tokens,
            "base_microbits": account.base_microbits,
            "total_microbits": account.total_microbits,
            "model_weight_ppm": account.model_weight_ppm,
            "shares": [_share_to_json(share) for share in account.shares],
            "residual_ppb": account.residual_ppb,
            "residual_account": account.residual_account,
        },
        "payouts": [
            {
                "account": payout.account,
                "amount": str(payout.amount),
                "line": payout.line,
                "contribution": payout.contribution,
            }
            for payout in receipt.payouts
        ],
        "supersedes": receipt.supersedes,
    }


def _share_to_json(share: ReceiptShare) -> dict[str, Json]:
    return {
        "contribution": share.contribution,
        "kind": share.kind,
        "channel": share.channel,
        "weight_ppb": share.weight_ppb,
        "microbits": share.microbits,
        "low_microbits": share.low_microbits,
        "high_microbits": share.high_microbits,
        "owners": [
            {"account": owner.account, "contributor": owner.contributor, "share_ppb": owner.share_ppb}
            for owner in share.owners
        ],
    }


def _from_json(value: dict[str, Any]) -> Receipt:
    account = dict(value["attribution"])
    account["parameters"] = tuple(sorted(account["parameters"].items()))
    account["shares"] = tuple(
        ReceiptShare(**{**share, "owners": tuple(ReceiptOwner(**owner) for owner in share["owners"])})
        for share in account["shares"]
    )
    plain = {name: value[name] for name in _PLAIN}
    return Receipt(
        **plain,
        issued_at_ns=parse_instant(value["issued_at"]),
        model=ModelUse(**value["model"]),
        usage=Usage(**value["usage"]),
        price=int(value["price"]),
        attribution=ReceiptAttribution(**account),
        payouts=tuple(ReceiptPayout(**{**row, "amount": int(row["amount"])}) for row in value["payouts"]),
    )
