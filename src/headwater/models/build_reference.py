"""Builds the shipped reference table: ``python -m headwater.models.build_reference OUT``.

Counts the demo model's tokens over English technical prose that any development install has: the
documentation strings and help topics of Python's standard library, and the enhancement proposals of
the `opep` wheel. The result depends on the versions of both, which its name states; the table that
ships is the one built once and kept. Prints the digest to put into `reference_data`.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.reference import Reference, build_reference
from headwater.core.errors import MissingError
from headwater.models.gguf_file import open_gguf
from headwater.models.smollm import smollm_path
from headwater.models.tokenizer import Tokenizer, load_tokenizer

PROPOSALS = "opep"


def count_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> NDArray[np.int64]:
    """How often each token occurs: (vocabulary,). Each text is read as plain text, never as template."""
    counts = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
    for text in texts:
        ids = np.array(tokenizer.tokenize(text, control=False), dtype=np.int64)
        counts += np.bincount(ids, minlength=tokenizer.vocabulary_size)
    return counts


def library_texts() -> Iterator[str]:
    """Documentation strings of the standard library's modules, in order of path; the sources are parsed, never run."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(inside):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a few library files are deliberately not valid source
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text
        if inside == ("pydoc_data", "topics.py"):
            yield from (
                node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            )


def proposal_texts() -> Iterator[str]:
    """The proposals of the `opep` wheel, in order of name; its code is never imported.

    Raises:
        MissingError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(PROPOSALS)
    if spec is None or spec.origin is None:
        raise MissingError(
            f"the corpus {PROPOSALS} is not installed", code="corpus_missing", fix="pip install opep==2020.10.1"
        )
    for path in sorted((Path(spec.origin).parent / "peps").glob("*.md")):
        yield path.read_text(encoding="utf-8", errors="replace")


def build() -> Reference:
    """The table of this install's corpus."""
    tokenizer = load_tokenizer(open_gguf(smollm_path()))
    counts = count_tokens(tokenizer, library_texts()) + count_tokens(tokenizer, proposal_texts())
    library = ".".join(map(str, sys.version_info[:3]))
    name = f"smollm2 unigrams: python {library} docs, {PROPOSALS} {version(PROPOSALS)}, {counts.sum()} tokens"
    return build_reference(counts, name=name)


def main(arguments: list[str]) -> int:
    """Write the table to the path given and print what it is."""
    if len(arguments) != 1:
        print("usage: python -m headwater.models.build_reference OUT", file=sys.stderr)
        return 2
    reference = build()
    data = reference.to_bytes()
    Path(arguments[0]).write_bytes(data)
    print(f"{reference.name}\n{reference.digest}\n{len(data)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
