"""The rails of a home opened: the chain with whose key was asked for, and `rails.json` read and written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from headwater.chain import Chain, Deployments, signer_from_file
from headwater.cli.home import Home
from headwater.cli.options import settings
from headwater.cli.rails_backing import RAILS_FILE
from headwater.cli.settling import open_chain
from headwater.core.errors import InvalidError, RefusedError
from headwater.core.money import parse_units
from headwater.rails import RailsManifest

KeyFile = Annotated[
    Path | None, Parameter(name="--key-file", help="Who acts; the operator by default. A file with a hex key.")
]


@dataclass(frozen=True, slots=True)
class OpenRails:
    """A home whose rails are switched on."""

    home: Home
    operator: Chain
    contracts: Deployments  # with the acting key

    @property
    def path(self) -> Path:
        """Of the manifest."""
        return self.home.path / RAILS_FILE

    @property
    def manifest(self) -> RailsManifest:
        """What is deployed here.

        Raises:
            MissingError: nothing.
        """
        return RailsManifest.load(self.path)

    def manifest_or_new(self) -> RailsManifest:
        """The same, or an empty one that begins now."""
        if self.path.is_file():
            return self.manifest
        return RailsManifest(self.contracts.chain_id, self.contracts.token, self.contracts.height())

    def address_of(self, rail: str) -> str:
        """Where a rail is.

        Raises:
            MissingError: this home has none.
        """
        return self.manifest.address_of(rail)

    def provide(self, units: int) -> None:
        """See that the acting account has test tokens; a deployment in a real token mints nothing."""
        missing = units - self.contracts.balance(self.contracts.me)
        if missing > 0 and self.operator.manifest.test_token:
            self.operator.mint(self.contracts.me, missing)


@contextmanager
def open_rails(folder: Path | None, key_file: Path | None = None) -> Iterator[OpenRails]:
    """Open a home's rails.

    Raises:
        RefusedError: rails are off.
    """
    with Home(settings(folder), create=False) as home:
        if not home.settings.rails:
            raise RefusedError(
                "rails are off", code="rails_off", fix="set rails = true in headwater.toml, or HEADWATER_RAILS=1"
            )
        signer = None if key_file is None else signer_from_file(key_file)
        with open_chain(home, gas_for=() if signer is None else (signer.address,)) as (chain, _):
            acting = chain if signer is None else chain.acting_as(signer)
            yield OpenRails(home, chain, Deployments(acting))


def units_of(amount: str, where: str = "amount") -> int:
    """Millionths of a decimal amount of tokens.

    Raises:
        InvalidError: negative, or finer than a millionth.
    """
    units, rest = divmod(parse_units(amount, where=where), 1_000)
    if rest or units < 0:
        raise InvalidError(f"{where} is {amount}", code="amount_invalid", fix="give tokens with at most six decimals")
    return units
