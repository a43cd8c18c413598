"""`headwater receipt correct`: log a receipt that supersedes another, and book the money it moves."""

from __future__ import annotations

import json as json_text
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.cli.settling import books
from headwater.core.canonical import canonical, refuse_deep
from headwater.core.errors import ConflictError, InvalidError, MissingError
from headwater.core.instants import format_instant
from headwater.core.limits import RECEIPT_SIZE_BYTES_MAX
from headwater.core.money import format_units
from headwater.corrections import Corrections
from headwater.receipts import Receipt, issue
from headwater.settlement.disputes import Move
from headwater.splits import recompute_split


def correct_receipt(
    file: Path,
    /,
    *,
    dry_run: Annotated[bool, Parameter(negative=(), help="Say what would move, and log nothing.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Supersede the newest receipt of a call with a corrected one. Needs the home to itself: stop the server first.

    Measurement, price and policy are taken from the file; payouts are divided anew under the policy it names, and
    operator, time and what it supersedes are filled in. Before the old receipt settles all its money may move,
    afterwards only what the price adds. The same file again changes nothing.

    Parameters
    ----------
    file
        JSON of the receipt as it should have been: `headwater receipt show --json`, edited.
    """
    with outcome(json) as result, Home(settings(home), writer=not dry_run, create=False) as opened:
        corrections = Corrections(books(opened))
        value = _read(file)
        newest = opened.log.in_force(str(value.get("call_id")))
        if newest is None:
            raise MissingError(
                f"{value.get('call_id')} has no receipt", code="receipt_missing", fix="name a call that was answered"
            )
        old = Receipt.from_bytes(newest.raw)
        fresh = _corrected(value, old, opened)
        payer = opened.calls.get(old.call_id).payer
        _check_same_call(old, fresh)
        if replace(fresh, supersedes=old.supersedes, issued_at_ns=old.issued_at_ns) == old:
            booked = () if dry_run else corrections.book_logged()
            _print(old, old, (), json, "in force already" + (", booked now" if booked else ""))
        elif dry_run:
            _print(old, fresh, corrections.planned(fresh, payer), json, "would supersede it")
        else:
            signed = issue(fresh, opened.signer)
            moved = corrections.correct(signed.raw, signed.signature, payer=payer)
            _print(old, fresh, moved, json, "supersedes it")
    return result.status


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise MissingError(f"{file}: {error.strerror}", code="file_missing", fix="give the path of a file") from None
    try:
        if len(raw) > RECEIPT_SIZE_BYTES_MAX * 2:  # it may be indented
            raise ValueError(f"{len(raw)} bytes")
        refuse_deep(raw)
        value = json_text.loads(raw)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise InvalidError(
            f"{file} is no receipt: {error}", code="not_a_receipt", fix="edit what `receipt show --json` prints"
        ) from None
    return value


def _corrected(value: dict[str, Any], old: Receipt, home: Home) -> Receipt:
    """The file's receipt, issued now by this home in the place of `old`, its price divided anew."""
    account = value.get("attribution")
    residual = account.get("residual_account") if isinstance(account, dict) else None
    filled = value | {
        "operator": home.signer.address,
        "issued_at": format_instant(max(time.time_ns(), old.issued_at_ns)),
        "supersedes": old.id,
        # All to one account only until the policy has divided it.
        "payouts": [{"account": residual, "amount": value.get("price"), "line": "-", "contribution": None}],
    }
    undivided = Receipt.from_bytes(canonical(filled))
    return replace(undivided, payouts=recompute_split(undivided, home.policy_by_digest(undivided.policy_digest)))


def _check_same_call(old: Receipt, fresh: Receipt) -> None:
    """Refuse what would make it a receipt of something else."""
    for name in ("payer", "currency", "request_digest", "answer_digest"):
        if getattr(old, name) != getattr(fresh, name):
            raise ConflictError(
                f"{name} is {getattr(fresh, name)}, the receipt of that call has {getattr(old, name)}",
                code="correction_differs",
                fix="a correction may change what was measured, the price and the policy",
            )


def _print(old: Receipt, fresh: Receipt, moved: tuple[Move, ...], as_json: bool, what: str) -> None:
    if as_json:
        print_json(
            {
                "superseded": old.id,
                "receipt": fresh.id,
                "outcome": what,
                "moves": [{"from": m.debit, "to": m.credit, "units": str(m.amount)} for m in moved],
            }
        )
        return
    out.print(f"[bold]{fresh.id}[/] {what}", soft_wrap=True)
    for move in moved:
        line = f"  {format_units(move.amount)} {fresh.currency} from {move.debit} to {move.credit}"
        out.print(escape(line), soft_wrap=True)
    if not moved:
        out.print("  nothing moves")
