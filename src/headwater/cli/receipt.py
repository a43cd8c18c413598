"""`headwater receipt …`: look at a receipt, take it along with its proof, and check one that somebody sent.

`verify --rpc` needs the file and a chain, nothing else: no home, no database, no key, no trust in who sent it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape

from headwater.chain import Chain, Manifest
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import brief, out, print_json
from headwater.cli.rails_backing import backing_line, shares_behind
from headwater.cli.receipt_view import print_receipt
from headwater.cli.settling import open_chain, settlement
from headwater.core.canonical import parse_canonical
from headwater.core.errors import InvalidError, MissingError
from headwater.core.instants import format_instant
from headwater.core.limits import BUNDLE_SIZE_BYTES_MAX
from headwater.core.money import format_units
from headwater.gateway.own_calls import own_page
from headwater.receipts import Bundle, Check, EpochManifest, PayoutProof, Receipt, verify_receipt
from headwater.settle import check_payout
from headwater.settlement.epoch import read_manifest
from headwater.settlement.tree import Domain
from headwater.splits import Policy, recompute_split

app = App(name="receipt", help="Look at receipts, and check one that somebody sent.")
app.command("headwater.cli.receipt_correct:correct_receipt", name="correct")


@app.command
def show(receipt: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """A receipt in words: who supplied the answer, and how the price was divided.

    Parameters
    ----------
    receipt
        A receipt id or the id of its call.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        raw = receipt_bytes(opened, receipt)
        if json:
            print_json(parse_canonical(raw))
        else:
            shown = Receipt.from_bytes(raw)
            print_receipt(shown, opened.registry, opened.policy_by_digest)
            backed = shares_behind(opened.path, opened.registry, (payout.account for payout in shown.payouts))
            for account, issued in backed.items():
                out.print(escape(backing_line(account, issued)), soft_wrap=True)
    return result.status


@app.command(name="list")
def list_(
    *,
    limit: int = 20,
    key: str | None = None,
    before: str | None = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """The newest receipts; with --key the calls of that key, newest first, as its payer is told them.

    Parameters
    ----------
    key
        Id of an API key, `key_…`: its calls, also those that are pending or came to nothing.
    before
        With --key: go on behind this call.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        if key is not None:
            page = own_page(opened.calls, opened.log, opened.keys.get(key), limit=str(limit), before=before)
            print_json(page) if json else _print_calls(page)
            return result.status
        if before is not None:
            raise InvalidError(f"before {before[:80]!r}", code="page_invalid", fix="say with --key whose calls")
        first = max(0, len(opened.log) - limit)
        found = [Receipt.from_bytes(logged.raw) for logged in opened.log.entries(first)]
        if json:
            print_json([{"id": r.id, "call_id": r.call_id, "price_units": str(r.price)} for r in found])
        else:
            for one in found:
                out.print(f"[bold]{one.id}[/]", soft_wrap=True)
                asked = f"{one.call_id}  {format_instant(one.issued_at_ns)[:19]}Z  {one.model.name}"
                out.print(f"  {asked}  {format_units(one.price)} {one.currency}", soft_wrap=True)
            if not found:
                out.print("no receipts yet")
    return result.status


def _print_calls(page: Mapping[str, Any]) -> None:
    for one in page["data"]:
        price = "" if one["price"] is None else f"  {one['price']} {one['currency']}"
        asked = f"{one['call']}  {one['created_at'][:19]}Z  {one['model']}  {one['status']}{price}"
        out.print(escape(asked), soft_wrap=True)
        if one["id"] is not None:
            out.print(f"  [bold]{one['id']}[/]", soft_wrap=True)
    if page["next"] is not None:
        out.print(f"older ones: --before {page['next']}", soft_wrap=True)
    if not page["data"]:
        out.print("no calls")


@app.command
def bundle(receipt: str, /, *, to: Path | None = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """Write the file with which a stranger can check a receipt whose epoch has been closed.

    Parameters
    ----------
    receipt
        A receipt id or the id of its call.
    to
        The file; `<receipt id>.bundle.json` by default.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        identity = Receipt.from_bytes(receipt_bytes(opened, receipt)).id
        opened.epochs.containing(opened.log.get(identity).entry.index)  # before a chain is opened, or made, for nothing
        path = to or Path(f"{identity}.bundle.json")
        with open_chain(opened) as (chain, _):
            path.write_bytes(settlement(opened, chain).bundle(identity).to_bytes())
        print_json({"file": str(path)}) if json else out.print(f"wrote {path}")
    return result.status


@app.command
def forget(
    call: str | None = None,
    /,
    *,
    key: Annotated[str | None, Parameter(help="Id of an API key: the text of all its calls is erased.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Erase the text of one call, or of all calls of a key; receipts stay and verify as before.

    Parameters
    ----------
    call
        Id of the call.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        if (call is None) == (key is None):
            raise InvalidError("give one call or one --key", code="usage", fix="headwater receipt forget CALL")
        if call is not None:
            opened.calls.forget(call, at_ns=time.time_ns())
            count = 1
        else:
            count = opened.calls.forget_owner(opened.keys.get(str(key)).key_id, at_ns=time.time_ns())
        print_json({"calls": count}) if json else out.print(f"the text of {count} calls is erased")
    return result.status


@app.command
def verify(
    file: Path,
    /,
    *,
    rpc: Annotated[str | None, Parameter(help="JSON-RPC address of the chain; the home's own by default.")] = None,
    contract: Annotated[str | None, Parameter(help="Payout contract you expect; the file's own by default.")] = None,
    recompute: Annotated[bool, Parameter(negative=(), help="Measure the answer again too; needs --home.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Check a receipt's file against the chain, trusting nobody. Status 1 when anything does not hold.

    With `--recompute`, in the home that has the call's evidence, the shares are measured again on the model
    and must come out bit for bit.

    Parameters
    ----------
    file
        A bundle, as written by `headwater receipt bundle` or served by a gateway.
    """
    with outcome(json) as result, ExitStack() as stack:
        sent = _read_bundle(file)
        deployment = _deployment(sent.manifest, contract)
        if rpc is None:
            chain, _ = stack.enter_context(open_chain(stack.enter_context(Home(settings(home), create=False))))
        else:
            chain = Chain(rpc)
        chain.attach(deployment)
        checks = checks_of(sent, chain)
        if recompute:
            checks = (*checks, _measured_again(sent, home))
        held = all(check.passed for check in checks)
        result.status = 0 if held else 1
        if json:
            print_json(
                {
                    "verified": held,
                    "contract": deployment.payout,
                    "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks],
                }
            )
        else:
            for check in checks:
                mark = "[green]holds [/]" if check.passed else "[bold red]FAILED[/]"
                out.print(f"  {mark} [bold]{check.name:10}[/] {brief(check.detail)}", soft_wrap=True)
            if contract is None:
                out.print(f"  the contract {deployment.payout} is the file's own word: compare it with the operator's")
            out.print("[bold green]verified[/]" if held else "[bold red]refused[/]")
    return result.status


def _measured_again(sent: Bundle, path: Path | None) -> Check:
    """Whether measuring the answer again, from the home's evidence, gives the receipt's own shares."""
    from headwater.cli.home import models, spans  # heavy: only who measures pays for it

    receipt = Receipt.from_bytes(sent.receipt)
    with (
        Home(settings(path), create=False) as opened,
        models(opened) as served,
        spans(opened, update=False) as index,
    ):
        again = opened.flow(served, None, index).replay(receipt.call_id).attribution
    told = receipt.attribution
    if again == told:
        passes = dict(told.parameters).get("passes", 0)
        return Check(
            "measured", True, f"{passes} prompts scored again: every share comes out the same to the micro-bit"
        )
    names = [f.name for f in fields(told) if getattr(told, f.name) != getattr(again, f.name)]
    return Check("measured", False, f"measuring again gives other {', '.join(names)}")


def receipt_bytes(home: Home, receipt: str) -> bytes:
    """The bytes of a receipt, by its id or by the id of its call.

    Raises:
        InvalidError: ``receipt_id_invalid``.
        MissingError: there is none.
    """
    if not receipt.startswith("call_"):
        return home.log.get(receipt).raw
    logged = home.log.in_force(receipt)
    if logged is None:
        raise MissingError(f"{receipt} has no receipt yet", code="receipt_missing", fix="wait for its attribution")
    return logged.raw


def _read_bundle(file: Path) -> Bundle:
    try:
        if file.stat().st_size > BUNDLE_SIZE_BYTES_MAX:
            raise InvalidError(f"{file} is too large", code="bundle_too_large", fix="use the file as it was issued")
        return Bundle.from_bytes(file.read_bytes())
    except OSError as error:
        raise MissingError(f"{file}: {error.strerror}", code="file_missing", fix="give the path of a bundle") from None


def _deployment(manifest: bytes, contract: str | None) -> Manifest:
    told = read_manifest(manifest)
    try:
        return Manifest(told["chain_id"], contract or told["contract"], told["token"], told["token_decimals"], 0)
    except (KeyError, TypeError):
        raise InvalidError(
            "the file's manifest names no deployment", code="manifest_invalid", fix="use the file as it was issued"
        ) from None


def checks_of(sent: Bundle, chain: Chain) -> tuple[Check, ...]:
    """Every check of a bundle against a chain."""
    told = read_manifest(sent.manifest)

    def payout_holds(proof: PayoutProof, manifest: EpochManifest) -> bool:
        domain = Domain(chain.chain_id, chain.manifest.payout, chain.manifest.token, manifest.epoch)
        return chain.root_at(manifest.epoch) == manifest.tree_root and check_payout(proof, manifest, domain)

    return verify_receipt(
        sent,
        expected_operator=chain.status().poster,
        data_hash_on_chain=chain.data_hash(told["epoch"]),
        policy_digest=lambda text: Policy.from_toml(text).digest,
        recompute_split=recompute_split,
        check_payout=payout_holds,
    )
