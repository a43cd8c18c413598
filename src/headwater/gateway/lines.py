"""The gateway's own log lines on standard error, as text or as JSON; a worker's say which it is."""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec


class JsonLines(logging.Formatter):
    """One JSON object a line; what the gateway logs holds no text of callers, and neither does this.

    Args:
        worker: the name of the process, where there are several.
    """

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._named = {"worker": worker} if worker else {}

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        fields: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._named,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["error"] = record.exc_info[0].__name__
        return msgspec.json.encode(fields).decode()


def log_to_stderr(form: str, worker: str = "") -> None:
    """Write the gateway's own lines, a call each, to standard error as ``text`` or ``json``."""
    named = f" {worker}" if worker else ""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines(worker)
        if form == "json"
        else logging.Formatter(f"%(asctime)s{named} %(levelname)s %(name)s: %(message)s")
    )
    ours = logging.getLogger("headwater")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
