"""Bodies of the routes of datanets and review, as they are read and described."""

from __future__ import annotations

import msgspec

from headwater.registry.license import Use
from headwater.registry.review import Reason, Verdict


class UseFields(msgspec.Struct, forbid_unknown_fields=True):
    """The terms of one use; the floor in the currency, as text."""

    use: Use
    price_floor: str = "0"
    expires_at: str | None = None
    condition: str = ""
    holders: list[str] = []


class NewDatanet(msgspec.Struct, forbid_unknown_fields=True):
    """A datanet that a key makes and owns."""

    name: str
    title: str
    license: str
    uses: list[UseFields]
    summary: str = ""
    languages: list[str] = []
    keywords: list[str] = []
    terms: str = ""
    url: str = ""
    citation: str = ""


class NewReviewers(msgspec.Struct, forbid_unknown_fields=True):
    """Who may review from now on, and who no more: ids of contributors, or of the keys that act as them."""

    add: list[str] = []
    remove: list[str] = []


class NewSubmission(msgspec.Struct, forbid_unknown_fields=True):
    """Rows that a key submits. Without a licence, the datanet's."""

    rows: list[NewRow]
    license: str = ""


class NewRow(msgspec.Struct, forbid_unknown_fields=True):
    """One row."""

    text: str
    title: str = ""


class NewAppeal(msgspec.Struct, forbid_unknown_fields=True):
    """Why a decision is wrong."""

    reason: str


class NewVote(msgspec.Struct, forbid_unknown_fields=True):
    """What a reviewer says of a task."""

    verdict: Verdict
    reasons: list[Reason] = []
    note: str = ""
