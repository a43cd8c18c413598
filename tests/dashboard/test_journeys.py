"""Journeys in a real browser before a real server, model and chain: what people do, with axe at each stop."""

from __future__ import annotations

import re
from typing import Any

import pytest
from eth_account.messages import encode_defunct
from live import HOSTILE, PASSWORD, QUESTION, Live

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.model]

RECEIPT_S = 120_000  # a shared machine measures slowly
CHECKS = ("id", "sums", "signature", "log", "manifest", "manifest_log", "payouts")


def accessible(page: Any, axe: str) -> None:
    """Nothing that axe knows of stands in anybody's way: WCAG 2.2 A and AA, and its best practices."""
    page.evaluate(axe)
    found = page.evaluate("async () => (await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html)])")
    assert found == [], page.url


def sign_in(page: Any, live: Live) -> None:
    """As the caller, by key."""
    page.goto(f"{live.url}/sign-in?next=/ask")
    page.get_by_label("API key").fill(live.secret)
    page.locator('form[action="/sign-in/key"] button').click()
    page.wait_for_url(f"{live.url}/ask")


def outcomes(page: Any) -> dict[str, str]:
    """Each check of the page, and how it came out."""
    marks = {"✓": "held", "✗": "failed", "–": "absent", "·": "unchecked"}
    return {name: marks[page.locator(f'[data-check="{name}"] .sign').inner_text()] for name in CHECKS}


def test_from_a_question_to_a_receipt_that_fails_when_a_byte_is_flipped(page, live, axe):
    """Ask, click a token, see its source, open the passage, see the receipt, verify it, flip a byte: it fails."""
    sign_in(page, live)
    accessible(page, axe)
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_label("Longest answer").fill("32")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator(".attributed").wait_for(timeout=RECEIPT_S)
    accessible(page, axe)

    token = page.locator('.token:not([data-main="base"]):not([data-main="rest"])').first
    token.click()
    number = token.get_attribute("data-main")
    assert token.get_attribute("aria-pressed") == "true"
    assert "bits" in page.locator(".token-detail").inner_text()
    card = page.locator(f'.supplier[data-number="{number}"]')
    assert "picked" in (card.get_attribute("class") or "").split()
    card.get_by_role("button", name="Show its tokens").click()
    assert page.locator(f'.token.picked[data-main="{number}"]').count() > 0
    token.press("ArrowRight")
    assert page.evaluate("document.activeElement.classList.contains('token')")

    source = page.locator(".supplier", has=page.locator("a.open-passage")).first
    source.locator("summary").first.click()
    passage = source.locator(".passage").inner_text()
    source.locator("a.open-passage").click()
    marked = page.locator("mark#passage").inner_text()
    assert " ".join(marked.split()) in " ".join(passage.split())
    assert "CC0-1.0" in page.locator("aside").inner_text()
    accessible(page, axe)

    page.go_back()
    page.goto(f"{live.url}/ask")
    page.locator(".plain-list a").first.click()
    page.get_by_role("link", name="See the receipt").click()
    page.get_by_role("button", name="Verify in this browser").click()
    page.locator(".verdict.held").wait_for()
    held = outcomes(page)
    assert [held[name] for name in ("id", "sums", "signature", "log")] == ["held"] * 4
    page.get_by_role("button", name="Flip one bit").click()
    page.locator(".verdict.failed").wait_for()
    broken = outcomes(page)
    assert [broken[name] for name in ("id", "signature", "log")] == ["failed"] * 3
    accessible(page, axe)
    page.get_by_role("button", name="Put it back").click()
    page.locator(".verdict.held").wait_for()


def test_a_settled_receipt_is_verified_up_to_the_chain(page, live, axe):
    """For a receipt whose epoch is posted all seven checks hold in the browser, and any byte breaks the first."""
    sign_in(page, live)
    page.goto(f"{live.url}/receipts/{live.first_receipt}")
    page.get_by_role("button", name="Verify in this browser").click()
    page.locator(".verdict.held").wait_for()

    assert outcomes(page) == dict.fromkeys(CHECKS, "held")
    assert page.locator(".verdict").inner_text() == "All 7 checks hold"
    size = len(page.evaluate(f"fetch('/receipts/{live.first_receipt}/file').then(r => r.text())"))
    for at in (0, size // 3, size // 2, size - 1):
        page.locator("[data-byte]").fill(str(at))
        page.get_by_role("button", name="Flip one bit").click()
        page.locator(".verdict.failed").wait_for()
        assert outcomes(page)["id"] == outcomes(page)["log"] == "failed"
    accessible(page, axe)


def test_a_stranger_checks_a_bundle_without_any_account(page, live, axe, tmp_path):
    """A bundle file is checked on a page that asks for nothing; a changed one fails."""
    bundle = tmp_path / "bundle.json"
    live.run("receipt", "bundle", live.first_receipt, "--to", str(bundle))
    page.goto(f"{live.url}/verify")
    accessible(page, axe)
    page.get_by_label("Bundle file").set_input_files(str(bundle))
    page.get_by_role("button", name="Check it").click()
    page.locator(".verdict.held").wait_for()
    assert outcomes(page)["payouts"] == "held"

    text = bundle.read_text()
    proof = re.search(r'"signature":"0x([0-9a-f])', text)
    assert proof is not None
    at = proof.start(1)
    bundle.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])
    page.get_by_label("Bundle file").set_input_files(str(bundle))
    page.get_by_role("button", name="Check it").click()
    page.locator(".verdict.failed").wait_for()
    assert outcomes(page)["signature"] == "failed"


def test_a_contributor_signs_in_by_wallet(page, live, axe):
    """The text of the page, signed by the payout address, leads to that contributor's statement."""
    page.goto(f"{live.url}/sign-in")
    accessible(page, axe)
    page.get_by_label("Your payout address").fill(live.wallet.address)
    page.get_by_role("button", name="Give me the text to sign").click()
    message = page.get_by_label("Text to sign").input_value()
    signature = live.wallet.sign_message(encode_defunct(text=message)).signature.hex()
    page.get_by_label("Signature").fill("0x" + signature.removeprefix("0x"))
    page.locator('form[action="/sign-in/wallet"] button[type="submit"]').click()
    page.wait_for_url(f"{live.url}/contributors/{live.contributor}")
    assert "Ada Spring" in page.locator("main").inner_text()
    page.get_by_role("button", name="Sign out").click()
    page.goto(f"{live.url}/statement")
    assert page.url.startswith(f"{live.url}/sign-in")


def test_the_explorer_is_walked_by_keyboard_and_by_phone(page, live, axe):
    """Lists are reached by keyboard; at phone width nothing is cut off and the menu folds; dark is as legible."""
    page.goto(live.url)
    page.keyboard.press("Tab")
    assert page.locator(".skip").evaluate("e => e === document.activeElement")
    paths = ["/", "/explore", "/contributions", "/receipts", "/epochs", "/epochs/1", "/transactions", "/search?q=river"]
    for scheme, width in (("light", 1280), ("dark", 390)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 844})
        for path in paths:
            page.goto(live.url + path)
            accessible(page, axe)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)
    menu = page.get_by_role("button", name="Menu")
    assert not page.locator("#navigation").is_visible()
    menu.click()
    page.get_by_role("link", name="Verify", exact=True).click()
    page.wait_for_url(f"{live.url}/verify")


def test_hostile_words_run_nowhere(page, live):
    """A title, an owner and a text full of markup are words on every page that shows them: nothing of them runs."""
    page.goto(f"{live.url}/search?q=script")
    shown = page.locator("main").inner_text()
    assert HOSTILE in shown
    page.locator("main a", has_text="<script>").first.click()
    assert "owned" not in page.title() or page.title().startswith(HOSTILE[:20])
    for path in ("/contributions", "/contributors", "/search?q=script"):
        page.goto(live.url + path)
        page.wait_for_timeout(50)
        assert page.evaluate("document.title") != "owned"
        assert page.locator("main script, main img").count() == 0


def test_the_operator_signs_in_and_sees_no_words(page, live):
    """With the password the books open; a call's words stay its payer's."""
    page.goto(f"{live.url}/sign-in")
    page.get_by_label("Operator's password").fill(PASSWORD)
    page.locator('form[action="/sign-in/operator"] button').click()
    page.goto(f"{live.url}/receipts/{live.first_receipt}")
    assert page.get_by_role("button", name="Verify in this browser").is_visible()
    call = page.locator("main").inner_text()
    found = re.search(r"call_[0-9a-f]{32}", call)
    assert found is not None
    assert page.request.get(f"{live.url}/ask/calls/{found[0]}").status == 403
