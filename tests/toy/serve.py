"""Gateways over toy homes in processes of their own, which can be killed: `python -m toy.serve`.

Reads a command a line: `{"home": …, "port": 0, "point": ""}` starts a gateway in a fork (everything is imported
already, so that takes no time) and prints its process id and port, and `gone` when it has ended. A point, such as
`after CallStore.answered`, makes it kill itself there. Only one gateway lives at a time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headwater.gateway import GatewayOptions, create_app
from headwater.gateway.serve import serve
from headwater.store.call_store import CallStore
from headwater.store.receipt_log import ReceiptLog
from toy.home import open_home

_CLASSES = {"CallStore": CallStore, "ReceiptLog": ReceiptLog}


def main() -> None:
    """Start gateways until standard input ends."""
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            if command["point"]:
                _die(*command["point"].split())
            _serve(Path(command["home"]), command["port"])
            os._exit(0)
        os.waitpid(child, 0)
        print("gone", flush=True)


def _serve(home: Path, port: int) -> None:
    with open_home(home) as toy:
        app = create_app(toy.flow, toy.keys, options=GatewayOptions(parallel=4, waiting_max=64, drain_s=5))
        serve(app, port=port, ready=lambda bound: print(os.getpid(), bound, flush=True))


def _die(when: str, where: str) -> None:
    """Have this process kill itself before or after the first call of a method."""
    owner, name = where.split(".")
    method: Callable[..., Any] = getattr(_CLASSES[owner], name)

    def deadly(*args: Any, **options: Any) -> Any:
        if when == "after":
            method(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(_CLASSES[owner], name, deadly)


if __name__ == "__main__":
    main()
