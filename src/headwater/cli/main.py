"""The program: all nouns mounted, usage errors turned into status 2."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from headwater import __version__
from headwater.cli import claim, contribution, contributor, demo, epoch, index, key, ledger, receipt, serve, settings
from headwater.cli.output import err, print_error
from headwater.core.errors import HeadwaterError


def build_app() -> App:
    """The whole command line."""
    app = App(
        name="headwater",
        version=__version__,
        help="Who supplied each answer, in bits, and what they are paid for it, to the last unit.",
    )
    app.command(demo.demo)
    app.command(serve.serve)
    app.command(serve.doctor)
    for noun in (contribution, contributor, key, receipt, ledger, epoch, claim, index, settings):
        app.command(noun.app)
    app.command("headwater.cli.moving:app", name="home")
    app.command("headwater.cli.log:app", name="log")
    app.command("headwater.cli.export:export", name="export")
    app.command("headwater.cli.attribution:app", name="attribution")
    app.command("headwater.cli.adapter:app", name="adapter")
    app.command("headwater.cli.feedback:app", name="feedback")
    app.command("headwater.cli.datanet:app", name="datanet")
    app.command("headwater.cli.review:app", name="review")
    app.command("headwater.cli.dispute:app", name="dispute")
    app.command("headwater.cli.enrol:app", name="enrol")
    app.command("headwater.cli.consent:app", name="consent")
    app.command("headwater.cli.influence:app", name="influence")  # the same: torch
    app.command("headwater.cli.audit:app", name="audit")
    app.command("headwater.cli.telemetry:app", name="telemetry")
    app.command("headwater.cli.mcp:mcp", name="mcp")
    app.command("headwater.cli.chain:app", name="chain")
    app.command("headwater.cli.settle_plan:app", name="settle")
    app.command("headwater.cli.credit:app", name="credit")
    app.command("headwater.cli.invoice:app", name="invoice")
    app.command("headwater.cli.rails:app", name="rails")
    app.command("headwater.cli.pages_access:app", name="pages")  # argon2 is for who serves pages
    app.command("headwater.cli.economy:app", name="economy")  # imported when it is used: its kernels load slowly
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and exit with its status."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    # Libraries log below this to whoever installs a handler first; a command's output is its own.
    quiet = logging.StreamHandler()
    quiet.setLevel(logging.WARNING)
    logging.basicConfig(handlers=[quiet], format="%(levelname)s %(name)s: %(message)s")
    try:
        status = build_app()(tokens, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        sys.exit(2)
    except HeadwaterError as error:
        print_error(error, as_json="--json" in tokens)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    sys.exit(status if isinstance(status, int) else 0)
