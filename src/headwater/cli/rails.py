"""`headwater rails …`: deploy the optional contracts, look at them, and the nouns of each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.markup import escape

from headwater.cli import rails_advance, rails_bond, rails_govern, rails_shares, rails_stream
from headwater.cli.options import HomeOption, JsonOption, outcome
from headwater.cli.output import out, print_json
from headwater.cli.rails_home import OpenRails, open_rails
from headwater.cli.settling import tokens
from headwater.core.errors import MissingError
from headwater.rails import (
    AdvancePool,
    ChainBonds,
    Governance,
    PoolLimits,
    RailsManifest,
    RevenueShares,
    Streams,
)

app = App(name="rails", help="Bonds, revenue shares, advances, streams, governance: optional, off by default.")
for noun in (rails_bond, rails_shares, rails_advance, rails_stream, rails_govern):
    app.command(noun.app)

Rail = Literal["bond", "advance", "stream", "governance"]


@app.command
def deploy(
    rail: Rail,
    /,
    *,
    guardian: Annotated[str, Parameter(help="Who may pause or strike; never the operator.")],
    slasher: Annotated[str | None, Parameter(help="Bond: who carries out decisions; the operator by default.")] = None,
    arbiter: Annotated[str | None, Parameter(help="Bond: who decides appeals; the guardian by default.")] = None,
    unbond_s: Annotated[int, Parameter(help="Bond: seconds until a stake can be taken back.")] = 14 * 86_400,
    appeal_s: Annotated[int, Parameter(help="Bond: seconds to appeal, and again to decide an appeal.")] = 7 * 86_400,
    assessor: Annotated[str | None, Parameter(help="Advance: who attests income; the operator by default.")] = None,
    line_bps: Annotated[int, Parameter(help="Advance: part of the pool for one borrower.")] = 1_000,
    lent_bps: Annotated[int, Parameter(help="Advance: part of the pool for all borrowers.")] = 8_000,
    part_bps: Annotated[int, Parameter(help="Advance: part of attested income.")] = 7_000,
    base_bps: Annotated[int, Parameter(help="Advance: price.")] = 50,
    slope_bps: Annotated[int, Parameter(help="Advance: added to the price when all of the pool is lent.")] = 200,
    term_s: Annotated[int, Parameter(help="Advance: seconds until it is overdue.")] = 30 * 86_400,
    release_s: Annotated[int, Parameter(help="Advance: seconds over which a fee becomes assets.")] = 7 * 86_400,
    registrar: Annotated[str | None, Parameter(help="Governance: signs rolls; the operator by default.")] = None,
    vote_s: Annotated[int, Parameter(help="Governance: seconds of voting.")] = 7 * 86_400,
    delay_s: Annotated[int, Parameter(help="Governance: seconds of the timelock.")] = 7 * 86_400,
    quorum_bps: Annotated[int, Parameter(help="Governance: part of all people who must vote.")] = 2_000,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Deploy one rail with the operator's key and write its address into rails.json. Revenue shares: `shares issue`.

    Parameters
    ----------
    rail
        bond, advance, stream or governance.
    """
    with outcome(json) as result, open_rails(home) as rails:
        manifest = rails.manifest_or_new()
        manifest.with_rail(rail, guardian)  # refused before anything is deployed
        contracts, me = rails.contracts, rails.contracts.me
        if rail == "bond":
            address = ChainBonds.deploy(
                contracts,
                guardian=guardian,
                slasher=slasher or me,
                arbiter=arbiter or guardian,
                unbond_s=unbond_s,
                slash_s=appeal_s,
                appeal_s=appeal_s,
            ).address
        elif rail == "advance":
            limits = PoolLimits(line_bps, lent_bps, part_bps, base_bps, slope_bps)
            address = AdvancePool.deploy(
                contracts,
                guardian=guardian,
                assessor=assessor or me,
                limits=limits,
                term_s=term_s,
                release_s=release_s,
            ).address
        elif rail == "stream":
            address = Streams.deploy(contracts).address
        else:
            address = Governance.deploy(
                contracts,
                guardian=guardian,
                registrar=registrar or me,
                policy=rails.home.policy.digest,
                vote_s=vote_s,
                delay_s=delay_s,
                quorum_bps=quorum_bps,
            ).address
        manifest.with_rail(rail, address).save(rails.path)
        if json:
            print_json({"rail": rail, "address": address, "chain_id": contracts.chain_id})
        else:
            out.print(f"{rail} at {address} on chain {contracts.chain_id}")
    return result.status


@app.command
def status(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """What is deployed, what it holds and who may do what."""
    with outcome(json) as result, open_rails(home) as rails:
        value = _status(rails)
        if json:
            print_json(value)
        else:
            for name, rows in value.items():
                out.print(f"[bold]{name}[/]")
                for row in rows if isinstance(rows, list) else [rows]:
                    for key, shown in row.items():
                        if key.endswith("_token_units"):
                            key, shown = key.removesuffix("_token_units"), f"{tokens(int(shown))} tokens"
                        out.print(f"  {key.replace('_', ' '):16} {escape(str(shown))}", soft_wrap=True)
            if not value:
                out.print("no rails are deployed")
    return result.status


def _status(rails: OpenRails) -> dict[str, Any]:
    try:
        manifest: RailsManifest = rails.manifest
    except MissingError:
        return {}
    value: dict[str, Any] = {}
    if manifest.bond:
        value["bond"] = ChainBonds(rails.contracts, manifest.bond).status()
    if manifest.advance:
        value["advance"] = AdvancePool(rails.contracts, manifest.advance).status()
    if manifest.stream:
        value["stream"] = Streams(rails.contracts, manifest.stream).status()
    if manifest.governance:
        value["governance"] = Governance(rails.contracts, manifest.governance).status()
    if manifest.shares:
        value["shares"] = [
            rails_shares.brief(RevenueShares(rails.contracts, one, manifest.start_block)) for one in manifest.shares
        ]
    return value
