"""A gateway over a toy home in a process of its own: `python -m toy.serve HOME`; prints its port, then serves."""

from __future__ import annotations

import sys
from pathlib import Path

from headwater.gateway import GatewayOptions, create_app, serve
from toy.home import open_home


def main(home: str) -> None:
    """Serve the home until killed or asked to stop."""
    with open_home(Path(home)) as toy:
        app = create_app(toy.flow, toy.keys, options=GatewayOptions(parallel=4, waiting_max=64, drain_s=5))
        serve(app, ready=lambda port: print(port, flush=True))


if __name__ == "__main__":
    main(sys.argv[1])
