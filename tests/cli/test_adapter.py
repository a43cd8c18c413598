"""`headwater adapter` and `headwater feedback` without a model: what is refused, and what an empty home shows."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.main import build_app


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one document that may be trained on and one that may not."""
    for name, use in (("open", "train"), ("closed", "ground")):
        file = tmp_path / f"{name}.txt"
        file.write_text(f"The {name} text is here.", "utf-8")
        status, _, err = run(tmp_path / "home", "contribution", "add", str(file), "--owner", "Ada", "--license",
                             "CC0-1.0", "--use", use)  # fmt: skip
        assert status == 0, err
    return tmp_path / "home"


def run(home: Path, *tokens: str) -> tuple[int, Any, Any]:
    """Status, and the JSON on standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = build_app()(
            [*tokens, "--home", str(home), "--json"], exit_on_error=False, result_action="return_value"
        )
    return status or 0, _json(out.getvalue()), _json(err.getvalue())


def _json(text: str) -> Any:
    return json.loads(text) if text.strip() else None


def ids(home: Path) -> dict[str, str]:
    """Title to contribution."""
    _, listed, _ = run(home, "contribution", "list")
    return {one["title"]: one["id"] for one in listed["contributions"]}


def test_an_empty_home_has_neither_adapters_nor_feedback(home: Path) -> None:
    """Lists are empty, and an adapter that is not there is missing."""
    assert run(home, "adapter", "list")[1] == {"adapters": []}
    assert run(home, "feedback", "list")[1] == {"feedback": []}
    status, _, err = run(home, "adapter", "show", "none")
    assert (status, err["error"]["code"]) == (1, "adapter_missing")


def test_training_is_refused_with_the_ids_before_anything_is_loaded(home: Path, tmp_path: Path) -> None:
    """A licence that does not permit it, and a withdrawal, are told by id; nothing is left behind."""
    known = ids(home)
    closed = next(i for title, i in known.items() if "closed" in title)
    opened = next(i for title, i in known.items() if "open" in title)

    status, _, err = run(home, "adapter", "train", "x", "--owner", "T", "--contribution", closed)
    assert (status, err["error"]["code"]) == (1, "training_refused")
    assert closed in err["error"]["message"]

    assert run(home, "feedback", "withdraw", opened, "--reason", "no longer mine")[1]["withdrawn"] is True
    status, _, err = run(home, "adapter", "train", "x", "--owner", "T", "--contribution", opened)
    assert (status, err["error"]["code"]) == (1, "training_refused")
    assert f"{opened}: withdrawn (no longer mine)" in err["error"]["message"]
    assert not (home / "adapters").exists()


def test_a_poisoned_pair_is_named_by_its_line(home: Path, tmp_path: Path) -> None:
    """The file and line of a bad pair are in the message, and the code says what is wrong with it."""
    opened = next(iter(ids(home).values()))
    pairs = tmp_path / "pairs.jsonl"
    good = {"prompt": "q", "chosen": "yes", "rejected": "no", "contribution": opened}
    pairs.write_text("\n".join(map(json.dumps, [good, {**good, "rejected": "YES "}])), "utf-8")

    status, _, err = run(home, "adapter", "train", "x", "--owner", "T", "--pairs", str(pairs))

    assert (status, err["error"]["code"]) == (1, "pair_without_preference")
    assert "pairs.jsonl:2" in err["error"]["message"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), "dataset_empty"),
        (("--feedback",), "dataset_empty"),
        (("--dataset", "none.jsonl"), "dataset_missing"),
        (("--contribution", "ctb_" + "0" * 32), "contribution_missing"),
        (("--rank", "0"), "recipe_invalid"),
        (("--holdout", "0.9"), "recipe_invalid"),
        (("--projection", "lm_head"), "recipe_invalid"),
        (("--license", "nonsense here"), "license_unknown"),
    ],
)
def test_bad_arguments_are_refused_with_a_code(home: Path, options: tuple[str, ...], code: str) -> None:
    """Every refusal is ours, with a fix."""
    status, _, err = run(home, "adapter", "train", "x", "--owner", "T", *options)

    assert (status, err["error"]["code"]) == (1, code)
    assert err["error"]["fix"]
