"""The ledger: the tables of `ledger_tables.STEPS` with PostgreSQL's types, and triggers that forbid editing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UNITS_MAX = 2**62
KEPT = {
    "transfers": "a transfer is never edited or deleted: book a correction",
    "batches": "an idempotency key is kept for ever",
    "accounts": "an account is never renamed or deleted",
    "deadlines": "a deadline is never moved or deleted",
}
TEXT = sa.Text(collation="C")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "accounts",
        sa.Column("account", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("asset", TEXT, nullable=False),
        sa.UniqueConstraint("name", "asset"),
    )
    op.create_table(
        "balances",
        sa.Column("account", sa.BigInteger, sa.ForeignKey("accounts.account"), primary_key=True, autoincrement=False),
        sa.Column("balance_units", sa.BigInteger, nullable=False),
        sa.Column("reserved_out_units", sa.BigInteger, nullable=False),
        sa.Column("reserved_in_units", sa.BigInteger, nullable=False),
        sa.CheckConstraint(f"balance_units BETWEEN 0 AND {UNITS_MAX}"),
        sa.CheckConstraint("reserved_out_units BETWEEN 0 AND balance_units"),
        sa.CheckConstraint(f"reserved_in_units BETWEEN 0 AND {UNITS_MAX}"),
        postgresql_with={"fillfactor": "70"},  # the only rows that are ever updated: room to do it in place
    )
    op.create_table(
        "batches",
        sa.Column("batch", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key", TEXT, nullable=False, unique=True),
        sa.Column("body_digest", TEXT, nullable=False),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, sa.CheckConstraint("size > 0"), nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "transfers",
        sa.Column("transfer", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("batch", sa.BigInteger, sa.ForeignKey("batches.batch"), nullable=False),
        sa.Column("debit", sa.BigInteger, sa.ForeignKey("accounts.account"), nullable=False),
        sa.Column("credit", sa.BigInteger, sa.ForeignKey("accounts.account"), nullable=False),
        sa.Column("amount_units", sa.BigInteger, nullable=False),
        sa.Column("code", sa.SmallInteger, nullable=False),
        sa.Column("cause", TEXT, nullable=False),
        sa.Column("pending", sa.BigInteger, sa.ForeignKey("transfers.transfer")),
        sa.CheckConstraint(f"amount_units BETWEEN 0 AND {UNITS_MAX}"),
        sa.CheckConstraint("code BETWEEN 1 AND 10"),
        sa.CheckConstraint("cause <> ''"),
        sa.CheckConstraint("debit <> credit"),
        sa.CheckConstraint("(pending IS NOT NULL) = (code IN (3, 4))"),
    )
    op.create_index("transfers_by_debit", "transfers", ["debit"])
    op.create_index("transfers_by_credit", "transfers", ["credit"])
    op.create_index(
        "transfers_resolved_once",
        "transfers",
        ["pending"],
        unique=True,
        postgresql_where=sa.text("pending IS NOT NULL"),
    )
    op.create_table(
        "deadlines",
        sa.Column(
            "transfer", sa.BigInteger, sa.ForeignKey("transfers.transfer"), primary_key=True, autoincrement=False
        ),
        sa.Column("expires_at_ns", sa.BigInteger, nullable=False, index=True),
    )
    op.execute(
        "CREATE FUNCTION kept() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION USING MESSAGE = TG_ARGV[0]; END $$"
    )
    for table, words in KEPT.items():
        op.execute(
            f"CREATE TRIGGER {table}_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION kept('{words}')"
        )
    op.execute(
        "CREATE TRIGGER balances_kept BEFORE DELETE OR TRUNCATE ON balances"
        " FOR EACH STATEMENT EXECUTE FUNCTION kept('a balance is never deleted')"
    )
