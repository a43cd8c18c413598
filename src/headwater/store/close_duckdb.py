"""DuckDB in this process as the engine of a close: flat memory, exact sums, an error where 38 digits do not suffice."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from headwater.core.errors import InvalidError, MissingError, UpstreamError
from headwater.store.close_sql import Tables

MEMORY_MIB = 320
"""What the engine may hold before it spills; the process around it and the result take the rest of 512 MiB."""


class DuckEngine:
    """An in-memory DuckDB with bounded memory and threads.

    Raises:
        MissingError: the package is not installed.
    """

    def __init__(self, *, threads: int = 1, memory_mib: int = MEMORY_MIB, spill: Path | None = None) -> None:
        try:
            import duckdb
        except ImportError:
            raise MissingError(
                "DuckDB is not installed", code="duckdb_missing", fix="pip install 'headwater[close]'"
            ) from None
        self._errors: Any = duckdb.Error
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": threads,
            "memory_limit": f"{memory_mib}MiB",
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        if spill is not None:
            config["temp_directory"] = str(spill)
        self._connection: Any = duckdb.connect(config=config)
        # The one word that Spark has and DuckDB calls otherwise.
        self._connection.execute("CREATE MACRO explode(items) AS unnest(items)")

    def run(self, sql: str, tables: Tables) -> Any:
        """As `Engine.run`."""
        try:
            for name, files in tables.items():
                listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
                self._connection.execute(
                    f'CREATE OR REPLACE TEMP VIEW "{name}" AS SELECT * FROM read_parquet([{listed}])'
                )
            return self._connection.sql(sql).to_arrow_table()
        except self._errors as error:
            raise explained(error) from error

    def close(self) -> None:
        """Let go of its memory."""
        self._connection.close()

    def __enter__(self) -> DuckEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def explained(error: BaseException) -> InvalidError | UpstreamError:
    """An engine's error as ours: sums beyond 38 digits are a matter of the data, the rest of the engine."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "verflow" in str(error) or "out of range" in str(error).lower() or "ARITHMETIC" in str(error):
        return InvalidError(
            f"a sum does not fit 38 digits ({text})",
            code="amount_out_of_range",
            fix="nothing was closed; look for the receipt with the impossible amount",
        )
    return UpstreamError(
        f"the close failed: {text}", code="close_failed", fix="check disk and memory, then close again"
    )
