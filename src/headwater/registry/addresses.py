"""E-mail addresses are taken out of everything that is stored or served.

A name is public once its owner has signed a document with it; an address never needs to be shown.
Errs on the side of taking out too much: an address inside a link goes as well.
"""

from __future__ import annotations

import re

_HOST = r"(?:[\w-]+\\?\.)+[A-Za-z]{2,}"

# An address in brackets goes with its brackets; backslashes come from converters that escape mark-up.
_BRACKETED = re.compile(rf"<+(?:mailto:)?\s*[^\s<>@:/]+(?:\s*@\s*|[\s(\[-]+at[\s)\]-]+){_HOST}\s*(?:\\?>)+")
_PLAIN = re.compile(rf"(?:mailto:)?[\w.+\\-]+@{_HOST}")
_SPELT_OUT = re.compile(
    r"\b[\w.+-]+(?:\s+at\s+|\s*[\[(]at[\])]\s*|--at--)(?:[\w-]+(?:\.|\s+dot\s+))+(?:com|org|net|edu|gov)\b(?!/)"
)
_AT = re.compile(r"[\s(\[-]at[\s)\]-]")

ELLIPSIS = "…"
"""What stands where an address was taken out of running text."""


def without_addresses(text: str) -> str:
    """`text` without anything that looks like an e-mail address.

    >>> without_addresses("Ada <ada@example.org> wrote to list@example.org")
    'Ada  wrote to …'
    """
    if "@" in text:
        text = _PLAIN.sub(ELLIPSIS, _BRACKETED.sub("", text))
    if _AT.search(text):
        text = _SPELT_OUT.sub(ELLIPSIS, _BRACKETED.sub("", text))
    return text
