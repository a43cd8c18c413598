"""Files under names, on a local disk or any pyarrow filesystem: whole or not at all.

Names are relative paths with slashes. Writing a name replaces what was there in one step: on a local disk by
renaming a synced draft, elsewhere by the one PUT that object stores make atomic. Knows nothing of what is kept.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

from headwater.core.errors import InvalidError, MissingError, UpstreamError
from headwater.store.receipt_file import sync_folder

_NAME: Final = re.compile(r"(?!\.{1,2}(?:/|$))[A-Za-z0-9_.-]{1,128}(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.-]{1,128}){0,12}")

OBJECT_BYTES_MAX: Final = 2 * 2**30
"""Most that is taken from a web server under one name."""


class ObjectStore(Protocol):
    """Where tiles, segments and exports are kept."""

    location: str

    def read(self, name: str) -> bytes:
        """All bytes of a name.

        Raises:
            MissingError: nothing has that name.
            UpstreamError: the store failed.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`, durably; whatever was there is replaced in one step."""
        ...

    def exists(self, name: str) -> bool:
        """Whether something has that name."""
        ...

    def remove(self, name: str) -> None:
        """Take a name away; nothing happens when there is none."""
        ...


def open_store(location: str | Path) -> ObjectStore:
    """The store at a path, or at an address that pyarrow knows, such as ``s3://bucket/folder?endpoint_override=…``.

    Raises:
        InvalidError: an address of a kind that pyarrow does not know.
        MissingError: pyarrow, which such addresses need, is not installed.
    """
    text = str(location)
    if "://" not in text:
        return LocalStore(Path(text))
    if text.startswith("file://"):
        return LocalStore(Path(urlsplit(text).path))
    return ArrowStore(text)


def open_source(location: str | Path) -> ObjectStore:
    """A store to read what somebody published: what `open_store` opens, or the address of a web server."""
    text = str(location)
    return WebStore(text) if text.startswith(("http://", "https://")) else open_store(text)


class WebStore:
    """What a web server serves under an address; for reading only."""

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/")

    def read(self, name: str) -> bytes:
        """All bytes of a name."""
        address = f"{self.location}/{check_name(name)}"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                content: bytes = answer.read(OBJECT_BYTES_MAX + 1)
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise _missing(name, self.location) from None
            raise UpstreamError(
                f"{address} answered {error.code}", code="store_failed", fix="check the address, then repeat"
            ) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UpstreamError(
                f"{address}: {error}", code="store_failed", fix="check the address and the network, then repeat"
            ) from None
        if len(content) > OBJECT_BYTES_MAX:
            raise InvalidError(
                f"{address} has more than {OBJECT_BYTES_MAX} bytes", code="object_too_large", fix="take it as files"
            )
        return content

    def write(self, name: str, data: bytes) -> None:
        """Refused."""
        raise self._read_only(f"{len(data)} bytes for {name}")

    def exists(self, name: str) -> bool:
        """Whether the server has that name."""
        try:
            self.read(name)
        except MissingError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Refused."""
        raise self._read_only(f"removing {name}")

    def _read_only(self, what: str) -> InvalidError:
        return InvalidError(
            f"{self.location} is a web server: {what} refused", code="store_read_only", fix="write to a folder or S3"
        )


class LocalStore:
    """A folder on a local disk, made when something is first written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = str(folder)

    def read(self, name: str) -> bytes:
        """All bytes of a name."""
        try:
            return self._path(name).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _missing(name, self.location) from None
        except OSError as error:
            raise _failed(name, self.location, error) from error

    def write(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`: a synced draft, renamed, its folder synced."""
        path = self._path(name)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(draft, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
            sync_folder(path.parent)
        except OSError as error:
            raise _failed(name, self.location, error) from error

    def exists(self, name: str) -> bool:
        """Whether something has that name."""
        return self._path(name).is_file()

    def remove(self, name: str) -> None:
        """Take a name away."""
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise _failed(name, self.location, error) from error

    def _path(self, name: str) -> Path:
        return self.folder / check_name(name)


class ArrowStore:
    """A folder of a pyarrow filesystem. S3 takes options in its address: ``?region=…&endpoint_override=…&scheme=http``.

    Access keys come from where the S3 client looks for them itself (environment, profile), never from an address.
    """

    def __init__(self, location: str) -> None:
        try:
            from pyarrow import fs
        except ImportError:
            raise MissingError(
                f"{location} needs pyarrow", code="pyarrow_missing", fix="pip install 'headwater[close]'"
            ) from None
        self._fs, self.location = fs, location
        parts = urlsplit(location)
        if parts.username or parts.password:
            raise InvalidError(
                "an address with an access key in it",
                code="store_address_invalid",
                fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
            )
        try:
            if parts.scheme == "s3":
                options: dict[str, Any] = {name: values[0] for name, values in parse_qs(parts.query).items()}
                self._system: Any = fs.S3FileSystem(connect_timeout=10, request_timeout=60, **options)
                self._folder = (parts.netloc + parts.path).rstrip("/")
            else:
                self._system, self._folder = fs.FileSystem.from_uri(location)
        except Exception as error:  # pyarrow raises ArrowInvalid, TypeError and OSError for addresses it cannot use
            raise InvalidError(
                f"{location} cannot be opened: {error}",
                code="store_address_invalid",
                fix="give a path, or an address such as s3://bucket/folder?region=eu-central-1",
            ) from None

    def read(self, name: str) -> bytes:
        """All bytes of a name."""
        try:
            with self._system.open_input_stream(self._path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            raise _missing(name, self.location) from None
        except OSError as error:
            raise _failed(name, self.location, error) from error

    def write(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`; an object appears when its upload is complete."""
        path = self._path(name)
        try:
            if self._system.type_name != "s3":  # an object store has no folders to make
                self._system.create_dir(path.rpartition("/")[0], recursive=True)
            with self._system.open_output_stream(path) as stream:
                stream.write(data)
        except OSError as error:
            raise _failed(name, self.location, error) from error

    def exists(self, name: str) -> bool:
        """Whether something has that name."""
        try:
            return bool(self._system.get_file_info(self._path(name)).type == self._fs.FileType.File)
        except OSError as error:
            raise _failed(name, self.location, error) from error

    def remove(self, name: str) -> None:
        """Take a name away."""
        try:
            self._system.delete_file(self._path(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(name, self.location, error) from error

    def _path(self, name: str) -> str:
        return f"{self._folder}/{check_name(name)}"


def reader(store: ObjectStore, name: str) -> Any:
    """A file-like view of a name, for readers that seek; local files are not read into memory."""
    if isinstance(store, LocalStore):
        path = store.folder / check_name(name)
        if not path.is_file():
            raise _missing(name, store.location)
        return str(path)
    return io.BytesIO(store.read(name))


def check_name(name: str) -> str:
    """`name`, which stays inside the store.

    Raises:
        InvalidError: it leads elsewhere, or holds other characters than letters, digits, and ``_ . - /``.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidError(f"{name[:80]!r} is not a name in a store", code="store_name_invalid", fix="use a/b/c.ext")
    return name


def _missing(name: str, location: str) -> MissingError:
    return MissingError(f"no {name} in {location}", code="object_missing", fix="check the address and the name")


def _failed(name: str, location: str, error: OSError) -> UpstreamError:
    full = isinstance(error.errno, int) and error.errno in (27, 28, 122)  # EFBIG, ENOSPC, EDQUOT
    return UpstreamError(
        f"{name} in {location}: {error.strerror or error}",
        code="disk_full" if full else "store_failed",
        fix="make room and repeat the command" if full else "check the address, the keys and the network, then repeat",
    )
