"""The close as SQL: plain integers, DuckDB and Spark give the same totals, the same bytes and the same root."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError, InvariantError, MissingError
from headwater.settlement import Domain, MappedTree
from headwater.store.close_duckdb import DuckEngine
from headwater.store.close_rows import PayoutRows
from headwater.store.close_sql import (
    FACTS,
    TABLES,
    TOTALS,
    TOTALS_SCHEMA,
    CloseWindow,
    Engine,
    Totals,
    as_previous,
    close_window,
    decimal_units,
)
from toy.sealed import Row, added_up, random_rows, seal

pytest.importorskip("duckdb", reason="DuckDB is not installed: pip install 'headwater[close]'")


def coded(folder: Path, rows: list[Row], per_segment: int = 10**9) -> PayoutRows:
    """The payout rows of sealed receipts."""
    made = PayoutRows(folder / "rows")
    for segment in seal(folder / "segments", rows, per_segment=per_segment):
        made.code(segment)
    return made


def by_name(made: PayoutRows, totals: Totals, column: str = "cumulative_units") -> dict[str, int]:
    """Amounts by account name, zeros left out."""
    names = made.accounts()
    pairs = zip(totals.accounts.tolist(), totals.units(column), strict=True)
    return {names[number]: units for number, units in pairs if units}


def close(engine: Engine, made: PayoutRows, window: CloseWindow, tmp: Path, **tables: list[Path]) -> Totals:
    """Close over coded rows."""
    return close_window(engine, window, {"receipts": made.files(), **tables}, tmp / "scratch")


@settings(max_examples=15, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_totals_are_what_plain_integers_give(tmp_path_factory, data, seed):
    """Any receipts, cut into any segments and windows, sum to what a dictionary sums to, epoch after epoch."""
    tmp_path = tmp_path_factory.mktemp("close")
    rows = random_rows(data.draw(st.integers(1, 120)), seed=seed, accounts=40, largest=2**40)
    rows = [Row(row.payouts, None, "EUR") if data.draw(st.integers(0, 9)) == 0 else row for row in rows]
    made = coded(tmp_path, rows, data.draw(st.integers(1, 60)))
    cut = data.draw(st.integers(0, len(rows)))
    with DuckEngine() as engine:
        first = close(engine, made, CloseWindow(0, cut, "USD"), tmp_path)
        kept = as_previous(first, tmp_path / "previous.parquet")
        second = close(engine, made, CloseWindow(cut, len(rows), "USD"), tmp_path, previous=[kept])

    assert by_name(made, first) == {k: v for k, v in added_up(rows[:cut]).items() if v}
    assert by_name(made, second) == {k: v for k, v in added_up(rows).items() if v}
    assert by_name(made, second, "paid_units") == {k: v for k, v in added_up(rows[cut:]).items() if v}


def test_sums_beyond_64_bits_are_exact_and_beyond_38_digits_refused(tmp_path):
    """Amounts of 2^62 add up past 2^63 without wrapping; past 38 digits the close stops."""
    rows = [Row((("commons", 2**62), ("operator:platform", 1)))] * 9
    made = coded(tmp_path, rows)
    number = made.number("commons")
    with DuckEngine() as engine:
        window = CloseWindow(0, 9, "USD")
        assert by_name(made, close(engine, made, window, tmp_path)) == {"commons": 9 * 2**62, "operator:platform": 9}
        before = tmp_path / "huge.parquet"
        pq.write_table(pa.table({"account": [number], "units": [10**38 - 2**62]}, schema=TABLES["previous"]), before)
        with pytest.raises(InvalidError) as refused:
            close(engine, made, window, tmp_path, previous=[before])
    assert refused.value.code == "amount_out_of_range"


def test_corrections_enter_as_signed_rows(tmp_path):
    """What is taken back and what is added both reach the totals, and the sum still fits the prices."""
    made = coded(tmp_path, [Row((("commons", 100),)), Row((("operator:platform", 100),), supersedes=0)])
    rows = tmp_path / "adjustments.parquet"
    pq.write_table(
        pa.table({"account": [made.number("commons")], "amount": [-100]}, schema=TABLES["adjustments"]), rows
    )
    with DuckEngine() as engine:
        totals = close(engine, made, CloseWindow(0, 2, "USD"), tmp_path, adjustments=[rows])

    assert by_name(made, totals) == {"operator:platform": 100}
    assert pq.read_table(made.files()[0])["supersedes"].to_pylist() == [None, 0]


def test_rows_that_do_not_sum_to_their_prices_are_not_closed(tmp_path):
    """A coded file that was tampered with is found by the prices."""
    made = coded(tmp_path, random_rows(20, seed=1))
    (path,) = made.files()
    table = pq.read_table(path)
    prices = table["price"].to_pylist()
    prices[3] += 1
    pq.write_table(table.set_column(2, table.schema.field("price"), pa.array(prices)), path)
    with DuckEngine() as engine, pytest.raises(InvariantError) as caught:
        close(engine, made, CloseWindow(0, 20, "USD"), tmp_path)
    assert caught.value.code == "epoch_not_exact"


def test_coding_again_and_coding_elsewhere_give_the_same_numbers(tmp_path):
    """A coded segment is left alone; another process gets the same files; a gap is refused."""
    rows = random_rows(90, seed=4, accounts=60)
    segments = seal(tmp_path / "segments", rows, per_segment=30)
    one, other = PayoutRows(tmp_path / "one"), PayoutRows(tmp_path / "other")
    for segment in segments:
        one.code(segment)
        one.code(segment)
    other.code(segments[0])
    (tmp_path / "other" / "accounts-000000000030.parquet").write_bytes(b"left by a process that died")
    again = PayoutRows(tmp_path / "other")
    with pytest.raises(InvariantError):
        again.code(segments[2])
    for segment in segments[1:]:
        again.code(segment)

    assert [path.read_bytes() for path in one.files()] == [path.read_bytes() for path in again.files()]
    assert PayoutRows(tmp_path / "one").accounts() == again.accounts()
    assert set(one.accounts()) == set(added_up(rows))


def test_decimals_are_read_without_rounding():
    """Wide, narrow and negative numbers come out of Arrow as they are, from any slice."""
    values = [0, 1, -1, 2**63, 2**64 - 1, 2**64, 10**38 - 1, -(10**38) + 1]
    column = pa.array(values, pa.decimal128(38, 0))

    assert decimal_units(column) == values
    assert decimal_units(column[3:6]) == values[3:6]
    assert decimal_units(pa.chunked_array([column[1:2], column[6:]])) == [1, *values[6:]]


def test_only_whole_number_types_leave_the_text():
    """The result has no float in it, whatever goes in."""
    assert not any(pa.types.is_floating(field.type) for field in TOTALS_SCHEMA)
    with pytest.raises(InvalidError):
        CloseWindow(0, 1, "USD' OR 1=1 --").fill(TOTALS)


def root_of(made: PayoutRows, totals: Totals) -> bytes:
    """The payout root over all accounts, paid to addresses made from their numbers."""
    size = len(made.accounts())
    addresses = np.zeros((size, 20), dtype=np.uint8)
    addresses[:, 16:] = np.arange(1, size + 1, dtype=">u4").view(np.uint8).reshape(-1, 4)
    amounts = np.zeros(size, dtype=np.uint64)
    amounts[totals.accounts] = [units // 10**6 for units in totals.units("cumulative_units")]
    return MappedTree.build(addresses, amounts, Domain(10, "0x" + "c0" * 20, "0x" + "70" * 20, 1)).root


@pytest.mark.slow
def test_spark_with_executors_of_their_own_gives_the_same_bytes(tmp_path):
    """The same text over the same files on two executor processes: totals, bytes and root equal, overflow raises."""
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java 17: install a Java runtime to run this test")
    pytest.importorskip("pyspark", reason="Spark is not installed: pip install 'headwater[spark]'")
    from headwater.store.close_spark import LOCAL_CLUSTER, SparkEngine

    rows = random_rows(4_000, seed=9, accounts=3_000, largest=2**40) + [Row((("commons", 2**61),))] * 5
    made = coded(tmp_path, rows, per_segment=2_000)
    window = CloseWindow(100, len(rows), "USD")
    before = tmp_path / "previous.parquet"
    with DuckEngine() as duck:
        as_previous(close(duck, made, CloseWindow(0, 100, "USD"), tmp_path), before)
        expected = close(duck, made, window, tmp_path, previous=[before])
    with SparkEngine(LOCAL_CLUSTER) as spark:
        found = close(spark, made, window, tmp_path, previous=[before])
        executors = spark.executors_count
        huge = tmp_path / "huge.parquet"
        number = made.number("commons")
        pq.write_table(pa.table({"account": [number], "units": [10**38 - 2**62]}, schema=TABLES["previous"]), huge)
        with pytest.raises(InvalidError) as refused:
            close(spark, made, window, tmp_path, previous=[huge])

    assert executors == 2
    assert refused.value.code == "amount_out_of_range"
    assert found.table.equals(expected.table)
    assert (found.receipts_count, found.price_units) == (expected.receipts_count, expected.price_units)
    kept = [as_previous(totals, tmp_path / name).read_bytes() for totals, name in ((found, "s"), (expected, "d"))]
    assert kept[0] == kept[1]
    assert root_of(made, found) == root_of(made, expected)
    assert by_name(made, found) == {k: v for k, v in added_up(rows).items() if v}


def test_an_engine_that_is_not_installed_says_what_to_install(monkeypatch):
    """Without the package the error names the extra."""
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(MissingError, match="headwater\\[close\\]"):
        DuckEngine()


def test_the_text_names_every_table_and_no_other():
    """The tables an engine is given are those the texts read."""
    words = Counter(word for text in (TOTALS, FACTS) for word in text.split())
    assert all(words[name] for name in TABLES)
