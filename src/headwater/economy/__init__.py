"""A simulator of the economy that the rules make, running the product's own payout code over columns of people.

Public: `Scenario` (from TOML), `simulate` (one run), `figures` (what it says), `ask` (the twelve questions),
`validate` (the twelve facts), `Behaviour` (plug-ins). Everything is deterministic in (scenario, seed) and does not
depend on the number of threads.

Knows nothing of gateways, models, chains or clocks: a run is a value made from values. Only `outputs`, `report` and
`sweep` write files, and only where they are told to. What it assumes of people is listed in `assumptions`.
"""

from headwater.economy.behaviour import Behaviour, View
from headwater.economy.catalogue import QUESTIONS
from headwater.economy.figures import ABOUT, figures, flows
from headwater.economy.questions import Answer, ask
from headwater.economy.report import Material, write_report
from headwater.economy.scenario import Scenario, default_scenario, load_scenario, policy_of, scenario_from
from headwater.economy.simulation import BUILT_IN, Finished, Opening, Simulation, opening_of, simulate
from headwater.economy.validation import Fact, validate

__all__ = [
    "ABOUT",
    "BUILT_IN",
    "QUESTIONS",
    "Answer",
    "Behaviour",
    "Fact",
    "Finished",
    "Material",
    "Opening",
    "Scenario",
    "Simulation",
    "View",
    "ask",
    "default_scenario",
    "figures",
    "flows",
    "load_scenario",
    "opening_of",
    "policy_of",
    "scenario_from",
    "simulate",
    "validate",
    "write_report",
]
