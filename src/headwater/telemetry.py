"""Names of spans, metrics and their attributes, as OpenTelemetry's GenAI conventions have them; nothing else.

The conventions are still in development; these are those of version 1.45 (``gen_ai.provider.name``,
not the older ``gen_ai.system``). What has no name there begins with ``headwater.``.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "headwater.gateway"

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_ID: Final = "gen_ai.response.id"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
TOKEN_TYPE: Final = "gen_ai.token.type"
ERROR: Final = "error.type"

HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"

PRICE: Final = "headwater.price"
CURRENCY: Final = "headwater.currency"
OUTCOME: Final = "headwater.outcome"

TOKEN_USAGE: Final = "gen_ai.client.token.usage"
REQUEST_SECONDS: Final = "gen_ai.server.request.duration"
FIRST_TOKEN_SECONDS: Final = "gen_ai.server.time_to_first_token"

TOKEN_BUCKETS: Final = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576)
SECOND_BUCKETS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Bounds that the conventions advise."""
