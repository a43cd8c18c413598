"""Receipts of one kind in great number: the text that they share is made and checked once, the rest is filled in.

A form is made from a whole receipt, by the same checks as any. What is filled in (call, instant, digests, tokens,
price, payouts) is of forms that need no escapes, and is checked again each time; so the bytes are those that
`Receipt.to_bytes` would give. Tests hold the two together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import msgspec

from headwater.core.canonical import Json
from headwater.core.errors import InvariantError
from headwater.core.ids import AccountId, CallId, ContributionId, ReceiptId, receipt_id
from headwater.core.instants import format_instant
from headwater.core.limits import RECEIPT_PAYOUTS_MAX
from headwater.core.money import AMOUNT_MAX
from headwater.receipts.fields import INTEGER_MAX
from headwater.receipts.receipt import Receipt, ReceiptPayout, Usage
from headwater.receipts.signing import Signer, signing_digest

INSTANT_NS_MAX: Final = 253_402_300_800 * 10**9
"""The year 10000, which no instant of a receipt reaches."""

_FILLED: Final = re.compile(r"call_[0-9a-f]{32}sha256:[0-9a-f]{64}sha256:[0-9a-f]{64}")
_GAPS: Final = ("answer_digest", "call_id", "issued_at", "payouts", "price", "request_digest", "usage")
"""What differs between the receipts of a form, in the order in which canonical JSON has it."""

_ENCODER: Final = msgspec.json.Encoder(order="sorted")


Paid = tuple[AccountId, int, str, ContributionId | None]
"""A payout: account, nano units, line, contribution."""


class Issued(msgspec.Struct, frozen=True, gc=False):
    """A receipt made from a form, signed."""

    raw: bytes  # canonical bytes
    id: ReceiptId
    signature: str  # 0x and 130 hex digits
    call_id: CallId
    price: int  # nano units


class ReceiptForm:
    """Receipts like `sample` but for call, instant, request, answer, usage, price and payouts.

    Raises:
        InvariantError: the sample is no receipt that could be issued, or names another operator than the signer.
    """

    __slots__ = ("_lines", "_parts", "_policy_digest", "_sample", "_signer")

    def __init__(self, sample: Receipt, signer: Signer) -> None:
        if sample.operator != signer.address:
            raise InvariantError(f"a form names the operator {sample.operator}", code="operator_mismatch")
        self._sample = replace(sample, price=0, payouts=(), usage=Usage(0, 0), supersedes=None)
        value = msgspec.json.decode(self._sample.to_bytes())
        pieces, text = [], "{"
        for name in sorted(value):
            text += f'"{name}":'
            if name in _GAPS:
                pieces.append(text)
                text = ""
            else:
                text += _text(value[name])
            text += ","
        pieces.append(text[:-1] + "}")
        self._parts = tuple(pieces)
        self._lines: dict[tuple[str, str, str | None], tuple[str, str]] = {}
        self._signer, self._policy_digest = signer, sample.policy_digest

    def issue(
        self,
        *,
        call_id: CallId,
        issued_at_ns: int,
        request_digest: str,
        answer_digest: str,
        usage: tuple[int, int],
        price: int,
        payouts: Iterable[Paid],
    ) -> Issued:
        """A receipt of this form, signed.

        Args:
            usage: tokens of the prompt and of the answer.
            payouts: with an account, nano units, a line and perhaps a contribution each.

        Raises:
            InvariantError: a field or the sum of the payouts is wrong; nothing must be issued.
        """
        paid, rows = 0, []
        for account, amount, line, contribution in payouts:
            if type(amount) is not int or not 0 <= amount <= AMOUNT_MAX:
                raise _unfit(call_id, "amount_invalid", f"a payout of {amount!r}")
            before, after = self._lines.get((account, line, contribution)) or self._line(account, line, contribution)
            rows.append(f"{before}{amount}{after}")
            paid += amount
        if len(rows) > RECEIPT_PAYOUTS_MAX:
            raise _unfit(call_id, "field_invalid", f"{len(rows)} payouts")
        if paid != price:
            raise _unfit(call_id, "payouts_unequal", f"payouts of {paid} nano and a price of {price}")
        if (
            _FILLED.fullmatch(call_id + request_digest + answer_digest) is None
            or not 0 <= issued_at_ns < INSTANT_NS_MAX
        ):
            raise _unfit(call_id, "field_invalid", "its call, digests or instant are not of their form")
        prompt, completion = usage
        if not (
            type(prompt) is type(completion) is int and 0 <= prompt <= INTEGER_MAX and 0 <= completion <= INTEGER_MAX
        ):
            raise _unfit(call_id, "field_invalid", f"usage of {prompt!r} and {completion!r} tokens")
        a, b, c, d, e, f, g, h = self._parts
        raw = (
            f'{a}"{answer_digest}"{b}"{call_id}"{c}"{format_instant(issued_at_ns)}"{d}[{",".join(rows)}]{e}"{price}"{f}'
            f'"{request_digest}"{g}{{"completion_tokens":{completion},"prompt_tokens":{prompt}}}{h}'
        ).encode()
        identity = receipt_id(raw)
        signature = self._signer.sign(signing_digest(identity, call_id, price, self._policy_digest))
        return Issued(raw, identity, "0x" + signature.hex(), call_id, price)

    def _line(self, account: AccountId, line: str, contribution: ContributionId | None) -> tuple[str, str]:
        """The text of a payout before and after its amount, once a receipt with it was found sound."""
        replace(self._sample, payouts=(ReceiptPayout(account, 0, line, contribution),)).to_bytes()
        if len(self._lines) >= RECEIPT_PAYOUTS_MAX:
            self._lines.clear()
        text = (
            f'{{"account":{_text(account)},"amount":"',
            f'","contribution":{_text(contribution)},"line":{_text(line)}}}',
        )
        self._lines[account, line, contribution] = text
        return text


def _text(value: Json) -> str:
    return _ENCODER.encode(value).decode()


def _unfit(call_id: str, code: str, what: str) -> InvariantError:
    return InvariantError(f"receipt of {call_id}: {what}", code=code)
