"""Really Simple Licensing 1.0: the terms of contributions as XML that crawlers and agents read, and such XML as terms.

`ground` is the standard's ``ai-input`` and `train` its ``ai-train``; `reproduce` has no word there and stands in an
element of our own, which other readers pass over. A price floor is a payment per use. Reading is strict where money
or permission is at stake: an unknown usage, an unknown payment or two prices are refused rather than guessed.
Document type declarations are refused before parsing, so no entity is ever expanded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.instants import format_instant, parse_instant
from headwater.core.money import format_units, parse_units
from headwater.registry.license import License, Use, parse_expression

NAMESPACE: Final = "https://rslstandard.org/rsl"
OWN: Final = "https://headwater.invalid/rsl-terms"
RSL_BYTES_MAX: Final = 2**20
CONTENTS_MAX: Final = 100_000
_SPDX: Final = "https://spdx.org/licenses/"
_USAGE: Final[Mapping[Use, str]] = {"ground": "ai-input", "train": "ai-train"}
_GRANTS: Final[Mapping[str, frozenset[Use]]] = {
    "all": frozenset(("ground", "train")),
    "ai-all": frozenset(("ground", "train")),
    "ai-input": frozenset(("ground",)),
    "ai-train": frozenset(("train",)),
    "ai-index": frozenset(),
    "search": frozenset(),
}
_FREE: Final = ("free", "attribution")
_PER_USE: Final = ("use", "inference")


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of what is found at one address."""

    url: str
    license: License
    currency: str | None = None  # of the price floor


def write_rsl(terms: Iterable[Terms], *, server: str | None = None) -> bytes:
    """The XML of some terms, in the order given.

    Args:
        server: address of the licence server, such as the gateway that sells answers.
    """
    ElementTree.register_namespace("", NAMESPACE)
    ElementTree.register_namespace("hw", OWN)
    root = ElementTree.Element(_name("rsl"))
    for one in terms:
        where = {"url": one.url} | ({} if server is None else {"server": server})
        content = ElementTree.SubElement(root, _name("content"), where)
        license = ElementTree.SubElement(content, _name("license"))
        granted = [word for use, word in _USAGE.items() if use in one.license.uses]
        refused = [word for use, word in _USAGE.items() if use not in one.license.uses]
        for verb, words in (("permits", granted), ("prohibits", refused)):
            if words:
                ElementTree.SubElement(license, _name(verb), {"type": "usage"}).text = ",".join(words)
        paid = one.license.price_floor_units > 0
        payment = ElementTree.SubElement(license, _name("payment"), {"type": "use" if paid else "free"})
        if paid:
            amount = ElementTree.SubElement(payment, _name("amount"), {"currency": one.currency or "USD"})
            amount.text = format_units(one.license.price_floor_units).rstrip("0").rstrip(".")
        ElementTree.SubElement(payment, _name("standard")).text = _standard(one.license.expression)
        if one.license.terms:
            ElementTree.SubElement(license, _name("legal"), {"type": "terms"}).text = one.license.terms
        own = {"expression": one.license.expression, "reproduce": str("reproduce" in one.license.uses).lower()}
        if one.license.expires_at_ns is not None:
            own["expires"] = format_instant(one.license.expires_at_ns)
        ElementTree.SubElement(license, f"{{{OWN}}}terms", own)
    ElementTree.indent(root)
    body: bytes = ElementTree.tostring(root, encoding="utf-8")
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + body + b"\n"


def read_rsl(raw: bytes) -> tuple[Terms, ...]:
    """Read anybody's RSL.

    A licence without a permission grants nothing. What it prohibits wins over what it permits.

    Raises:
        InvalidError: ``rsl_invalid``: not RSL, too large, or with a usage, payment or amount that is not understood.
    """
    if len(raw) > RSL_BYTES_MAX:
        raise _invalid(f"{len(raw)} bytes", f"give at most {RSL_BYTES_MAX}")
    if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        raise _invalid("a document type declaration", "leave it out")
    try:
        root = ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise _invalid(f"not XML: {error}", "mend the place it names") from None
    if root.tag != _name("rsl"):
        raise _invalid(f"the root is {root.tag[:80]!r}", f"use <rsl xmlns={NAMESPACE!r}>")
    contents = root.findall(_name("content"))
    if len(contents) > CONTENTS_MAX:
        raise _invalid(f"{len(contents)} contents", f"give at most {CONTENTS_MAX}")
    return tuple(_terms(content) for content in contents)


def _terms(content: ElementTree.Element) -> Terms:
    url = content.get("url", "")
    if not url:
        raise _invalid("a content without url", "give each content its url")
    licenses = content.findall(_name("license"))
    if len(licenses) != 1:
        raise _invalid(f"{url[:80]!r} has {len(licenses)} licences", "give one; offer others at other addresses")
    license = licenses[0]
    uses = _words(license, "permits", url) - _words(license, "prohibits", url)
    own = license.find(f"{{{OWN}}}terms")
    if own is not None and own.get("reproduce") == "true":
        uses |= {"reproduce"}
    units, currency, standard = _payment(license, url)
    legal = license.find(_name("legal"))
    try:
        return Terms(
            url,
            License(
                (own.get("expression") if own is not None else None) or _expression(standard),
                uses,
                price_floor_units=units,
                expires_at_ns=None
                if own is None or own.get("expires") is None
                else parse_instant(own.get("expires", "")),
                terms="" if legal is None else (legal.text or "").strip(),
            ),
            currency,
        )
    except HeadwaterError as error:
        raise _invalid(f"{url[:80]!r}: {error.message}", error.fix or "mend it") from None


def _words(license: ElementTree.Element, verb: str, url: str) -> frozenset[Use]:
    found: frozenset[Use] = frozenset()
    for element in license.findall(_name(verb)):
        if element.get("type") != "usage":
            continue  # who and where: not what
        for word in filter(None, (part.strip() for part in (element.text or "").split(","))):
            if word not in _GRANTS:
                raise _invalid(f"{url[:80]!r} {verb} {word[:80]!r}", f"use {', '.join(_GRANTS)}")
            found |= _GRANTS[word]
    return found


def _payment(license: ElementTree.Element, url: str) -> tuple[int, str | None, str]:
    """(price floor in nano units, its currency, the standard licence that is named)."""
    payments = license.findall(_name("payment"))
    if len(payments) > 1:
        raise _invalid(f"{url[:80]!r} has {len(payments)} payments", "give one")
    if not payments:
        return 0, None, ""
    kind, amount = payments[0].get("type", "free"), payments[0].find(_name("amount"))
    standard = (payments[0].findtext(_name("standard")) or "").strip()
    if kind in _FREE:
        return 0, None, standard
    if kind not in _PER_USE or amount is None:
        raise _invalid(
            f"{url[:80]!r} asks a payment of type {kind[:80]!r}", 'a gateway pays per use: <payment type="use">'
        )
    try:
        units = parse_units((amount.text or "").strip(), where=f"amount of {url[:80]!r}")
    except HeadwaterError as error:
        raise _invalid(error.message, error.fix or "give a decimal amount") from None
    return units, amount.get("currency"), standard


def _expression(standard: str) -> str:
    name = standard.removeprefix(_SPDX).removesuffix(".html")
    if name and name != standard:
        return parse_expression(name)
    return "LicenseRef-RSL"


def _standard(expression: str) -> str:
    simple = " " not in expression and "LicenseRef-" not in expression
    return f"{_SPDX}{expression}.html" if simple else expression


def _name(tag: str) -> str:
    return f"{{{NAMESPACE}}}{tag}"


def _invalid(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="rsl_invalid", fix=fix)
