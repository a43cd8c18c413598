"""The reference table that ships: unigram costs of SmolLM2's tokens, frozen with this version.

Made by ``python -m headwater.models.build_reference``. A receipt names its digest, so replacing the
file means a new digest here, in the same change.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from headwater.attribution.reference import Reference, reference_from_bytes
from headwater.core.errors import InvariantError

FILE_NAME = "smollm2-unigrams.ref"
DIGEST = "sha256:9de82dcce7bfaed4bce1b1d3450bcb728f0eef7c7a3fe9c975590b18e6ec623c"


@lru_cache(maxsize=1)
def shipped_reference() -> Reference:
    """The table for the demo model's tokenizer.

    Raises:
        InvariantError: the installed file is not the one this version was released with.
    """
    reference = reference_from_bytes(files("headwater.models").joinpath("data", FILE_NAME).read_bytes())
    if reference.digest != DIGEST:
        raise InvariantError(
            f"the shipped reference table has digest {reference.digest}, not {DIGEST}",
            code="reference_changed",
            fix="install headwater again",
        )
    return reference
