"""Many questions to a node in few round trips: JSON-RPC batches, one by one where a node refuses them.

What payees were paid is read four at a time, as `Payout` keeps it: `_paid` is an array of words from slot 9 on, four
lanes of 16 bits of tag and 48 of token units each (every read compares one of them with the contract's own view).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from headwater.chain.sender import Sender, translated
from headwater.core.errors import UpstreamError
from headwater.core.keccak import keccak256

BATCH: Final = 100
"""Questions at once; public nodes refuse more."""

PAID_SLOT: Final = 9
_LANES, _LANE_BITS, _TAG_BITS = 4, 64, 16
_PAID: Final = keccak256(b"paid(uint256)")[:4]

Question = tuple[str, list[Any]]
"""A method and its parameters."""


def ask_many(sender: Sender, questions: Sequence[Question], what: str, *, at_once: int = BATCH) -> list[Any]:
    """The results, in the order of the questions.

    Raises:
        UpstreamError: the node failed, or refuses one of them.
    """
    results: list[Any] = []
    batches = True
    for start in range(0, len(questions), at_once):
        asked = questions[start : start + at_once]
        answers = _batch(sender, asked, what) if batches else None
        if answers is None:
            batches = False
            with translated(what):
                answers = [sender.web3.provider.make_request(method, params) for method, params in asked]  # type: ignore[arg-type]
        for answer in answers:
            if "error" in answer:
                error: Any = answer["error"]
                text = error.get("message", "") if isinstance(error, dict) else error
                raise UpstreamError(
                    f"{what}: the chain's node refuses: {str(text)[:200]}",
                    code="chain_unavailable",
                    fix="check the RPC address and try again",
                )
            results.append(answer.get("result"))
    return results


def _batch(sender: Sender, asked: Sequence[Question], what: str) -> list[Any] | None:
    """The answers to a batch; None when the node, or the provider, takes none."""
    provider: Any = sender.web3.provider
    make = getattr(provider, "make_batch_request", None)
    if make is None or len(asked) == 1:
        return None
    try:
        with translated(what):
            answers = make([(method, params) for method, params in asked])
    except (NotImplementedError, UpstreamError):
        return None  # a node that has failed fails again when asked one by one
    if not isinstance(answers, list) or len(answers) != len(asked):
        return None
    return answers


def paid_by_index(sender: Sender, payout: str, indices: Iterable[int]) -> dict[int, int]:
    """Token units that each payee has received in all.

    Args:
        payout: address of the contract.
    """
    wanted = sorted(set(indices))
    slots = sorted({index // _LANES for index in wanted})
    questions: list[Question] = [("eth_getStorageAt", [payout, hex(PAID_SLOT + slot), "latest"]) for slot in slots]
    what = "reading what was paid"
    words = dict(zip(slots, (int(word, 16) for word in ask_many(sender, questions, what)), strict=True))
    found = {index: _lane(words[index // _LANES], index) for index in wanted}
    some = next((index for index in wanted if found[index]), wanted[0] if wanted else None)
    if some is None or _asked(sender, payout, [some]) == {some: found[some]}:
        return found
    return _asked(sender, payout, wanted)  # another layout, or somebody was paid just now


def _asked(sender: Sender, payout: str, indices: Sequence[int]) -> dict[int, int]:
    """The same from the contract's own view."""
    questions: list[Question] = [
        ("eth_call", [{"to": payout, "data": "0x" + (_PAID + index.to_bytes(32, "big")).hex()}, "latest"])
        for index in indices
    ]
    answers = ask_many(sender, questions, "reading what was paid")
    return dict(zip(indices, (int(answer, 16) for answer in answers), strict=True))


def _lane(word: int, index: int) -> int:
    return (word >> (index % _LANES * _LANE_BITS) & (1 << _LANE_BITS) - 1) >> _TAG_BITS
