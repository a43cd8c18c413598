"""Journeys of the people money is about, in a real browser before a real server and chain, with axe at each stop."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from eth_account.messages import encode_defunct
from live import PASSWORD, Live

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.model]

LONG_MS = 300_000  # a shared machine simulates and trains slowly


def accessible(page: Any, axe: str) -> None:
    """Nothing that axe knows of stands in anybody's way, light and dark, and nothing is cut off at phone width."""
    for scheme, width in (("light", 1280), ("dark", 390)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(150)  # colours fade into each other
        page.evaluate(axe)
        found = page.evaluate("async () => (await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html)])")
        assert found == [], (page.url, scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.url
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})


def as_operator(page: Any, live: Live) -> None:
    """Sign in by password."""
    page.goto(f"{live.url}/sign-in")
    page.get_by_label("Operator's password").fill(PASSWORD)
    page.locator('form[action="/sign-in/operator"] button').click()
    page.get_by_role("button", name="Sign out").wait_for()


def as_contributor(page: Any, live: Live) -> None:
    """Sign in by a wallet's signature."""
    page.goto(f"{live.url}/sign-in")
    page.get_by_label("Your payout address").fill(live.wallet.address)
    page.get_by_role("button", name="Give me the text to sign").click()
    message = page.get_by_label("Text to sign").input_value()
    signature = live.wallet.sign_message(encode_defunct(text=message)).signature.hex()
    page.get_by_label("Signature").fill("0x" + signature.removeprefix("0x"))
    page.locator('form[action="/sign-in/wallet"] button[type="submit"]').click()
    page.wait_for_url(f"{live.url}/contributors/{live.contributor}")


def test_a_contributor_reads_why_and_claims_on_the_chain(page, live, axe):
    """Sign in, read the sum and its reason, take the wallet file, claim: the money moves to claimed, to the unit."""
    replace(live, question="Where is Otter Spring, high in the hills above the village of Stell?").ask()
    live.run("epoch", "close")
    live.run("epoch", "post", "2")
    as_contributor(page, live)
    accessible(page, axe)
    first = page.locator(".answer-sum").first.inner_text()
    assert re.match(r"You earned [0-9.]+ USD because your work changed \d+ answers?\.", first), first
    assert "Springs of the hills" in first
    before = page.request.get(f"{live.url}/contributors/{live.contributor}.json").json()
    assert before["claimable_units"] > 0

    with page.expect_download() as file:
        page.get_by_role("link", name="Download for my wallet").click()
    assert '"transactions"' in file.value.path().read_text()
    assert (
        page.request.get(f"{live.url}/contributors/{live.contributor}/statement.csv").text().startswith("contributor,")
    )

    page.get_by_role("button", name="Send it to my address").click()
    page.get_by_role("status").get_by_text("The claim was sent and paid").wait_for()
    after = page.request.get(f"{live.url}/contributors/{live.contributor}.json").json()
    assert after["claimable_units"] == 0
    assert after["claimed_units"] == before["claimable_units"]
    assert after["claim"]["why_not"] == "nothing"
    accessible(page, axe)


def test_the_operator_changes_a_policy_sees_its_effect_and_publishes(page, live, axe):
    """Change a line, see the difference, watch the simulation, see what is surely larger, publish, find it noted."""
    as_operator(page, live)
    page.goto(f"{live.url}/operator?days=all")
    page.locator("svg.sankey").wait_for()
    accessible(page, axe)
    page.get_by_role("link", name="Policy", exact=True).click()
    accessible(page, axe)
    page.locator("#line_1_bps").fill("1300")
    page.get_by_role("button", name="Show the difference").click()
    assert "1300 bps to operator:platform" in page.locator("ins").first.inner_text()
    accessible(page, axe)
    page.get_by_role("button", name="Simulate this change").click()
    page.get_by_role("heading", name="What it says").wait_for(timeout=LONG_MS)
    row = page.locator("tr", has_text="all lines of the policy / paid")
    assert "▲" in row.locator(".delta").evaluate("e => getComputedStyle(e, '::before').content")
    assert "larger than both intervals" in row.inner_text()
    accessible(page, axe)
    page.get_by_role("button", name="Publish this policy").click()
    page.get_by_role("status").get_by_text("The policy is published").wait_for()
    page.get_by_role("link", name="Audit trail").click()
    assert "policy.publish" in page.locator("tbody tr").first.inner_text()
    accessible(page, axe)


def test_an_economy_is_run_watched_and_compared(page, live, axe):
    """Two runs with one assumption apart, progress seen while they run, then side by side."""
    as_operator(page, live)
    for title, assumption in (("as it is", ""), ("twice as generic", "evidence.generic_share = 0.6")):
        page.goto(f"{live.url}/economy")
        page.get_by_label("Name of this run").fill(title)
        for label, value in (("Days", "30"), ("Seeds", "2"), ("Contributors", "500"), ("Callers", "500")):
            page.get_by_label(label, exact=True).fill(value)
        page.get_by_label("Other assumptions").fill(assumption)
        page.get_by_role("button", name="Run it").click()
        page.get_by_role("heading", name="What it says").wait_for(timeout=LONG_MS)
    page.goto(f"{live.url}/economy")
    accessible(page, axe)
    for title in ("as it is", "twice as generic"):
        page.get_by_role("checkbox", name=title).check()
    page.get_by_role("button", name="Put the chosen side by side").click()
    row = page.locator("tr", has_text="what no registered contribution supplied / paid")
    assert row.locator(".delta").count() == 1
    accessible(page, axe)


def test_an_adapter_is_trained_from_the_page(page, live, axe):
    """Choose work, see an estimate, watch the loss, see before and after, and find the model that may be asked."""
    pytest.importorskip("torch")
    as_operator(page, live)
    page.goto(f"{live.url}/factory")
    accessible(page, axe)
    page.get_by_label("Name", exact=True).fill("rivers")
    page.get_by_label("Who trains it and will own it").fill("A Trainer")
    page.get_by_label("Least price of a call").fill("0.001")
    for box in page.locator('input[name="contribution"]').all():
        box.check()
    for label, value in (
        ("Last layers", "1"),
        ("Rank", "4"),
        ("Epochs", "3"),
        ("Rows a step", "1"),
        ("Tokens a row", "32"),
    ):
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_role("button", name="How long would it take?").click()
    page.locator("#estimate").get_by_text("on one thread").wait_for()
    page.get_by_role("button", name="Train it").click()
    page.get_by_text("It is trained, measured, signed and registered.").wait_for(timeout=LONG_MS)
    assert page.locator("svg.chart .line").count() == 2
    accessible(page, axe)
    page.get_by_role("link", name="See the adapter").click()
    assert "smollm2-135m+rivers" in page.locator("main").inner_text()
    accessible(page, axe)
    assert page.get_by_role("link", name="Talk to it").get_attribute("href") == "/ask?model=smollm2-135m%2Brivers"
