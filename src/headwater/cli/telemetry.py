"""`headwater telemetry …`: receipts as Content Telemetry, and strangers' documents checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.cli.receipt import receipt_bytes
from headwater.core.errors import InvalidError
from headwater.gateway.standards import contents_of
from headwater.receipts import Receipt
from headwater.receipts.content_telemetry import (
    form_of,
    fractional_report,
    read_document,
    read_fractional,
    read_manifest,
    session_json,
)
from headwater.registry.rsl import read_rsl

app = App(name="telemetry", help="Receipts as Content Telemetry (SPUR), and documents of others checked.")


@app.command
def export(
    receipt: str,
    /,
    *,
    fractional: Annotated[bool, Parameter(help="The fractional-attribution report instead of the session.")] = False,
    viewer: Annotated[str | None, Parameter(help="Only what concerns this contributor, `ctr_…`.")] = None,
    home: HomeOption = None,
) -> int:
    """Print a receipt as a Content Telemetry session, or as a report of fractions that sum to one.

    Parameters
    ----------
    receipt
        A receipt id or the id of its call.
    """
    with outcome(True) as result, Home(settings(home), create=False) as opened:
        if fractional and viewer is not None:
            raise InvalidError(
                "a report of fractions has no viewer", code="option_conflict", fix="leave --viewer or --fractional out"
            )
        found = Receipt.from_bytes(receipt_bytes(opened, receipt))
        contents = contents_of(opened.registry, found)
        if fractional:
            print_json(fractional_report(found, found.id, contents))
        else:
            owner = None if viewer is None else opened.registry.contributor(viewer).id  # type: ignore[arg-type]
            print_json(session_json(found, found.id, contents, viewer=owner))
    return result.status


@app.command
def check(
    file: Path,
    /,
    *,
    form: Annotated[
        Literal["events", "manifest", "fractional", "rsl"] | None,
        Parameter(help="What the file has to be [default: what it says it is]."),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Whether a file keeps the standard: events (session, event, batch), a manifest, a report of fractions, or RSL.

    Parameters
    ----------
    file
        The document.
    """
    with outcome(json) as result:
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise InvalidError(
                f"{file} cannot be read: {error.strerror}", code="file_unreadable", fix="check its path and its rights"
            ) from None
        form = form or ("rsl" if raw.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else form_of(raw))
        if form == "events":
            document = read_document(raw)
            said = f"{document.kind} with {len(document.events)} events"
        elif form == "manifest":
            said = f"manifest of {read_manifest(raw).operator.name}"
        elif form == "fractional":
            said = f"report of {len(read_fractional(raw).contributions)} contributions"
        else:
            said = f"terms of {len(read_rsl(raw))} addresses"
        print_json({"valid": True, "found": said}) if json else out.print(f"valid: {said}", markup=False)
    return result.status
