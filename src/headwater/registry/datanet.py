"""Datanets: a pool of contributions with an owner, terms for each use, and the rules by which it takes things in.

A datanet is its charter: a fixed part from which its id follows (name, owner, operator, instant) and a card and
rules that may be revised; a revision changes no id and nothing that was frozen before. Invariants: the id is the
same wherever the datanet is kept; a use that has no terms is not permitted; every window and share has bounds.
Knows nothing of files, databases, clocks or what was submitted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NewType, get_args

from headwater.core.canonical import Json, canonical, digest, digest_of, parse_canonical
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.ids import ContributorId
from headwater.core.instants import DAY_NS, format_instant, parse_instant
from headwater.core.limits import LICENSE_TERMS_CHARS_MAX
from headwater.core.money import AMOUNT_MAX, format_units
from headwater.registry.license import USES, License, Use, parse_expression

DatanetId = NewType("DatanetId", str)

SCHEMA: Final = "headwater.datanet/1"
NAME_FORM: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TITLE_CHARS_MAX: Final = 200
SUMMARY_CHARS_MAX: Final = 10_000
CONDITION_CHARS_MAX: Final = 500
LIST_MAX: Final = 64
WINDOW_NS_MAX: Final = 365 * DAY_NS
QUORUM_MAX: Final = 15
GOLD_PPM_MIN, GOLD_PPM_MAX = 50_000, 100_000

PersonalData = Literal["refuse", "clean", "flag"]
NearDuplicates = Literal["refuse", "flag"]

_LANGUAGE = re.compile(r"[a-z]{2,3}")
_ADDRESS = re.compile(r"0x[0-9a-f]{40}")
_KEYWORD = re.compile(r"[^\s,\x00-\x1f][^,\x00-\x1f]{0,63}")


@dataclass(frozen=True, slots=True)
class UseTerms:
    """On what conditions a datanet may be put to one use."""

    use: Use
    price_floor_units: int = 0  # nano units: least price of a call, or of a training, in which it is used so
    expires_at_ns: int | None = None  # from then on the use has ended
    condition: str = ""  # in words, for people and for RSL
    holders: tuple[str, ...] = ()  # operators' addresses that may use it so; empty: everybody

    def __post_init__(self) -> None:
        if self.use not in USES:
            raise _wrong(f"use {self.use!r}", f"choose from {', '.join(USES)}")
        if not 0 <= self.price_floor_units <= AMOUNT_MAX:
            raise _wrong(f"a price floor of {self.price_floor_units} nano units", "give 0 or more")
        if len(self.condition) > CONDITION_CHARS_MAX:
            raise _wrong(f"a condition of {len(self.condition)} characters", f"use at most {CONDITION_CHARS_MAX}")
        object.__setattr__(self, "holders", tuple(sorted(set(self.holders))))
        for holder in self.holders:
            if _ADDRESS.fullmatch(holder) is None:
                raise _wrong(f"holder {holder[:60]!r}", "name operators by address, 0x and 40 lower-case hex digits")


@dataclass(frozen=True, slots=True)
class Card:
    """What a datanet says of itself, and its terms."""

    title: str
    license_expression: str
    uses: tuple[UseTerms, ...]  # in the order of USES, each at most once
    summary: str = ""
    languages: tuple[str, ...] = ()  # ISO 639 codes; empty: any
    keywords: tuple[str, ...] = ()
    terms: str = ""  # where the full terms are, or a short text of them
    url: str = ""  # where it is published
    citation: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "license_expression", parse_expression(self.license_expression))
        by_use = {terms.use: terms for terms in self.uses}
        if len(by_use) != len(self.uses):
            raise _wrong("a use has two terms", "give the terms of each use once")
        object.__setattr__(self, "uses", tuple(by_use[use] for use in USES if use in by_use))
        if not self.title.strip() or len(self.title) > TITLE_CHARS_MAX or not self.title.isprintable():
            raise _wrong(f"title {self.title[:60]!r}", f"give 1 to {TITLE_CHARS_MAX} printable characters")
        if max(map(len, (self.summary, self.terms, self.url, self.citation))) > SUMMARY_CHARS_MAX:
            raise _wrong("a text of the card is too long", f"use at most {SUMMARY_CHARS_MAX} characters for each")
        if len(self.terms) > LICENSE_TERMS_CHARS_MAX:
            raise _wrong(f"terms of {len(self.terms)} characters", f"use at most {LICENSE_TERMS_CHARS_MAX}, or a link")
        if len(self.languages) > LIST_MAX or any(_LANGUAGE.fullmatch(one) is None for one in self.languages):
            raise _wrong(f"languages {list(self.languages)[:5]}", "give ISO 639 codes such as en")
        if len(self.keywords) > LIST_MAX or any(_KEYWORD.fullmatch(one) is None for one in self.keywords):
            raise _wrong(f"keywords {list(self.keywords)[:5]}", "give short words without commas")

    def use(self, use: Use) -> UseTerms | None:
        """The terms of a use, if it is permitted at all."""
        return next((terms for terms in self.uses if terms.use == use), None)

    @property
    def price_floor_units(self) -> int:
        """The highest floor of all uses: what a single contribution's licence asks for."""
        return max((terms.price_floor_units for terms in self.uses), default=0)


@dataclass(frozen=True, slots=True)
class Rules:
    """How things are taken in: what is checked, who looks, how long everybody has."""

    licenses: tuple[str, ...] = ()  # accepted beside the card's own
    personal_data: PersonalData = "refuse"
    near_duplicates: NearDuplicates = "refuse"
    screens: tuple[str, ...] = ()  # names of installed content checks, such as one for toxicity
    chars_max: int = 200_000  # longest item; longer files are cut into derived rows at blank lines
    quorum: int = 3  # reviewers of an item; odd
    appeal_quorum: int = 5  # reviewers of an appeal; odd
    sample_max: int = 200  # items of one batch that people look at; the rest follow them
    gold_ppm: int = 80_000  # part of a reviewer's tasks whose answer is known
    answer_ns: int = 3 * DAY_NS  # a reviewer's time for a task
    review_ns: int = 14 * DAY_NS  # from drawing to decision at the latest
    appeal_ns: int = 7 * DAY_NS  # time to appeal after a decision

    def __post_init__(self) -> None:
        object.__setattr__(self, "licenses", tuple(sorted({parse_expression(one) for one in self.licenses})))
        if self.personal_data not in get_args(PersonalData):
            raise _wrong(f"personal_data {self.personal_data!r}", f"choose from {', '.join(get_args(PersonalData))}")
        if self.near_duplicates not in get_args(NearDuplicates):
            known = ", ".join(get_args(NearDuplicates))
            raise _wrong(f"near_duplicates {self.near_duplicates!r}", f"choose from {known}")
        for name, quorum in (("quorum", self.quorum), ("appeal_quorum", self.appeal_quorum)):
            if not 1 <= quorum <= QUORUM_MAX or quorum % 2 == 0:
                raise _wrong(f"{name} {quorum}", f"give an odd number from 1 to {QUORUM_MAX}, so that votes cannot tie")
        if not GOLD_PPM_MIN <= self.gold_ppm <= GOLD_PPM_MAX:
            raise _wrong(f"gold_ppm {self.gold_ppm}", f"give {GOLD_PPM_MIN} to {GOLD_PPM_MAX} (5 to 10 %)")
        if not 1 <= self.chars_max <= 1_000_000 or not 1 <= self.sample_max <= 1_000_000:
            raise _wrong(f"chars_max {self.chars_max}, sample_max {self.sample_max}", "give 1 to 1000000")
        if not 0 < self.answer_ns <= self.review_ns <= WINDOW_NS_MAX or not 0 <= self.appeal_ns <= WINDOW_NS_MAX:
            raise _wrong(
                f"windows of {self.answer_ns}, {self.review_ns} and {self.appeal_ns} ns",
                "give 0 < answer <= review, and all within a year",
            )


@dataclass(frozen=True, slots=True)
class Datanet:
    """A pool of contributions. `id` follows from the fields before `card`, which never change."""

    name: str
    owner: ContributorId
    operator: str  # address of the operator it was made by; others may keep it too
    created_at_ns: int
    card: Card
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        if NAME_FORM.fullmatch(self.name) is None:
            raise InvalidError(
                f"datanet name {self.name[:80]!r}",
                code="datanet_name_invalid",
                fix="use 1 to 64 of a-z, 0-9, '.', '-' and '_', starting with a letter or digit",
            )
        if _ADDRESS.fullmatch(self.operator) is None:
            raise _wrong(f"operator {self.operator[:60]!r}", "give an address, 0x and 40 lower-case hex digits")

    @property
    def id(self) -> DatanetId:
        """``dnt_`` and 32 hex digits, the same at every operator."""
        fixed = {
            "name": self.name,
            "owner": self.owner,
            "operator": self.operator,
            "created_at": format_instant(self.created_at_ns),
        }
        return DatanetId("dnt_" + digest_of(fixed).removeprefix("sha256:")[:32])

    def to_bytes(self) -> bytes:
        """The charter's canonical bytes: what is kept, exported and named by digest in every version."""
        return canonical(self.to_json())

    @property
    def digest(self) -> str:
        """SHA-256 of the charter."""
        return digest(self.to_bytes())

    def to_json(self) -> Json:
        """The charter as JSON: instants as text, amounts as decimal strings of nano units."""
        card, rules = self.card, self.rules
        return {
            "schema": SCHEMA,
            "id": self.id,
            "name": self.name,
            "owner": self.owner,
            "operator": self.operator,
            "created_at": format_instant(self.created_at_ns),
            "card": {
                "title": card.title,
                "license": card.license_expression,
                "uses": [_use_json(terms) for terms in card.uses],
                "summary": card.summary,
                "languages": list(card.languages),
                "keywords": list(card.keywords),
                "terms": card.terms,
                "url": card.url,
                "citation": card.citation,
            },
            "rules": {
                name: str(value) if name.endswith("_ns") else list(value) if isinstance(value, tuple) else value
                for name in Rules.__slots__
                for value in [getattr(rules, name)]
            },
        }

    def revised(self, card: Card, rules: Rules) -> Datanet:
        """The same datanet with another card or other rules."""
        return replace(self, card=card, rules=rules)


def read_datanet(raw: bytes) -> Datanet:
    """The datanet whose charter has exactly these canonical bytes.

    Raises:
        InvalidError: ``datanet_invalid``, or what the fields themselves refuse.
    """
    try:
        value = parse_canonical(raw)
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}")
        made = Datanet(
            name=value["name"],
            owner=ContributorId(value["owner"]),
            operator=value["operator"],
            created_at_ns=parse_instant(value["created_at"]),
            card=_card(value["card"]),
            rules=_rules(value["rules"]),
        )
        if made.to_bytes() != raw:
            raise ValueError("fields that a charter does not have, or an id that is not its own")
        return made
    except (HeadwaterError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidError(
            f"not a datanet's charter: {error}", code="datanet_invalid", fix="use the charter as it was written"
        ) from None


def license_of(datanet: Datanet, offered: License) -> License:
    """The licence under which an accepted item is registered: what both its contributor and the datanet permit.

    Raises:
        InvalidError: ``license_not_accepted`` or ``uses_too_narrow``.
    """
    card = datanet.card
    if offered.expression not in (card.license_expression, *datanet.rules.licenses):
        taken = ", ".join((card.license_expression, *datanet.rules.licenses))
        raise InvalidError(
            f"licence {offered.expression}: {datanet.name} takes {taken}",
            code="license_not_accepted",
            fix="submit under one of these, or elsewhere",
        )
    wanted = {terms.use for terms in card.uses}
    if missing := sorted(wanted - offered.uses):
        raise InvalidError(
            f"the licence does not permit {', '.join(missing)}, which {datanet.name} offers",
            code="uses_too_narrow",
            fix=f"permit {', '.join(sorted(wanted))}, or submit elsewhere",
        )
    # One licence has one end, so the sooner ends of single uses are `may_use`'s to refuse.
    ends = [at for at in (offered.expires_at_ns, _end_of_all(card)) if at is not None]
    return License(
        offered.expression,
        frozenset(wanted),
        max(offered.price_floor_units, card.price_floor_units),
        min(ends, default=None),
        offered.terms or card.terms,
    )


def _end_of_all(card: Card) -> int | None:
    """When the last use ends, if all do."""
    ends = [terms.expires_at_ns for terms in card.uses if terms.expires_at_ns is not None]
    return max(ends) if ends and len(ends) == len(card.uses) else None


def may_use(
    datanet: Datanet, use: Use, now_ns: int, *, holder: str | None = None, offer_units: int | None = None
) -> tuple[str, str] | None:
    """Nothing when a datanet may be put to `use`; otherwise (code, why not).

    Args:
        holder: address of the operator who wants to; None while nobody in particular does.
        offer_units: what is offered, nano units; None while no call is at hand.
    """
    terms = datanet.card.use(use)
    if terms is None:
        allowed = ", ".join(one.use for one in datanet.card.uses) or "nothing"
        return "use_not_permitted", f"{datanet.name} permits {allowed}, not {use}"
    if terms.expires_at_ns is not None and now_ns >= terms.expires_at_ns:
        return "license_expired", f"{datanet.name}: {use} ended at {format_instant(terms.expires_at_ns)}"
    if terms.holders and holder is not None and holder not in terms.holders:
        return "holder_not_permitted", f"{datanet.name}: {use} is for {len(terms.holders)} operators, not {holder}"
    if offer_units is not None and offer_units < terms.price_floor_units:
        floor, offer = format_units(terms.price_floor_units, places=4), format_units(offer_units, places=4)
        return "price_below_floor", f"{datanet.name}: {use} asks for {floor}, {offer} is offered"
    return None


def _use_json(terms: UseTerms) -> Json:
    return {
        "use": terms.use,
        "price_floor_units": str(terms.price_floor_units),
        "expires_at": None if terms.expires_at_ns is None else format_instant(terms.expires_at_ns),
        "condition": terms.condition,
        "holders": list(terms.holders),
    }


def _card(value: Mapping[str, Any]) -> Card:
    uses = tuple(
        UseTerms(
            one["use"],
            int(one["price_floor_units"]),
            None if one["expires_at"] is None else parse_instant(one["expires_at"]),
            one["condition"],
            tuple(one["holders"]),
        )
        for one in value["uses"]
    )
    return Card(
        title=value["title"],
        license_expression=value["license"],
        uses=uses,
        summary=value["summary"],
        languages=tuple(value["languages"]),
        keywords=tuple(value["keywords"]),
        terms=value["terms"],
        url=value["url"],
        citation=value["citation"],
    )


def _rules(value: Mapping[str, Any]) -> Rules:
    fields: dict[str, Any] = {
        name: int(one) if name.endswith("_ns") else tuple(one) if isinstance(one, list) else one
        for name, one in value.items()
    }
    return Rules(**fields)


def _wrong(what: str, fix: str) -> InvalidError:
    return InvalidError(f"a datanet with {what}", code="datanet_invalid", fix=fix)
