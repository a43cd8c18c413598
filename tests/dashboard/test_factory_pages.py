"""The factory's pages without a model: what is refused, the command that is run, and a training that is watched."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from measured import Measured, measured_site

from headwater.cli.adapter_progress import LOSSES_MAX, ProgressFile
from headwater.dashboard import factory

TRAINER = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
begun = (folder / "begun").exists()
(folder / "begun").touch()
losses = [[n, 4.0 - n / 10] for n in range(1, 21)]
value = {"phase": "training", "done": 20, "total": 40, "losses": losses, "tokens": 640, "cpu_s": 3.2}
(folder / "progress.json").write_text(json.dumps(value))
while not begun:
    time.sleep(0.02)
print("no more room"); sys.exit(1)
"""


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[Measured]:
    """A site over the toy home: three documents, a prompt and a base model."""
    with measured_site(tmp_path) as made:
        yield made


def order(measured: Measured, **changes: Any) -> dict[str, Any]:
    """A form as the page sends it."""
    found = measured.client("operator", "root").get("/factory.json").json()
    form: dict[str, Any] = {one["name"]: str(one["value"]) for one in found["numbers"]}
    form |= {"name": "rivers", "owner": "Ada", "license": "Apache-2.0", "price_floor": "0.01", "projection": "q,v"}
    form |= {"contribution": [one["id"] for one in found["contributions"]], "credit": "on"}
    return form | changes


def test_the_form_offers_what_may_be_trained_on(measured: Measured) -> None:
    """Documents and prompts whose licence permits it, by part of their title; no other kind."""
    client = measured.client("operator", "root")
    kinds = {one["kind"] for one in client.get("/factory.json").json()["contributions"]}
    assert kinds == {"document", "prompt"}
    assert [o["title"] for o in client.get("/factory.json?q=RIV").json()["contributions"]] == ["Rivers"]
    assert "There is no adapter yet" in client.get("/factory").text
    assert measured.client("contributor", "ctr_x").get("/factory").status_code == 403


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Not A Name"}, "Not A Name"),
        ({"owner": ""}, "name"),
        ({"price_floor": "-1"}, "-1"),
        ({"license": "no licence at all !"}, "no licence"),
        ({"rank": "0"}, "rank is 0"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"projection": "q,x"}, "q,x"),
        ({"contribution": []}, "nothing to train on"),
        ({"contribution": ["ctb_" + "0" * 32]}, "ctb_" + "0" * 32),
        ({"contribution": ["<b>"]}, "&lt;b&gt;"),
        ({"datanet": ["nowhere@1"]}, "nowhere"),
    ],
)
def test_what_could_not_be_trained_is_told_before_anything_begins(
    measured: Measured, changes: dict[str, Any], words: str
) -> None:
    """The estimate names the problem, the order is refused, and no process is started."""
    client = measured.client("operator", "root")
    assert words in measured.post(client, "/factory/estimate", order(measured, **changes)).text
    assert measured.post(client, "/factory", order(measured, **changes)).status_code in (400, 403, 404)
    assert client.get("/factory.json").json()["trainings"] == []


def test_the_command_is_the_one_of_the_command_line(measured: Measured) -> None:
    """The numbers, the material and the price of the form are its arguments; more tokens take longer."""
    read = factory.factory_form.read
    form = {name: value for name, value in order(measured).items() if isinstance(value, str)}
    chosen = order(measured)["contribution"]
    found = read(measured.site, form, chosen, [])
    command = factory._command(measured.site, found.name, found.arguments)
    assert command[1:6] == ["-m", "headwater", "adapter", "train", "rivers"]
    assert command[command.index("--price-floor") + 1] == "0.01"
    assert command[command.index("--rank") + 1] == "8"
    assert command.count("--contribution") == len(chosen) == 4
    assert "--no-credit" not in command
    longer = read(measured.site, form | {"epochs": "200"}, chosen, [])
    assert longer.seconds > found.seconds > 0
    from headwater.cli.main import build_app

    build_app().parse_args([*command[3:]], exit_on_error=False, print_error=False)  # every option is one it knows


def test_a_training_is_watched_stopped_and_gone_on_with(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows phase, loss curve and table; stopping keeps the folder, going on runs the command again."""
    monkeypatch.setattr(factory, "_command", lambda *_: [sys.executable, "-c", TRAINER, "{job}"])
    client = measured.client("operator", "root")
    path = measured.post(client, "/factory", order(measured)).headers["location"]
    until = time.monotonic() + 20
    while not client.get(f"{path}.json").json()["losses"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    page = client.get(path).text
    assert "training: 20 of 40" in page
    assert 'hx-trigger="every 1s"' in page
    assert page.count('class="line') >= 2
    assert "2.0000" in page  # the last loss, in the table
    fragment = client.get(f"{path}/progress")
    assert "hx-refresh" not in fragment.headers

    assert measured.post(client, f"{path}/stop").status_code == 303
    assert client.get(f"{path}/progress").headers["hx-refresh"] == "true"
    assert "Go on from its last state" in client.get(path).text
    assert measured.post(client, f"{path}/resume").status_code == 303
    while (found := client.get(f"{path}.json").json())["job"]["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.05)
    assert found["job"]["state"] == "failed"
    assert "no more room" in client.get(path).text


def test_progress_is_a_file_that_is_always_whole(tmp_path: Path) -> None:
    """Each state is valid JSON with every loss so far; a long curve is thinned; without a path nothing is written."""
    import json

    path = tmp_path / "progress.json"
    told = ProgressFile(path)
    told.at("frozen", 1, 4)
    for step in range(1, 4_001):
        told.step(step, 4_000, 5.0 / step, 10)
    found = json.loads(path.read_text("utf-8"))
    assert (found["phase"], found["done"], found["total"], found["tokens"]) == ("training", 4_000, 4_000, 40_000)
    assert len(found["losses"]) <= LOSSES_MAX
    assert [step for step, _ in found["losses"]] == sorted({step for step, _ in found["losses"]})
    assert list(tmp_path.iterdir()) == [path]
    ProgressFile(None).step(1, 2, 0.5, 3)
