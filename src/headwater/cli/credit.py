"""`headwater credit …`: vouchers that payers signed for this gateway, and closing them on the chain."""

from __future__ import annotations

from typing import Any

from cyclopts import App

from headwater.chain import Chain, Credit
from headwater.chain.credit import VOUCHERS_MAX
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.cli.settling import open_chain, tokens
from headwater.gateway.credit_chain import credit_of, voucher_store, vouchers_on
from headwater.gateway.vouchers import Vouchers
from headwater.store.voucher_store import VoucherStore

app = App(name="credit", help="Vouchers that payers signed for this gateway, and closing them on the chain.")


@app.command
def show(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """What payers sign vouchers for, and what the vouchers taken are worth that are not closed yet."""
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        store, credit = credit_store(opened, chain), credit_of(chain)
        waiting = store.waiting()
        worth = sum(signed.voucher.cumulative - store.closed_of(signed.voucher.payer) for signed in waiting)
        told = {
            "contract": credit.address,
            "chain_id": chain.chain_id,
            "payee": opened.signer.address,
            "payers": len(waiting),
            "waiting_token_units": str(worth),
        }
        if json:
            print_json(told)
        else:
            out.print(f"contract {credit.address} on chain {chain.chain_id}, payee {opened.signer.address}")
            out.print(f"{tokens(worth)} tokens of {len(waiting)} payers wait to be closed")
    return result.status


@app.command
def close(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """Have the chain pay what the vouchers taken are worth, up to 128 payers in one transaction. Safe to repeat."""
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        rows = close_vouchers(credit_store(opened, chain), credit_of(chain), opened.signer.address)
        if json:
            print_json(rows)
        else:
            for row in rows:
                out.print(
                    f"{tokens(int(row['token_units']))} tokens of {row['payers']} payers for {row['gas']} gas, "
                    f"transaction {row['transaction']}",
                    soft_wrap=True,
                )
                for payer, reason in row["skipped"]:
                    out.print(f"  {payer} was skipped and stays due: {reason}")
            if not rows:
                out.print("no voucher waits")
    return result.status


def close_vouchers(store: VoucherStore, credit: Credit, payee: str) -> list[dict[str, Any]]:
    """Close every voucher that waits, the largest first, and note what the chain has paid of each."""
    rows = []
    waiting = store.waiting()
    for start in range(0, len(waiting), VOUCHERS_MAX):
        batch = waiting[start : start + VOUCHERS_MAX]
        done = credit.close(payee, batch)
        store.closed({one.voucher.payer: credit.closed(one.voucher.payer, payee) for one in batch})
        rows.append(
            {
                "token_units": str(done.amount),
                "payers": len(done.paid),
                "skipped": [list(one) for one in done.skipped],
                "gas": done.gas_used,
                "transaction": done.transaction,
            }
        )
    return rows


def credit_store(home: Home, chain: Chain) -> VoucherStore:
    """The vouchers of a home for the Credit contract of its deployment."""
    return voucher_store(home.db, home.ledger, home.keys, chain, home.policy.currency)


def vouchers_of(home: Home, chain: Chain) -> Vouchers | None:
    """What takes vouchers for a home's gateway; None when its deployment has no Credit contract."""
    if chain.manifest.credit is None:
        return None
    return vouchers_on(credit_store(home, chain), chain, home.signer.address)
