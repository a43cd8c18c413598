"""`headwater influence`: build and ask an index of one's own material, and hold estimators against retraining."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", exc_type=ImportError)

from headwater.cli.main import build_app  # noqa: E402

MATERIAL = """
import torch
import torch.nn.functional as F
import headwater as hw


def losses(model, batch):
    labels = torch.tensor([y for _, y in batch])
    return F.cross_entropy(model(torch.stack([x for x, _ in batch])), labels, reduction="none")


class Material:
    def __init__(self, count=24):
        torch.manual_seed(0)
        self.model, self.task = torch.nn.Sequential(torch.nn.Linear(5, 3)), hw.Task(losses)
        items = [(torch.randn(5), k % 3) for k in range(count + 6)]
        self.examples, self.queries = items[:count], items[count:]
        self.contributors = ["ada", "ben", "cy"] * (count // 3)


def material():
    return Material()


def poisoned():
    made = Material()
    made.examples[4] = (torch.full((5,), float("nan")), 1)
    return made


def nothing():
    return object()
"""


@pytest.fixture
def loader(tmp_path, monkeypatch):
    (tmp_path / "influence_material.py").write_text(MATERIAL)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda name: f"influence_material:{name}"


def run(capsys, *arguments):
    status = build_app()([*map(str, arguments)], exit_on_error=False, result_action="return_value")
    captured = capsys.readouterr()
    return status or 0, captured.out or captured.err


def test_an_index_is_built_and_asked(tmp_path, loader, capsys):
    """`build` names the index's digest, a second build is the same one, `score` gives every contributor's interval."""
    folder, given = tmp_path / "index", ("--loader", loader("material"), "--json")
    status, out = run(capsys, "influence", "build", folder, *given)
    built = json.loads(out)
    assert (status, built["examples"], built["contributors"]) == (0, 24, 3)
    assert json.loads(run(capsys, "influence", "build", folder, *given)[1])["digest"] == built["digest"]
    status, out = run(capsys, "influence", "score", folder, *given)
    scored = json.loads(out)
    assert (status, scored["manifest"]) == (0, built["digest"])
    assert {row["contributor"] for row in scored["contributors"]} == {"ada", "ben", "cy"}
    assert all(row["low"] <= row["score"] <= row["high"] for row in scored["contributors"])


@pytest.mark.parametrize(
    ("command", "name", "code"),
    [
        ("build", "poisoned", "gradient_not_finite"),
        ("build", "nothing", "loader_invalid"),
        ("build", "absent", "loader_invalid"),
        ("score", "material", "index_missing"),
    ],
)
def test_what_cannot_be_done_says_so_and_leaves_nothing(tmp_path, loader, capsys, command, name, code):
    """Refusals exit with 1, name their code, and no index can be opened afterwards."""
    status, out = run(capsys, "influence", command, tmp_path / "index", "--loader", loader(name), "--json")
    assert status == 1
    assert json.loads(out)["error"]["code"] == code
    assert not (tmp_path / "index" / "MANIFEST.json").exists()


@pytest.mark.slow
def test_estimators_are_held_against_retraining(tmp_path, capsys):
    """`eval` retrains, writes a page with plots that needs nothing else, and says which estimator may pay."""
    page = tmp_path / "page.html"
    status, out = run(capsys, "influence", "eval", "pictures-softmax", "--subsets", 6, "--report", page, "--json")
    [found] = json.loads(out)
    assert status in (0, 1)
    assert {row["name"] for row in found["rows"]} >= {"index", "grad-dot", "grad-cos", "trak"}
    assert 0 < found["example_ceiling"] <= 1
    assert (status == 0) == (found["payout"]["index"] == "fit")
    text = page.read_text()
    assert "<svg" in text
    assert "http" not in text.replace("http-equiv", "")


def test_an_unknown_task_is_named(capsys):
    """A task that does not ship is refused with those that do."""
    status, out = run(capsys, "influence", "eval", "no-such-task", "--json")
    assert status == 1
    assert json.loads(out)["error"]["code"] == "task_unknown"
