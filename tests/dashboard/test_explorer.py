"""The explorer: lists by keyset that miss nothing, a search that finds, and texts only where the licence shows them."""

from __future__ import annotations

import pytest
from pages_site import PagesSite

from headwater.registry import owned_equally, unenrolled
from headwater.registry.intake import Candidate

MANY = 130


@pytest.fixture(scope="module")
def full(shared: PagesSite) -> PagesSite:
    """A home with many contributions, every tenth of which may not be quoted."""
    owner = unenrolled("test", "Maria Marlow")
    words = [f"river number {i} runs {i * i} miles from spring {i * 7} to bay {i * 13}" for i in range(MANY)]
    offered = [
        Candidate(
            *("toy", "document", f"River {i}", text.encode(), owned_equally([owner.id]), "CC0-1.0"),
            *(frozenset({"ground"} if i % 10 == 0 else {"ground", "reproduce"}), i, "toy"),
        )
        for i, text in enumerate(words)
    ]
    assert shared.toy.registry.admit(offered, [owner]).problems == ()
    return shared


def test_a_list_read_page_by_page_is_the_whole_list(full):
    """Following the older pages gives every contribution once, newest first."""
    who, path, found = full.visitor(), "/contributions.json?kind=document", []
    while path:
        data = who.get(path).json
        found += [one["id"] for one in data["contributions"]]
        path = f"/contributions.json?kind=document&before={data['older']}" if data["older"] else ""

    expected = [c.id for c in full.toy.registry.contributions(kind="document")]
    assert sorted(found) == sorted(expected)
    assert len(found) == len(set(found)) >= MANY


def test_a_search_finds_titles_and_people_and_goes_to_ids(full):
    """Words find titles and names by any part; an id or an epoch's number leads to its page."""
    who = full.visitor()
    found = who.get("/search.json?q=river%2012").json

    assert {one["title"] for one in found["contributions"]} == {"River 12", *(f"River 12{i}" for i in range(10))}
    assert [p["name"] for p in who.get("/search.json?q=marLOW").json["people"]] == ["Maria Marlow"]
    one = found["contributions"][0]["id"]
    assert who.get(f"/search?q={one}").headers["location"] == f"/contributions/{one}"
    assert who.get("/search?q=epoch%203").headers["location"] == "/epochs/3"
    assert who.get(f"/search?q={'a' * 64}").headers["location"] == f"/receipts/{'a' * 64}"
    assert who.get("/search.json?q=").json["contributions"] == []


def test_a_text_is_shown_where_its_licence_lets_it_be_quoted(full):
    """Without the use `reproduce` the record is public and the text is not."""
    who = full.visitor()
    by_title = {one["title"]: one["id"] for one in who.get("/search.json?q=River").json["contributions"]}
    shown = who.get(f"/contributions/{by_title['River 121']}.json?from=0&to=5").json
    hidden = who.get(f"/contributions/{by_title['River 120']}.json").json

    assert (shown["text"]["passage"], shown["text"]["after"][:10]) == ("river", " number 12")
    assert hidden["text"] is None
    assert hidden["owners"][0]["name"] == "Maria Marlow"


@pytest.mark.parametrize("span", ["from=5&to=2", "from=999999&to=9999999", "from=0&to=0"])
def test_any_span_of_a_text_is_a_part_of_it(full, span):
    """A span out of order or out of range shows the text all the same."""
    who = full.visitor()
    id = who.get("/search.json?q=River%20121").json["contributions"][0]["id"]
    text = who.get(f"/contributions/{id}.json?{span}").json["text"]

    assert (text["before"] + text["passage"] + text["after"]).startswith("river number 121")


@pytest.mark.parametrize("path", ["/epochs/7", "/contributions/ctb_nothing", "/datanets/none", "/receipts/12"])
def test_what_is_not_there_is_a_404(full, path):
    """An id that nobody knows is a page that says so."""
    assert full.visitor().get(path).status == 404


@pytest.mark.parametrize(
    "path", ["/epochs/x", "/contributions?before=x", "/contributions/c?from=-1", "/search?q=" + "a" * 200]
)
def test_a_wrong_address_is_a_400(full, path):
    """What is no number, or too long, is refused with the place that is wrong."""
    reply = full.visitor().get(path, accept="application/json")

    assert (reply.status, reply.json["code"]) == (400, "request_invalid")
