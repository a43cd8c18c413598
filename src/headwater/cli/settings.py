"""`headwater settings show`: every setting, its value and where it came from."""

from __future__ import annotations

from dataclasses import fields

from cyclopts import App
from rich.markup import escape
from rich.table import Table

from headwater.cli.options import HomeOption, JsonOption, outcome
from headwater.cli.output import out, print_json
from headwater.settings import Settings, load

app = App(name="settings", help="What is configured, and where each value came from.")


@app.command
def show(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """Every setting in force."""
    with outcome(json) as result:
        found = load({"home": home})
        rows = [
            (f.name, found.settings.shown(f.name), found.sources[f.name], str(f.metadata["help"]))
            for f in fields(Settings)
        ]
        if json:
            print_json({name: {"value": value, "source": source} for name, value, source, _ in rows})
        else:
            table = Table("setting", "value", "from", "what it is", box=None)
            for name, value, source, words in rows:
                table.add_row(name, escape(value), source, words)
            out.print(table)
    return result.status
