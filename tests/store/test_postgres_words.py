"""Migration steps as PostgreSQL takes them: every word is known, or named in the refusal."""

from __future__ import annotations

import pytest

from headwater.core.errors import InvariantError
from headwater.store.postgres_words import postgres_statements


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            "CREATE TABLE t (k INTEGER NOT NULL, b BLOB, r REAL, n TEXT NOT NULL DEFAULT '{}', PRIMARY KEY (k, n))"
            " STRICT, WITHOUT ROWID;",
            [
                "CREATE TABLE t (k bigint NOT NULL, b bytea, r double precision,"
                """ n text COLLATE "C" NOT NULL DEFAULT '{}', PRIMARY KEY (k, n))"""
            ],
        ),
        (
            "CREATE TABLE t (k INTEGER PRIMARY KEY REFERENCES u (k),"
            " right INTEGER CHECK (right <> -1 OR right IS NULL))",
            [
                "CREATE OR REPLACE FUNCTION t_next() RETURNS bigint LANGUAGE plpgsql AS"
                " $$ BEGIN RETURN (SELECT coalesce(max(k), 0) + 1 FROM t); END $$",
                "CREATE TABLE t (k bigint DEFAULT t_next() PRIMARY KEY REFERENCES u (k),"
                ' "right" bigint CHECK ("right" <> - 1 OR "right" IS NULL))',
            ],
        ),
        (
            "CREATE UNIQUE INDEX i ON t (a, b DESC) WHERE state = 'it''s; open' AND b IN (1, 2)",
            ["CREATE UNIQUE INDEX i ON t (a, b DESC) WHERE state = 'it''s; open' AND b IN (1, 2)"],
        ),
        (
            "ALTER TABLE t ADD COLUMN n INTEGER NOT NULL DEFAULT -5",
            ["ALTER TABLE t ADD COLUMN n bigint NOT NULL DEFAULT -5"],
        ),
        ("DROP TRIGGER stay_UPDATE;", ["DROP FUNCTION stay_update() CASCADE"]),
        ("DROP TABLE t", ["DROP TABLE t", "DROP FUNCTION IF EXISTS t_next()"]),
        ("INSERT INTO t (a, b) SELECT a, x'00ff' FROM u;", [r"INSERT INTO t (a, b) SELECT a, '\x00ff'::bytea FROM u"]),
        (
            "CREATE TRIGGER stay BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'rows stay'); END;",
            [
                "CREATE OR REPLACE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION USING MESSAGE = 'rows stay'; RETURN OLD; END $$",
                "CREATE TRIGGER stay BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION stay()",
                "CREATE TRIGGER stay_truncate BEFORE TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION stay()",
            ],
        ),
        (
            "CREATE TRIGGER follow AFTER UPDATE OF a, b ON t WHEN NEW.a IS NULL"
            " BEGIN DELETE FROM u WHERE k = OLD.k; UPDATE v SET n = n + 1; END;",
            [
                "CREATE OR REPLACE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN DELETE FROM u WHERE k = OLD.k; UPDATE v SET n = n + 1; RETURN NEW; END $$",
                "CREATE TRIGGER follow AFTER UPDATE OF a, b ON t FOR EACH ROW WHEN (NEW.a IS NULL)"
                " EXECUTE FUNCTION follow()",
            ],
        ),
    ],
)
def test_a_statement_says_the_same_there(ours: str, theirs: list[str]) -> None:
    """Types, keys that number their rows, triggers, conditions and literals."""
    assert [" ".join(one.replace(" (", "(").split()) for one in postgres_statements(ours)] == [
        one.replace(" (", "(") for one in theirs
    ]


@pytest.mark.parametrize(
    ("ours", "word"),
    [
        ("CREATE TABLE t (k INTEGER PRIMARY KEY AUTOINCREMENT)", "AUTOINCREMENT"),
        ("CREATE TABLE t (k NUMERIC)", "NUMERIC"),
        ("CREATE TABLE t (k TEXT COLLATE NOCASE)", "COLLATE"),
        ("CREATE TABLE t (k INTEGER PRIMARY KEY) WITHOUT ROWID", "ROWID"),
        ("CREATE TABLE t (k INTEGER CHECK (typeof(k) = 'x'))", "typeof()"),
        ("CREATE TABLE t (k TEXT CHECK (k GLOB 'a*'))", "GLOB"),
        ("CREATE INDEX i ON t (k) WHERE k LIKE 'a%'", "LIKE"),
        ("CREATE TABLE t (k TEXT CHECK (k IS 'a'))", "IS"),
        ("CREATE TABLE t (k INTEGER DEFAULT (1 + 1))", "("),
        ("CREATE TRIGGER x INSTEAD OF INSERT ON t BEGIN SELECT 1; END", "INSTEAD"),
        ("CREATE TABLE [t] (k INTEGER)", "[t]"),
        ("CREATE TABLE t AS SELECT 1", "AS"),
        ("INSERT OR REPLACE INTO t VALUES (1)", "REPLACE"),
        ("ALTER TABLE t RENAME TO u", "RENAME"),
        ("PRAGMA foreign_keys = OFF", "PRAGMA"),
        ("CREATE TABLE t (k INTEGER) STRICT; DROP TABLE u", "DROP"),
        ("CREATE TABLE t (k INTEGER", "its end"),
        ("CREATE TABLE t (k TEXT DEFAULT `x`)", "`x`"),
    ],
)
def test_a_word_that_is_not_known_is_named(ours: str, word: str) -> None:
    """Nothing is passed on in the hope that both engines mean the same."""
    with pytest.raises(InvariantError) as caught:
        postgres_statements(ours)
    assert caught.value.code == "migration_untranslated"
    assert word in caught.value.message.partition(", which is not known")[0]
