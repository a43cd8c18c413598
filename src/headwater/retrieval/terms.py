"""Words as the index compares them: case-folded, plural endings off, names kept whole and in parts.

Words that steer a conversation ("hello", "please", "tell me") are no terms of a question: a text made
only of them has nothing to be looked up. English; other languages pass through unstemmed.
"""

from __future__ import annotations

import re
from functools import lru_cache

_COMPOUND = re.compile(r"[^\W_]+(?:[-_.'’/][^\W_]+)*|__[^\W_]+(?:_[^\W_]+)*__")
_NUMBERED = re.compile(r"\b([^\W\d_]{2,20})[ -](\d{1,6})\b(?![.-]?\d)")
_PART = re.compile(r"[^\W_]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP_WORDS = _words(
    """a about above after again all also am an and any are as at be because been before being below between both but
    by can could did do does doing done down during each either else etc few for from further get gets given had has
    have having he her here hers him his how however i if in into is it its itself just may me might more most much
    must my no nor not now of off on once one only or other our out over own per rather s same shall she should so
    some such t than that the their them then there these they this those through thus to too under until up upon us
    very via was we were what when where whether which while who whom whose why will with within without would yet
    don't doesn't isn't it's that's i'm i'd i've can't won't let's"""
)

SMALL_TALK = _words(
    """afternoon answer anything bye cheers chat cool day dear evening everybody everyone explain fine friend fun funny
    give glad good goodbye goodnight great greetings haha hello help hey hi hiya howdy interesting joke know like love
    meet mind morning nice night ok okay old please pleased question repeat say sing something sorry sure talk
    tell thank thanks think today tonight want weather welcome well what's who's wish word words world write yes yo
    you you're your yours yourself"""
)
"""Words that steer a conversation and say nothing of its subject."""

_PHRASES = re.compile(
    r"\b(?:your|my) name\b|\bwhat time is it\b|\bwhat(?:'s| is) the time\b|\bmeaning of life\b|"
    r"^\W*(?:are you .*|(?:test|testing|continue|go on|next|more|again|stop|summari[sz]e(?: this| that| it)?)\W*)$",
    re.DOTALL,
)

ASKING = _words(
    """behave come comes contain contains describe happen happens look looks mean means need needs use used uses using
    way ways work works"""
)
"""Words that a question needs and its answer need not hold."""


def terms(text: str, skipped: frozenset[str] = STOP_WORDS) -> list[str]:
    """The terms of a text without `skipped`; a compound gives itself and its parts, a numbered word both together.

    >>> terms("The f-strings of TypedDicts")
    ['f-string', 'string', 'typeddict']
    >>> terms("Chapter 11")
    ['chapter', '11', 'chapter 11']
    """
    plain = text.casefold().replace("’", "'")
    found = [term for compound in _COMPOUND.findall(plain) for term in _parts(compound, skipped)]
    # "Section 4" is a name: its number alone says little.
    found.extend(f"{word} {number}" for word, number in _NUMBERED.findall(plain) if word not in skipped)
    return found


@lru_cache(maxsize=100_000)
def _parts(compound: str, skipped: frozenset[str]) -> tuple[str, ...]:
    whole = compound.strip("_").removesuffix("'s")
    parts = _PART.findall(whole)
    kept = [singular(part) for part in parts if len(part) > 1 and part not in skipped]
    return (singular(whole), *kept) if len(parts) > 1 and whole not in skipped else tuple(kept)


_NOT_ASKED = STOP_WORDS | SMALL_TALK | ASKING


def question_terms(text: str) -> list[str]:
    """What a question is about: its terms, each once, without the words that only ask or make conversation."""
    return list(dict.fromkeys(terms(_PHRASES.sub(" ", text.casefold()), _NOT_ASKED)))


def singular(word: str) -> str:
    """`word` without a plural ending.

    Source: D. Harman, "How effective is suffixing?", JASIS 42(1), 1991, the S stemmer.

    Differs in "classes" and the like, which lose all of their ending, so that they meet "class".

    >>> [singular(w) for w in ("queries", "classes", "names", "class", "buses")]
    ['query', 'class', 'name', 'class', 'buse']
    """
    if word.endswith("ies") and not word.endswith(("eies", "aies")) and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss", "is")) and len(word) > 3:
        return word[:-1]
    return word
