"""`headwater datanet export` and `import`: versions carried between operators, and cards written by others."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from rich.progress import Progress, TaskID

from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json, progress
from headwater.core.errors import UpstreamError
from headwater.registry.datanet import Card
from headwater.registry.datanet_cards import CARD_BYTES_MAX, read_croissant, read_readme
from headwater.store.datanet_bundle import export_version, import_version
from headwater.store.datanet_store import DatanetStore, parse_reference


def export(version: str, folder: Path, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Write a version into a folder: rows, signed manifest, README, Croissant and RSL; another home imports it.

    Parameters
    ----------
    version
        NAME@VERSION; the newest without @VERSION.
    folder
        Where to; it is made, and must be empty.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        store = DatanetStore(opened.db)
        name, number = parse_reference(version)
        kept = store.get(name)
        with progress(quiet=json) as bars:
            task = bars.add_task("writing", total=None)
            written = export_version(
                store,
                opened.registry,
                kept,
                kept.version if number is None else number,
                folder,
                partial(_show, bars, task),
            )
        if json:
            print_json({"folder": str(folder), "manifest": written.manifest.digest, "size": written.manifest.size})
        else:
            out.print(f"{written.manifest.size} contributions of {name}@{written.manifest.version} in {folder}")
    return result.status


def import_(folder: Path, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Import a version that another operator exported, once all of it has been checked: same ids, same digests.

    Parameters
    ----------
    folder
        What `headwater datanet export` wrote.
    """
    with outcome(json) as result, Home(settings(home)) as opened:
        with progress(quiet=json) as bars:
            task = bars.add_task("checking", total=None)
            kept, version = import_version(
                DatanetStore(opened.db), opened.registry, folder, time.time_ns(), partial(_show, bars, task)
            )
        manifest = version.manifest
        if json:
            print_json({"datanet": kept.datanet.id, "version": manifest.version, "manifest": manifest.digest})
        else:
            out.print(
                f"{kept.datanet.name}@{manifest.version}: {manifest.size} contributions, as {manifest.operator} signed"
            )
    return result.status


def read_card(path: Path) -> Card:
    """The card in a README.md with front matter, or in Croissant's JSON-LD.

    Raises:
        InvalidError: ``card_invalid``.
        UpstreamError: ``file_unreadable``.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(CARD_BYTES_MAX + 1)
    except OSError as error:
        raise UpstreamError(
            f"{path}: {error.strerror or error}", code="file_unreadable", fix="check the path and its permissions"
        ) from None
    if path.suffix.lower() in (".json", ".jsonld"):
        return read_croissant(raw)
    return read_readme(raw.decode("utf-8", errors="replace"))


def _show(bars: Progress, task: TaskID, done: int, total: int) -> None:
    bars.update(task, completed=done, total=total)
