"""Which rails a home has: `rails.json`, beside the deployment's own manifest. No file, no rails.

Nothing in it is secret. A rail that was never deployed is absent, and whatever asks for it is told how to get it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from headwater.core.address import format_address, parse_address
from headwater.core.canonical import refuse_deep
from headwater.core.errors import ConflictError, InvalidError, MissingError

SCHEMA = "headwater.rails/1"
RAILS = ("bond", "advance", "stream", "governance")
"""Rails of which a home has at most one each; revenue shares are one contract per subject."""


@dataclass(frozen=True, slots=True)
class Issued:
    """One revenue share: a contract whose address is the payee of its subject."""

    subject: str  # id of a datanet, an adapter or a contributor
    address: str
    name: str
    symbol: str
    supply: int  # whole shares
    terms: str  # digest of what was promised, or empty


@dataclass(frozen=True, slots=True)
class RailsManifest:
    """Addresses of the rails of one deployment."""

    chain_id: int
    token: str
    start_block: int
    bond: str | None = None
    advance: str | None = None
    stream: str | None = None
    governance: str | None = None
    shares: tuple[Issued, ...] = ()

    def __post_init__(self) -> None:
        for name in ("token", *RAILS):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, format_address(parse_address(getattr(self, name))))

    def address_of(self, rail: str) -> str:
        """Where a rail is.

        Raises:
            MissingError: this home has none.
        """
        address = getattr(self, rail)
        if address is None:
            raise MissingError(
                f"this home has no {rail}", code="rail_missing", fix=f"deploy it: headwater rails deploy {rail}"
            )
        return str(address)

    def share_of(self, subject: str) -> Issued:
        """The revenue share of a subject, or with that address.

        Raises:
            MissingError: none was issued.
        """
        for one in self.shares:
            if subject in (one.subject, one.address) or subject.lower() == one.address.lower():
                return one
        raise MissingError(
            f"no shares of {subject}", code="shares_missing", fix="issue some: headwater rails shares issue"
        )

    def with_rail(self, rail: str, address: str) -> RailsManifest:
        """The same with one more rail.

        Raises:
            ConflictError: there is one; a second would hide money in the first.
        """
        if getattr(self, rail) is not None:
            raise ConflictError(
                f"this home has its {rail} at {getattr(self, rail)}",
                code="rail_exists",
                fix="use another home for another one",
            )
        fields = {name: getattr(self, name) for name in RAILS} | {rail: address}
        return replace(self, **fields)

    def with_share(self, issued: Issued) -> RailsManifest:
        """The same with one more revenue share.

        Raises:
            ConflictError: the subject has one.
        """
        if any(one.subject == issued.subject for one in self.shares):
            raise ConflictError(
                f"there are shares of {issued.subject}", code="shares_exist", fix="one subject, one contract"
            )
        return replace(self, shares=(*self.shares, issued))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"schema": SCHEMA} | asdict(self), indent=1, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> RailsManifest:
        """Read the file.

        Raises:
            MissingError: no such file: rails are off.
            InvalidError: not such a manifest.
        """
        if not path.is_file():
            raise MissingError(
                "this home has no rails", code="rails_missing", fix="deploy one: headwater rails deploy bond"
            )
        try:
            raw = path.read_bytes()
            refuse_deep(raw)
            fields = json.loads(raw)
            if fields.pop("schema") != SCHEMA:
                raise ValueError("schema is not " + SCHEMA)
            shares = tuple(Issued(**one) for one in fields.pop("shares"))
            return cls(**fields, shares=shares)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidError(
                f"{path.name} is not a rails manifest: {error}", code="rails_invalid", fix="restore it from a copy"
            ) from None
