"""The files the pages load: read once, compressed once, named by their digest so that a browser may keep them.

Everything under ``static/`` is part of the package; nothing is fetched from anywhere else, at run time or by a
browser. `vendor/manifest.json` says which files were made from which packages, and with which digests.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

PREFIX: Final = "/static/"
_KEEP: Final = "public, max-age=31536000, immutable"
_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json"}


@dataclass(frozen=True)
class Asset:
    """One file."""

    path: str  # under static/
    raw: bytes

    @cached_property
    def digest(self) -> str:
        """Of its bytes; the first 16 hex digits of SHA-256."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @cached_property
    def compressed(self) -> bytes:
        """As gzip, the same bytes every time."""
        return gzip.compress(self.raw, 9, mtime=0)

    @property
    def content_type(self) -> str:
        """With the character set of what is text."""
        suffix = "." + self.path.rsplit(".", 1)[-1]
        found = _TYPES.get(suffix) or mimetypes.guess_type(self.path)[0] or "application/octet-stream"
        return f"{found}; charset=utf-8" if suffix in _TYPES or found.startswith("text/") else found


class Assets:
    """Every file under ``static/``."""

    def __init__(self, root: Traversable | None = None) -> None:
        root = root or files("headwater.dashboard").joinpath("static")
        self._assets = {asset.path: asset for asset in _walk(root, "")}
        # Modules import each other by relative addresses, which cannot hold a digest: one name for all of them, over
        # the digest of everything, makes any change a new address.
        every = hashlib.sha256("".join(f"{a.path} {a.digest}\n" for a in self._assets.values()).encode())
        self.version = every.hexdigest()[:12]

    def address(self, path: str) -> str:
        """Where a browser finds a file.

        Raises:
            KeyError: there is no such file.
        """
        return f"{PREFIX}{self.version}/{self._assets[path].path}"

    def icon(self, name: str) -> Markup:
        """An icon of ours, drawn in the colour of the text around it; decorative, so hidden from readers of screens."""
        return Markup(self._assets[f"icons/{name}.svg"].raw.decode())

    def get(self, path: str) -> Asset | None:
        """A file by its path under ``static/``."""
        return self._assets.get(path)

    def serve(self, request: Request) -> Response:
        """A file, compressed for who takes it so."""
        rest = request.scope["path"].removeprefix(PREFIX)
        version, _, path = rest.partition("/")
        asset = self.get(path)
        if asset is None:
            return Response("there is nothing here", 404, media_type="text/plain")
        headers = {
            "cache-control": _KEEP if version == self.version else "no-cache",
            "content-type": asset.content_type,
            "etag": f'"{asset.digest}"',
            "vary": "Accept-Encoding",
        }
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", "") and len(asset.raw) > 500:
            return Response(asset.compressed, headers=headers | {"content-encoding": "gzip"})
        return Response(asset.raw, headers=headers)


def _walk(folder: Traversable, prefix: str) -> list[Asset]:
    found: list[Asset] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        path = f"{prefix}{entry.name}"
        found.extend(_walk(entry, path + "/") if entry.is_dir() else [Asset(path, entry.read_bytes())])
    return found
