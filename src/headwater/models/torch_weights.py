"""Our stored weights as a `transformers` model: the same numbers in another engine.

Gives the torch scorer something to be compared with where no checkpoint can be downloaded, and a GGUF file a
way into it. Needs the extra `torch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import MissingError
from headwater.models.weights import LlamaWeights

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def llama_module(weights: LlamaWeights) -> LlamaForCausalLM:
    """A `LlamaForCausalLM` in float32 with the decoded weights.

    Raises:
        MissingError: torch or transformers is not installed.
    """
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise MissingError(
            "torch and transformers are not installed", code="engine_missing", fix="pip install 'headwater[torch]'"
        ) from None
    shape = weights.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=shape.context_tokens_max,
        rms_norm_eps=shape.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        tie_word_embeddings=weights.output is weights.embedding,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.device("meta"):
        module: Any = LlamaForCausalLM(config)
    state: dict[str, Any] = {
        "model.embed_tokens.weight": weights.embedding.dense(),
        "model.norm.weight": weights.final_norm,
        "lm_head.weight": weights.output.dense(),
    }
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    for index in range(shape.layers):
        layer = weights.layer(index)
        prefix = f"model.layers.{index}."
        q, k, v = np.split(layer.query_key_value.dense(), [queries, queries + keys])
        gate, up = np.split(layer.gate_up.dense(), 2)
        state |= {
            f"{prefix}input_layernorm.weight": layer.attention_norm,
            f"{prefix}post_attention_layernorm.weight": layer.ffn_norm,
            f"{prefix}self_attn.q_proj.weight": _halves(q, shape.heads),
            f"{prefix}self_attn.k_proj.weight": _halves(k, shape.kv_heads),
            f"{prefix}self_attn.v_proj.weight": v,
            f"{prefix}self_attn.o_proj.weight": layer.attention_output.dense(),
            f"{prefix}mlp.gate_proj.weight": gate,
            f"{prefix}mlp.up_proj.weight": up,
            f"{prefix}mlp.down_proj.weight": layer.down.dense(),
        }
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    tensors = {name: torch.tensor(array) for name, array in state.items()}
    module.to_empty(device="cpu")
    module.load_state_dict(tensors, strict=not config.tie_word_embeddings)
    module.tie_weights()
    # Made on the meta device, the rotary table has no numbers yet; it is computed, not stored.
    module.model.rotary_emb = type(module.model.rotary_emb)(config=config)
    made: LlamaForCausalLM = module.eval()
    return made


def _halves(matrix: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head from rotary pairs side by side, as stored, to first halves then second halves."""
    rows, columns = matrix.shape
    pairs = matrix.reshape(heads, rows // heads // 2, 2, columns)
    halves: NDArray[np.float32] = pairs.swapaxes(1, 2).reshape(rows, columns)
    return halves
