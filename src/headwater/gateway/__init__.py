"""The gateway: OpenAI-compatible HTTP in front of the flow, with receipts, attribution behind the answers, and health.

Does not know how an answer is generated, measured, divided or booked: that is the flow's.
"""

from headwater.gateway.app import Gateway, GatewayOptions, create_app
from headwater.gateway.serve import serve, serving
from headwater.gateway.worker import AttributionWorker, WorkerState

__all__ = ["AttributionWorker", "Gateway", "GatewayOptions", "WorkerState", "create_app", "serve", "serving"]
