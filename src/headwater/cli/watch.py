"""`headwater settle watch`: recompute posted roots from published data, and stop wrong ones."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter
from rich.markup import escape

from headwater.chain import Chain, Manifest, signer_from_file
from headwater.chain.change_sets import ChangeReader
from headwater.chain.watching import Published, Report, Source, Watcher
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import err, out, print_json
from headwater.cli.settling import DEPLOYMENT, open_chain
from headwater.core.errors import HeadwaterError, MissingError, UpstreamError
from headwater.store.object_store import ObjectStore, open_source

CHAIN: Final = "chain"
_WRONG = ("refuted", "challenged", "cancelled", "reported", "waiting", "expired")


def watch(
    *,
    location: Annotated[
        str | None, Parameter(name="--from", help="Where the operator publishes, or chain; else the home.")
    ] = None,
    rpc: Annotated[str | None, Parameter(help="JSON-RPC address; the home's chain by default.")] = None,
    deployment: Annotated[Path | None, Parameter(help="The deployment's file, for --rpc.")] = None,
    key_file: Annotated[Path | None, Parameter(help="Who pays gas and bonds; without it nothing is sent.")] = None,
    beacon: Annotated[str | None, Parameter(help="Beacon node that has a chain's blobs, for --from chain.")] = None,
    publisher: Annotated[tuple[str, ...], Parameter(help="Who else than the poster is believed on the chain.")] = (),
    hold: Annotated[bool, Parameter(negative=(), help="Challenge also what a poster can answer.")] = False,
    every_s: Annotated[float, Parameter(help="Seconds between looks; 0 looks once.")] = 0.0,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Recompute the pending root from what was published, and end it when it is wrong. Status 1 when one was.

    A wrong sum, a lowered amount or a changed account is proved to the contract. Data that are missing or do not give
    the root are challenged with a bond. With the guardian's key every other wrong root is cancelled.
    `--from chain` needs nothing but the node: it reads the change sets that `publish --to calldata` or `blob` sent.
    """
    with outcome(json) as result, ExitStack() as stack:
        signer = None if key_file is None else signer_from_file(key_file)
        opened: Home | None = None
        if rpc is None or location is None:
            opened = stack.enter_context(Home(settings(home), create=False))
        if rpc is not None:
            path = deployment or (settings(home).home / DEPLOYMENT)
            chain = Chain(rpc, signer, manifest=Manifest.load(path))
        else:
            assert opened is not None
            whole, _ = stack.enter_context(open_chain(opened, gas_for=() if signer is None else (signer.address,)))
            chain = whole.acting_as(signer)
        source: Source
        if location == CHAIN:
            source = ChangeReader(chain, publishers=publisher, beacon=beacon)
        else:
            source = _stored(open_source(location)) if location is not None else _kept(opened)
        watcher = Watcher(chain, source, hold=hold)
        while True:
            try:
                report = watcher.turn()
            except UpstreamError as error:
                if every_s <= 0:
                    raise
                err.print(f"not looked at: {escape(error.message)}; trying again")  # a watcher outlives its node
                time.sleep(every_s)
                continue
            if report is not None and report.done in _WRONG:
                result.status = 1
            _print(report, json)
            if every_s <= 0:
                break
            time.sleep(every_s)
    return result.status


def _stored(store: ObjectStore) -> Source:
    def published(number: int) -> Published:
        manifest = store.read(f"epochs/{number}.json")
        name = f"epochs/{number}.changes"
        try:
            return Published(manifest, store.read(name))
        except HeadwaterError:  # an export of receipts has no change sets; the manifest says as much
            return Published(manifest)

    return published


def _kept(home: Home | None) -> Source:
    def published(number: int) -> Published:
        assert home is not None
        record = home.epochs.get(number)
        try:
            return Published(record.manifest, home.epochs.changes(number))
        except MissingError:
            return Published(record.manifest)

    return published


def _print(report: Report | None, as_json: bool) -> None:
    if report is None:
        if as_json:
            print_json({"epoch": None, "done": "idle", "problems": []})
        else:
            out.print("no root is pending")
        return
    problems = report.verdict.problems if report.verdict else ()
    if as_json:
        value: dict[str, Any] = {"epoch": report.epoch, "done": report.done, "transaction": report.transaction}
        print_json(value | {"problems": [{"code": one.code, "message": one.message} for one in problems]})
        return
    colour = "green" if report.done == "accepted" else "bold red"
    sent = f", transaction {report.transaction}" if report.transaction else ""
    out.print(f"epoch {report.epoch}: [{colour}]{report.done}[/]{sent}", soft_wrap=True)
    for one in problems:
        out.print(f"  {escape(one.code)}: {escape(one.message)}", soft_wrap=True)
