"""How a price is divided: the policy in force, the waterfall that applies it, and the words that explain it.

Knows nothing of ledgers, receipts on disk, models or chains: values in, values out.
"""

from headwater.splits.explain import explain
from headwater.splits.policy import Line, Policy
from headwater.splits.waterfall import Credit, Division, Findings, Payout, divide

__all__ = ["Credit", "Division", "Findings", "Line", "Payout", "Policy", "divide", "explain"]
