"""Contributors' pages: the sums are the receipts', a statement is its owner's alone, and nothing hostile runs."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from measured import Measured, measured_site

from headwater.core.ids import ContributorId
from headwater.core.money import PPB
from headwater.ledger.earnings import accounts_of, causes, earnings
from headwater.receipts import Receipt
from headwater.registry import Ownership, unenrolled
from headwater.registry.intake import Candidate

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """A site with three measured answers."""
    with measured_site(tmp_path_factory.mktemp("pages")) as made:
        made.ask("what does a river do in the sea?", "is a cloud water in the air?", "does a stone roll in the river?")
        yield made


def test_a_statement_says_what_ledger_and_receipts_say(measured: Measured) -> None:
    """Sum, answers, fees, works and balances are those of the command that reads every receipt."""
    operator, ledger, currency = measured.client("operator", "root"), measured.home.ledger, measured.home.currency
    assert len(measured.people()) > 2
    for who in measured.people():
        pages = [ledger.statement(account, currency) for account in accounts_of(ContributorId(who))]
        named = causes(line for page in pages for line in page.lines)
        receipts = {id: Receipt.from_bytes(measured.home.log.get(id).raw) for id in named}
        expected = earnings(ContributorId(who), currency, pages, receipts)

        found = operator.get(f"/contributors/{who}.json").json()

        assert found["units"] == expected.earned_units
        assert found["answers_count"] == expected.answers_count
        assert (found["price_units"], found["fees_units"]) == (expected.price_units, expected.fees_units)
        assert {(w["contribution"], w["units"], w["answers"]) for w in found["works"]} == {
            (used.contribution, used.earned_units, used.answers_count) for used in expected.used
        }
        assert found["escrow_units"] + found["due_units"] + found["claimable_units"] == expected.closing_units
        assert [one["units"] for one in found["top"]] == sorted((one["units"] for one in found["top"]), reverse=True)
        assert {one["receipt"] for one in found["top"]} <= set(named)
        assert sum(day["units"] for day in found["days"]) == expected.earned_units


def test_the_page_says_why_in_its_first_sentence(measured: Measured) -> None:
    """The sum and the number of answers come first, with the work that brought most of it."""
    who = measured.people()[0]
    data = measured.client("contributor", who).get(f"/contributors/{who}.json").json()
    page = measured.client("contributor", who).get(f"/contributors/{who}").text

    first = page.partition('class="answer-sum">')[2].partition("</p>")[0]
    assert "You earned <strong>" in first
    assert data["works"][0]["title"] in first
    assert ("1 answer" if data["answers_count"] == 1 else f"{data['answers_count']} answers") in first


def test_nobody_reads_the_statement_of_another(measured: Measured) -> None:
    """Another contributor, a caller and a stranger see the public page only, and get no file, wallet or claim."""
    mine, other = measured.people()[:2]
    secret = measured.client("operator", "root").get(f"/contributors/{other}.json").json()
    for client in (measured.client("contributor", mine), measured.client("payer", "key_1"), measured.client()):
        shown = client.get(f"/contributors/{other}.json").json()
        assert not {"units", "top", "works", "days", "forecast", "claim"} & shown.keys()
        page = client.get(f"/contributors/{other}").text
        assert all(one["receipt"] not in page for one in secret["top"])
        for path in ("statement.csv", "wallet", "relay"):
            assert client.get(f"/contributors/{other}/{path}", follow_redirects=False).status_code in (303, 403)
        assert measured.post(client, f"/contributors/{other}/claim").status_code in (303, 401, 403)
    assert measured.client("contributor", mine).get("/operator").status_code == 403
    assert measured.client("contributor", mine).get("/operator/keys.json").status_code == 403


def test_who_has_not_enrolled_has_a_page_that_says_so(measured: Measured) -> None:
    """What waits is called simulated and held in escrow; nobody can claim it."""
    who = next(p for p in measured.people() if not measured.home.registry.contributor(ContributorId(p)).enrolled)
    page = measured.client().get(f"/contributors/{who}").text
    assert "not enrolled, simulated" in page
    assert "waits in escrow" in page
    found = measured.client("operator", "root").get(f"/contributors/{who}.json").json()
    assert found["claim"]["why_not"] == "no_chain"
    assert found["raises"][0]["key"] == "enrol"


def test_a_csv_adds_up(measured: Measured) -> None:
    """The days of the file sum to the statement, and no cell begins with a formula."""
    who = measured.people()[0]
    client = measured.client("contributor", who)
    answer = client.get(f"/contributors/{who}/statement.csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert answer.headers["content-type"].startswith("text/csv")
    total = client.get(f"/contributors/{who}.json").json()["units"]
    assert sum(int(row["earned_nano"]) for row in rows) == total > 0
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


def test_periods_are_refused_or_empty_with_words(measured: Measured) -> None:
    """A month without earnings says so; what is no month is refused with the fix."""
    who = measured.people()[0]
    client = measured.client("contributor", who)
    assert "Nothing was earned in this period" in client.get(f"/contributors/{who}?period=1999-01").text
    for wrong in ("1999-13", "x", "1999-1-1", "٢٠٢٦-11"):
        assert client.get(f"/contributors/{who}.json", params={"period": wrong}).status_code == 400
    assert client.get("/contributors/ctr_00000000000000000000000000000000").status_code == 404


def test_a_hostile_name_is_text_everywhere(tmp_path: Path) -> None:
    """A contributor and a document whose names are markup stay words on every page that shows them."""
    with measured_site(tmp_path) as measured:
        owner = unenrolled("toy", HOSTILE)
        text = b"A glacier grinds the hills into flour, slowly and for ever."
        measured.home.registry.admit(
            [
                Candidate("w", "document", HOSTILE, text, (Ownership(owner.id, PPB),), "CC0-1.0",
                          frozenset({"ground"}), 1, "toy")
            ],
            [owner],
        )  # fmt: skip
        measured.ask("what does a river do in the sea?")
        operator = measured.client("operator", "root")
        for path in (f"/contributors/{owner.id}", "/contributors", "/contributors?q=script", "/factory", "/operator"):
            page = operator.get(path).text
            assert "<script>alert" not in page, path
            assert "<img src=x" not in page, path
            assert "49" not in page.partition("onerror")[2][:20]
        assert "&lt;script&gt;" in operator.get("/contributors").text


def test_people_are_found_by_part_of_a_name_and_paged(measured: Measured) -> None:
    """A list is read from behind its last row, and a name nobody has says so."""
    client = measured.client()
    found = client.get("/contributors.json", params={"q": "WRITER"}).json()["people"]
    assert [one["name"] for one in found] == sorted(one["name"] for one in found)
    assert len(found) == 3
    after = f"{found[0]['name']}\n{found[0]['id']}"
    assert client.get("/contributors.json", params={"q": "writer", "after": after}).json()["people"] == found[1:]
    assert "Nobody is registered under such a name" in client.get("/contributors", params={"q": "%_"}).text
