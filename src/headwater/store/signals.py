"""A caller's own words registered as its contribution, where it agreed; without personal data, and never paid for that.

Excluded by default: a call is registered only under a consent of its key or with one of its own.
"""

from __future__ import annotations

from typing import Final

from headwater.core.canonical import digest
from headwater.core.ids import ContributionId
from headwater.registry.contribution import Ownership
from headwater.registry.contributor import unenrolled
from headwater.registry.intake import Candidate
from headwater.registry.license import USES
from headwater.registry.personal_data import without_personal_data
from headwater.store.consent_store import ConsentStore
from headwater.store.feedback_store import KEYS_NAMESPACE
from headwater.store.registry_store import RegistryStore

CALL_LICENSE: Final = "LicenseRef-headwater-signal"
"""Of words registered with one call, when the key has given no licence of its own."""

CHARS_MIN: Final = 20
"""Shorter words are nobody's in particular."""

_TITLE_CHARS: Final = 60
_WHOLE_PPB: Final = 10**9


def agreed(consents: ConsentStore, key_id: str, asked: bool | None) -> str | None:
    """The licence under which a call's words may be registered; None when they may not.

    Args:
        asked: what the call itself says; None when it says nothing and the key's word holds.
    """
    if asked is False:
        return None
    standing = consents.in_force(key_id)
    if standing is not None:
        return standing.license_expression
    return CALL_LICENSE if asked else None


def register_words(
    registry: RegistryStore, words: tuple[str, ...], *, key_id: str, license_expression: str, now_ns: int
) -> ContributionId | None:
    """Register what a caller wrote, as one prompt owned by its key; None when there is too little or it is known.

    Words that somebody registered before stay theirs.
    """
    text = "\n\n".join(without_personal_data(word).text.strip() for word in words if word.strip())
    if len(text) < CHARS_MIN:
        return None
    owner = unenrolled(KEYS_NAMESPACE, key_id)
    content = text.encode("utf-8", "replace")
    candidate = Candidate(
        where="signal",
        kind="prompt",
        title=f"prompt {digest(content).removeprefix('sha256:')[:12]}"[:_TITLE_CHARS],
        content=content,
        owners=(Ownership(owner.id, _WHOLE_PPB),),
        license_expression=license_expression,
        uses=frozenset(USES),
        registered_at_ns=now_ns,
        source="gateway",
        terms="registered with the caller's consent, without recognised personal data; may be withdrawn",
        metadata=(("signal", "call"),),
    )
    accepted = registry.admit([candidate], [owner]).accepted
    return accepted[0].contribution.id if accepted else None
