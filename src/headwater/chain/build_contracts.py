"""Compile `contracts/` into the artifacts of the package: ``python -m headwater.chain.build_contracts``.

An artifact holds what a deployment needs and what an auditor compares: ABI, creation and runtime bytecode,
compiler version and a digest of every source it was made of. Same sources and compiler, same bytes. Only
this module needs the compiler; nothing else in the package imports it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from headwater.chain.artifacts import ARTIFACTS_FOLDER, Artifact, write_artifact
from headwater.core.canonical import digest
from headwater.core.errors import InvalidError

CONTRACTS = {
    "Payout": ("Payout.vy", "Disputes.vy", "Epochs.vy", "Money.vy", "Tree.vy"),
    "Credit": ("Credit.vy", "Money.vy"),
    "TestToken": ("TestToken.vy",),
    "Bond": ("Bond.vy", "Purse.vy", "Stewards.vy"),
    "RevenueShare": ("RevenueShare.vy", "Purse.vy"),
    "Advance": ("Advance.vy", "Purse.vy", "Stewards.vy"),
    "Lane": ("Lane.vy",),
    "Stream": ("Stream.vy", "Purse.vy"),
    "Governance": ("Governance.vy", "Stewards.vy"),
}
"""Contract name -> its sources, the one that is compiled first."""


def compile_contract(name: str, folder: Path) -> Artifact:
    """Compile one contract of `CONTRACTS` whose sources lie in `folder`.

    Raises:
        InvalidError: no compiler installed, or a source is missing.
    """
    sources = [folder / source for source in CONTRACTS[name]]
    for source in sources:
        if not source.is_file():
            raise InvalidError(f"no contract source at {source}", code="source_missing", fix="run in the repository")
    return compile_source(name, sources[0], sources)


def compile_source(name: str, source: Path, digested: list[Path]) -> Artifact:
    """Compile `source`, whose imports are looked up beside it, with digests of the files in `digested`."""
    try:
        import vyper  # type: ignore[import-untyped]
        from vyper.compiler import compile_from_file_input  # type: ignore[import-untyped]
        from vyper.compiler.input_bundle import FilesystemInputBundle  # type: ignore[import-untyped]
    except ImportError:
        raise InvalidError(
            "the contract compiler is not installed", code="compiler_missing", fix="pip install vyper==0.4.3"
        ) from None
    bundle = FilesystemInputBundle([source.parent])
    output: dict[str, Any] = compile_from_file_input(
        bundle.load_file(source.name), input_bundle=bundle, output_formats=["abi", "bytecode", "bytecode_runtime"]
    )
    return Artifact(
        name=name,
        compiler=f"vyper {vyper.__version__}",
        abi=tuple(output["abi"]),
        bytecode=output["bytecode"],
        bytecode_runtime=output["bytecode_runtime"],
        sources=tuple(sorted((path.name, digest(path.read_bytes())) for path in digested)),
    )


def main() -> int:
    """Compile every contract and write its artifact; returns the exit code."""
    folder = Path(__file__).resolve().parents[3] / "contracts"
    for name in CONTRACTS:
        artifact = compile_contract(name, folder)
        path = write_artifact(artifact, ARTIFACTS_FOLDER)
        sys.stdout.write(f"{path.name}: {len(artifact.bytecode_runtime) // 2 - 1} bytes of code, {artifact.compiler}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
