"""Takes personal data out of texts before they are registered: patterns with checks, each match replaced by its kind.

E-mail addresses, phone numbers, payment cards (Luhn), bank accounts (IBAN, mod 97), IP addresses and secrets
such as API keys and private keys. Names, streets and stories are not recognised: a filter lowers the risk, it
does not end it, and what was registered can be withdrawn. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SCANNED_CHARS_MAX: Final = 200_000

_WORD = r"[A-Za-z0-9]"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A text without what was recognised, and how many of each kind that was."""

    text: str
    found: tuple[tuple[str, int], ...]  # (kind, count), sorted by kind

    @property
    def count(self) -> int:
        """How many things were taken out."""
        return sum(count for _, count in self.found)


def without_personal_data(text: str) -> Cleaned:
    """`text` with each recognised thing replaced by its kind in brackets.

    Doing it again changes nothing.

    >>> without_personal_data("write to ada@example.org").text
    'write to [e-mail]'
    """
    found: dict[str, int] = {}
    for kind, pattern, real in _PATTERNS:

        def replaced(match: re.Match[str], kind: str = kind, real: Callable[[str], bool] = real) -> str:
            if not real(match[0]):
                return match[0]
            found[kind] = found.get(kind, 0) + 1
            return f"[{kind}]"

        text = pattern.sub(replaced, text)
    return Cleaned(text, tuple(sorted(found.items())))


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others, as on payment cards."""
    doubled = [int(d) * (1 + place % 2) for place, d in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def _anything(_: str) -> bool:
    return True


def _is_card(match: str) -> bool:
    digits = re.sub(r"\D", "", match)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)


def _is_iban(match: str) -> bool:
    plain = re.sub(r"\s", "", match).upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_ip(match: str) -> bool:
    try:
        address = ipaddress.ip_address(match)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _is_phone(match: str) -> bool:
    digits = re.sub(r"\D", "", match)
    # Dates, versions and plain numbers have no country code, no brackets and no groups of a phone number's size.
    if re.fullmatch(r"\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}", match.strip()):
        return False
    return 8 <= len(digits) <= 15 and (match.lstrip()[0] in "+(" or len(re.findall(r"\d{2,}", match)) >= 3)


_PATTERNS: Final[tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...]] = (
    (
        "private key",
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[A-Za-z0-9+/=\s]{0,8000}(?:-----END [A-Z ]{0,40}-----)?"),
        _anything,
    ),
    (
        "key",
        re.compile(
            r"\b(?:hw_(?:test|live)_[A-Za-z0-9_-]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[opsu]_[A-Za-z0-9]{20,}"
            r"|github_pat_[A-Za-z0-9_]{20,}|AKIA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}"
            r"|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}|0x[0-9a-fA-F]{64})"
        ),
        _anything,
    ),
    ("e-mail", re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"), _anything),
    (
        "bank account",
        re.compile(rf"(?<!{_WORD})[A-Z]{{2}}\d{{2}}(?: ?[A-Z0-9]{{1,4}}){{3,8}}(?!{_WORD})"),
        _is_iban,
    ),
    ("card", re.compile(r"(?<![\d.])(?:\d[ -]?){12,18}\d(?![\d.]\d|\d)"), _is_card),
    ("IP address", re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)"), _is_ip),
    ("IP address", re.compile(r"(?<![:\w])(?:[0-9A-Fa-f]{1,4}:){1,7}(?::?[0-9A-Fa-f]{1,4}){1,7}(?![:\w])"), _is_ip),
    ("phone", re.compile(r"(?<![\w.+-])(?:\+|\(?0)\d{0,4}\)?(?:[ ./()-]{0,2}\d){6,14}(?![\w-]|\.\d)"), _is_phone),
)
