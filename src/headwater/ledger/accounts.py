"""Accounts: their names, their normal side, and the one limit they all share.

An account is named by its kind and, after a colon, whose it is. Debit-normal accounts hold what we
have (money received, money sent to the chain); credit-normal ones hold what we owe. No account may go
below zero on its own side, counting what is reserved: nobody spends what they do not have.

Knows nothing of transfers or where balances are kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId
from headwater.core.limits import ACCOUNT_CHARS_MAX

CASH = AccountId("cash")
"""Money received from payers and not yet sent to the chain."""

VAULT = AccountId("chain:vault")
"""Money held by the settlement contract."""

CLEARING = AccountId("clearing:calls")
"""Where the price of a call waits between charge and payouts; zero when no call is being worked on."""

COMMONS = AccountId("commons")
"""What nobody supplied; never the operator's."""


class Side(StrEnum):
    """The side on which an account's balance is counted as positive."""

    DEBIT = "debit"
    CREDIT = "credit"


class Kind(StrEnum):
    """What an account is for: the first word of its name."""

    PAYER = "payer"  # prepaid credit of one API key
    CONTRIBUTOR = "contributor"  # due to somebody enrolled
    ESCROW = "escrow"  # due to somebody who has not enrolled yet
    COMMONS = "commons"
    OPERATOR = "operator"  # due to a line of the policy: platform, compute, settlement
    CLEARING = "clearing"
    CASH = "cash"
    CLAIMABLE = "claimable"  # in a posted root, claimable on chain
    CHAIN = "chain"
    DISPUTED = "disputed"  # held, or staked, until a dispute is decided; no root ever holds it


DEBIT_NORMAL = frozenset((CASH, VAULT))
"""Accounts of what we have; every other one is of what we owe."""

_SINGLE = {CASH: Kind.CASH, VAULT: Kind.CHAIN, CLEARING: Kind.CLEARING, COMMONS: Kind.COMMONS}
_OWNED = (Kind.PAYER, Kind.CONTRIBUTOR, Kind.ESCROW, Kind.OPERATOR, Kind.DISPUTED)
_OWNER = re.compile(r"[A-Za-z0-9_.-]+")
SETTLED_KINDS = (Kind.CONTRIBUTOR, Kind.OPERATOR, Kind.COMMONS)
"""Kinds whose money may enter a root; what is in escrow must be released to its owner first."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account as its name describes it."""

    id: AccountId
    kind: Kind
    owner: str  # what follows the kind; empty for accounts that exist once
    side: Side  # debit for what we have, credit for what we owe


@lru_cache(maxsize=2**16)
def parse_account(name: str) -> Account:
    """The account called `name`.

    >>> parse_account("claimable:contributor:ctr_1").owner
    'contributor:ctr_1'

    Raises:
        InvalidError: no account has such a name.
    """
    if len(name) <= ACCOUNT_CHARS_MAX:
        if name in _SINGLE:
            return _account(name, _SINGLE[AccountId(name)], "")
        kind, _, owner = name.partition(":")
        if kind in _OWNED and _OWNER.fullmatch(owner):
            return _account(name, Kind(kind), owner)
        # One level only: parsing must not recurse as deep as a name is long.
        one_level = kind == Kind.CLAIMABLE and not owner.startswith(Kind.CLAIMABLE)
        if one_level and parse_account(owner).kind in SETTLED_KINDS:
            return _account(name, Kind.CLAIMABLE, owner)
    raise InvalidError(
        f"{name[:80]!r} is not an account",
        code="account_invalid",
        fix="name it like payer:key_…, contributor:ctr_…, escrow:ctr_…, operator:platform, commons or cash",
    )


def claimable(account: str) -> AccountId:
    """Where `account`'s money waits once a posted root holds it."""
    return parse_account(f"{Kind.CLAIMABLE}:{account}").id


def disputed(dispute: str, part: str = "") -> AccountId:
    """Where what is disputed waits; `part` names a stake that answers for the costs instead.

    >>> disputed("dsp_1"), disputed("dsp_1", "challenger")
    ('disputed:dsp_1', 'disputed:dsp_1.challenger')
    """
    return parse_account(f"{Kind.DISPUTED}:{dispute}{'.' if part else ''}{part}").id


def _account(name: str, kind: Kind, owner: str) -> Account:
    return Account(AccountId(name), kind, owner, Side.DEBIT if name in DEBIT_NORMAL else Side.CREDIT)
