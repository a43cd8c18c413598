"""What a stranger needs to read a deployment and to compare its code: ABIs, and the compiler's standard JSON input.

The input holds every source and setting, so that a block explorer or an auditor compiles the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from headwater.chain.artifacts import read_artifact
from headwater.chain.manifest import Manifest
from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, MissingError

SOURCES_FOLDER: Final = Path(__file__).parents[3] / "contracts"
PUBLIC_SCHEMA: Final = "headwater.contracts/1"


def describe(manifest: Manifest) -> dict[str, Any]:
    """Addresses, ABIs, compiler and source digests of a deployment, as JSON."""
    contracts = {"Payout": manifest.payout}
    if manifest.credit:
        contracts["Credit"] = manifest.credit
    if manifest.test_token:
        contracts["TestToken"] = manifest.token
    return {
        "schema": PUBLIC_SCHEMA,
        "chain_id": manifest.chain_id,
        "start_block": manifest.start_block,
        "token": manifest.token,
        "contracts": {name: _described(name, address) for name, address in contracts.items()},
    }


def standard_json(name: str, folder: Path = SOURCES_FOLDER) -> dict[str, Any]:
    """The compiler input of one of our contracts, which gives the bytes of its artifact.

    Raises:
        MissingError: the sources are not there; they are in the repository, not in the installed package.
        ConflictError: a source is not the one that was compiled.
    """
    artifact = read_artifact(name)
    sources = {}
    for file, wanted in artifact.sources:
        path = folder / file
        if not path.is_file():
            raise MissingError(
                f"no contract source {file} in {folder.name}", code="source_missing", fix="give the contracts folder"
            )
        if digest(path.read_bytes()) != wanted:
            raise ConflictError(
                f"{file} is not the source that was compiled", code="source_differs", fix="check out the same version"
            )
        sources[file] = {"content": path.read_text("utf-8")}
    return {
        "language": "Vyper",
        "sources": sources,
        "settings": {
            "evmVersion": "cancun",
            "optimize": "gas",
            "search_paths": ["."],
            "outputSelection": {f"{name}.vy": ["abi", "evm.bytecode", "evm.deployedBytecode"]},
        },
    }


def _described(name: str, address: str) -> dict[str, Any]:
    artifact = read_artifact(name)
    return {
        "address": address,
        "compiler": artifact.compiler,
        "sources": dict(artifact.sources),
        "abi": list(artifact.abi),
    }
