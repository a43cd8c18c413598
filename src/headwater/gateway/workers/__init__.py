"""Several processes behind one address: workers that answer relayed calls, over the books of one head.

Knows nothing of how the head's home is opened, nor of what is done to what workers pass on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwater.core.on_demand import on_demand

if TYPE_CHECKING:
    from headwater.gateway.workers.behind import Behind
    from headwater.gateway.workers.front import Front, FrontParts
    from headwater.gateway.workers.orders import Plan
    from headwater.gateway.workers.supervisor import Supervisor, WorkerFound

__all__ = ["Behind", "Front", "FrontParts", "Plan", "Supervisor", "WorkerFound"]

__getattr__ = on_demand(
    __name__,
    {
        "headwater.gateway.workers.behind": ("Behind",),
        "headwater.gateway.workers.front": ("Front", "FrontParts"),
        "headwater.gateway.workers.orders": ("Plan",),
        "headwater.gateway.workers.supervisor": ("Supervisor", "WorkerFound"),
    },
)
