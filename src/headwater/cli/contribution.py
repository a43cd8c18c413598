"""`headwater contribution …`: register what answers may draw on, and look at what is registered.

Good items of a batch are registered even when others are refused; every refusal says what to do. Exit
status: 0 all well, 1 some items have problems, 2 the command itself was wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.contribution_files import Offer, Terms, check_terms, files_in, owners_of, read_offers
from headwater.cli.home import home_database
from headwater.cli.options import HomeOption, settings
from headwater.cli.output import out, print_error, print_json, progress
from headwater.core.errors import HeadwaterError, Problem
from headwater.core.ids import ContributionId, ContributorId, contributor_id
from headwater.core.instants import parse_instant
from headwater.core.money import PPB, format_units, parse_units
from headwater.registry import Contribution, Kind, Use, account_for, describe
from headwater.settings import Settings
from headwater.store.registry_store import RegistryStore
from headwater.store.runs import living

app = App(name="contribution", help="Register contributions and look at them.")

AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
Namespace = Annotated[str, Parameter(help="Who vouches for the owners' names.")]

BATCH_ITEMS_MAX = 200
"""Items registered in one transaction."""


@dataclass(frozen=True, slots=True)
class Added:
    """What became of the items of a command."""

    accepted: tuple[Contribution, ...]
    unchanged: tuple[ContributionId, ...]
    problems: tuple[Problem, ...]


def add_path(
    store: RegistryStore, path: Path, terms: Terms, on_file: Callable[[int, int], None] | None = None
) -> Added:
    """Register what `path` holds under `terms`, batch by batch; running it again changes nothing.

    Args:
        store: where to.
        path: a file, or a folder that is read with everything below it.
        terms: owners, licence and uses of items that do not say otherwise.
        on_file: called with files done, of how many.

    Raises:
        InvalidError: no such path, nothing to read in it, or terms that hold for nothing.
    """
    check_terms(terms)
    files = files_in(path)
    accepted: list[Contribution] = []
    unchanged: list[ContributionId] = []
    problems: list[Problem] = []
    waiting: list[Offer] = []

    def register() -> None:
        people = [contributor for offer in waiting for contributor in offer.contributors]
        intake = store.admit([offer.candidate for offer in waiting], people)
        accepted.extend(admitted.contribution for admitted in intake.accepted)
        unchanged.extend(intake.unchanged)
        problems.extend(intake.problems)
        waiting.clear()

    for done, file in enumerate(files, start=1):
        for read in read_offers(file, path, terms):
            if isinstance(read, Problem):
                problems.append(read)
            else:
                waiting.append(read)
            if len(waiting) == BATCH_ITEMS_MAX:
                register()
        if on_file is not None:
            on_file(done, len(files))
    register()
    return Added(tuple(accepted), tuple(unchanged), tuple(problems))


@app.command
def add(
    path: Path,
    /,
    *,
    owner: Annotated[list[str], Parameter(negative=(), help="NAME, or NAME:0.7 with a share; once for each owner.")],
    license: Annotated[str, Parameter(help="SPDX expression, or LicenseRef-NAME for terms of your own.")],
    use: Annotated[tuple[Use, ...], Parameter(negative=(), help="What it may be used for; once for each use.")] = (
        "ground",
    ),
    kind: Annotated[Kind, Parameter(help="What is contributed.")] = "document",
    namespace: Namespace = "local",
    price_floor: Annotated[str, Parameter(help="Least price of a call in which it may be used.")] = "0",
    expires: Annotated[str, Parameter(help="Instant at which every use ends, such as 2027-01-01T00:00:00Z.")] = "",
    home: HomeOption = None,
    json: AsJson = False,
) -> int:
    """Register a file, or every .txt, .md and .jsonl below a folder.

    A row of a .jsonl file is {"text": …} and may have "title", "owners", "license" and "uses" of its own.

    Parameters
    ----------
    path
        File or folder.
    """

    def run(store: RegistryStore) -> int:
        terms = Terms(
            owners=owners_of(owner, namespace),
            namespace=namespace,
            license_expression=license,
            uses=frozenset(use),
            kind=kind,
            price_floor_units=parse_units(price_floor, where="price floor"),
            expires_at_ns=parse_instant(expires) if expires else None,
            now_ns=time.time_ns(),
        )
        with progress(quiet=json) as bars:
            task = bars.add_task("reading", total=None)
            added = add_path(store, path, terms, lambda done, total: bars.update(task, completed=done, total=total))
        _print_added(added, as_json=json)
        if added.accepted and not json and living(settings(home).home / "runs"):
            out.print(
                "a gateway serves this home: it finds passages in them once it is reloaded, "
                "by SIGHUP or POST /v1/admin/reload",
                soft_wrap=True,
            )
        return 1 if added.problems else 0

    return _with_store(home, json, run, create=True)


@app.command
def show(
    contribution: str,
    /,
    *,
    text: Annotated[bool, Parameter(negative=(), help="Print the content as well.")] = False,
    home: HomeOption = None,
    json: AsJson = False,
) -> int:
    """One contribution: what it is, whose, on which terms.

    Parameters
    ----------
    contribution
        Its id, ctb_….
    """

    def run(store: RegistryStore) -> int:
        found = store.get(ContributionId(contribution))
        value = {**describe(found), "owners": _owners(store, found)}
        if text:
            value["text"] = store.text(found.id)
        if json:
            print_json(value)
            return 0
        table = Table("", "", box=None, show_header=False)
        for name in ("id", "kind", "title", "content_digest", "size_bytes", "registered_at", "source"):
            table.add_row(name, escape(str(value[name])))
        for name, term in value["license"].items():
            table.add_row(name, escape(_shown(name, term)))
        for owned in value["owners"]:
            state = "enrolled" if owned["enrolled"] else "not enrolled: earnings wait in escrow"
            table.add_row(
                "owner", escape(f"{owned['name']}  {owned['share_ppb'] / PPB:.4%}  {owned['account']}  {state}")
            )
        for name, entry in value["metadata"].items():
            table.add_row(name, escape(entry))
        out.print(table)
        if text:
            out.print(value["text"], markup=False)
        return 0

    return _with_store(home, json, run)


@app.command(name="list")
def list_contributions(
    *,
    kind: Annotated[Kind | None, Parameter(help="Only this kind.")] = None,
    owner: Annotated[str, Parameter(help="Only this owner's: a name, or an id ctr_….")] = "",
    namespace: Namespace = "local",
    limit: Annotated[int, Parameter(help="Most to list.")] = 100,
    home: HomeOption = None,
    json: AsJson = False,
) -> int:
    """What is registered, in the order it was."""

    def run(store: RegistryStore) -> int:
        by = ContributorId(owner) if owner.startswith("ctr_") else contributor_id(namespace, owner)
        found = store.contributions(kind=kind, owner=by if owner else None)
        if json:
            shown = [describe(c) for c in found[:limit]]
            print_json({"contributions": shown, "count": len(found), "registry_digest": store.digest()})
            return 0
        table = Table(Column("id", no_wrap=True, min_width=36), "kind", "title", "owners", "licence", "uses", box=None)
        for c in found[:limit]:
            names = [store.contributor(o.contributor_id).name for o in c.owners]
            uses = ", ".join(sorted(c.license.uses)) or "none"
            table.add_row(c.id, c.kind, *map(escape, (c.title, ", ".join(names), c.license.expression)), uses)
        out.print(table if found else "nothing is registered yet")
        if len(found) > limit:
            out.print(f"{len(found) - limit} more; use --limit")
        return 0

    return _with_store(home, json, run)


def _with_store(home: HomeOption, as_json: bool, run: Callable[[RegistryStore], int], *, create: bool = False) -> int:
    try:
        with _opened(settings(home), create) as store:
            return run(store)
    except HeadwaterError as error:
        print_error(error, as_json=as_json)
        return 2


@contextmanager
def _opened(given: Settings, create: bool) -> Iterator[RegistryStore]:
    with home_database(given, create=create) as database:
        yield RegistryStore(database)


def _print_added(added: Added, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "accepted": [describe(contribution) for contribution in added.accepted],
                "unchanged": list(added.unchanged),
                "problems": [asdict(problem) for problem in added.problems],
            }
        )
        return
    for contribution in added.accepted[:20]:
        out.print(f"[green]added[/] {contribution.id} {escape(contribution.title)}")
    if len(added.accepted) > 20:
        out.print(f"… and {len(added.accepted) - 20} more")
    for problem in added.problems:
        out.print(f"[bold red]refused[/] {escape(str(problem))}")
    counts = (len(added.accepted), len(added.unchanged), len(added.problems))
    out.print("{} added, {} unchanged, {} problems".format(*counts))


def _owners(store: RegistryStore, contribution: Contribution) -> list[dict[str, Any]]:
    owners = [(store.contributor(o.contributor_id), o.share_ppb) for o in contribution.owners]
    return [
        {
            "contributor_id": owner.id,
            "name": owner.name,
            "enrolled": owner.enrolled,
            "account": account_for(owner),
            "share_ppb": share_ppb,
        }
        for owner, share_ppb in owners
    ]


def _shown(name: str, term: Any) -> str:
    if name == "price_floor_units":
        return format_units(int(term), places=4)
    if isinstance(term, list):
        return ", ".join(term) or "none"
    return str(term or "none")
