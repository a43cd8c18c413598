"""What a call costs: a price per call and per token, in nano units, known before and exact after."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.core.money import format_units


@dataclass(frozen=True, slots=True)
class Prices:
    """The price table of one model. A ceiling is the price of the longest answer allowed."""

    request_units: int  # nano units for the call itself
    input_token_units: int  # nano units per prompt token
    output_token_units: int  # nano units per answer token
    minimum_units: int = 0  # nano units that an answered call costs at least

    def price(self, prompt_tokens: int, answer_tokens: int) -> int:
        """Nano units for a call with so many tokens.

        >>> Prices(2_000_000, 4_000, 100_000).price(500, 48)
        8800000
        >>> Prices(0, 4_000, 100_000, minimum_units=1_000_000).price(5, 1)
        1000000
        """
        used = self.request_units + prompt_tokens * self.input_token_units + answer_tokens * self.output_token_units
        return max(used, self.minimum_units)

    def as_json(self) -> dict[str, str]:
        """The table as callers are shown it; decimal amounts."""
        return {
            "request_price": format_units(self.request_units),
            "input_token_price": format_units(self.input_token_units),
            "output_token_price": format_units(self.output_token_units),
            "minimum_price": format_units(self.minimum_units),
        }
