"""Charts over time as SVG made here: bars, stacked bars and lines, with axes that name their unit.

The same figures give the same bytes; no script, no inline style. A chart is an image to readers of screens, with
a sentence as its name; the page shows the same figures as a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

WIDTH: Final = 760
HEIGHT: Final = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 14, 30


@dataclass(frozen=True, slots=True)
class Series:
    """One line or one layer of bars, a figure for each place on the axis; None where there is none."""

    label: str
    values: tuple[float | None, ...]
    tone: str = "c0"
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """A vertical range at one place, such as an interval of a forecast."""

    place: int
    low: float
    middle: float
    high: float
    label: str


def bars(
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    title: str,
    show: Callable[[float], str],
    ranges: Sequence[Range] = (),
) -> Markup:
    """Bars, one above the other where there are several series; ranges are drawn as whiskers."""
    count = max(1, len(labels))
    sums = [sum(one.values[place] or 0 for one in series) for place in range(len(labels))]
    ticks = _ticks(max([*sums, *(r.high for r in ranges), 0.0]))
    frame = _Frame(count, ticks)
    slot = frame.slot
    parts = [frame.draw(labels, show)]
    for place in range(len(labels)):
        base = 0.0
        for one in series:
            value = one.values[place] or 0.0
            if value <= 0:
                continue
            top, bottom = frame.y(base + value), frame.y(base)
            parts.append(
                Markup(
                    '<rect class="fill {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                    "<title>{}</title></rect>"
                ).format(
                    *(one.tone, frame.x(place) + slot * 0.1, top, max(0.8, slot * 0.8), max(0.5, bottom - top)),
                    f"{labels[place]}, {one.label}: {show(value)}",
                )
            )
            base += value
    for one_range in ranges:
        x = frame.x(one_range.place) + slot / 2
        low, middle, high = (frame.y(v) for v in (one_range.low, one_range.middle, one_range.high))
        parts.append(
            Markup(
                '<g class="whisker"><title>{}</title><path d="M{x:.1f} {low:.1f}V{high:.1f}M{a:.1f} {low:.1f}H{b:.1f}'
                'M{a:.1f} {high:.1f}H{b:.1f}"/><circle cx="{x:.1f}" cy="{middle:.1f}" r="4"/></g>'
            ).format(one_range.label, x=x, low=low, high=high, middle=middle, a=x - 6, b=x + 6)
        )
    return _svg(title, Markup("").join(parts))


def lines(
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    title: str,
    show: Callable[[float], str],
    top: float | None = None,
) -> Markup:
    """Lines; a place without a figure breaks a line. Dots mark the figures where there are few."""
    largest = max((v for one in series for v in one.values if v is not None), default=0.0)
    frame = _Frame(max(1, len(labels)), _ticks(largest if top is None else top))
    parts = [frame.draw(labels, show)]
    for one in series:
        drawn, pen = [], "M"
        for place, value in enumerate(one.values):
            if value is None:
                pen = "M"
                continue
            x, y = frame.x(place) + frame.slot / 2, frame.y(value)
            drawn.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
            if len(labels) <= 40:
                parts.append(
                    Markup('<circle class="fill {}" cx="{:.1f}" cy="{:.1f}" r="2.6"><title>{}</title></circle>').format(
                        one.tone, x, y, f"{labels[place]}, {one.label}: {show(value)}"
                    )
                )
        parts.append(
            Markup('<path class="line {}{}" d="{}"><title>{}</title></path>').format(
                one.tone, " dashed" if one.dashed else "", "".join(drawn) or "M0 0", one.label
            )
        )
    return _svg(title, Markup("").join(parts))


class _Frame:
    """Axes over `count` places; does not leave this module."""

    def __init__(self, count: int, ticks: tuple[float, ...]) -> None:
        self._ticks = ticks
        self.slot = (WIDTH - _LEFT - _RIGHT) / count

    def x(self, place: int) -> float:
        """Where a place begins."""
        return _LEFT + self.slot * place

    def y(self, value: float) -> float:
        """How high a figure stands."""
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / self._ticks[-1]

    def draw(self, labels: Sequence[str], show: Callable[[float], str]) -> Markup:
        """The lines of the scale, its figures, and some of the places' names."""
        parts = [
            Markup(
                '<path class="grid" d="M{left} {y:.1f}H{right}"/><text class="quiet" x="{at}" y="{text:.1f}" '
                'text-anchor="end">{figure}</text>'
            ).format(
                left=_LEFT, right=WIDTH - _RIGHT, y=self.y(tick), at=_LEFT - 8, text=self.y(tick) + 4, figure=show(tick)
            )
            for tick in self._ticks
        ]
        every = max(1, math.ceil(len(labels) / 8))
        parts += [
            Markup('<text class="quiet" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                self.x(place) + self.slot / 2, HEIGHT - 10, label
            )
            for place, label in enumerate(labels)
            if place % every == 0
        ]
        return Markup("").join(parts)


def _ticks(largest: float) -> tuple[float, ...]:
    """Round figures from 0 to at least `largest`, three to five of them."""
    if not 1e-300 < largest < math.inf:
        return (0.0, 1.0)
    rough = largest / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough)
    return tuple(step * n for n in range(math.ceil(largest / step - 1e-9) + 1))


def _svg(title: str, body: Markup) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, body
    )
