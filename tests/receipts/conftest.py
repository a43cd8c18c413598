import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from headwater.receipts import KeySigner, Receipt

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"


@dataclass(frozen=True)
class Example:
    """The published example: a receipt with everything in it, and what another program made of it."""

    raw: bytes
    id: str
    signing_digest: bytes
    signature: str
    signer: KeySigner

    @property
    def receipt(self) -> Receipt:
        return Receipt.from_bytes(self.raw)


@pytest.fixture(scope="session")
def example() -> Example:
    """The receipt of spec/vectors/receipt_signed.json."""
    vector = json.loads((VECTORS / "receipt_signed.json").read_text("utf-8"))
    return Example(
        raw=vector["receipt"].encode(),
        id=vector["id"],
        signing_digest=bytes.fromhex(vector["signing_digest"]),
        signature=vector["signature"],
        signer=KeySigner(bytes.fromhex(vector["secret"])),
    )
