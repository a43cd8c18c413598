"""A datanet's card in the forms that others read and write: dataset cards (README front matter) and Croissant 1.1.

What these forms have no word for, the conditions of each use, stands under a name of our own, which other readers
pass over; coming back from us nothing is lost, coming from elsewhere a use is permitted only where somebody says so:
a licence alone never grants one. Knows nothing of files: text in, value out. Texts from elsewhere are bounded and
parsed without executing anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from headwater.core.canonical import Json, refuse_deep
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.instants import format_instant, parse_instant
from headwater.registry.datanet import Card, Datanet, UseTerms
from headwater.registry.license import parse_expression

CARD_BYTES_MAX: Final = 2**20
CROISSANT: Final = "http://mlcommons.org/croissant/1.1"
OWN: Final = "headwater_uses"
_SPDX: Final = "https://spdx.org/licenses/"
_SIZES: Final = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_ALIASES: Final = {"cc0-1.0": "CC0-1.0", "pddl": "PDDL-1.0", "odbl": "ODbL-1.0", "gpl": "GPL-3.0-or-later"}
_CONTEXT: Final[Mapping[str, Json]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "recordSet": "cr:recordSet",
    "sc": "https://schema.org/",
    "source": "cr:source",
    OWN: {"@id": "https://headwater.invalid/terms/uses", "@type": "@json"},
}


def write_readme(datanet: Datanet, version: int, size: int) -> str:
    """A README whose front matter is a dataset card."""
    card = datanet.card
    simple = card.license_expression.replace("-", "").replace(".", "").isalnum()
    front: dict[str, Any] = {
        "pretty_name": card.title,
        "license": card.license_expression.lower() if simple else "other",
        **({} if simple else {"license_name": card.license_expression}),
        **({"license_link": card.terms} if card.terms else {}),
        **({"language": list(card.languages)} if card.languages else {}),
        **({"tags": list(card.keywords)} if card.keywords else {}),
        "size_categories": [next((name for limit, name in _SIZES if size < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": "data.jsonl"}],
        OWN: _uses(card),
    }
    text = yaml.safe_dump(front, allow_unicode=True, sort_keys=False)
    terms = "\n".join(f"- {one.use}: {one.condition or 'permitted'}" for one in card.uses) or "- none"
    cited = f"\n## Citation\n\n{card.citation}\n" if card.citation else ""
    return (
        f"---\n{text}---\n\n# {card.title}\n\n{card.summary}\n\nDatanet `{datanet.id}`, version {version}:"
        f" {size} contributions.\n\n## Permitted uses\n\n{terms}\n{cited}"
    )


def read_readme(text: str) -> Card:
    """The card in a README's front matter, ours or anybody's.

    Raises:
        InvalidError: ``card_invalid``.
    """
    try:
        opened, front, body = text.removeprefix("\ufeff").split("---\n", 2)
        if opened.strip() or len(text.encode()) > CARD_BYTES_MAX or "&" in front.replace("&amp;", ""):
            raise ValueError("front matter, without anchors, at the top of a text of at most a megabyte is needed")
        value = yaml.safe_load(front)
        if not isinstance(value, dict):
            raise ValueError("the front matter holds no fields")
        expression = value.get("license_name") if value.get("license") == "other" else value.get("license")
        named = [line[2:] for line in body.splitlines() if line.startswith("# ")]
        return Card(
            title=_one(value.get("pretty_name") or (named[0] if named else "")),
            license_expression=_license(expression),
            uses=_read_uses(value.get(OWN)),
            summary=_summary(body),
            languages=_many(value.get("language")),
            keywords=_many(value.get("tags")),
            terms=_one(value.get("license_link", "")),
            citation=body.partition("## Citation\n")[2].strip(),
        )
    except (HeadwaterError, yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _invalid("dataset card", error) from None


def write_croissant(datanet: Datanet, version: int, published_at_ns: int, data: Mapping[str, tuple[str, int]]) -> Json:
    """Croissant 1.1 JSON-LD.

    Args:
        data: by name, (SHA-256 in hex, bytes) of each file of rows; a row has id, title and text.
    """
    card = datanet.card
    files = sorted(data)
    return {
        "@context": dict(_CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": CROISSANT,
        "name": card.title,
        "alternateName": datanet.name,
        "identifier": datanet.id,
        "description": card.summary or card.title,
        "license": _license_url(card),
        "url": card.url or f"urn:headwater:{datanet.id}",
        "version": f"{version}.0.0",
        "datePublished": format_instant(published_at_ns)[:10],
        "creator": {"@type": "Organization", "name": datanet.owner},
        "keywords": list(card.keywords),
        "inLanguage": list(card.languages),
        **({"citeAs": card.citation} if card.citation else {}),
        **({"usageInfo": card.terms} if card.terms else {}),
        "isLiveDataset": False,
        OWN: _uses(card),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "contentSize": f"{data[name][1]} B",
                "encodingFormat": "application/jsonlines",
                "sha256": data[name][0],
            }
            for name in files
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "contributions",
                "name": "contributions",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"contributions/{field}",
                        "name": field,
                        "dataType": "sc:Text",
                        "source": {"fileObject": {"@id": name}, "extract": {"jsonPath": f"$.{field}"}},
                    }
                    for name in files
                    for field in ("id", "title", "text")
                ],
            }
        ],
    }


def read_croissant(raw: bytes) -> Card:
    """The card in Croissant JSON-LD, ours or anybody's.

    Raises:
        InvalidError: ``card_invalid``.
    """
    try:
        if len(raw) > CARD_BYTES_MAX:
            raise ValueError(f"{len(raw)} bytes are more than a megabyte")
        refuse_deep(raw, 64)
        value = json.loads(raw.decode("utf-8-sig"))
        conforms = value.get("conformsTo", "")
        if not any(str(one).startswith("http://mlcommons.org/croissant/1.") for one in _many(conforms)):
            raise ValueError(f"it conforms to {str(conforms)[:80]!r}, not to Croissant 1")
        return Card(
            title=_one(value["name"]),
            license_expression=_license(value.get("license")),
            uses=_read_uses(value.get(OWN)),
            summary="" if value.get("description") == value["name"] else _one(value.get("description", "")),
            languages=_many(value.get("inLanguage")),
            keywords=_many(value.get("keywords")),
            terms=_one(value.get("usageInfo", "")),
            url="" if str(value.get("url", "")).startswith("urn:headwater:") else _one(value.get("url", "")),
            citation=_one(value.get("citeAs", "")),
        )
    except (HeadwaterError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _invalid("Croissant description", error) from None


def _uses(card: Card) -> list[Json]:
    return [
        {
            "use": one.use,
            "price_floor_units": str(one.price_floor_units),
            "expires_at": None if one.expires_at_ns is None else format_instant(one.expires_at_ns),
            "condition": one.condition,
            "holders": list(one.holders),
        }
        for one in card.uses
    ]


def _read_uses(value: Any) -> tuple[UseTerms, ...]:
    return tuple(
        UseTerms(
            one["use"],
            int(one["price_floor_units"]),
            None if one["expires_at"] is None else parse_instant(one["expires_at"]),
            _one(one["condition"]),
            tuple(map(_one, one["holders"])),
        )
        for one in value or ()
    )


def _license(value: Any) -> str:
    """An SPDX expression from the ways in which licences are named: an expression, an address, a lower-case word."""
    name = value[0] if isinstance(value, list) and len(value) == 1 else value
    text = _one(name).removesuffix("/").removesuffix(".html").removeprefix(_SPDX)
    if "creativecommons.org/licenses/" in text:
        kind, _, version = text.partition("creativecommons.org/licenses/")[2].partition("/")
        text = f"CC-{kind.upper()}-{version}"
    elif "creativecommons.org/publicdomain/zero/" in text:
        text = "CC0-1.0"
    return parse_expression(_ALIASES.get(text.lower(), text))


def _license_url(card: Card) -> str:
    simple = card.license_expression.replace("-", "").replace(".", "").isalnum()
    own = card.license_expression.startswith("LicenseRef-")
    return f"{_SPDX}{card.license_expression}" if simple and not own else card.license_expression


def _summary(body: str) -> str:
    """What stands between the title and what we add below it."""
    body = f"\n{body}"
    text = body.partition("\n# ")[2].partition("\n")[2] if "\n# " in body else body
    for mark in ("\nDatanet `dnt_", "\n## Permitted uses", "\n## Citation"):
        text = text.partition(mark)[0]
    return text.strip()


def _one(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:60]!r} is not a text")
    return value


def _many(value: Any) -> tuple[str, ...]:
    several = [] if value is None else value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(map(_one, several))


def _invalid(what: str, error: Exception) -> InvalidError:
    why = error.message if isinstance(error, HeadwaterError) else str(error)
    return InvalidError(
        f"not a {what}: {why[:300]}", code="card_invalid", fix="correct it, or give the fields yourself"
    )
