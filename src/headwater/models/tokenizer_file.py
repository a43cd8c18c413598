"""A served model's own tokenizer from a file, so that a prompt is cut here as it is cut there.

Two forms: a GGUF file, read by our own tokenizer, and a `tokenizer.json`, read by the `tokenizers` package. In both,
special tokens are honoured only where `control` is set, so a caller's text never becomes template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from headwater.core.errors import InvalidError, MissingError
from headwater.models.gguf_file import open_gguf
from headwater.models.tokenizer import load_tokenizer


def load_tokenize(path: Path) -> Callable[[str, bool], Sequence[int]]:
    """(text, control) to token ids, as the file's tokenizer makes them.

    Raises:
        MissingError: no such file, or the package that reads it is not installed.
        InvalidError: it is not a tokenizer.
    """
    if not path.is_file():
        raise MissingError(f"no tokenizer at {path}", code="tokenizer_missing", fix="give the path of its file")
    if path.suffix == ".gguf":
        own = load_tokenizer(open_gguf(path))
        return lambda text, control: own.tokenize(text, control=control)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingError(
            "the tokenizers package is not installed", code="tokenizers_missing", fix="pip install tokenizers"
        ) from None
    raw = path.read_text("utf-8")
    try:
        with_control, without = Tokenizer.from_str(raw), Tokenizer.from_str(raw)
    except Exception as error:  # the library raises nothing narrower
        raise InvalidError(
            f"{path.name} is no tokenizer: {str(error)[:200]}", code="tokenizer_invalid", fix="use tokenizer.json"
        ) from None
    without.encode_special_tokens = True  # what looks like a special token is text

    def tokenize(text: str, control: bool) -> Sequence[int]:
        chosen = with_control if control else without
        ids: list[int] = chosen.encode(text, add_special_tokens=False).ids
        return ids

    return tokenize
