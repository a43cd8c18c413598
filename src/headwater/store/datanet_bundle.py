"""A version of a datanet as a folder that others read and another home imports: same ids, same digests.

    charter.json      card and rules          manifest.json   what the version is, signed (manifest.sig)
    entries.jsonl     the leaves              records.jsonl   descriptions of contributions
    people.jsonl      names of the owners     data.jsonl      id, title and text of each contribution
    README.md         a dataset card          croissant.json  Croissant 1.1          rsl.xml  RSL 1.0

The folder is a dataset as it stands; the first six files are what is imported, and everything in them is checked
before anything is kept: signature, root, charter, each contribution's id, bytes and description, each owner's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from headwater.core.canonical import canonical, digest, digest_of, parse_canonical, refuse_deep
from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, UpstreamError
from headwater.core.ids import contribution_id
from headwater.core.limits import CONTRIBUTION_SIZE_BYTES_MAX
from headwater.receipts.signing import parse_signature, recover_address
from headwater.registry.contribution import Contribution, describe, read_description
from headwater.registry.contributor import Contributor, unenrolled
from headwater.registry.datanet import Datanet, read_datanet
from headwater.registry.datanet_cards import write_croissant, write_readme
from headwater.registry.datanet_manifest import Entry, check_manifest, read_entry
from headwater.registry.intake import Admitted
from headwater.registry.license import License
from headwater.registry.rsl import Terms, write_rsl
from headwater.store.datanet_store import DatanetStore, Kept, Version, root_of
from headwater.store.registry_store import RegistryStore

PART_ROWS: Final = 500
FILES: Final = ("charter.json", "manifest.json", "manifest.sig", "entries.jsonl", "records.jsonl", "people.jsonl")
DATA: Final = "data.jsonl"
_LINE_BYTES_MAX: Final = 7 * CONTRIBUTION_SIZE_BYTES_MAX

OnRow = Callable[[int, int], None]
"""Called with rows done, of how many."""


def export_version(
    store: DatanetStore, registry: RegistryStore, kept: Kept, number: int, folder: Path, on_row: OnRow | None = None
) -> Version:
    """Write a version into a new folder.

    Raises:
        InvalidError: ``folder_taken``.
        ConflictError: ``content_erased``: bytes of a member are gone, so the version cannot be carried elsewhere.
        UpstreamError: ``folder_not_written``.
    """
    version = store.version(kept, number)
    datanet = read_datanet(store.charter(kept, version.manifest.charter_digest))
    entries = tuple(store.entries(kept, number))
    try:
        if folder.exists() and any(folder.iterdir()):
            raise InvalidError(f"{folder} is not empty", code="folder_taken", fix="give a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "charter.json").write_bytes(datanet.to_bytes())
        (folder / "manifest.json").write_bytes(version.raw)
        (folder / "manifest.sig").write_text(version.signature + "\n", "ascii")
        (folder / "entries.jsonl").write_bytes(b"".join(entry.to_bytes() + b"\n" for entry in entries))
        owners = _write_rows(registry, entries, folder, on_row)
        people = [registry.contributor(one) for one in sorted(owners)]
        lines = [canonical({"id": one.id, "namespace": one.namespace, "name": one.name}) + b"\n" for one in people]
        (folder / "people.jsonl").write_bytes(b"".join(lines))
        _write_cards(datanet, version, folder)
    except OSError as error:
        raise UpstreamError(
            f"{folder}: {error.strerror or error}", code="folder_not_written", fix="check the folder and its disk"
        ) from None
    return version


def import_version(
    store: DatanetStore, registry: RegistryStore, folder: Path, now_ns: int, on_row: OnRow | None = None
) -> tuple[Kept, Version]:
    """Check a folder and keep what it holds; importing the same version again changes nothing.

    Owners come without payout addresses: where somebody is paid, they enrol themselves.

    Raises:
        InvalidError: ``bundle_invalid``, or whatever is wrong with a part of it.
        ConflictError: something of it is registered here differently, or the version is not newer.
    """
    try:
        raw = {name: (folder / name).read_bytes() for name in FILES}
        datanet = read_datanet(raw["charter.json"])
        signature = raw["manifest.sig"].decode("ascii").strip()
        leaves = raw["entries.jsonl"].splitlines()
        manifest = check_manifest(
            raw["manifest.json"], parse_signature(signature), leaves, recover=recover_address, root_of=root_of
        )
        if (manifest.datanet, manifest.charter_digest) != (datanet.id, datanet.digest):
            raise _invalid(f"the manifest is of {manifest.datanet} under {manifest.charter_digest}")
        entries = tuple(map(read_entry, leaves))
        people = tuple(_person(line) for line in raw["people.jsonl"].splitlines())
        records = raw["records.jsonl"].splitlines()
        if len(records) != len(entries):
            raise _invalid(f"{len(entries)} entries and {len(records)} records")
        with store.database.transaction():
            known = {one.id for one in registry.contributors()}
            registry.add_contributors(one for one in people if one.id not in known)
            _import_rows(registry, entries, records, _data(folder), on_row)
            kept = store.create(datanet, now_ns)
            version = Version(manifest, raw["manifest.json"], signature)
            if kept.version == manifest.version and store.version(kept, kept.version).raw == version.raw:
                return kept, version
            store.keep_version(kept, version, entries)
            store.keep_charter(kept, datanet, now_ns)
            store.add_members(kept, [(entry.contribution, entry.lineage) for entry in entries], now_ns)
            return store.get(datanet.id), version
    except OSError as error:
        raise _invalid(f"{error.filename or folder}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise _invalid(str(error)) from None


def _write_rows(registry: RegistryStore, entries: tuple[Entry, ...], folder: Path, on_row: OnRow | None) -> set[Any]:
    """Records and texts of entries; gives their owners."""
    owners: set[Any] = set()
    with (folder / "records.jsonl").open("wb") as records, (folder / DATA).open("wb") as data:
        for begin in range(0, len(entries), PART_ROWS):
            part = entries[begin : begin + PART_ROWS]
            for one in registry.get_many([entry.contribution for entry in part]):
                try:
                    text = registry.text(one.id)
                except HeadwaterError as error:
                    raise ConflictError(
                        f"{one.id} cannot be read: {error.message}",
                        code="content_erased",
                        fix="freeze a new version without it and export that",
                    ) from None
                owners.update(owner.contributor_id for owner in one.owners)
                records.write(canonical(describe(one)) + b"\n")
                row = {"id": one.id, "title": one.title, "text": text}
                data.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            if on_row is not None:
                on_row(begin + len(part), len(entries))
    return owners


def _write_cards(datanet: Datanet, version: Version, folder: Path) -> None:
    manifest, card = version.manifest, datanet.card
    with (folder / DATA).open("rb") as data:
        sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    files = {DATA: (sha256, (folder / DATA).stat().st_size)}
    croissant = write_croissant(datanet, manifest.version, manifest.frozen_at_ns, files)
    (folder / "croissant.json").write_text(json.dumps(croissant, ensure_ascii=False, indent=2) + "\n", "utf-8")
    (folder / "README.md").write_text(write_readme(datanet, manifest.version, manifest.size), "utf-8")
    uses = frozenset(one.use for one in card.uses)
    ends = [one.expires_at_ns for one in card.uses if one.expires_at_ns is not None]
    # One address has one licence there: the sooner end and the higher floor of all uses.
    license = License(card.license_expression, uses, card.price_floor_units, min(ends, default=None), card.terms)
    (folder / "rsl.xml").write_bytes(write_rsl([Terms(card.url or DATA, license)]))


def _import_rows(
    registry: RegistryStore,
    entries: tuple[Entry, ...],
    records: list[bytes],
    data: Iterator[dict[str, Any]],
    on_row: OnRow | None,
) -> None:
    for begin in range(0, len(entries), PART_ROWS):
        part = entries[begin : begin + PART_ROWS]
        fresh: list[Admitted] = []
        here = {one.id: one for one in registry.get_many([entry.contribution for entry in part])}
        for entry, record in zip(part, records[begin : begin + PART_ROWS], strict=True):
            contribution = read_description(parse_canonical(record))
            content = _content(next(data, {}), contribution)
            _check(entry, contribution, content)
            if contribution.id not in here:
                fresh.append(Admitted(contribution, content))
            elif here[contribution.id] != contribution:
                raise ConflictError(
                    f"{contribution.id} is registered here with other owners, terms or instant",
                    code="import_conflict",
                    fix="settle whose it is here first: the earlier registration stands",
                )
        others = registry.by_content([one.contribution.content_digest for one in fresh])
        for one in fresh:
            owners = {owner.contributor_id for owner in one.contribution.owners}
            for other in others.get(one.contribution.content_digest, ()):
                if {owner.contributor_id for owner in other.owners} != owners:
                    raise ConflictError(
                        f"the bytes of {one.contribution.id} are registered here as {other.id} by other owners",
                        code="content_of_another_owner",
                        fix="settle whose they are here first",
                    )
        registry.register(fresh)
        if on_row is not None:
            on_row(begin + len(part), len(entries))


def _check(entry: Entry, contribution: Contribution, content: bytes) -> None:
    """Refuse a row that is not what the signed manifest says."""
    same = (
        contribution.id == entry.contribution == contribution_id(contribution.kind, content),
        contribution.content_digest == entry.content_digest == digest(content),
        digest_of(describe(contribution)) == entry.record_digest,
        contribution.size_bytes == entry.size_bytes == len(content),
    )
    if not all(same):
        raise _invalid(f"{entry.contribution} is not what its entry says")


def _content(row: dict[str, Any], contribution: Contribution) -> bytes:
    if row.get("id") != contribution.id or not isinstance(row.get("text"), str):
        raise _invalid(f"{DATA} has no text of {contribution.id} in its place")
    return str(row["text"]).encode("utf-8")


def _data(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / DATA).open("rb") as lines:
        while line := lines.readline(_LINE_BYTES_MAX):
            try:
                refuse_deep(line)
                row = json.loads(line)
            except ValueError as error:
                raise _invalid(f"{DATA}: {error}") from None
            if not isinstance(row, dict):
                raise _invalid(f"{DATA} has a row that is no object")
            yield row


def _person(line: bytes) -> Contributor:
    value = parse_canonical(line)
    try:
        made = unenrolled(value["namespace"], value["name"])
        if made.id != value["id"]:
            raise ValueError(f"the id of {made.name} is {made.id}, not {value['id']}")
        return made
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid(f"people.jsonl: {error}") from None


def _invalid(why: str) -> InvalidError:
    return InvalidError(f"not a datanet's bundle: {why[:300]}", code="bundle_invalid", fix="export it again")
