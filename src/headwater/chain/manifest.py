"""Where a deployment lives: what a stranger needs, beside an RPC address, to read it.

Kept as a small JSON file; nothing in it is secret.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from headwater.core.address import format_address, parse_address
from headwater.core.errors import InvalidError, MissingError
from headwater.settlement.tree import Domain

SCHEMA = "headwater.deployment/1"
CONFIRMATIONS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Manifest:
    """One deployed Payout contract."""

    chain_id: int
    payout: str  # EIP-55 address
    token: str  # EIP-55 address of the ERC-20 it pays in
    token_decimals: int  # of our amounts, which is 6
    start_block: int  # its events begin here
    test_token: bool = False  # whether the token is our own, worthless one
    token_unit: int = 1  # the token's own units in one of our amounts: 10^(its decimals - 6)
    confirmations: int = 0  # blocks above a transaction before it counts; what the chain's re-organisations need
    credit: str | None = None  # EIP-55 address of a Credit contract in the same token

    def __post_init__(self) -> None:
        object.__setattr__(self, "payout", format_address(parse_address(self.payout)))
        object.__setattr__(self, "token", format_address(parse_address(self.token)))
        if self.credit is not None:
            object.__setattr__(self, "credit", format_address(parse_address(self.credit)))
        if not 0 <= self.confirmations <= CONFIRMATIONS_MAX:
            raise InvalidError(
                f"{self.confirmations} confirmations",
                code="confirmations_invalid",
                fix=f"give 0..{CONFIRMATIONS_MAX} blocks",
            )

    def domain(self, epoch: int) -> Domain:
        """What the root of `epoch` is bound to."""
        return Domain(self.chain_id, self.payout, self.token, epoch)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"schema": SCHEMA} | asdict(self), indent=1, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read the file.

        Raises:
            MissingError: no such file.
            InvalidError: not a manifest.
        """
        if not path.is_file():
            raise MissingError(f"no deployment at {path.name}", code="manifest_missing", fix="deploy first")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields.pop("schema") != SCHEMA:
                raise ValueError("schema is not " + SCHEMA)
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidError(
                f"{path.name} is not a deployment manifest: {error}", code="manifest_invalid", fix="deploy again"
            ) from None
