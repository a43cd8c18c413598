"""An answer as its reader sees it: every token with who supplied it, and every supplier with its tokens.

Plain data out of a receipt, the account by token and the texts, for the one who paid for the call. A token belongs to
whoever gave it most, as it is paid for: a bit of the base model counts what the receipt's policy makes it weigh, else
fluent language would hide everybody. Knows nothing of HTTP or stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, Final

from headwater.attribution.evidence import Answer
from headwater.attribution.layout import Layout
from headwater.attribution.spans.tokens import tokenise
from headwater.attribution.token_account import REST, TokenAccount
from headwater.receipts import Receipt, ReceiptShare

SHOWN_MAX: Final = 12
"""Suppliers that are shown one by one; the rest are counted."""
TONES: Final = 8
LEVELS: Final = 9
BITS_FULL: Final = 6
"""Bits at which a token is drawn at full strength."""
LEAST: Final = 50_000
"""Micro-bits below which nobody's part of a token is worth a colour."""

BASE: Final = "base"
_TONES: Final = {"prompt": "prompt", "adapter": "adapter", "base_model": "base"}
_MICRO: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer, and who gave what to it."""

    text: str
    bits: Mapping[str, int]  # micro-bits by supplier


def supplied(receipt: Receipt) -> tuple[ReceiptShare, ...]:
    """The shares of a receipt, the weightiest first."""
    return tuple(
        sorted(receipt.attribution.shares, key=lambda s: (-s.weight_ppb, -s.microbits, s.contribution, s.channel))
    )


def tones(shares: Sequence[ReceiptShare]) -> list[str]:
    """The class of colour and pattern of each share: sources in turn, prompts and adapters their own."""
    found, sources = [], 0
    for share in shares:
        tone = "adapter" if share.channel == "learned" else _TONES.get(share.kind)
        if tone is None:
            tone, sources = f"c{sources % TONES}", sources + 1
        found.append(tone)
    return found


def tokens(answer: Answer, account: TokenAccount, shares: Sequence[ReceiptShare]) -> tuple[Token, ...]:
    """The answer in pieces; one that ends within a character is joined to the next.

    Args:
        shares: in the order whose positions (from 1) name them.
    """
    number: dict[tuple[str, str], str] = {
        (share.contribution, share.channel): str(i + 1) for i, share in enumerate(shares)
    }
    found: list[Token] = []
    at = 0
    for choice in answer.choices:
        raw = choice.text.encode()
        ends = list(choice.token_ends)
        if account.tokens != sum(len(one.token_ids) for one in answer.choices):
            ends = _word_ends(raw)  # an account of words, not of the model's tokens
        begin, bits = 0, dict[str, int]()
        for end in ends:
            if at < account.tokens:
                _add(bits, account, at, number)
            at += 1
            try:
                text = raw[begin:end].decode()
            except UnicodeDecodeError:
                continue
            if text:
                found.append(Token(text, bits))
                begin, bits = end, {}
        if begin < len(raw):
            found.append(Token(raw[begin:].decode(errors="replace"), bits))
    return tuple(found)


def _word_ends(raw: bytes) -> list[int]:
    """The end of each word; what stands between two words goes with the first."""
    read = tokenise(raw)
    starts = read.starts.tolist()
    return [*starts[1:], len(raw)] if starts else []


def _add(bits: dict[str, int], account: TokenAccount, at: int, number: Mapping[tuple[str, str], str]) -> None:
    base = account.base[at]
    for row in account.rows:
        amount = row.microbits[at]
        name = REST if row.contribution == REST else number.get((row.contribution, row.channel), REST)
        if amount:
            bits[name] = bits.get(name, 0) + amount
        if row.channel == "reproduced":
            base -= amount  # they are bits of the base model's, and are counted once
    bits[BASE] = bits.get(BASE, 0) + base


def main_supplier(token: Token, model_weight_ppm: int) -> str:
    """Whose token it is: who gave most to it, the base model's bits weighed; the base model's if nobody did."""
    given = {name: bits for name, bits in token.bits.items() if name != BASE and bits >= LEAST}
    best = max(given, key=lambda name: given[name], default=BASE)
    if best == BASE or given[best] * _MICRO < token.bits.get(BASE, 0) * model_weight_ppm:
        return BASE
    return best


def level(microbits: int) -> int:
    """How strongly a token is drawn, 0 to 9; twice as strong for four times the bits, so that a little shows."""
    part = max(0, microbits) / _MICRO / BITS_FULL
    return min(LEVELS, ceil(sqrt(part) * LEVELS))


def token_rows(found: Sequence[Token], tone_of: Mapping[str, str], model_weight_ppm: int) -> list[dict[str, Any]]:
    """Tokens as a template draws them; `mark` begins a run of one supplier."""
    rows: list[dict[str, Any]] = []
    before = ""
    for token in found:
        main = main_supplier(token, model_weight_ppm)
        rows.append(
            {
                "text": token.text,
                "main": main,
                "tone": tone_of.get(main, "residual"),
                "level": level(token.bits.get(main, 0)),
                "microbits": dict(token.bits),
                "mark": main if main not in (before, BASE) else "",
            }
        )
        before = main
    return rows


def passages(layout: Layout) -> dict[str, list[str]]:
    """What of each contribution was put before the model, by its id."""
    found: dict[str, list[str]] = {}
    for part in layout.players:
        if part.contribution is not None and part.text:
            found.setdefault(part.contribution, []).append(part.text)
    return found


def question(layout: Layout) -> str:
    """The caller's last words."""
    words = [part.text for part in layout.parts if part.fixed and not part.control]
    return words[-1] if words else ""


def is_match(receipt: Receipt, share: ReceiptShare) -> bool:
    """Whether a share rests on words that are alike, which proves no cause."""
    return share.channel == "reproduced" or receipt.attribution.grade == "C"


def paid_for(receipt: Receipt, contribution: str) -> int:
    """What a contribution's owners were paid by a receipt, nano units."""
    return sum(payout.amount for payout in receipt.payouts if payout.contribution == contribution)
