"""Charts as SVG text, drawn here: no script, no font and no file from anywhere else.

Colours are told apart by lightness as well as hue; every chart has a title that a screen reader says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

Series = Sequence[tuple[float, float]]

COLOURS = ("#2d6a9f", "#d1495b", "#3a7d44", "#e3a02b", "#6b4c9a", "#5c6670", "#17949b", "#a65628")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 320, 64, 44, 16, 16


def line_chart(
    title: str, lines: Sequence[tuple[str, Series]], *, x: str, y: str, log_x: bool = False, diagonal: bool = False
) -> str:
    """Lines over one pair of axes, with a legend."""
    points = [p for _, line in lines for p in line if not log_x or p[0] > 0]
    if not points:
        return _empty(title)
    xs = [_log(p[0]) if log_x else p[0] for p in points]
    low_x, high_x = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    low_y, high_y = min(0.0, min(p[1] for p in points)), max(p[1] for p in points)
    high_y = high_y if high_y > low_y else low_y + 1

    def at(px: float, py: float) -> tuple[float, float]:
        across = ((_log(px) if log_x else px) - low_x) / (high_x - low_x)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (py - low_y) / (high_y - low_y) * (_HEIGHT - _BOTTOM - _TOP),
        )

    parts = [_frame(low_x, high_x, low_y, high_y, x, y, log_x)]
    if diagonal:
        (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
        parts.append(
            f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" '
            'stroke="#888" stroke-dasharray="4 4" class="guide"/>'
        )
    for i, (label, line) in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(*p) for p in line if not log_x or p[0] > 0))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<rect x="{_LEFT + 12}" y="{_TOP + 8 + 18 * i}" width="12" height="4" fill="{colour}"/>'
            f'<text x="{_LEFT + 30}" y="{_TOP + 14 + 18 * i}">{escape(label)}</text>'
        )
    return _svg(title, _WIDTH, _HEIGHT, "".join(parts))


def bar_chart(title: str, bars: Sequence[tuple[str, float, float]], *, x: str) -> str:
    """Horizontal bars with half-widths of intervals, in the order given."""
    if not bars:
        return _empty(title)
    height = 40 + 28 * len(bars)
    label_width = 250
    low = min(0.0, min(v - e for _, v, e in bars))
    high = max(max(v + e for _, v, e in bars), low + 1e-12)
    scale = (_WIDTH - label_width - 80) / (high - low)
    zero = label_width + (0.0 - low) * scale
    parts = []
    for i, (label, value, error) in enumerate(bars):
        top = 8 + 28 * i
        start, width = (zero, value * scale) if value >= 0 else (zero + value * scale, -value * scale)
        middle = zero + value * scale
        parts.append(
            f'<text x="{label_width - 8}" y="{top + 14}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{start:.1f}" y="{top}" width="{max(width, 0.5):.1f}" height="18" fill="{COLOURS[0]}"/>'
            f'<line x1="{middle - error * scale:.1f}" x2="{middle + error * scale:.1f}" '
            f'y1="{top + 9}" y2="{top + 9}" stroke="#222" class="error"/>'
            f'<text x="{zero + max(0.0, (value + error) * scale) + 6:.1f}" y="{top + 14}">{_short(value)}</text>'
        )
    parts.append(f'<text x="{label_width}" y="{height - 8}">{escape(x)}</text>')
    return _svg(title, _WIDTH, height, "".join(parts))


def sankey(title: str, flows: Sequence[tuple[str, str, int]]) -> str:
    """Flows between nodes in columns from left to right; widths are amounts, a node is as high as what passes it."""
    rows = [(a, b, amount) for a, b, amount in flows if amount > 0]
    if not rows:
        return _empty(title)
    names = list(dict.fromkeys(n for a, b, _ in rows for n in (a, b)))
    depth = dict.fromkeys(names, 0)
    for _ in names:
        for a, b, _amount in rows:
            depth[b] = max(depth[b], min(depth[a] + 1, len(names)))
    through = {n: max(sum(v for a, _, v in rows if a == n), sum(v for _, b, v in rows if b == n)) for n in names}
    columns = [[n for n in names if depth[n] == d] for d in range(max(depth.values()) + 1)]
    width, height, gap, bar = 760, 420, 14, 14
    scale = min((height - 20 - gap * (len(c) - 1)) / sum(through[n] for n in c) for c in columns if c)
    place: dict[str, tuple[float, float]] = {}
    for d, column in enumerate(columns):
        y = 10.0
        for n in column:
            place[n] = (20 + d * (width - 240) / max(1, len(columns) - 1), y)
            y += through[n] * scale + gap
    leaving, arriving = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    total = sum(v for a, _, v in rows if depth[a] == 0)
    parts = []
    for i, (a, b, amount) in enumerate(rows):
        thick = amount * scale
        x0, y0 = place[a][0] + bar, place[a][1] + leaving[a] + thick / 2
        x1, y1 = place[b][0], place[b][1] + arriving[b] + thick / 2
        leaving[a] += thick
        arriving[b] += thick
        bend = (x0 + x1) / 2
        parts.append(
            f'<path d="M{x0:.1f},{y0:.1f} C{bend:.1f},{y0:.1f} {bend:.1f},{y1:.1f} {x1:.1f},{y1:.1f}" fill="none" '
            f'stroke="{COLOURS[i % len(COLOURS)]}" stroke-opacity="0.45" stroke-width="{max(thick, 0.6):.1f}">'
            f"<title>{escape(a)} to {escape(b)}: {amount / 1e9:,.2f}</title></path>"
        )
    for n in names:
        x, y = place[n]
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar}" height="{max(through[n] * scale, 1):.1f}" '
            'fill="#5c6670" class="node"/>'
            f'<text x="{x + bar + 6:.1f}" y="{y + max(through[n] * scale, 1) / 2 + 4:.1f}">'
            f"{escape(n.replace('_', ' '))} {through[n] / total:.1%}</text>"
        )
    return _svg(title, width, height, "".join(parts))


def heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], *, what: str
) -> str:
    """A table of coloured cells, darker for more, each with its number."""
    high = max((v for row in values for v in row), default=1.0) or 1.0
    left, cell_w, cell_h = 110, 150, 40
    width, height = left + cell_w * len(columns) + 10, 60 + cell_h * len(rows)
    parts = [
        f'<text x="{left + cell_w * (j + 0.5)}" y="20" text-anchor="middle">{escape(c)}</text>'
        for j, c in enumerate(columns)
    ]
    for i, label in enumerate(rows):
        y = 30 + cell_h * i
        parts.append(f'<text x="{left - 8}" y="{y + 25}" text-anchor="end">{escape(label)}</text>')
        for j, value in enumerate(values[i]):
            part = max(0.0, value / high)
            ink = "#ffffff" if part > 0.55 else "#1b1f23"
            red, green, blue = (round(240 + (c - 240) * part) for c in (45, 106, 159))
            parts.append(
                f'<rect x="{left + cell_w * j}" y="{y}" width="{cell_w - 2}" height="{cell_h - 2}" '
                f'fill="rgb({red},{green},{blue})"/>'
                f'<text x="{left + cell_w * (j + 0.5)}" y="{y + 25}" text-anchor="middle" '
                f'style="fill:{ink}">{value:.1%}</text>'
            )
    parts.append(f'<text x="{left}" y="{height - 8}">{escape(what)}</text>')
    return _svg(title, width, height, "".join(parts))


def scatter(title: str, points: Sequence[tuple[str, float, float]], *, x: str, y: str) -> str:
    """Numbered points on two logarithmic axes, with a line at y = 1 where an outlay comes back, and their names."""
    shown = [(n, a, b) for n, a, b in points if a > 0 and b > 0]
    if not shown:
        return _empty(title)
    xs, ys = [_log(a) for _, a, _ in shown], [_log(b) for *_, b in shown]
    low_x, high_x = min(xs) - 0.3, max(xs) + 0.3
    low_y, high_y = min(0.0, min(ys)) - 0.3, max(0.0, max(ys)) + 0.3

    def at(a: float, b: float) -> tuple[float, float]:
        return (
            _LEFT + (_log(a) - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (_log(b) - low_y) / (high_y - low_y) * (_HEIGHT - _BOTTOM - _TOP),
        )

    even = at(1.0, 1.0)[1]
    parts = [
        _frame(low_x, high_x, low_y, high_y, x, y, True, log_y=True),
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{even:.1f}" y2="{even:.1f}" '
        'stroke="#888" stroke-dasharray="4 4" class="guide"/>',
    ]
    for i, (name, a, b) in enumerate(shown):
        px, py = at(a, b)
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{COLOURS[i % len(COLOURS)]}">'
            f"<title>{escape(name)}</title></circle>"
            f'<text x="{px + 7:.1f}" y="{py + (4 if i % 2 else -6):.1f}">{i + 1}</text>'
            f'<text x="{_LEFT + (i % 2) * 290}" y="{_HEIGHT + 14 + 17 * (i // 2)}">{i + 1}  {escape(name)}</text>'
        )
    return _svg(title, _WIDTH, _HEIGHT + 20 + 17 * ((len(shown) + 1) // 2), "".join(parts))


def _frame(
    low_x: float, high_x: float, low_y: float, high_y: float, x: str, y: str, log_x: bool, log_y: bool = False
) -> str:
    parts = [
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM}" fill="none" stroke="#888" class="frame"/>'
    ]
    for i in range(6):
        part = i / 5
        px = _LEFT + part * (_WIDTH - _LEFT - _RIGHT)
        py = _HEIGHT - _BOTTOM - part * (_HEIGHT - _BOTTOM - _TOP)
        value_x = low_x + part * (high_x - low_x)
        shown = 10**value_x if log_x else value_x
        level = low_y + part * (high_y - low_y)
        value_y = 10**level if log_y else level
        parts.append(f'<text x="{px:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_short(shown)}</text>')
        parts.append(f'<text x="{_LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{_short(value_y)}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>')
    parts.append(
        f'<text x="14" y="{(_HEIGHT - _BOTTOM) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(_HEIGHT - _BOTTOM) / 2})">'
        f"{escape(y)}</text>"
    )
    return "".join(parts)


def _svg(title: str, width: float, height: float, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def _empty(title: str) -> str:
    return _svg(title, _WIDTH, 60, '<text x="16" y="34">nothing to show</text>')


def _log(value: float) -> float:
    return math.log10(max(value, 1e-12))


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e4 or abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.3g}"
