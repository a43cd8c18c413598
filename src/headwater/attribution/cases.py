"""Attribution of files: one case a line, read into a layout, and a measured account written as a line again.

A case is ``{"id", "parts": [{"id", "owner", "text", "fixed"}, …], "answer"}``. The texts are what the model
sees, chat template included, so its special tokens are honoured in all of them, and the text of the parts
that are present is read as one. Pure: lines and values, no files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headwater.attribution.bits import Attribution
from headwater.attribution.layout import Layout, Part
from headwater.core.canonical import refuse_deep
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.limits import CASE_LINE_BYTES_MAX, REQUEST_DEPTH_MAX

END_OF_TURN = "<|im_end|>"
"""Not part of an answer: taken off where a file has it, with white space after it."""

PLACES = 9  # decimals of bits in a line: sums hold to 1e-6 after rounding


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt in parts and the answer that was given to it."""

    id: str
    layout: Layout
    answer: str


def read_case(line: str, *, joined: bool = True) -> Case:
    """The case of one line.

    Args:
        line: a JSON object; fields that are not known here are passed over.
        joined: read the present parts as one text; False tokenises them one by one.

    Raises:
        InvalidError: not such an object; the message names the field.
    """
    if len(line.encode("utf-8", "surrogatepass")) > CASE_LINE_BYTES_MAX:
        raise _wrong(f"the line has more than {CASE_LINE_BYTES_MAX} bytes", "cut the case in several")
    try:
        refuse_deep(line.encode("utf-8", "surrogatepass"), REQUEST_DEPTH_MAX)
        value = json.loads(line)
    except HeadwaterError as error:
        raise InvalidError(error.message, code=error.code, fix="nest the case as in the documentation") from None
    except ValueError as error:
        raise _wrong(f"the line is not JSON: {error}", "write one JSON object a line") from None
    if not isinstance(value, dict):
        raise _wrong(f"the line is a {type(value).__name__}", "write one JSON object a line")
    parts = value.get("parts")
    if not isinstance(parts, list) or not parts:
        raise _wrong(f"parts is {str(parts)[:40]!r}", "give a list of at least one part")
    return Case(
        _text(value, "id", "the case"),
        Layout(tuple(_part(row, place) for place, row in enumerate(parts)), joined=joined),
        _answer(_text(value, "answer", "the case")),
    )


def case_result(case: Case, found: Attribution, reference_bits: float, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The account of a case as a JSON object; `base_bits` and `total_bits` are plain log2 p of the answer.

    Args:
        case: what was measured.
        found: its account, beyond a reference.
        reference_bits: what the reference adds to the answer's log2 p, summed over its tokens.
        extra: further fields, such as CPU-seconds.
    """
    of_part = {share.part_id: share for share in found.shares}
    parts: list[dict[str, Any]] = []
    for part in case.layout.parts:
        row: dict[str, Any] = {"id": part.id, "owner": part.owner, "fixed": part.fixed}
        if (share := of_part.get(part.id)) is None:
            row |= {"bits": 0.0, "low": 0.0, "high": 0.0, "weight_ppb": 0}
        else:
            row |= {
                "bits": round(share.bits, PLACES),
                "low": round(share.low, PLACES),
                "high": round(share.high, PLACES),
                "weight_ppb": share.weight_ppb,
            }
        parts.append(row)
    return {
        "id": case.id,
        "parts": parts,
        "base_bits": round(found.base_bits - reference_bits, PLACES),
        "total_bits": round(found.total_bits - reference_bits, PLACES),
        "reference_bits": round(reference_bits, PLACES),
        "residual_ppb": found.residual_ppb,
        "grade": found.grade,
        "passes": found.passes,
        "players": found.players,
        "tokens": found.tokens,
        "merged": [list(ids) for ids in found.merged],
        "copies": [{"copy": copy, "original": original} for copy, original in found.copies],
        "estimator": f"{found.estimator}/{found.version}",
        "seed": found.seed,
        **extra,
    }


def _part(row: Any, place: int) -> Part:
    where = f"part {place}"
    if not isinstance(row, dict):
        raise _wrong(f"{where} is a {type(row).__name__}", "give id, owner, text and fixed")
    fixed = row.get("fixed", False)
    if not isinstance(fixed, bool):
        raise _wrong(f"{where} has fixed {fixed!r}", "write true or false")
    at = row.get("registered_at_ns", 0)
    if isinstance(at, bool) or not isinstance(at, int):
        raise _wrong(f"{where} has registered_at_ns {at!r}", "write nanoseconds, or leave it out")
    owner = row.get("owner", "") if fixed else _text(row, "owner", where)
    return Part(
        _text(row, "id", where), str(owner or ""), _text(row, "text", where), fixed, control=True, registered_at_ns=at
    )


def _answer(text: str) -> str:
    cut = text.rstrip()
    return cut.removesuffix(END_OF_TURN) if cut.endswith(END_OF_TURN) else text


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or (field in ("id", "owner") and not value):
        said = f"no {field}" if field not in row else f"{field} {value!r:.40}"
        raise _wrong(f"{where} has {said}", f"give {field} as text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _wrong(
            f"{where} has in {field} half a surrogate pair at {error.start}", "write whole characters"
        ) from None
    return value


def _wrong(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="case_invalid", fix=fix)
