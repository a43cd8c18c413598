"""`headwater epoch audit`: recompute an epoch from published inputs, and say which receipt, line and value differ."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from headwater.chain import Chain, Manifest
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json, progress
from headwater.core.errors import HeadwaterError, Problem
from headwater.receipts import Receipt, manifest_hash
from headwater.receipts.checkpoint import NoteKey
from headwater.settlement.epoch import read_manifest
from headwater.store.epoch_audit import Extent, audit
from headwater.store.object_store import ObjectStore, open_source

_FIX = "ask the operator to explain it, with this line"


def audit_epoch(
    number: int,
    /,
    *,
    location: Annotated[str, Parameter(name="--from", help="Folder, pyarrow address or URL of an export.")],
    key: Annotated[str | None, Parameter(help="Log key you expect; the export's own by default.")] = None,
    rpc: Annotated[str | None, Parameter(help="JSON-RPC address of the chain that holds the root.")] = None,
    contract: Annotated[str | None, Parameter(help="Payout contract you expect; else the manifest's own.")] = None,
    sample: Annotated[int, Parameter(help="Receipts whose form, signature and split are checked in full.")] = 1_000,
    every: Annotated[bool, Parameter(name="--all", negative=(), help="Check every receipt in full.")] = False,
    all_signatures: Annotated[bool, Parameter(negative=(), help="Check every signature.")] = False,
    recompute_attribution: Annotated[int, Parameter(help="Measure so many answers again; needs --home.")] = 0,
    seed: Annotated[int, Parameter(help="Which receipts are sampled.")] = 0,
    processes: Annotated[int, Parameter(help="Processes that read segments side by side.")] = 2,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Recompute a closed epoch from what its operator published. Status 1 when anything differs.

    Every receipt is hashed into the log and summed into the totals, and every manifest field computed again. Form,
    signature and split are checked for a sample, or with `--all` for every receipt; the outcome says which.

    Parameters
    ----------
    number
        The epoch.
    """
    with outcome(json) as result, progress(quiet=json) as bars:
        task = bars.add_task("receipts", total=None)
        source = open_source(location)
        report = audit(
            source,
            number,
            extent=Extent(sample, every, all_signatures, seed, processes),
            log_key=None if key is None else NoteKey.from_text(key),
            progress=lambda at, total: bars.update(task, completed=at, total=total),
        )
        checked, problems = list(report.checked), list(report.problems)
        if key is None:
            checked.append("NOT checked: that the log key is the operator's; give --key from elsewhere")
        if rpc is not None:
            problems += _on_chain(source, number, rpc, contract)
            checked.append("root and data hash are the chain's")
        else:
            checked.append("NOT checked: the chain; give --rpc")
        if recompute_attribution:
            measured, differing = _measured_again(source, home, recompute_attribution)
            problems += differing
            checked.append(f"{measured} answers measured again from disclosed evidence")
        result.status = 1 if problems else 0
        if json:
            print_json(
                {
                    "epoch": number,
                    "passed": not problems,
                    "receipts": report.receipts,
                    "receipts_in_full": report.in_full,
                    "signatures": report.signatures,
                    "checked": checked,
                    "problems": [{"where": p.where, "code": p.code, "message": p.message} for p in problems],
                }
            )
        else:
            out.print(
                f"epoch {number}: {report.receipts} receipts, {report.in_full} of them in full, "
                f"{report.signatures} signatures"
            )
            for line in checked:
                out.print(f"  {escape(line)}", soft_wrap=True)
            for problem in problems:
                out.print(f"[bold red]differs[/] {escape(f'{problem.where}: {problem.message} [{problem.code}]')}")
            out.print("[bold red]refused[/]" if problems else "[bold green]the epoch follows from its receipts[/]")
    return result.status


def _on_chain(source: ObjectStore, number: int, rpc: str, contract: str | None) -> list[Problem]:
    raw = source.read(f"epochs/{number}.json")
    told = read_manifest(raw)
    chain = Chain(rpc)
    chain.attach(Manifest(told["chain_id"], contract or told["contract"], told["token"], told["token_decimals"], 0))
    found = []
    on_chain, root = chain.data_hash(number), chain.root_at(number)
    if on_chain != manifest_hash(raw):
        held = on_chain.hex() if on_chain else "nothing"
        shown = f"the chain holds {held}, the manifest hashes to {manifest_hash(raw).hex()}"
        found.append(Problem(f"epochs/{number}.json", "data_hash_differs", shown, _FIX))
    if root is None or root.hex() != told["tree_root"].removeprefix("0x"):
        shown = f"the chain holds {root.hex() if root else 'nothing'}, the manifest says {told['tree_root']}"
        found.append(Problem(f"epochs/{number}.json tree_root", "root_differs", shown, _FIX))
    return found


def _measured_again(source: ObjectStore, path: Path | None, count: int) -> tuple[int, list[Problem]]:
    """Replay the first `count` receipts of the window whose evidence the home still has."""
    from headwater.cli.home import models, spans  # heavy: only who measures pays for it
    from headwater.store.epoch_export import Folder
    from headwater.store.receipt_segments import read_manifest as read_segments
    from headwater.store.receipt_segments import read_tables

    measured = 0
    problems: list[Problem] = []
    folder = Folder(source, "receipts")
    with (
        Home(settings(path), create=False) as opened,
        models(opened) as served,
        spans(opened, update=False) as index,
    ):
        flow = opened.flow(served, None, index)
        for segment in read_segments(folder).segments:
            for table in read_tables(folder, segment):
                for raw in table["raw"].to_pylist():
                    if measured == count:
                        return measured, problems
                    told = Receipt.from_bytes(raw)
                    try:
                        again = flow.replay(told.call_id).attribution
                    except HeadwaterError as error:
                        if error.code == "evidence_erased":
                            continue
                        raise
                    measured += 1
                    for field in fields(told.attribution):
                        mine, other = getattr(again, field.name), getattr(told.attribution, field.name)
                        if mine != other:
                            where = f"receipt {told.id} attribution.{field.name}"
                            problems.append(
                                Problem(where, "measured_differs", f"is {other}, measuring again gives {mine}", _FIX)
                            )
    return measured, problems
