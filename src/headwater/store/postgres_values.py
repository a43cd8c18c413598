"""Values as they cross to PostgreSQL and back: what a statement gives is what SQLite would have given.

    int, bool    to bigint, whatever their size, so that a statement is prepared once; beyond 64 bits the server refuses
    str          to text, never to a type that the server guesses; a NUL character, which it cannot hold, is refused
    boolean      from a comparison: 0 or 1
    numeric      from a sum of integers: `int`, within 64 bits too

Knows nothing of connections. Needs the extra `postgres`.
"""

from __future__ import annotations

from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, Loader
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumper

from headwater.core.errors import InvalidError
from headwater.store.database import INT64_MAX


class _TextDumper(StrDumper):
    def dump(self, obj: str) -> Buffer | None:
        try:
            if "\0" not in obj:
                return super().dump(obj)
        except UnicodeEncodeError:
            pass
        raise InvalidError(
            f"a text that the database cannot hold: {obj[:80]!r}",
            code="text_invalid",
            fix="leave out NUL characters and halves of surrogate pairs",
        )


class _FlagLoader(Loader):
    def load(self, data: Buffer) -> int:
        return int(bytes(data) == b"t")


class _NumericLoader(Loader):
    def load(self, data: Buffer) -> int | float:
        text = bytes(data)
        return _bounded(int(text)) if text.lstrip(b"-").isdigit() else float(text)


def _bounded(number: int) -> int:
    if -INT64_MAX - 1 <= number <= INT64_MAX:
        return number
    raise InvalidError(
        f"a number does not fit in 64 bits ({number})",
        code="amount_out_of_range",
        fix=f"keep amounts and their sums within {INT64_MAX} nano units",
    )


def adapt(adapters: AdaptersMap) -> None:
    """Let a connection with these adapters give and take values as SQLite does."""
    # The driver's own, which is not asked in Python for each number.
    adapters.register_dumper(int, Int8Dumper)
    adapters.register_dumper(bool, Int8Dumper)
    adapters.register_dumper(str, _TextDumper)
    adapters.register_loader("bool", _FlagLoader)
    adapters.register_loader("numeric", _NumericLoader)
