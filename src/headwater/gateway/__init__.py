"""The gateway: OpenAI-compatible HTTP in front of the flow, with receipts, attribution behind the answers, and health.

Does not know how an answer is generated, measured, divided or booked: that is the flow's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwater.core.on_demand import on_demand

if TYPE_CHECKING:
    from headwater.gateway.app import Gateway, GatewayOptions, create_app
    from headwater.gateway.serve import serving
    from headwater.gateway.worker import AttributionWorker, WorkerState

__all__ = ["AttributionWorker", "Gateway", "GatewayOptions", "WorkerState", "create_app", "serving"]

__getattr__ = on_demand(
    __name__,
    {
        "headwater.gateway.app": ("Gateway", "GatewayOptions", "create_app"),
        "headwater.gateway.serve": ("serving",),
        "headwater.gateway.worker": ("AttributionWorker", "WorkerState"),
    },
)
