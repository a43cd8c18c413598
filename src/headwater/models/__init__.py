"""Models: serving an answer, and scoring it on the same weights, in process.

`LlamaBackend` answers token ids with token ids; `LocalScorer` says how likely an answer is after each
of many prompts; `render_chat` cuts a chat into template and text; `shipped_reference` is the frozen
distribution that bits are counted against. `backend` holds the seam other backends fit.

Knows nothing of players, sources, prices or who is paid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwater.core.on_demand import on_demand

if TYPE_CHECKING:
    from headwater.models.backend import Backend, FinishReason, Piece, Sampling
    from headwater.models.chatml import SYSTEM_DEFAULT, ChatPiece, render_chat
    from headwater.models.linear import Precision
    from headwater.models.llama import LlamaBackend
    from headwater.models.reference_data import shipped_reference
    from headwater.models.scorer import LocalScorer, load_scorer
    from headwater.models.smollm import MODEL_NAME, file_digest, smollm_path
    from headwater.models.tokenizer import Tokenizer, load_tokenizer
    from headwater.models.weights import LlamaWeights, load_weights, tiny_weights

__all__ = [
    "MODEL_NAME",
    "SYSTEM_DEFAULT",
    "Backend",
    "ChatPiece",
    "FinishReason",
    "LlamaBackend",
    "LlamaWeights",
    "LocalScorer",
    "Piece",
    "Precision",
    "Sampling",
    "Tokenizer",
    "file_digest",
    "load_scorer",
    "load_tokenizer",
    "load_weights",
    "render_chat",
    "shipped_reference",
    "smollm_path",
    "tiny_weights",
]

__getattr__ = on_demand(
    __name__,
    {
        "headwater.models.backend": ("Backend", "FinishReason", "Piece", "Sampling"),
        "headwater.models.chatml": ("SYSTEM_DEFAULT", "ChatPiece", "render_chat"),
        "headwater.models.linear": ("Precision",),
        "headwater.models.llama": ("LlamaBackend",),
        "headwater.models.reference_data": ("shipped_reference",),
        "headwater.models.scorer": ("LocalScorer", "load_scorer"),
        "headwater.models.smollm": ("MODEL_NAME", "file_digest", "smollm_path"),
        "headwater.models.tokenizer": ("Tokenizer", "load_tokenizer"),
        "headwater.models.weights": ("LlamaWeights", "load_weights", "tiny_weights"),
    },
)
