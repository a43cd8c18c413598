"""Token accounts: rows sum to what the receipt says, large accounts stay small, and damage is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.attribution.bits import Attribution, Share, microbits
from headwater.attribution.token_account import REST, ROWS_MAX, TokenAccount, token_account
from headwater.core.errors import InvariantError


def _found(shares: int, tokens: int = 5) -> Attribution:
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(shares, tokens))
    made = tuple(
        Share(f"ctb_{i}", "ann", "grounded", 0, float(row.sum()), float(row.sum()), float(row.sum()), row)
        for i, row in enumerate(rows)
    )
    base = rng.normal(size=tokens)
    total = float(base.sum() + rows.sum())
    return Attribution(made, float(base.sum()), total, base, 10**9, "A", 1, tokens, "owen-context", "2", shares)


def test_rows_sum_to_the_bits_of_their_shares():
    """Each kept row sums to its share's bits to within half a micro-bit a token, and the base to the base's."""
    found = _found(3)

    account = token_account(found)

    assert [row.contribution for row in account.rows] == ["ctb_0", "ctb_1", "ctb_2"]
    for row, share in zip(account.rows, found.shares, strict=True):
        assert abs(sum(row.microbits) - microbits(share.bits)) <= len(row.microbits)
    assert abs(sum(account.base) - microbits(found.base_bits)) <= account.tokens


def test_what_is_written_is_read_back():
    """The bytes hold the whole account."""
    account = token_account(_found(4))

    assert TokenAccount.from_bytes(account.to_bytes()) == account


def test_many_shares_are_kept_as_the_largest_and_the_rest():
    """Beyond the limit the smallest shares of a channel are one row, and nothing of the whole is lost."""
    found = _found(ROWS_MAX + 200)

    account = token_account(found)

    assert len(account.rows) == ROWS_MAX + 1
    assert account.rows[-1].contribution == REST
    kept = np.sum([row.microbits for row in account.rows], axis=0)
    whole = np.sum([share.token_bits for share in found.shares], axis=0) * 1e6
    assert np.abs(kept - whole).max() < ROWS_MAX + 1
    named = {row.contribution for row in account.rows}
    smallest_kept = min(abs(share.bits) for share in found.shares if share.part_id in named)
    assert all(abs(share.bits) <= smallest_kept for share in found.shares if share.part_id not in named)


def test_an_answer_without_shares_has_the_base_only():
    """Where nobody but the base model gave anything, every token is the base model's."""
    account = token_account(replace(_found(0), shares=()))

    assert account.rows == ()
    assert account.tokens == 5


@pytest.mark.parametrize("raw", [b"", b"nothing", TokenAccount((1,), ()).to_bytes()[:-3]])
def test_damaged_bytes_are_refused(raw):
    """Bytes that are no account are a fault of ours and stop the stage."""
    with pytest.raises(InvariantError) as caught:
        TokenAccount.from_bytes(raw)

    assert caught.value.code == "evidence_damaged"
