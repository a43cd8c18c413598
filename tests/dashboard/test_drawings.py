"""Drawings and forecasts: what they show is what they were given, and nothing in a label becomes markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, lists, tuples

from headwater.dashboard.charts import Range, Series, bars, lines
from headwater.dashboard.contributor_forecast import AHEAD, LEAST, WEEK, forecast, interval
from headwater.dashboard.sankey import Flow, Node, sankey

HOSTILE = '"><script>x</script>'
SVG = "{http://www.w3.org/2000/svg}"


def parsed(markup: object) -> ElementTree.Element:
    """A drawing as XML, which it must be."""
    return ElementTree.fromstring(str(markup).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


@given(lists(tuples(integers(0, 3), integers(4, 7), integers(1, 10**15)), min_size=1, max_size=12))
def test_every_flow_is_drawn_with_its_amount_and_nothing_leaves_the_picture(rows: list[tuple[int, int, int]]) -> None:
    """As many bands as flows, each titled with its amount, as wide as its part; all within the frame."""
    amounts: dict[tuple[str, str], int] = {}
    for source, target, units in rows:
        amounts[f"n{source}", f"n{target}"] = amounts.get((f"n{source}", f"n{target}"), 0) + units
    flows = [Flow(a, b, units) for (a, b), units in amounts.items()]
    nodes = {name: Node(name.upper()) for pair in amounts for name in pair}
    drawn = sankey(flows, nodes, title="t", money=str)

    tree = parsed(drawn.svg)
    bands = tree.findall(f"{SVG}path")
    titles = {band.findtext(f"{SVG}title") for band in bands}
    assert titles == {f"{a.upper()} → {b.upper()}: {units}" for (a, b), units in amounts.items()}
    widths = {band.findtext(f"{SVG}title"): float(band.get("stroke-width", "0")) for band in bands}
    largest = max(flows, key=lambda flow: flow.units)
    assert widths[f"{largest.source.upper()} → {largest.target.upper()}: {largest.units}"] == max(widths.values())
    assert sum(row[2] for row in drawn.rows) == sum(units for *_, units in rows)
    height = float(tree.get("viewBox", "").split()[3])
    for box in tree.findall(f"{SVG}rect"):
        assert 0 <= float(box.get("y", "-1")) <= height
        assert float(box.get("y", "0")) + float(box.get("height", "0")) <= height + 1


def test_labels_stay_text_and_no_style_is_inline() -> None:
    """What a name holds is escaped in every drawing, and a strict content policy lets each of them through."""
    flows = sankey(
        [Flow("a", "b", 5)], {"a": Node(HOSTILE), "b": Node("B", href="/x?a=1&b=2")}, title=HOSTILE, money=str
    )
    chart = bars([HOSTILE], [Series(HOSTILE, (1.0,))], title=HOSTILE, show=str, ranges=[Range(0, 0.5, 1, 2, HOSTILE)])
    curve = lines([HOSTILE, "b"], [Series(HOSTILE, (1.0, None))], title=HOSTILE, show=str)
    for drawing in (flows.svg, chart, curve):
        parsed(drawing)
        assert "<script" not in str(drawing)
        assert not re.search(r"\s(style|on\w+)=", str(drawing))


@given(lists(floats(0, 1e12), min_size=1, max_size=60))
def test_bars_are_as_high_as_their_figures(values: list[float]) -> None:
    """The highest bar is the largest figure's, and no bar leaves the frame whatever the scale."""
    tree = parsed(bars([str(n) for n in range(len(values))], [Series("s", tuple(values))], title="t", show=str))
    heights = [float(box.get("height", "0")) for box in tree.iter(f"{SVG}rect")]
    assert len(heights) == sum(value > 0 for value in values)
    assert all(0 < height <= 240 for height in heights)


def test_nothing_to_draw_is_a_frame_without_figures() -> None:
    """Empty series and empty flows are drawn without an error."""
    assert sankey([], {}, title="t", money=str).rows == ()
    assert parsed(bars([], [], title="t", show=str)).findall(f"{SVG}rect") == []
    assert parsed(lines([], [], title="t", show=str)) is not None


def steady(rng: np.random.Generator, days: int) -> np.ndarray:
    """Much the same every day."""
    return rng.poisson(40, days) * 1e6


def weekly(rng: np.random.Generator, days: int) -> np.ndarray:
    """Busy on weekdays."""
    return rng.poisson(np.where(np.arange(days) % 7 < 5, 60, 10)) * 1e6


def sparse(rng: np.random.Generator, days: int) -> np.ndarray:
    """Now and then, then much."""
    return (rng.random(days) < 0.1) * rng.lognormal(15, 1, days)


def bursts(rng: np.random.Generator, days: int) -> np.ndarray:
    """Good and bad stretches of a week or so."""
    level, found = 1.0, np.zeros(days)
    for day in range(days):
        level = 0.85 * level + rng.normal(0, 0.5)
        found[day] = np.exp(14 + level)
    return found


@pytest.mark.parametrize("process", [steady, weekly, sparse, bursts])
@pytest.mark.parametrize("weeks", [12, 26])
def test_an_interval_for_four_in_five_holds_about_as_often(
    process: Callable[[np.random.Generator, int], np.ndarray], weeks: int
) -> None:
    """Made at the end of a past and held against what came, it covers 68 to 95 % of 300 futures of each kind."""
    rng, held = np.random.default_rng(11), 0
    for _ in range(300):
        days = process(rng, 7 * (weeks + AHEAD))
        found = days.reshape(-1, 7).sum(axis=1)
        low, _, high = interval(found[:weeks])
        held += bool(low <= found[weeks:].sum() <= high)
    assert 0.68 <= held / 300 <= 0.95


def test_a_forecast_counts_how_often_it_held_and_asks_for_three_weeks() -> None:
    """The check on the past is the same forecast made earlier; equal days are forecast exactly."""
    assert forecast([5] * (LEAST * WEEK - 1)) is None
    found = forecast([5] * 70)
    assert found is not None
    assert (found.low_units, found.middle_units, found.high_units) == (140, 140, 140)
    assert found.held == found.checks == 10 - AHEAD - LEAST + 1
    rising = forecast([10 * day for day in range(140)])
    assert rising is not None
    assert rising.held < rising.checks  # a level knows no growth, and the page says how often it missed


@given(lists(integers(0, 10**12), min_size=21, max_size=200))
def test_a_forecast_is_a_range_around_its_middle(daily: list[int]) -> None:
    """Never negative, never upside down, the same for the same past."""
    found = forecast(daily)
    assert found is not None
    assert 0 <= found.low_units <= found.middle_units <= found.high_units
    assert found == forecast(daily)
