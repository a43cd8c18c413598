"""Takes the pictures of the README: a real server over a small home, the main pages, light and dark, wide and narrow.

    python tests/dashboard/screenshots.py docs/images

Needs Debian's chromium, playwright and the demo's documents: proposals in the public domain. Their authors have not
enrolled: what they earn in the pictures is simulated, and their names say so. Words and figures are what that server
gave.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from live import PASSWORD, Live, live_site
from playwright.sync_api import sync_playwright

from headwater.retrieval import load_proposals

CHROMIUM = "/usr/bin/chromium"
QUESTION = "What is an enumeration?"
NUMBERS = (354, 435, 8, 20, 257, 3107, 484, 572)  # of the proposals that are registered
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def main(folder: Path) -> None:
    """Take every picture into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        live_site(Path(scratch), _rows(), QUESTION) as live,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
        )
        tab = browser.new_context(viewport=WIDE, color_scheme="light").new_page()
        _caller(tab, live, folder)
        dark = browser.new_context(viewport=NARROW, color_scheme="dark", device_scale_factor=2).new_page()
        dark.goto(f"{live.url}/contributions")
        dark.screenshot(path=folder / "explore-phone-dark.png")
        _operator(browser.new_context(viewport=WIDE, color_scheme="light").new_page(), live, folder)
        browser.close()


def _rows() -> list[dict[str, object]]:
    """Some of the demo's proposals, as lines of a file to add."""
    corpus = load_proposals()
    names = {person.id: person.name for person in corpus.contributors}
    wanted = [f"PEP {number}:" for number in NUMBERS]
    found = [
        {
            "text": one.content.decode(),
            "title": one.title,
            "owners": [f"{names[owner.contributor_id]} (simulated)" for owner in one.owners],
            "license": one.license_expression,
        }
        for one in corpus.candidates
        if one.title.startswith(tuple(wanted))
    ]
    return sorted(found, key=lambda row: wanted.index(f"{str(row['title']).split(':')[0]}:"))


def _caller(tab: Any, live: Live, folder: Path) -> None:
    tab.goto(live.url)
    tab.screenshot(path=folder / "start.png")
    tab.goto(f"{live.url}/sign-in?next=/ask")
    tab.get_by_label("API key").fill(live.secret)
    tab.locator('form[action="/sign-in/key"] button').click()
    tab.wait_for_url(f"{live.url}/ask")
    tab.get_by_label("Your question").fill(QUESTION)
    tab.get_by_label("Longest answer").fill("48")
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.locator(".attributed").wait_for(timeout=180_000)
    tab.locator('.token:not([data-main="base"])').first.click()
    tab.evaluate("document.querySelector('#conversation').scrollIntoView()")
    tab.screenshot(path=folder / "ask.png")
    tab.goto(f"{live.url}/receipts/{live.first_receipt}")
    tab.get_by_role("button", name="Verify in this browser").click()
    tab.locator(".verdict.held").wait_for()
    tab.mouse.move(0, 0)
    tab.evaluate("scrollTo(0, 0)")
    tab.set_viewport_size({"width": 1280, "height": 1640})
    tab.screenshot(path=folder / "receipt.png")
    tab.set_viewport_size(WIDE)
    tab.goto(f"{live.url}/epochs/1")
    tab.screenshot(path=folder / "epoch.png")


def _operator(tab: Any, live: Live, folder: Path) -> None:
    tab.goto(f"{live.url}/sign-in")
    tab.get_by_label("Operator's password").fill(PASSWORD)
    tab.locator('form[action="/sign-in/operator"] button').click()
    tab.wait_for_url(f"{live.url}/operator")
    tab.screenshot(path=folder / "operator.png", full_page=True)
    tab.goto(f"{live.url}/contributors/{live.contributor}")
    tab.screenshot(path=folder / "statement.png", full_page=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
