"""Adapters on disk: one folder each, whole and signed, or not there at all.

    NAME/adapter_model.safetensors  adapter_config.json   PEFT's files
    NAME/lora.gguf                                        what the server in process loads
    NAME/lineage.json  lineage.sig                        the signed record, with the digest of every file
    NAME/checkpoints/                                     factors during training, for the influence index

A folder appears under its name by one rename, after everything in it is durable; what is read is
checked against the record. Folders whose name starts with a dot are trainings at work and are never
served. Knows nothing of training or of who may call.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, InvalidError, InvariantError, MissingError, UpstreamError
from headwater.core.ids import ContributionId
from headwater.models.lora import Lora, read_peft
from headwater.receipts.signing import parse_signature, recover_address
from headwater.registry.lineage import Lineage, check_signature

GGUF_FILE, LINEAGE_FILE, SIGNATURE_FILE, CHECKPOINTS = "lora.gguf", "lineage.json", "lineage.sig", "checkpoints"
MEMORY_BYTES_MAX = 256 * 2**20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """An adapter that may be served."""

    name: str
    folder: Path
    lineage: Lineage
    contribution: ContributionId

    @property
    def gguf(self) -> Path:
        """The file the server in process loads."""
        return self.folder / GGUF_FILE


class AdapterStore:
    """The adapters of a home, and the least recently used ones of them in memory. Safe for several threads."""

    def __init__(self, folder: Path, *, memory_bytes_max: int = MEMORY_BYTES_MAX) -> None:
        """Nothing is read until it is asked for."""
        self.folder = folder
        self._memory_bytes_max = memory_bytes_max
        self._loaded: OrderedDict[str, tuple[str, Lora]] = OrderedDict()  # name to (lineage digest, factors)
        self._lock = threading.Lock()

    def names(self) -> tuple[str, ...]:
        """The names of all adapters, sorted."""
        if not self.folder.is_dir():
            return ()
        found = (entry.name for entry in self.folder.iterdir() if _NAME.fullmatch(entry.name))
        return tuple(sorted(name for name in found if (self.folder / name / LINEAGE_FILE).is_file()))

    def get(self, name: str) -> StoredAdapter:
        """The adapter called `name`, or whose contribution has this id.

        Raises:
            MissingError: there is none.
            InvalidError: its record is damaged or not signed by the operator it names.
        """
        if name.startswith("ctb_"):
            for each in self.names():
                if (stored := self.get(each)).contribution == name:
                    return stored
        if _NAME.fullmatch(name) is None or not (self.folder / name / LINEAGE_FILE).is_file():
            raise MissingError(f"no adapter {name[:80]!r}", code="adapter_missing", fix="see `headwater adapter list`")
        folder = self.folder / name
        raw = (folder / LINEAGE_FILE).read_bytes()
        signature = parse_signature((folder / SIGNATURE_FILE).read_text("ascii").strip())
        lineage = check_signature(raw, signature, recover_address)
        if lineage.name != name:
            raise InvalidError(
                f"the folder {name!r} holds the adapter {lineage.name!r}",
                code="adapter_invalid",
                fix="give the folder the adapter's name",
            )
        return StoredAdapter(name, folder, lineage, lineage.contribution)

    def check(self, stored: StoredAdapter) -> None:
        """Compare every file with the record.

        Raises:
            InvariantError: a file is missing or was altered.
        """
        for name, expected in stored.lineage.files:
            path = stored.folder / name
            if not path.is_file() or digest(path.read_bytes()) != expected:
                raise InvariantError(
                    f"{name} of adapter {stored.name!r} is missing or was altered",
                    code="adapter_altered",
                    fix="train it again with the recipe of its lineage record",
                )

    def load(self, name: str) -> Lora:
        """An adapter's factors, from memory if they were used lately.

        Raises:
            MissingError: there is none.
            InvariantError: its files are not those of its record.
        """
        stored = self.get(name)
        with self._lock:
            kept = self._loaded.get(stored.name)
            if kept is not None and kept[0] == stored.lineage.digest:
                self._loaded.move_to_end(stored.name)
                return kept[1]
        self.check(stored)
        lora = read_peft(stored.folder)
        if lora.digest != stored.lineage.adapter_digest:
            raise InvariantError(f"the factors of adapter {name!r} are not those of its record", code="adapter_altered")
        with self._lock:
            self._loaded[stored.name] = (stored.lineage.digest, lora)
            self._loaded.move_to_end(stored.name)
            while len(self._loaded) > 1 and self.memory_bytes() > self._memory_bytes_max:
                self._loaded.popitem(last=False)
        return lora

    def memory_bytes(self) -> int:
        """Bytes of the factors in memory."""
        return sum(lora.size_bytes for _, lora in self._loaded.values())

    def resident(self) -> tuple[str, ...]:
        """Names of the adapters in memory, the one used longest ago first."""
        return tuple(self._loaded)

    def publish(self, draft: Path, lineage: Lineage, signature: bytes, files: Mapping[str, bytes]) -> StoredAdapter:
        """Write an adapter's files into `draft`, a folder beside the others, and give it its name in one step.

        Args:
            draft: holds the checkpoints already.
            files: the content of each file that the record names, but for checkpoints.

        Raises:
            ConflictError: another adapter has the name. The same one again is given back as it is.
            UpstreamError: the disk is full; nothing appears under the name.
        """
        final = self.folder / check_name(lineage.name)
        if (final / LINEAGE_FILE).is_file():
            return self._same(final, lineage)
        everything = {
            **files,
            LINEAGE_FILE: lineage.to_bytes(),
            SIGNATURE_FILE: ("0x" + signature.hex() + "\n").encode(),
        }
        try:
            for name, raw in everything.items():
                with (draft / name).open("wb") as handle:
                    handle.write(raw)
                    handle.flush()
                    os.fsync(handle.fileno())
            _sync(draft)
            draft.rename(final)
            _sync(self.folder)
        except OSError as error:
            if (final / LINEAGE_FILE).is_file():
                return self._same(final, lineage)
            raise UpstreamError(
                f"adapter {lineage.name!r} cannot be written: {error.strerror}",
                code="disk_full" if error.errno == 28 else "disk_failed",
                fix="free some space and run the command again; nothing half-built is served",
            ) from error
        return self.get(lineage.name)

    def _same(self, final: Path, lineage: Lineage) -> StoredAdapter:
        stored = self.get(final.name)
        if stored.lineage != lineage:
            raise ConflictError(
                f"an adapter {final.name!r} exists, made from other data or with another recipe",
                code="adapter_exists",
                fix="choose another name",
            )
        return stored


def check_name(name: str) -> str:
    """`name` if an adapter may have it.

    Raises:
        InvalidError: anything but 1 to 63 of a-z, 0-9, dot, dash and underscore, or the form of an id.
    """
    if _NAME.fullmatch(name) is None or name.startswith("ctb_"):
        raise InvalidError(
            f"adapter name {name[:80]!r} is not usable",
            code="adapter_name_invalid",
            fix="use 1 to 63 of a-z, 0-9, '.', '-' and '_', starting with a letter or digit",
        )
    return name


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
