"""What a call costs: a price per call and per token, in nano units, known before and exact after."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prices:
    """The price table of one model. A ceiling is the price of the longest answer allowed."""

    request_units: int  # nano units for the call itself
    input_token_units: int  # nano units per prompt token
    output_token_units: int  # nano units per answer token

    def price(self, prompt_tokens: int, answer_tokens: int) -> int:
        """Nano units for a call with so many tokens.

        >>> Prices(2_000_000, 4_000, 100_000).price(500, 48)
        8800000
        """
        return self.request_units + prompt_tokens * self.input_token_units + answer_tokens * self.output_token_units
