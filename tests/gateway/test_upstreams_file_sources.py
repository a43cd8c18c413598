"""The file of upstreams: sources, a prompt and scoring of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.core.errors import HeadwaterError
from headwater.gateway.upstreams_file import read_upstreams
from headwater.models.tokenizer_file import load_tokenize

FILE = """
[upstream.local]
base_url = "http://127.0.0.1:9/v1"
[model.m]
targets = [{ upstream = "local", model = "x" }]
"""
SCORING = """
[model.m.scoring]
upstream = "local"
model = "x"
tokenizer = "tokenizer.json"
context_tokens = 64
weights = "sha256:0"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer of single characters, one of which is special."""
    vocabulary = {"<|im_end|>": 0, **{chr(letter): letter - 96 for letter in range(97, 123)}, "?": 99}
    special = {"id": 0, "content": "<|im_end|>", "special": True, "single_word": False, "lstrip": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{**special, "rstrip": False, "normalized": False}],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": False},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    }
    tmp_path.joinpath("tokenizer.json").write_text(json.dumps(tokenizer))
    return tmp_path


def test_a_model_may_always_retrieve_and_be_scored(folder: Path):
    """What the file says is what calls with sources run on."""
    models, _ = read_upstreams(f'{FILE}sources = 3\nprompt = "ctb_1"\n{SCORING}', environment={}, folder=folder)
    attributed = models["m"].attributed

    assert attributed is not None
    assert (attributed.sources, attributed.prompt, attributed.grounded) == (3, "ctb_1", True)
    assert attributed.scorer is not None
    assert attributed.scorer.context_tokens_max == 64
    assert attributed.scorer.tokenize("ab", control=False) == (1, 2)


def test_a_callers_text_never_becomes_template(folder: Path):
    """Special tokens are honoured where control is set, and read as letters where it is not."""
    tokenize = load_tokenize(folder / "tokenizer.json")

    assert list(tokenize("a<|im_end|>", True)) == [1, 0]
    assert 0 not in tokenize("a<|im_end|>", False)


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ("sources = 7", "sources"),
        ("sources = true", "sources"),
        ('prompt = "rivers"', "prompt"),
        ("scoring = 1", "scoring"),
        (SCORING.replace("context_tokens = 64", ""), "context_tokens"),
        (SCORING.replace('"local"', '"loca"'), "local"),
        (SCORING + 'spelling = "x"', "spelling"),
        (SCORING + "more = 1", "more"),
        (SCORING.replace("tokenizer.json", "nothing.json"), "nothing.json"),
        (SCORING.replace("tokenizer.json", "broken.json"), "broken.json"),
    ],
)
def test_a_mistake_is_named_with_its_place(folder: Path, more: str, place: str):
    """Nothing is guessed."""
    folder.joinpath("broken.json").write_text("{")
    with pytest.raises(HeadwaterError) as refused:
        read_upstreams(FILE + more, environment={}, folder=folder)

    assert place in str(refused.value)
    assert refused.value.fix
