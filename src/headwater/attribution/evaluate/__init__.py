"""How well estimators divide credit: planted cases, exact tables, peers, and what each would misallocate.

Knows nothing of how a model is run, where the corpus is or where tables are kept: a `Scorer` and passages come in.
"""

from headwater.attribution.evaluate.comparing import AccountReport, Comparison, Entry, MethodReport, compare
from headwater.attribution.evaluate.methods import METHODS, OUTSIDE, Setting, chosen
from headwater.attribution.evaluate.planting import PLAYERS, Case, Passage, Role, plant
from headwater.attribution.evaluate.recipes import Gold, Recipe, Recipes, read_recipes, shipped_recipes
from headwater.attribution.evaluate.tables import (
    CaseTable,
    TableScorer,
    contexts,
    held_out_halves,
    table_from_arrays,
    whole_subsets,
)

__all__ = [
    "METHODS",
    "OUTSIDE",
    "PLAYERS",
    "AccountReport",
    "Case",
    "CaseTable",
    "Comparison",
    "Entry",
    "Gold",
    "MethodReport",
    "Passage",
    "Recipe",
    "Recipes",
    "Role",
    "Setting",
    "TableScorer",
    "chosen",
    "compare",
    "contexts",
    "held_out_halves",
    "plant",
    "read_recipes",
    "shipped_recipes",
    "table_from_arrays",
    "whole_subsets",
]
