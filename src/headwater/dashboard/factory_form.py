"""What a training is asked for on a page: its name, its material, its numbers; and how long it may take.

Everything is checked before a process begins, by the rules that the training itself has. The estimate is what the
measured rates of docs/adapters.md say for so many tokens on one thread; the curve of the training tells the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from headwater.core.errors import HeadwaterError, InvalidError, RefusedError
from headwater.core.ids import ContributionId
from headwater.core.money import parse_units
from headwater.dashboard.site import Site
from headwater.models.adapters import check_name
from headwater.models.factory.recipe import Recipe, projections
from headwater.registry import parse_expression
from headwater.registry.contributor import check_name as check_owner
from headwater.store.datanet_store import DatanetStore, parse_reference
from headwater.store.exploring import HOLDS, pattern
from headwater.store.feedback_store import FeedbackStore

CONTRIBUTIONS_MAX: Final = 2_000
BYTES_A_TOKEN: Final = 4
FROZEN_TOKENS_S: Final = 220
TRAINING_TOKENS_S: Final = 360
INDEX_TOKENS_S: Final = 76
LOADING_S: Final = 6

NUMBERS: Final = (
    ("rank", "1", "64"),
    ("alpha", "0.001", "10000"),
    ("layers", "1", "30"),
    ("learning_rate", "0.0000001", "1"),
    ("batch", "1", "256"),
    ("epochs", "1", "1000"),
    ("steps_max", "0", "1000000"),
    ("tokens_max", "8", "4096"),
    ("seed", "0", "4294967295"),
)
"""Hyper-parameters that the form shows, with their range."""


@dataclass(frozen=True, slots=True)
class Order:
    """A training as it was asked for; `arguments` are the command's."""

    name: str
    arguments: tuple[str, ...]
    contributions: tuple[ContributionId, ...]
    tokens: int  # about, of one epoch
    seconds: int  # about, on one thread


def read(site: Site, form: dict[str, str], chosen: list[str], datanets: list[str]) -> Order:
    """The training that a form describes.

    Args:
        chosen: ids of contributions.
        datanets: versions such as rivers@2.

    Raises:
        HeadwaterError: a name, number, licence or reference that may not be, or nothing to train on.
    """
    name = check_name(form.get("name", "").strip())
    if name in site.adapters.names():
        raise InvalidError(f"an adapter {name!r} exists", code="adapter_exists", fix="choose another name")
    owner, license_text = check_owner(form.get("owner", "")), form.get("license", "").strip() or "Apache-2.0"
    parse_expression(license_text)
    floor = form.get("price_floor", "").strip() or "0"
    if parse_units(floor, where="price_floor") < 0:
        raise InvalidError(f"price_floor is {floor}", code="amount_out_of_range", fix="give 0 or more")
    recipe = _recipe(form)
    material = _material(site, chosen, datanets)
    with_feedback = form.get("feedback") == "on"
    if not material and not with_feedback:
        raise InvalidError(
            "there is nothing to train on", code="dataset_empty", fix="choose contributions or a datanet"
        )
    credit = form.get("credit") == "on"
    tokens = _tokens(site, material, with_feedback)
    arguments = [
        "--owner",
        owner,
        "--license",
        license_text,
        "--price-floor",
        floor,
        "--projection",
        form["projection"],
    ]
    for field, option in _OPTIONS.items():
        arguments += [option, str(getattr(recipe, field))]
    arguments += [part for one in material for part in ("--contribution", one)]
    arguments += ["--feedback"] if with_feedback else []
    arguments += [] if credit else ["--no-credit"]
    return Order(name, tuple(arguments), material, tokens, _seconds(tokens, recipe, credit))


_OPTIONS: Final = {
    "rank": "--rank", "alpha": "--alpha", "layers": "--layers", "learning_rate": "--learning-rate", "batch": "--batch",
    "epochs": "--epochs", "steps_max": "--steps", "tokens_max": "--tokens-max", "seed": "--seed",
}  # fmt: skip


def _recipe(form: dict[str, str]) -> Recipe:
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Recipe)}
    values: dict[str, Any] = {"projections": projections(form.get("projection", "q,k,v,o"))}
    for name, *_ in NUMBERS:
        text = form.get(name, "").strip()
        if not text:
            continue
        try:
            values[name] = type(defaults[name])(text)
        except ValueError:
            raise InvalidError(f"{name} is {text[:40]!r}", code="recipe_invalid", fix="give a number") from None
    return Recipe(**values)


def _material(site: Site, chosen: list[str], datanets: list[str]) -> tuple[ContributionId, ...]:
    wanted = dict.fromkeys(ContributionId(one) for one in chosen if one)
    store = DatanetStore(site.db)
    for reference in datanets:
        name, number = parse_reference(reference)
        kept = store.get(name)
        wanted |= dict.fromkeys(entry.contribution for entry in store.entries(kept, number or kept.version))
    if len(wanted) > CONTRIBUTIONS_MAX:
        raise InvalidError(
            f"{len(wanted)} contributions",
            code="dataset_too_large",
            fix=f"choose at most {CONTRIBUTIONS_MAX}, or run the command with files",
        )
    known = {one.id: one for one in site.registry.get_many(tuple(wanted))}
    for one in wanted:
        if one not in known or "train" not in known[one].license.uses:
            raise RefusedError(
                f"{one[:80]} is not registered, or its licence does not permit training",
                code="training_refused",
                fix="leave it out",
            )
    return tuple(wanted)


def _tokens(site: Site, material: tuple[ContributionId, ...], with_feedback: bool) -> int:
    size = sum(one.size_bytes for one in site.registry.get_many(material))
    if with_feedback:
        accepted = [one.contribution for one in FeedbackStore(site.db, site.registry).list("accepted")]
        size += sum(one.size_bytes for one in site.registry.get_many(accepted))
    return max(1, size // BYTES_A_TOKEN)


def _seconds(tokens: int, recipe: Recipe, credit: bool) -> int:
    trained = tokens * recipe.epochs
    if recipe.steps_max:
        trained = min(trained, recipe.steps_max * recipe.batch * recipe.tokens_max)
    layers = recipe.layers / Recipe().layers
    spent = tokens / FROZEN_TOKENS_S + layers * trained / TRAINING_TOKENS_S
    return round(LOADING_S + spent + (tokens / INDEX_TOKENS_S if credit else 0))


def trainable(site: Site, words: str, limit: int) -> list[dict[str, Any]]:
    """Contributions whose licence permits training, the newest first; those whose title holds `words` when given."""
    named, wanted = (f" AND {HOLDS.format('title')}", (pattern(words),)) if words else ("", ())
    rows = site.db.query(
        "SELECT id, title, kind, size_bytes FROM contributions WHERE ' ' || uses || ' ' LIKE '% train %'"
        f" AND kind IN ('document', 'prompt'){named} ORDER BY number DESC LIMIT ?",
        (*wanted, limit),
    )
    return [{"id": row[0], "title": row[1], "kind": row[2], "size_bytes": row[3]} for row in rows]


def versions(site: Site) -> list[dict[str, Any]]:
    """Frozen versions of datanets that may be chosen."""
    found = []
    for kept in DatanetStore(site.db).all():
        for number in range(kept.version, max(0, kept.version - 3), -1):
            reference = f"{kept.datanet.name}@{number}"
            found.append({"reference": reference, "title": kept.datanet.card.title, "members": kept.members})
    return found


def feedback_count(site: Site) -> int:
    """How many pieces of feedback are accepted."""
    try:
        return len(FeedbackStore(site.db, site.registry).list("accepted"))
    except HeadwaterError:
        return 0
