"""OpenAI-compatible servers that answer instead of the model in process.

`Upstreams.ask` sends a request to the first server that can take it and gives the response as it
comes. This package does not know what a call costs, who pays it, or what the bytes mean.
"""

from headwater.models.upstream.pool import Exchange, Limits, Origin
from headwater.models.upstream.upstreams import OwnSecret, Target, Upstream, Upstreams, UpstreamState

__all__ = ["Exchange", "Limits", "Origin", "OwnSecret", "Target", "Upstream", "UpstreamState", "Upstreams"]
