"""Double-entry bookkeeping as values: accounts, transfers, balances, statements and what must be true of them.

Knows nothing of databases, keys, clocks or chains: `headwater.store` keeps what is described here, and
`headwater.settlement` decides what is settled.
"""

from headwater.ledger.accounts import (
    CASH,
    CLEARING,
    COMMONS,
    VAULT,
    Account,
    Kind,
    Side,
    claimable,
    disputed,
    parse_account,
)
from headwater.ledger.balances import Balance, Line, Statement, Total, statement
from headwater.ledger.checks import CHECKS, Book, CallFact, Check, check
from headwater.ledger.postings import correction, deposit, enroll, fund, paid, payouts, settle
from headwater.ledger.transfers import (
    Code,
    State,
    Transfer,
    TransferDraft,
    body_digest,
    check_draft,
    split_transfer_id,
    transfer_id,
)

__all__ = [
    "CASH",
    "CHECKS",
    "CLEARING",
    "COMMONS",
    "VAULT",
    "Account",
    "Balance",
    "Book",
    "CallFact",
    "Check",
    "Code",
    "Kind",
    "Line",
    "Side",
    "State",
    "Statement",
    "Total",
    "Transfer",
    "TransferDraft",
    "body_digest",
    "check",
    "check_draft",
    "claimable",
    "correction",
    "deposit",
    "disputed",
    "enroll",
    "fund",
    "paid",
    "parse_account",
    "payouts",
    "settle",
    "split_transfer_id",
    "statement",
    "transfer_id",
]
