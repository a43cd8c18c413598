"""How a price is divided: the policy in force, the waterfall that applies it, and the words that explain it.

Knows nothing of ledgers, receipts on disk, models or chains: values in, values out.
"""

from headwater.splits.earlier import earlier_answer
from headwater.splits.explain import explain
from headwater.splits.measuring import MEASURING, UNMEASURED, Measuring, Plan
from headwater.splits.policy import COMMONS, Line, Policy
from headwater.splits.pricing import Prices
from headwater.splits.receipt_split import divide_receipt, payouts_of, recompute_split
from headwater.splits.residual_split import ResidualSplit
from headwater.splits.waterfall import Credit, Division, Findings, Payout, divide

__all__ = [
    "COMMONS",
    "MEASURING",
    "UNMEASURED",
    "Credit",
    "Division",
    "Findings",
    "Line",
    "Measuring",
    "Payout",
    "Plan",
    "Policy",
    "Prices",
    "ResidualSplit",
    "divide",
    "divide_receipt",
    "earlier_answer",
    "explain",
    "payouts_of",
    "recompute_split",
]
