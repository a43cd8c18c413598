"""Licences: under what terms a contribution may be used, and for what.

An expression is SPDX or `LicenseRef-…`; the permitted uses are stated beside it and are what the gate
reads: an expression alone never grants a use. Knows nothing of what an expression means in law.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal, get_args

from license_expression import ExpressionError, get_spdx_licensing

from headwater.core.errors import InvalidError
from headwater.core.limits import LICENSE_EXPRESSION_CHARS_MAX, LICENSE_TERMS_CHARS_MAX
from headwater.core.money import AMOUNT_MAX

Use = Literal["ground", "train", "reproduce"]
"""`ground`: put into a prompt as a source. `train`: learn from. `reproduce`: be quoted in an answer."""

USES: tuple[Use, ...] = get_args(Use)

_REF = re.compile(r"(DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")


@dataclass(frozen=True, slots=True)
class License:
    """The terms of one contribution. `expression` is in normal form once built."""

    expression: str
    uses: frozenset[Use]
    price_floor_units: int = 0  # nano units: least price of a call in which it may be used
    expires_at_ns: int | None = None  # at and after this instant every use ends
    terms: str = ""  # where the full terms are, or a short text of them

    def __post_init__(self) -> None:
        object.__setattr__(self, "expression", parse_expression(self.expression))
        strange = sorted(set(self.uses) - set(USES))
        if strange:
            raise InvalidError(
                f"unknown uses {strange}", code="license_use_unknown", fix=f"choose from {', '.join(USES)}"
            )
        if not 0 <= self.price_floor_units <= AMOUNT_MAX:
            raise InvalidError(
                f"price floor of {self.price_floor_units} nano units is out of range",
                code="price_floor_invalid",
                fix="give 0 or more nano units",
            )
        if len(self.terms) > LICENSE_TERMS_CHARS_MAX:
            raise InvalidError(
                f"terms of {len(self.terms)} characters are over the limit of {LICENSE_TERMS_CHARS_MAX}",
                code="license_terms_too_long",
                fix="give an address where the terms can be read",
            )


@lru_cache(maxsize=1024)
def parse_expression(text: str) -> str:
    """An SPDX licence expression in normal form.

    Identifiers must be on the SPDX list, or be `LicenseRef-…` for a licence that is not on it.

    Raises:
        InvalidError: empty, too long, not an expression, or an identifier that is not known.

    >>> parse_expression("mit or apache-2.0")
    'MIT OR Apache-2.0'
    """
    if not text.strip() or len(text) > LICENSE_EXPRESSION_CHARS_MAX:
        raise _unknown(text, f"has {len(text)} characters, not 1 to {LICENSE_EXPRESSION_CHARS_MAX}")
    spdx = _spdx()
    try:
        parsed = spdx.parse(text, validate=False, strict=True)
    except ExpressionError as error:
        raise _unknown(text, str(error)) from None
    strange = [key for key in spdx.unknown_license_keys(parsed) if _REF.fullmatch(key) is None]
    if strange:
        raise _unknown(text, f"names {strange[0][:80]!r}, which is not on the SPDX list")
    return str(parsed.render())


@cache
def _spdx() -> Any:
    return get_spdx_licensing()


def _unknown(text: str, why: str) -> InvalidError:
    return InvalidError(
        f"licence {text[:80]!r} {why}",
        code="license_unknown",
        fix="write an SPDX expression such as CC-BY-4.0, or LicenseRef-name for terms of your own",
    )
