"""`headwater attribution context` on files of cases, with a tiny model in place of the demo's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headwater.cli import attribution as noun
from headwater.cli.main import main
from headwater.models import LocalScorer, Tokenizer, tiny_weights
from headwater.models.tokenizer import byte_alphabet

BYTES = Tokenizer((*byte_alphabet(), "<|im_start|>", "<|im_end|>"), (), (256, 257))


@pytest.fixture
def scored(monkeypatch) -> list[str]:
    """A tiny model as the scorer; the answers it was asked for, one entry a call."""
    asked: list[str] = []

    class Noted(LocalScorer):
        def score(self, contexts, answer):
            asked.append(bytes(answer).decode())
            return super().score(contexts, answer)

    scorer = Noted(tiny_weights(7), BYTES, precision="float32")
    monkeypatch.setattr(noun, "load_scorer", lambda **_: scorer)
    return asked


def case(name: str, *, answer: str = "the answer", parts=None) -> dict:
    texts = parts or ["first source text", "second source text", "third one"]
    return {
        "id": name,
        "parts": [
            {"id": "open", "owner": "", "text": "<|im_start|>user\n", "fixed": True},
            *({"id": f"s{i}", "owner": f"owner-{i}", "text": text, "fixed": False} for i, text in enumerate(texts)),
            {"id": "close", "owner": "", "text": "<|im_end|>\n", "fixed": True},
        ],
        "answer": answer,
    }


def run(folder: Path, lines: list, *options: str) -> tuple[int, list[dict]]:
    (folder / "cases.jsonl").write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "attribution",
                "context",
                "--cases",
                str(folder / "cases.jsonl"),
                "--out",
                str(folder / "out.jsonl"),
                *options,
            ]
        )
    written = folder / "out.jsonl"
    return ended.value.code, [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []


def test_each_case_gets_a_line_whose_bits_add_up_to_the_texts_own_probability(tmp_path, scored) -> None:
    """Base and parts sum to the total, which is log2 p of the answer after the whole text read as one."""
    status, rows = run(tmp_path, [case("a"), case("b", answer="other words")])

    assert status == 0
    assert [row["id"] for row in rows] == ["a", "b"]
    for row, one in zip(rows, (case("a"), case("b", answer="other words")), strict=True):
        assert abs(row["base_bits"] + sum(part["bits"] for part in row["parts"]) - row["total_bits"]) < 1e-6
        text = "".join(part["text"] for part in one["parts"])
        scorer = LocalScorer(tiny_weights(7), BYTES, precision="float32")
        whole = scorer.score([BYTES.tokenize(text, control=True)], BYTES.tokenize(one["answer"], control=False))
        assert row["total_bits"] == pytest.approx(float(whole.sum()), abs=1e-6)
        assert (row["grade"], row["passes"], row["players"]) == ("A", 8, 3)
        assert {part["id"] for part in row["parts"]} == {part["id"] for part in one["parts"]}
        assert row["cpu_s"] >= 0


def test_bad_lines_are_named_by_number_and_the_rest_is_done(tmp_path, scored, capsys) -> None:
    """Not JSON, no parts, an answer of no tokens, a repeated id: each is reported, the good case is measured."""
    bad = ["{", {"id": "x"}, case("empty", answer=""), case("good"), case("good"), "[" * 100]
    status, rows = run(tmp_path, bad, "--json")

    said = json.loads(capsys.readouterr().out)
    assert status == 1
    assert [row["id"] for row in rows] == ["good"]
    assert {p["where"]: p["code"] for p in said["problems"]} == {
        "line 1": "case_invalid",
        "line 2": "case_invalid",
        "line 3": "answer_empty",
        "line 5": "case_repeated",
        "line 6": "json_too_deep",
    }


def test_a_run_is_taken_up_again_and_finished_lines_are_kept(tmp_path, scored) -> None:
    """With --resume a case that has its line, in the file or in what a cut run left, is not measured again."""
    run(tmp_path, [case("a")])
    row = json.loads((tmp_path / "out.jsonl").read_text())
    (tmp_path / "out.jsonl.partial").write_text(json.dumps({**row, "id": "b"}) + '\n{"id": "c", "par')
    scored.clear()

    status, rows = run(tmp_path, [case("a"), case("b"), case("c", answer="third")], "--resume")

    assert status == 0
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert set(scored) == {"third", "\x01"}  # the case that was left, and the warm-up
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_copies_are_merged_unless_asked_otherwise(tmp_path, scored) -> None:
    """The account says what was merged; --keep-copies measures every part as its own player."""
    long = "one two three four five six seven eight nine ten"
    _, merged = run(tmp_path, [case("a", parts=[long, long, "other"])])
    _, apart = run(tmp_path, [case("a", parts=[long, long, "other"])], "--keep-copies")

    assert (merged[0]["players"], merged[0]["copies"]) == (2, [{"copy": "s1", "original": "s0"}])
    assert (apart[0]["players"], apart[0]["merged"], apart[0]["copies"]) == (3, [], [])


def test_a_small_budget_samples_and_per_token_bits_sum_to_the_parts(tmp_path, scored) -> None:
    """Fewer passes than subsets give grade B with intervals; bits per token are written on request."""
    texts = [f"source number {i} says {i * 7}" for i in range(5)]
    _, rows = run(tmp_path, [case("a", parts=texts)], "--passes", "12", "--per-token")

    assert rows[0]["grade"] == "B"
    assert rows[0]["passes"] <= 12
    assert any(part["low"] < part["high"] for part in rows[0]["parts"])
    for part in rows[0]["parts"]:
        if not part["fixed"]:
            assert sum(rows[0]["token_bits"][part["id"]]) == pytest.approx(part["bits"], abs=1e-6)
    assert np.isfinite(rows[0]["total_bits"])


@pytest.mark.parametrize("option", [("--passes", "0"), ("--passes", "5000"), ("--tolerance-bits", "-1")])
def test_impossible_budgets_are_refused(tmp_path, scored, option) -> None:
    """The budget is checked before a model is loaded."""
    status, rows = run(tmp_path, [case("a")], *option)

    assert (status, rows, scored) == (1, [], [])


def test_the_end_of_turn_is_no_part_of_an_answer(tmp_path, scored) -> None:
    """An answer written with the template's closing token is the answer without it."""
    status, rows = run(tmp_path, [case("a"), case("b", answer="the answer<|im_end|>\n")])

    assert status == 0
    assert rows[0]["total_bits"] == rows[1]["total_bits"]
    assert set(scored) == {"the answer", "\x01"}


@pytest.mark.parametrize(
    "how", [("--seed", "1"), ("--passes", "6"), ("--per-token",), ("--keep-copies",), ("--apart",)]
)
def test_an_account_of_other_settings_is_not_taken_over(tmp_path, scored, how) -> None:
    """--resume measures again what was measured otherwise: a file never mixes settings."""
    run(tmp_path, [case("a")])
    scored.clear()
    run(tmp_path, [case("a")], "--resume", *how)

    assert "the answer" in scored


def test_a_case_whose_text_changed_is_measured_again(tmp_path, scored) -> None:
    """An id alone does not say what was measured."""
    run(tmp_path, [case("a")])
    scored.clear()
    _, rows = run(tmp_path, [case("a", answer="other words")], "--resume")

    assert "other words" in scored
    assert rows[0]["tokens"] == len("other words")


def test_an_id_with_a_line_separator_is_kept_like_any_other(tmp_path, scored) -> None:
    """U+2028 ends a line for some readers and not in JSON."""
    run(tmp_path, [case("a\u2028b")])
    scored.clear()
    run(tmp_path, [case("a\u2028b")], "--resume")

    assert scored == []


def test_the_cases_are_never_overwritten(tmp_path, scored, capsys) -> None:
    """--out must be another file than --cases."""
    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps(case("a")) + "\n")
    with pytest.raises(SystemExit) as ended:
        main(["attribution", "context", "--cases", str(cases), "--out", str(cases), "--json"])

    assert ended.value.code == 1
    assert "out_invalid" in capsys.readouterr().err
    assert json.loads(cases.read_text())["id"] == "a"


def test_a_missing_field_and_half_a_character_are_named(tmp_path, scored, capsys) -> None:
    """The message says which field is not there, or where the text cannot be written."""
    lacking = case("a")
    del lacking["answer"]
    broken = case("b", parts=["x \ud800"])
    status, _ = run(tmp_path, [lacking, broken], "--json")

    said = [p["message"] for p in json.loads(capsys.readouterr().out)["problems"]]
    assert status == 1
    assert said == ["the case has no answer", "part 1 has in text half a surrogate pair at 2"]
