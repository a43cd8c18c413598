"""`headwater pages …`: who may sign in to the pages."""

from __future__ import annotations

import os
import sys
import time
from getpass import getpass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, served_at, settings
from headwater.cli.output import out, print_json
from headwater.core.errors import InvalidError
from headwater.core.ids import ContributorId
from headwater.core.instants import SECOND_NS, format_instant
from headwater.dashboard.links import WORD_BYTES, make_link
from headwater.dashboard.passwords import set_password
from headwater.store.session_store import SessionStore

app = App(name="pages", help="Who may sign in to the pages.")

MINUTES_MAX = 7 * 24 * 60


@app.command
def password(*, home: HomeOption = None) -> int:
    """Set the operator's password: asked for on a terminal, else the first line of the input. Ends its sessions."""
    with outcome(False) as result, Home(settings(home), create=False) as opened:
        given = getpass("password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
        set_password(opened.path, given)
        ended = SessionStore(opened.db).end_all("operator", "operator")
        out.print(f"the operator's password is set; {ended} sessions ended")
    return result.status


@app.command
def link(
    role: Literal["operator", "contributor", "payer"],
    subject: str = "operator",
    /,
    *,
    minutes: int = 60,
    to: Annotated[Path | None, Parameter(help="File to write it to, readable by its owner only.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Write a link that signs somebody in to the pages, once.

    Parameters
    ----------
    role
        What they are.
    subject
        Id of the contributor or of the API key; not needed for the operator.
    minutes
        How long it may wait.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        if not 1 <= minutes <= MINUTES_MAX:
            raise InvalidError(f"{minutes} minutes", code="minutes_invalid", fix=f"use 1 to {MINUTES_MAX}")
        if role == "contributor":
            opened.registry.contributor(ContributorId(subject))
        elif role == "payer":
            opened.keys.in_force(subject)
        chosen, now_ns = opened.settings, time.time_ns()
        base = chosen.public_url.rstrip("/") or served_at(chosen.host, chosen.port)
        lasts_ns = minutes * 60 * SECOND_NS
        store, word = SessionStore(opened.db), os.urandom(WORD_BYTES)
        made = base + make_link(store, role, subject, word=word, now_ns=now_ns, lasts_ns=lasts_ns)
        if to is not None:
            with os.fdopen(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(made + "\n")
        if json:
            print_json({"link": made, "role": role, "subject": subject, "ends_at": format_instant(now_ns + lasts_ns)})
        elif to is None:
            out.print(made, soft_wrap=True)
        else:
            out.print(f"written to {to}; it works once, for {minutes} minutes")
    return result.status
