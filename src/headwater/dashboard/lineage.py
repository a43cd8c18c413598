"""An adapter's lineage: what it was trained on, from what, and how it did; drawn as a graph and told as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from markupsafe import Markup

from headwater.core.errors import HeadwaterError
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say

DRAWN_MAX: Final = 12
_ROW: Final = 30
_WIDTH: Final = 760


def lineage_of(site: Site, contribution: str) -> dict[str, Any] | None:
    """The lineage record of an adapter; None when its files are not in this home."""
    try:
        stored = site.adapters.get(contribution)
    except HeadwaterError:
        return None
    lineage = stored.lineage
    return {
        "name": stored.name,
        "base": lineage.base_name,
        "base_digest": lineage.base_digest,
        "parent": lineage.parent,
        "adapter_digest": lineage.adapter_digest,
        "data_digest": lineage.data_digest,
        "code_version": lineage.code_version,
        "recipe": lineage.recipe,
        "steps": lineage.steps,
        "left_out": lineage.left_out,
        "loss_before_micronats": lineage.before.loss_micronats,
        "loss_after_micronats": lineage.after.loss_micronats,
        "trained_on": [
            {"contribution": one.contribution, "rows": one.rows, "tokens": one.tokens} for one in lineage.trained_on
        ],
    }


def lineage_drawing(lineage: Mapping[str, Any], titles: Mapping[str, str]) -> Markup:
    """The graph: base model, parent and examples on the left, the adapter on the right."""
    examples = sorted(lineage["trained_on"], key=lambda one: (-one["tokens"], one["contribution"]))
    sources: list[tuple[str, str, str]] = [(lineage["base"], "base", "")]
    if lineage["parent"] is not None:
        sources.append((say("explorer.parent", digest=lineage["parent"][7:19]), "adapter", ""))
    for one in examples[:DRAWN_MAX]:
        title = titles.get(one["contribution"], one["contribution"])
        sources.append((title if len(title) < 52 else title[:51] + "…", "c2", f"/contributions/{one['contribution']}"))
    if len(examples) > DRAWN_MAX:
        sources.append((say("explorer.more_examples", count=len(examples) - DRAWN_MAX), "c2", ""))
    height = _ROW * len(sources) + 16
    middle = height / 2
    parts = []
    for place, (label, tone, href) in enumerate(sources):
        y = 8 + _ROW * place + _ROW / 2
        text = Markup('<text x="22" y="{:.0f}">{}</text>').format(y + 4, label)
        if href:
            text = Markup('<a href="{}">{}</a>').format(href, text)
        parts.append(
            Markup(
                '<path class="line {}" d="M430 {:.0f}C520 {:.0f} 520 {:.0f} 590 {:.0f}"/>'
                '<circle class="node {}" cx="10" cy="{:.0f}" r="5"/>'
            ).format(tone, y, y, middle, middle, tone, y)
            + text
        )
    parts.append(
        Markup('<circle class="node adapter" cx="600" cy="{:.0f}" r="9"/><text x="616" y="{:.0f}">{}</text>').format(
            middle, middle + 4, lineage["name"]
        )
    )
    label = say("explorer.lineage_drawing", name=lineage["name"], count=len(examples))
    return Markup('<svg class="chart lineage" viewBox="0 0 {} {}" role="group" aria-label="{}">{}</svg>').format(
        _WIDTH, height, label, Markup("").join(parts)
    )
