"""`headwater chain …`: deploy the contracts, look at them, put money in."""

from __future__ import annotations

import json as json_text
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape

from headwater.chain import Chain, Credit, Disputes
from headwater.chain.oracle import read_fees
from headwater.chain.publishing import describe, standard_json
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.cli.rails_backing import deployed_rails
from headwater.cli.settling import DEPLOYMENT, chain_signer, open_chain, outbox_of, tokens
from headwater.core.errors import ConflictError, InvalidError, MissingError
from headwater.core.money import parse_units

app = App(name="chain", help="The contracts that settle: deploy them, look at them, put money in.")
CONTRACTS = "contracts.json"


@app.command
def deploy(
    *,
    guardian: str,
    cap: str = "10000",
    delay_s: int = 86_400,
    token: str | None = None,
    bond: str = "100",
    confirmations: int = 3,
    credit_delay_s: int | None = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Deploy the contracts through the RPC address of the settings, and write where they are into the home.

    The operator's key owns and posts, or the one that HEADWATER_CHAIN_KEY or HEADWATER_CHAIN_SIGNER gives.

    Parameters
    ----------
    guardian
        Address that may cancel a pending root; somebody else's.
    cap
        Tokens by which one epoch may raise the total.
    delay_s
        Seconds between a post and its claims.
    token
        ERC-20 with 6 to 18 decimals; a worthless test token when left out.
    bond
        Tokens that a poster stakes and a challenger puts up.
    confirmations
        Blocks above a transaction before it counts.
    credit_delay_s
        Deploy a Credit contract too, with this delay for taking money back.
    """
    with outcome(json) as result, Home(settings(home), create=True) as opened:
        rpc = opened.settings.rpc_url
        if not rpc:
            raise MissingError(
                "no chain to deploy to: the embedded one deploys by itself",
                code="rpc_missing",
                fix="set rpc_url in headwater.toml or HEADWATER_RPC_URL",
            )
        path = opened.path / DEPLOYMENT
        if path.exists():
            raise ConflictError(
                f"{DEPLOYMENT} exists in this home", code="deployment_exists", fix="use another home for another one"
            )
        chain = Chain(rpc, chain_signer(opened), outbox=outbox_of(opened))
        manifest = replace(
            chain.deploy(
                guardian=guardian, cap=_units(cap, "cap"), delay_s=delay_s, token=token, bond=_units(bond, "bond")
            ),
            confirmations=confirmations,
        )
        if credit_delay_s is not None:
            manifest = replace(manifest, credit=Credit.deploy(chain, delay_s=credit_delay_s).address)
        manifest.save(path)
        (opened.path / CONTRACTS).write_text(json_text.dumps(describe(manifest), indent=1) + "\n", "utf-8")
        if json:
            print_json(describe(manifest) | {"confirmations": confirmations})
        else:
            out.print(f"payout contract {manifest.payout} on chain {manifest.chain_id}, token {manifest.token}")
            out.print(f"written: {DEPLOYMENT} and {CONTRACTS} (addresses and ABI)")
            if _units(bond, "bond"):
                out.print(f"next: headwater chain stake {bond}, and headwater chain fund")
    return result.status


@app.command
def status(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """What the deployment holds and promises, who may do what, and what gas costs."""
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        state, fees, manifest = chain.status(), read_fees(chain.sender), chain.manifest
        opening = Disputes(chain).open_challenge()
        value: dict[str, Any] = {
            "chain_id": manifest.chain_id,
            "payout": manifest.payout,
            "token": manifest.token,
            "test_token": manifest.test_token,
            "confirmations": manifest.confirmations,
            "funded_token_units": str(state.funded),
            "promised_token_units": str(state.promised),
            "paid_token_units": str(state.paid),
            "cap_token_units": str(state.cap),
            "bond_token_units": str(state.bond),
            "staked_token_units": str(state.staked),
            "delay_s": state.delay_s,
            "newest_epoch": state.newest_epoch,
            "newest_status": chain.status_of(state.newest_epoch) if state.newest_epoch else "none",
            "challenged_index": opening.index if opening else None,
            "paused": list(state.paused),
            "owner": state.owner,
            "poster": state.poster,
            "guardian": state.guardian,
            "gas_price_wei": str(fees.gas_price_wei),
            "data_fee": fees.fork.name.lower(),
        }
        if json:
            print_json(value)
        else:
            for name, shown in value.items():
                if name.endswith("_token_units"):
                    name, shown = name.removesuffix("_token_units"), f"{tokens(int(shown))} tokens"
                out.print(f"{name.replace('_', ' '):18} {escape(str(shown))}")
    return result.status


@app.command
def fund(amount: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Deposit tokens of the operator's, so that roots can promise them; the test token is minted as needed.

    Parameters
    ----------
    amount
        Tokens, such as 250.00.
    """
    return _pay_in(amount, home, json, stake=False)


@app.command
def stake(amount: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Add tokens to what the poster answers with for its roots.

    Parameters
    ----------
    amount
        Tokens.
    """
    return _pay_in(amount, home, json, stake=True)


@app.command
def export(
    folder: Path,
    /,
    *,
    sources: Annotated[Path | None, Parameter(help="Folder of the contracts' sources; the repository's.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Write addresses and ABI, and each contract's compiler input (standard JSON) for a block explorer.

    Parameters
    ----------
    folder
        Where to write; it is made.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        described = describe(chain.manifest)
        files = {CONTRACTS: described}
        for name in (*described["contracts"], *deployed_rails(opened.path)):
            files[f"{name}.standard.json"] = standard_json(name, sources) if sources else standard_json(name)
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name).write_text(json_text.dumps(value, indent=1) + "\n", "utf-8")
        if json:
            print_json({"folder": str(folder), "files": sorted(files)})
        else:
            out.print(f"written to {escape(str(folder))}: {', '.join(sorted(files))}")
    return result.status


def _pay_in(amount: str, home: Path | None, json: bool, *, stake: bool) -> int:
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        units = _units(amount, "amount")
        sent = Disputes(chain).stake(units) if stake else chain.fund(units)
        state = chain.status()
        held = state.staked if stake else state.funded
        if json:
            print_json({"token_units": str(units), "in_all_token_units": str(held), "transaction": sent.hash})
        else:
            out.print(f"{'staked' if stake else 'deposited'} {tokens(units)} tokens, {tokens(held)} in all")
            out.print(f"transaction {sent.hash}")
    return result.status


def _units(amount: str, where: str) -> int:
    """Token units of a decimal amount of tokens."""
    nano = parse_units(amount, where=where)
    units, rest = divmod(nano, 1_000)  # nano of a token to its millionths
    if rest or units < 0:
        raise InvalidError(f"{where} is {amount}", code="amount_invalid", fix="give tokens with at most six decimals")
    return units
