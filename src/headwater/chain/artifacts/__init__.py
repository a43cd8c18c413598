"""Compiled contracts: what `build_contracts` wrote, read back at run time. Needs no compiler and no web3."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from headwater.core.errors import MissingError

ARTIFACTS_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Artifact:
    """One compiled contract."""

    name: str
    compiler: str  # name and full version
    abi: tuple[dict[str, Any], ...]
    bytecode: str  # 0x hex, creation code without constructor arguments
    bytecode_runtime: str  # 0x hex, without immutables
    sources: tuple[tuple[str, str], ...]  # (file name, sha256:...), sorted


@cache
def read_artifact(name: str) -> Artifact:
    """The artifact of the contract called `name`.

    Raises:
        MissingError: none was built under that name.
    """
    path = ARTIFACTS_FOLDER / f"{name}.json"
    if not path.is_file():
        raise MissingError(
            f"no compiled contract {name!r}",
            code="artifact_missing",
            fix="run python -m headwater.chain.build_contracts in the repository",
        )
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["abi"] = tuple(fields["abi"])
    fields["sources"] = tuple((file, digest) for file, digest in fields["sources"])
    return Artifact(**fields)


def write_artifact(artifact: Artifact, folder: Path) -> Path:
    """Write `artifact` into `folder`, the same bytes for the same artifact."""
    path = folder / f"{artifact.name}.json"
    path.write_text(json.dumps(asdict(artifact), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path
