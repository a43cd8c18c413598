"""Sankey diagrams as SVG made here: nodes in layers, flows between them as wide as the money they carry.

The drawing follows from its flows alone: the same flows give the same bytes. It needs no script and no inline style;
its colours are classes of `diagrams.css`. A drawing is never the only way to read it: `rows` is the same as a table,
and every flow has a title that says its amount.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

WIDTH: Final = 960
_NODE: Final = 12
_GAP: Final = 20.0
_LEAST: Final = 1.5
_LABEL_LEAST: Final = 15.0  # a label's height: nodes are kept so far apart
_EDGE: Final = 8


@dataclass(frozen=True, slots=True)
class Flow:
    """Money from one node to another."""

    source: str
    target: str
    units: int  # nano units, > 0


@dataclass(frozen=True, slots=True)
class Node:
    """How a node is shown."""

    label: str
    tone: str = "c0"  # class of its colour: c0 to c7, prompt, adapter, base, residual
    href: str = ""
    amount: bool = True  # whether its label says how much


@dataclass(frozen=True, slots=True)
class Sankey:
    """A drawing, and the same as rows."""

    svg: Markup
    rows: tuple[tuple[str, str, int, int], ...]  # (from, to, nano units, ppb of what entered), as they are labelled


def sankey(
    flows: Sequence[Flow],
    nodes: Mapping[str, Node],
    *,
    title: str,
    money: Callable[[int], str],
    height: int = 420,
    beside: int = 0,
) -> Sankey:
    """Draw flows, which must have no circle.

    Args:
        nodes: how to show each name that a flow uses.
        title: said to readers of screens.
        money: an amount in words.
        beside: room kept to the right of the last nodes for their labels; with 0 these stand to the left.
    """
    flows = [flow for flow in flows if flow.units > 0]
    column = _columns(flows)
    inflow, outflow = defaultdict[str, int](int), defaultdict[str, int](int)
    for flow in flows:
        outflow[flow.source] += flow.units
        inflow[flow.target] += flow.units
    size = {name: max(inflow[name], outflow[name]) for name in column}
    entered = sum(size[name] for name in column if not inflow[name])
    rows = tuple(
        (nodes[f.source].label, nodes[f.target].label, f.units, f.units * 10**9 // max(1, entered)) for f in flows
    )
    if not flows:
        return Sankey(Markup(""), ())
    places = _Places(flows, column, size, height, beside)
    parts = [_band(flow, places, nodes, money) for flow in flows]
    parts += [_node(name, places, nodes[name], size[name], money) for name in column]
    drawing = Markup("").join(parts)
    return Sankey(
        Markup('<svg class="chart sankey" viewBox="0 0 {} {}" role="{}" aria-label="{}">{}</svg>').format(
            WIDTH,
            round(places.bottom + _EDGE),
            "group" if any(n.href for n in nodes.values()) else "img",
            title,
            drawing,
        ),
        rows,
    )


def _columns(flows: Sequence[Flow]) -> dict[str, int]:
    """The layer of each node: the longest way to it; names in the order they first appear."""
    before: dict[str, list[str]] = {}
    for flow in flows:
        before.setdefault(flow.source, [])
        before.setdefault(flow.target, []).append(flow.source)
    known: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in known:
            known[name] = 1 + max((of(one) for one in before[name]), default=-1)
        return known[name]

    return {name: of(name) for name in before}


class _Places:
    """Where nodes and ends of bands stand; does not leave this module."""

    def __init__(
        self, flows: Sequence[Flow], column: Mapping[str, int], size: Mapping[str, int], height: int, beside: int
    ) -> None:
        layers: defaultdict[int, list[str]] = defaultdict(list)
        for name, layer in column.items():
            layers[layer].append(name)
        self.last = max(layers)
        fullest = max(layers, key=lambda layer: len(layers[layer]))
        room = height - 2 * _EDGE - _GAP * (len(layers[fullest]) - 1)
        whole = max(sum(size[name] for name in names) for names in layers.values())
        self._scale = max(room, height * 0.35) / whole
        self._size = size
        step = (WIDTH - _NODE - beside) / max(1, self.last)
        self.turn = WIDTH * 0.75 if not beside else WIDTH  # nodes behind it have their labels to the left
        self.x = {name: layer * step for name, layer in column.items()}
        self.y: dict[str, float] = {}
        self.bottom = 0.0
        for layer in sorted(layers):
            names = sorted(layers[layer], key=lambda name: self._pull(name, flows))
            at = float(_EDGE)
            for name in names:
                self.y[name] = at
                at += max(self.tall(size[name]), _LABEL_LEAST) + _GAP
            self.bottom = max(self.bottom, at - _GAP)
        self.starts, self.ends = self._ends(flows)

    def tall(self, units: int) -> float:
        """How high an amount is drawn."""
        return max(_LEAST, units * self._scale)

    def _pull(self, name: str, flows: Sequence[Flow]) -> float:
        """The mean height of where a node's money comes from, so that few bands cross."""
        sources = [(self.y[f.source], f.units) for f in flows if f.target == name and f.source in self.y]
        total = sum(units for _, units in sources)
        return sum(y * units for y, units in sources) / total if total else 0.0

    def _ends(self, flows: Sequence[Flow]) -> tuple[dict[Flow, float], dict[Flow, float]]:
        starts, ends = {}, {}
        at = dict(self.y)
        for flow in sorted(flows, key=lambda f: (self.y[f.target], self.y[f.source])):
            starts[flow] = at[flow.source]
            at[flow.source] += flow.units * self._scale
        at = dict(self.y)
        for flow in sorted(flows, key=lambda f: (self.y[f.source], self.y[f.target])):
            ends[flow] = at[flow.target]
            at[flow.target] += flow.units * self._scale
        return starts, ends


def _band(flow: Flow, places: _Places, nodes: Mapping[str, Node], money: Callable[[int], str]) -> Markup:
    x0, x1 = places.x[flow.source] + _NODE, places.x[flow.target]
    tall = places.tall(flow.units)
    y0, y1 = places.starts[flow] + tall / 2, places.ends[flow] + tall / 2
    bend = (x1 - x0) / 2
    return Markup(
        '<path class="band {}" d="M{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}" stroke-width="{:.1f}">'
        "<title>{} → {}: {}</title></path>"
    ).format(
        *(nodes[flow.target].tone, x0, y0, x0 + bend, y0, x1 - bend, y1, x1, y1, tall),
        *(nodes[flow.source].label, nodes[flow.target].label, money(flow.units)),
    )


def _node(name: str, places: _Places, node: Node, units: int, money: Callable[[int], str]) -> Markup:
    x, y, tall = places.x[name], places.y[name], places.tall(units)
    last = x > places.turn
    label = Markup('<text x="{:.1f}" y="{:.1f}"{}>{} <tspan class="quiet">{}</tspan></text>').format(
        x - 6 if last else x + _NODE + 6,
        y + max(tall, _LABEL_LEAST) / 2 + 4,
        Markup(' text-anchor="end"') if last else "",
        node.label,
        money(units) if node.amount else "",
    )
    if node.href:
        label = Markup('<a href="{}">{}</a>').format(node.href, label)
    box = Markup('<rect class="node {}" x="{:.1f}" y="{:.1f}" width="{}" height="{:.1f}" rx="2"/>').format(
        escape(node.tone), x, y, _NODE, tall
    )
    return box + label
