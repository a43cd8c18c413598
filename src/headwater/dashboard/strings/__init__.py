"""Every English word of the pages, by key; one module an area. A key is ``area.name``, values go in by `str.format`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Final


def _gather() -> dict[str, str]:
    found: dict[str, str] = {}
    for module in iter_modules(__path__):
        words: Mapping[str, str] = import_module(f"{__name__}.{module.name}").WORDS
        twice = found.keys() & words.keys()
        assert not twice, f"words with two meanings: {sorted(twice)}"
        found.update(words)
    return found


WORDS: Final = _gather()


def say(key: str, *, default: str | None = None, **values: object) -> str:
    """The words of `key`, with values put in.

    Raises:
        KeyError: no such words, and no default.
    """
    text = WORDS[key] if default is None else WORDS.get(key, default)
    return text.format(**values) if values else text
