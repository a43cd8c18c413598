"""`headwater datanet …`: pools of contributions: create, describe, submit, freeze, compare, carry elsewhere.

Exit status: 0 all well, 1 refused or failed.
"""

from __future__ import annotations

import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Column, Table

from headwater.cli.contribution_files import owners_of, parse_owner, shares_of
from headwater.cli.datanet_carry import export, import_, read_card
from headwater.cli.datanet_sources import Source, read, sources_in
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json, progress
from headwater.cli.review_drawing import public_value
from headwater.core.canonical import digest, parse_canonical
from headwater.core.errors import InvalidError
from headwater.core.instants import DAY_NS, SECOND_NS, format_instant, parse_instant
from headwater.core.money import format_units, parse_units
from headwater.registry import Kind, License, Use
from headwater.registry.datanet import Card, Datanet, Rules, UseTerms
from headwater.registry.datanet_manifest import Entry, Manifest, difference
from headwater.store.datanet_intake import Intake
from headwater.store.datanet_intake import Progress as Taken
from headwater.store.datanet_store import DatanetStore, Kept, parse_reference
from headwater.store.review_settling import Reviewing
from headwater.store.submission_store import Offered, Submission, SubmissionStore

app = App(name="datanet", help="Pools of contributions that are reviewed, frozen and used on terms.")

app.command(export)
app.command(import_, name="import")

Namespace = Annotated[str, Parameter(help="Who vouches for names.")]
UseOption = Annotated[
    tuple[str, ...],
    Parameter(
        negative=(),
        help="A permitted use: ground, train or reproduce; with conditions as in 'train,floor=0.01,until=2027-01-01,"
        "holder=0x…,terms=only with credit'. Once for each use.",
    ),
]
RuleOption = Annotated[
    tuple[str, ...],
    Parameter(negative=(), help="A rule as NAME=VALUE, such as quorum=5, appeal=7d, personal_data=clean. Repeatable."),
]
_SUFFIX_NS = {"s": SECOND_NS, "m": 60 * SECOND_NS, "h": 3_600 * SECOND_NS, "d": DAY_NS}


@app.command
def create(
    name: str,
    /,
    *,
    owner: Annotated[str, Parameter(help="Who owns it: a name, or an id ctr_….")],
    title: str | None = None,
    license: Annotated[str | None, Parameter(help="SPDX expression, or LicenseRef-NAME.")] = None,
    use: UseOption = (),
    card: Annotated[
        Path | None, Parameter(help="README.md with front matter, or Croissant JSON-LD, to take the rest from.")
    ] = None,
    summary: str | None = None,
    language: Annotated[tuple[str, ...], Parameter(negative=(), help="ISO 639 code; once for each.")] = (),
    keyword: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    terms: Annotated[str | None, Parameter(help="Where the full terms are.")] = None,
    url: str | None = None,
    citation: str | None = None,
    rule: RuleOption = (),
    namespace: Namespace = "local",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Create a datanet. Without --use and without a card that names uses, its members may be sources (`ground`).

    Parameters
    ----------
    name
        Its name in this home: a-z, 0-9, dot, dash and underscore.
    """
    with outcome(json) as result, Home(settings(home)) as opened:
        if card is None and (title is None or license is None):
            raise InvalidError(
                "no title or no licence", code="card_incomplete", fix="give --title and --license, or --card"
            )
        begun = Card(title or "untitled", license or "CC0-1.0", ()) if card is None else read_card(card)
        given = _given(title, license, use, summary, language, keyword, terms, url, citation)
        described = replace(begun, **given)
        if not described.uses:
            described = replace(described, uses=(UseTerms("ground"),))
        rules = _rules(Rules(), rule)
        owned = parse_owner(owner, namespace)
        with opened.db.transaction():
            if owned.contributor is not None:
                known = {one.id for one in opened.registry.contributors()}
                opened.registry.add_contributors([] if owned.id in known else [owned.contributor])
            opened.registry.contributor(owned.id)
            now = time.time_ns()
            made = Datanet(name, owned.id, opened.signer.address, now, described, rules)
            kept = DatanetStore(opened.db).create(made, now)
        _print_kept(opened, kept, as_json=json)
    return result.status


@app.command
def describe(
    name: str,
    /,
    *,
    title: str | None = None,
    license: str | None = None,
    use: UseOption = (),
    summary: str | None = None,
    language: Annotated[tuple[str, ...], Parameter(negative=(), help="ISO 639 code; once for each.")] = (),
    keyword: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    terms: str | None = None,
    url: str | None = None,
    citation: str | None = None,
    rule: RuleOption = (),
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Revise a datanet's card or rules; what was frozen or decided stays as it was.

    Parameters
    ----------
    name
        The datanet's name or id.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        store = DatanetStore(opened.db)
        kept = store.get(name)
        given = _given(title, license, use, summary, language, keyword, terms, url, citation)
        card = replace(kept.datanet.card, **given)
        revised = store.revise(name, card, _rules(kept.datanet.rules, rule), time.time_ns())
        _print_kept(opened, revised, as_json=json)
    return result.status


@app.command
def show(name: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """One datanet: card, terms, rules, how far its submissions are, and its versions.

    Parameters
    ----------
    name
        The datanet's name or id.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print_kept(opened, DatanetStore(opened.db).get(name), as_json=json)
    return result.status


@app.command(name="list")
def list_(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """The datanets of a home."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        kept = DatanetStore(opened.db).all()
        if json:
            print_json({"datanets": [_summary(one) for one in kept]})
        elif not kept:
            out.print("no datanet yet; make one with [bold]headwater datanet create[/]")
        else:
            table = Table(
                "name", "title", "licence", "uses", "members", "version", Column("id", no_wrap=True), box=None
            )
            for one in kept:
                uses = ", ".join(terms.use for terms in one.datanet.card.uses) or "none"
                card = one.datanet.card
                shown = (one.datanet.name, card.title, card.license_expression, uses)
                table.add_row(*map(escape, shown), str(one.members), str(one.version), one.datanet.id)
            out.print(table)
    return result.status


@app.command
def submit(
    name: str,
    path: Path,
    /,
    *,
    owner: Annotated[list[str], Parameter(negative=(), help="NAME, or NAME:0.7 with a share; once for each owner.")],
    license: Annotated[str, Parameter(help="Licence you submit under [default: the datanet's].")] = "",
    use: Annotated[
        tuple[Use, ...],
        Parameter(negative=(), help="What you permit; once for each [default: what the datanet offers]."),
    ] = (),
    kind: Kind = "document",
    text_field: Annotated[str, Parameter(help="Field of a row that is its text.")] = "text",
    price_floor: str = "0",
    expires: Annotated[str, Parameter(help="Instant at which every use ends.")] = "",
    namespace: Namespace = "local",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Submit a file or a folder: text and Markdown whole, .jsonl and .parquet by rows. Your own bytes are kept.

    Interrupted and given again, it goes on where it stopped. Rows that were submitted before are not taken twice.

    Parameters
    ----------
    name
        The datanet's name or id.
    path
        File or folder.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        intake = Intake(opened.db, opened.registry)
        kept = intake.datanets.get(name)
        owners = owners_of(owner, namespace)
        card = kept.datanet.card
        terms = License(
            license or card.license_expression,
            frozenset(use) or frozenset(one.use for one in card.uses),
            parse_units(price_floor, where="price floor"),
            parse_instant(expires) if expires else None,
        )
        done = []
        with progress(quiet=json) as bars:
            for source in sources_in(path):
                task = bars.add_task(escape(source.name), total=source.total)
                offered = Offered(kept.number, kind, shares_of(owners), terms, source.name, source.digest, source.total)
                people = [one.contributor for one in owners if one.contributor is not None]
                batch = intake.open(kept, offered, people, time.time_ns())
                resumed_at = batch.place
                bars.update(task, completed=resumed_at)
                rows = read(source, batch.place, text_field)
                taken = intake.take(kept, batch, rows, time.time_ns, partial(_show, bars, task))
                done.append((source, resumed_at, taken))
        value, words = public_value(opened)
        Reviewing(opened.db, opened.registry).settle(time.time_ns(), public_value=value, source=words)
        _print_submitted(done, as_json=json)
    return result.status


@app.command
def submissions(
    name: str,
    /,
    *,
    state: Annotated[str, Parameter(help="Only these: waiting, accepting, refusing, appealed, accepted, …")] = "",
    after: Annotated[int, Parameter(help="Begin after this number.")] = 0,
    limit: int = 100,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """What was submitted to a datanet, and what became of it.

    Parameters
    ----------
    name
        The datanet's name or id.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        kept = DatanetStore(opened.db).get(name)
        store = SubmissionStore(opened.db)
        rows = store.select(kept.number, state=state or None, after=after, limit=limit)  # type: ignore[arg-type]
        if json:
            shown = [submission_json(one) for one in rows]
            print_json(
                {"submissions": shown, "counts": store.counts(kept.number), "next": rows[-1].number if rows else None}
            )
        else:
            table = Table(Column("submission", no_wrap=True), "title", "state", "decided by", "reasons", box=None)
            for one in rows:
                table.add_row(one.id, *map(escape, (one.title[:60], one.state, one.decided_by, ", ".join(one.reasons))))
            out.print(table if rows else "nothing")
    return result.status


@app.command
def withdraw(
    submission: str,
    /,
    *,
    by: Annotated[str, Parameter(help="Its contributor: a name, or an id ctr_….")],
    namespace: Namespace = "local",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Take a submission back before it has ended.

    Parameters
    ----------
    submission
        Its id, sub_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        reviewing = Reviewing(opened.db, opened.registry)
        found = reviewing.withdraw(submission, parse_owner(by, namespace).id, time.time_ns())
        if json:
            print_json(submission_json(found))
        else:
            out.print(f"{found.id} is {found.state}", markup=False)
    return result.status


@app.command
def freeze(name: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Freeze the members as a signed version; when nothing has changed, the newest version is given again.

    Parameters
    ----------
    name
        The datanet's name or id.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        store = DatanetStore(opened.db)
        before = store.get(name).version
        version = store.freeze(name, opened.signer, time.time_ns())
        manifest = version.manifest
        if json:
            print_json({**version_json(version.raw), "signature": version.signature, "new": manifest.version > before})
        else:
            word = "frozen" if manifest.version > before else "unchanged"
            out.print(f"{word}: {name}@{manifest.version}, {manifest.size} contributions, root {manifest.root}")
    return result.status


@app.command
def diff(before: str, after: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """What one version has that another has not.

    Parameters
    ----------
    before
        NAME@VERSION.
    after
        NAME@VERSION of the same datanet.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        store = DatanetStore(opened.db)
        (old, old_entries), (new, new_entries) = (_version(store, text) for text in (before, after))
        found = difference(old, old_entries, new, new_entries)
        if json:
            print_json({field.name: getattr(found, field.name) for field in fields(found)})
        else:
            for word, ids in (("added", found.added), ("removed", found.removed), ("changed", found.changed)):
                out.print(f"{word} {len(ids)}")
                for one in ids[:20]:
                    out.print(f"  {one}")
            out.print("card or rules changed" if found.charter_changed else "same card and rules")
    return result.status


def _given(
    title: str | None,
    license: str | None,
    use: tuple[str, ...],
    summary: str | None,
    language: tuple[str, ...],
    keyword: tuple[str, ...],
    terms: str | None,
    url: str | None,
    citation: str | None,
) -> dict[str, Any]:
    """The fields of a card that were given."""
    fields = {
        "title": title,
        "license_expression": license,
        "uses": tuple(map(_use, use)) or None,
        "summary": summary,
        "languages": language or None,
        "keywords": keyword or None,
        "terms": terms,
        "url": url,
        "citation": citation,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _version(store: DatanetStore, text: str) -> tuple[Manifest, tuple[Entry, ...]]:
    """The version that NAME@VERSION names, the newest without @VERSION."""
    name, number = parse_reference(text)
    kept = store.get(name)
    number = kept.version if number is None else number
    return store.version(kept, number).manifest, tuple(store.entries(kept, number))


def _show(bars: Progress, task: TaskID, part: Taken) -> None:
    bars.update(task, completed=part.batch.place)


def _use(text: str) -> UseTerms:
    """Terms of a use as they are written on the command line."""
    use, *conditions = text.split(",")
    floor, until, words, holders = "0", "", "", []
    for condition in conditions:
        field, mark, value = condition.partition("=")
        match field if mark else "":
            case "floor":
                floor = value
            case "until":
                until = value if "T" in value else f"{value}T00:00:00Z"
            case "terms":
                words = value
            case "holder":
                holders.append(value.lower())
            case _:
                raise InvalidError(
                    f"condition {condition[:60]!r} of {use}",
                    code="use_condition_unknown",
                    fix="write floor=…, until=…, holder=… or terms=…",
                )
    ends = parse_instant(until) if until else None
    return UseTerms(use.strip(), parse_units(floor), ends, words, tuple(holders))  # type: ignore[arg-type]  # checked there


def _rules(rules: Rules, given: tuple[str, ...]) -> Rules:
    """Rules with those given on the command line; windows are written as 30s, 12h or 7d."""
    changed: dict[str, Any] = {}
    for text in given:
        name, mark, value = text.partition("=")
        field = next((one for one in (name, f"{name}_ns") if one in Rules.__slots__), None)
        if not mark or field is None:
            known = ", ".join(one.removesuffix("_ns") for one in Rules.__slots__)
            raise InvalidError(f"rule {text[:60]!r}", code="rule_unknown", fix=f"write NAME=VALUE; names are {known}")
        before = getattr(rules, field)
        try:
            if field.endswith("_ns"):
                changed[field] = int(value[:-1]) * _SUFFIX_NS[value[-1:]]
            elif isinstance(before, tuple):
                changed[field] = tuple(one.strip() for one in value.split(",") if one.strip())
            else:
                changed[field] = int(value) if isinstance(before, int) else value
        except (ValueError, KeyError):
            raise InvalidError(
                f"rule {text[:60]!r}", code="rule_invalid", fix="give a whole number, or a time such as 12h or 7d"
            ) from None
    return replace(rules, **changed)


def version_json(raw: bytes) -> dict[str, Any]:
    """A version's manifest as it is shown."""
    return {**parse_canonical(raw), "digest": digest(raw)}


def submission_json(one: Submission) -> dict[str, Any]:
    """A submission as it is shown."""
    return {
        "id": one.id,
        "title": one.title,
        "content_digest": one.content_digest,
        "size_bytes": one.size_bytes,
        "state": one.state,
        "decided_by": one.decided_by or None,
        "reasons": list(one.reasons),
        "appeal_until": None if one.due_at_ns is None else format_instant(one.due_at_ns),
        "lineage": one.lineage or None,
        "contribution": one.contribution,
    }


def _summary(kept: Kept) -> dict[str, Any]:
    return {**kept.datanet.to_json(), "digest": kept.datanet.digest, "members": kept.members, "version": kept.version}


def _print_kept(home: Home, kept: Kept, *, as_json: bool) -> None:
    store, submissions = DatanetStore(home.db), SubmissionStore(home.db)
    reviews = Reviewing(home.db, home.registry).reviews
    counts, reviewers = submissions.counts(kept.number), reviews.reviewers(kept.number)
    versions = store.versions(kept)
    if as_json:
        print_json(
            {
                **_summary(kept),
                "submissions": counts,
                "reviewers": list(reviewers),
                "gold_commitment": reviews.commitment(kept.number),
                "versions": [version_json(one.raw) for one in versions],
            }
        )
        return
    value = kept.datanet.to_json()
    table = Table("", "", box=None, show_header=False)
    for name in ("id", "name", "owner", "operator", "created_at"):
        table.add_row(name, escape(value[name]))
    for name, one in value["card"].items():
        if name != "uses" and one:
            table.add_row(name, escape(", ".join(one) if isinstance(one, list) else one))
    for terms in kept.datanet.card.uses:
        table.add_row("use", escape(_use_words(terms)))
    for name, one in value["rules"].items():
        shown = (
            f"{int(one) / DAY_NS:g} days" if name.endswith("_ns") else ", ".join(one) if isinstance(one, list) else one
        )
        table.add_row(name.removesuffix("_ns"), escape(str(shown) or "none"))
    table.add_row("reviewers", str(len(reviewers)))
    table.add_row("submissions", ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none")
    table.add_row("members", str(kept.members))
    for one in versions:
        at = format_instant(one.manifest.frozen_at_ns)[:19]
        table.add_row(
            f"version {one.manifest.version}", f"{one.manifest.size} contributions, {at}, {one.manifest.root}"
        )
    out.print(table)


def _use_words(terms: UseTerms) -> str:
    words: list[str] = [terms.use]
    if terms.price_floor_units:
        words.append(f"from {format_units(terms.price_floor_units, places=4)} a call")
    if terms.expires_at_ns is not None:
        words.append(f"until {format_instant(terms.expires_at_ns)[:19]}Z")
    if terms.holders:
        words.append(f"by {', '.join(terms.holders)}")
    return ", ".join([*words, *([terms.condition] if terms.condition else [])])


def _print_submitted(done: list[tuple[Source, int, Taken]], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "batches": [
                    {
                        "batch": taken.batch.id,
                        "source": source.name,
                        "source_digest": source.digest,
                        "rows": taken.batch.rows,
                        "unchanged": taken.batch.unchanged,
                        "resumed_at": resumed_at,
                        "counts": dict(taken.counts),
                    }
                    for source, resumed_at, taken in done
                ]
            }
        )
        return
    for source, resumed_at, taken in done:
        went_on = f", went on at {resumed_at} of {source.total}" if resumed_at else ""
        out.print(f"{source.name}: {taken.batch.rows} rows in {taken.batch.id}{went_on}", markup=False)
        for name, count in taken.counts:
            out.print(f"  {count} {name}", markup=False)
