"""Who is owed which fraction of an answer, for systems that read Content Telemetry: the fractional-attribution report.

Fractions are decimal strings of nine places that sum to one with the model's residual, exactly, as the receipt's
parts per billion do. Raw contributions keep their sign: what harmed an answer is listed with a negative one and a
fraction of zero. The report says what measured it and how well, whether it covers everything that was offered,
and what it supersedes; the receipt it names is the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from headwater.core.canonical import refuse_deep
from headwater.core.errors import InvalidError
from headwater.core.instants import format_instant
from headwater.core.money import PPB
from headwater.receipts.content_telemetry.documents import VERSION
from headwater.receipts.content_telemetry.sessions import Content, stable_uuid
from headwater.receipts.receipt import Receipt

REPORT_BYTES_MAX: Final = 4 * 2**20
Fraction = Annotated[str, Meta(pattern=r"^(0\.\d{9}|1\.0{9})$")]
Bits = Annotated[str, Meta(pattern=r"^-?\d{1,12}\.\d{6}$")]


class _Estimator(Struct):
    id: str
    version: str
    grade: Literal["A", "B", "C"]


class _Part(Struct):
    content_id: str
    channel: str
    fraction: Fraction
    raw_contribution_bits: Bits
    interval_bits: tuple[Bits, Bits]


class FractionalReport(Struct):
    """A report that was read and whose fractions sum to one."""

    document_type: Literal["fractional_attribution"]
    schema_version: Literal["0.1"]
    session_id: str
    receipt: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    issued_at: str
    estimator: _Estimator
    coverage: Literal["complete", "sampled", "aggregated", "selected"]
    contributions: list[_Part]
    model_residual: Fraction
    supersedes: str | None = None


def fractional_report(receipt: Receipt, receipt_id: str, contents: Mapping[str, Content]) -> dict[str, Any]:
    """The report of one receipt; `contents` by contribution id, as for `session_json`."""
    account = receipt.attribution
    parts = []
    for share in account.shares:
        part: dict[str, Any] = {
            "content_id": share.contribution,
            "kind": share.kind,
            "channel": share.channel,
            "fraction": _fraction(share.weight_ppb),
            "raw_contribution_bits": _bits(share.microbits),
            "interval_bits": [_bits(share.low_microbits), _bits(share.high_microbits)],
        }
        known = contents.get(share.contribution)
        if known is not None:
            part |= {"license_ref": known.license_expression, "content_hash": known.content_digest}
        parts.append(part)
    return {
        "document_type": "fractional_attribution",
        "schema_version": VERSION,
        "session_id": stable_uuid(receipt_id, "session", 0),
        "receipt": receipt_id,
        "supersedes": receipt.supersedes,
        "issued_at": format_instant(receipt.issued_at_ns),
        "agent_id": receipt.operator,
        "model_id": receipt.model.name,
        "estimator": {
            "id": account.estimator,
            "version": account.version,
            "grade": account.grade,
            "parameters": {name: str(value) for name, value in account.parameters},
            "seed": str(account.seed),
            "confidence": "0.95",
            "validation_reference": account.reference_digest,
        },
        "coverage": "complete",
        "verification": "audited_recomputation",
        "contributions": parts,
        "model_residual": _fraction(account.residual_ppb),
    }


def read_fractional(raw: bytes) -> FractionalReport:
    """Read anybody's report.

    Raises:
        InvalidError: ``telemetry_invalid``: another form, or fractions that do not sum to one.
    """
    if len(raw) > REPORT_BYTES_MAX:
        raise _invalid(f"{len(raw)} bytes", f"send at most {REPORT_BYTES_MAX}")
    refuse_deep(raw)
    try:
        report = msgspec.json.decode(raw, type=FractionalReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(
            str(error), "send a report in the form `headwater telemetry export --fractional` writes"
        ) from None
    whole = sum((Decimal(part.fraction) for part in report.contributions), Decimal(report.model_residual))
    if whole != 1:
        raise _invalid(f"fractions sum to {whole}", "fractions and the residual sum to one exactly")
    for part in report.contributions:
        low, high = map(Decimal, part.interval_bits)
        if not low <= Decimal(part.raw_contribution_bits) <= high:
            raise _invalid(f"{part.content_id[:80]!r} lies outside its interval", "give low <= contribution <= high")
        if Decimal(part.fraction) > 0 and Decimal(part.raw_contribution_bits) < 0:
            raise _invalid(
                f"{part.content_id[:80]!r} harmed the answer and is paid", "give what harmed a fraction of 0"
            )
    return report


def _fraction(ppb: int) -> str:
    return f"{ppb // PPB}.{ppb % PPB:09d}"


def _bits(microbits: int) -> str:
    sign, size = "-" if microbits < 0 else "", abs(microbits)
    return f"{sign}{size // 10**6}.{size % 10**6:06d}"


def _invalid(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="telemetry_invalid", fix=fix)
