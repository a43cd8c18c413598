"""Pages over toy homes on loopback, and, for the journeys, a browser before a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from pages_site import PagesSite, open_pages

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[PagesSite]:
    """Pages over a toy home, with a clock that a test may move."""
    with open_pages(tmp_path / "home") as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PagesSite]:
    """Pages for the tests of a module that do not mind each other."""
    with open_pages(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="session")
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real server: see `live`; with HEADWATER_TEST_ENGINE=postgres its home's records are in PostgreSQL."""
    from live import live_site

    on_server = os.environ.get("HEADWATER_TEST_ENGINE") == "postgres"
    database = request.getfixturevalue("postgres").fresh() if on_server else ""
    with live_site(tmp_path_factory.mktemp("live"), database=database) as found:
        yield found
        assert on_server != (found.home / "headwater.db").exists()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM.exists():
        pytest.skip("needs chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]  # containers have no user namespaces and little of that
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm into a scratch folder; HEADWATER_AXE names a file that is there already."""
    given = os.environ.get("HEADWATER_AXE")
    if given:
        return Path(given).read_text("utf-8")
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "axe-core@4.14.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"axe-core could not be installed: {done.stderr[-300:]}")
    return (folder / "node_modules/axe-core/axe.min.js").read_text("utf-8")


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A fresh tab; the test fails if its console saw an error or a request left this machine."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=False)
    tab = context.new_page()
    troubles: list[str] = []
    tab.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("request", lambda r: None if "://127.0.0.1:" in r.url else troubles.append(f"asked {r.url}"))
    yield tab
    context.close()
    assert troubles == []
