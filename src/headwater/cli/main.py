"""The program: all nouns mounted, usage errors turned into status 2."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Final

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from headwater import __version__
from headwater.cli import claim, contribution, contributor, demo, epoch, index, key, ledger, receipt, serve, settings
from headwater.cli.output import err, print_error
from headwater.core.errors import HeadwaterError

LATER: Final = {
    "home": ("moving:app", "Where a home's records are: a file in its folder, or PostgreSQL."),
    "log": ("log:app", "Publish, seal, prove and witness the receipt log."),
    "export": (
        "export:export",
        "Write what an auditor needs of a closed epoch: receipts, log, policies, registry. No text of anybody.",
    ),
    "attribution": ("attribution:app", "Measure who supplied an answer, in bits."),
    "adapter": ("adapter:app", "Train adapters on registered contributions, measure and serve them."),
    "feedback": ("feedback:app", "Feedback of callers: look at it, accept or decline it, withdraw it."),
    "datanet": ("datanet:app", "Pools of contributions that are reviewed, frozen and used on terms."),
    "review": ("review:app", "Who looks at what is submitted to a datanet, and how well."),
    "dispute": ("dispute:app", "Dispute a registration, a share or a receipt; judge, appeal, settle."),
    "enrol": ("enrol:app", "Prove who you are and be paid what waits in escrow under your name."),
    "consent": ("consent:app", "Take consent back: withdraw, erase, take down, counter."),
    "influence": ("influence:app", "Which training examples, and whose, lowered the loss of an answer."),
    "audit": ("audit:app", "Who did what: keys, credit, reloads, policies; append-only and chained."),
    "telemetry": ("telemetry:app", "Receipts as Content Telemetry (SPUR), and documents of others checked."),
    "mcp": (
        "mcp:mcp",
        "Serve tools for assistants on standard input and output: find, explain, statement, quote, verify.\n\n"
        "The environment's HEADWATER_KEY says whose receipts and statement may be read; without it those are refused.",
    ),
    "chain": ("chain:app", "The contracts that settle: deploy them, look at them, put money in."),
    "settle": ("settle_plan:app", "Plan settlement at a gas price, publish it, and watch what is posted."),
    "credit": ("credit:app", "Vouchers that payers signed for this gateway, and closing them on the chain."),
    "invoice": ("invoice:app", "Invoices for what a key used or for credit, and booking the money that came."),
    "rails": ("rails:app", "Bonds, revenue shares, advances, streams, governance: optional, off by default."),
    "pages": ("pages_access:app", "Who may sign in to the pages."),
    "economy": ("economy:app", "Simulate the economy that the rules make, with the product's own payout code."),
}
"""Nouns that are imported when they are used, because what they need loads slowly or may be absent: where each is,
and what it says of itself, so that `headwater --help` can say it without loading it."""


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
    for name, (where, said) in LATER.items():
        app.command(f"headwater.cli.{where}", name=name, help=said)
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
