"""`headwater claim …`: the proof a payee needs, and the claim itself."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from headwater.chain import signer_from_file
from headwater.cli.epoch import _number
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.cli.settling import open_chain, settlement, tokens
from headwater.core.ids import AccountId

app = App(name="claim", help="Prove and claim what an account is owed.")


@app.command
def proof(account: str, /, *, epoch: int | None = None, home: HomeOption = None, json: JsonOption = False) -> int:  # noqa: ARG001  # a proof is always JSON
    """Print the claim of an account: anybody may submit it, only the payee gains.

    Parameters
    ----------
    account
        Such as contributor:ctr_….
    epoch
        The newest by default.
    """
    with outcome(True) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        print_json(settlement(opened, chain).claim(_number(opened, epoch), AccountId(account)).as_json())
    return result.status


@app.command
def submit(
    account: str,
    /,
    *,
    epoch: int | None = None,
    key_file: Path | None = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Claim what an account is owed.

    Parameters
    ----------
    account
        Such as contributor:ctr_….
    epoch
        The newest by default.
    key_file
        Who pays the chain's fee; the operator by default.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        books = settlement(opened, chain)
        which = _number(opened, epoch)
        sender = chain if key_file is None else chain.acting_as(signer_from_file(key_file))
        paid = sender.claim(which, books.claim(which, AccountId(account)).proof)
        books.sync()
        if json:
            print_json({"token_units": str(paid.amount), "gas": paid.gas_used, "transaction": paid.transaction})
        else:
            out.print(f"claimed {tokens(paid.amount)} tokens for {paid.gas_used} gas, transaction {paid.transaction}")
    return result.status
