"""Different adapters in one batch: held against the same model with the adapter's product added to its weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", exc_type=ImportError)
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

from headwater.core.errors import InvalidError, MissingError  # noqa: E402
from headwater.models.lora import Lora  # noqa: E402
from headwater.models.mixed_adapters import (  # noqa: E402
    Crossover,
    MixedAdapters,
    added_gathered,
    added_grouped,
    complete_batch,
    loader_of,
)

WIDE, RANK = 32, 4


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=WIDE,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


def adapter(name, seed, rank=RANK, size=0.5):
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(2):
        for part, outputs in (("q_proj", WIDE), ("v_proj", WIDE // 2)):
            a, b = rng.normal(0, size, (rank, WIDE)), rng.normal(0, size, (outputs, rank))
            tensors[f"model.layers.{layer}.self_attn.{part}"] = (a.astype(np.float32), b.astype(np.float32))
    return Lora(name, "sha256:" + "0" * 64, rank, 2.0 * rank, tensors, 2.0)


LORAS = {f"a{k}": adapter(f"a{k}", k, rank=RANK - k % 2) for k in range(6)}


def merged(lora):
    """The reference: a model whose weights hold the adapter."""
    model = llama()
    parts = dict(model.named_modules())
    with torch.no_grad():
        for name, (a, b) in lora.tensors.items():
            parts[name].weight += lora.scale * torch.from_numpy(b) @ torch.from_numpy(a)
    return model


def mixed(model, **options):
    options.setdefault("crossover", Crossover(2, 2, 4))
    return MixedAdapters(model, loader_of(LORAS), rank_max=RANK, **options)


@pytest.mark.parametrize("names", [("a0", "a1", "a2", None), ("a3", "a3", None, "a4"), (None,) * 4, ("a5",) * 4])
@pytest.mark.parametrize("way", [True, False])
def test_each_row_is_what_its_adapter_alone_gives(names, way):
    """In a mixed batch every row equals the row of a model into which its adapter has been merged, either way."""
    model, ids = llama(), torch.randint(0, 64, (4, 9), generator=torch.Generator().manual_seed(1))
    adapters = mixed(model)
    adapters._forced = way
    with adapters.using(names), torch.no_grad():
        found = model(ids).logits
    for row, name in enumerate(names):
        reference = llama() if name is None else merged(LORAS[name])
        with torch.no_grad():
            expected = reference(ids[row : row + 1]).logits[0]
        np.testing.assert_allclose(found[row], expected, atol=2e-4)


def test_answers_of_a_batch_are_the_answers_alone():
    """Greedy answers of prompts of different lengths in one batch are those of each prompt by itself."""
    model = llama()
    adapters = mixed(model)
    prompts, names = [[5, 9, 11], [7], [3, 3, 8, 1, 2]], ["a0", "a1", None]
    together = complete_batch(model, adapters, prompts, names, 6)
    for prompt, name, answer in zip(prompts, names, together, strict=True):
        reference = llama() if name is None else merged(LORAS[name])
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == ids[len(prompt) :]


def test_the_slot_used_longest_ago_gives_way():
    """The cap holds so many adapters; another one takes the slot of the one used longest ago, never of this batch."""
    model = llama()
    size = mixed(model).slot_bytes
    adapters = mixed(model, memory_bytes_max=2 * size + 5)
    assert adapters.slots == 2
    for batch in (["a0"], ["a1"], ["a0"], ["a2"]):
        with adapters.using(batch):
            pass
    assert adapters.resident() == ("a0", "a2")
    with adapters.using(["a3", "a0"]):
        assert set(adapters.resident()) == {"a0", "a3"}
    with pytest.raises(InvalidError) as caught, adapters.using(["a0", "a1", "a2"]):
        pass
    assert caught.value.code == "adapter_slots_few"


def test_an_adapter_that_was_trained_anew_is_loaded_anew():
    """The same name with other factors does not answer from the old slot."""
    model, loras = llama(), {"a": adapter("a", 1)}
    adapters = MixedAdapters(model, loader_of(loras), rank_max=RANK, crossover=Crossover(1, 1, 4))
    ids = torch.arange(6)[None]
    with adapters.using(["a"]), torch.no_grad():
        model(ids)
    loras["a"] = adapter("a", 2)
    with adapters.using(["a"]), torch.no_grad():
        found = model(ids).logits[0]
        np.testing.assert_allclose(found, merged(loras["a"])(ids).logits[0].detach(), atol=2e-4)


def test_both_ways_agree_and_the_choice_is_measured():
    """Grouped and gathered give the same sums; a choice is made for one and for many tokens."""
    generator = torch.Generator().manual_seed(3)
    x, a, b = (torch.randn(*s, generator=generator) for s in ((5, 3, 8), (4, 2, 8), (4, 6, 2)))
    rows = torch.tensor([0, 3, -1, 3, 1])
    np.testing.assert_allclose(added_grouped(x, rows, a, b), added_gathered(x, rows, a, b), atol=1e-5)
    measured = mixed(llama(), crossover=None, batch=4).crossover
    assert 0 <= measured.one_token <= 4
    assert 0 <= measured.many_tokens <= 4
    assert measured.batch == 4
    assert Crossover(2, 4, 8).grouped(2, 8, 1)
    assert not Crossover(2, 4, 8).grouped(3, 8, 1)
    assert Crossover(2, 4, 8).grouped(3, 8, 32)


def test_what_does_not_fit_is_refused():
    """Unknown adapters, too high a rank, a cap under one adapter and a batch of another size are clear errors."""
    model = llama()
    adapters = mixed(model)
    with pytest.raises(MissingError), adapters.using(["nobody"]):
        pass
    high = MixedAdapters(model, loader_of({"h": adapter("h", 1, 8)}), rank_max=RANK, crossover=Crossover(1, 1, 4))
    with pytest.raises(InvalidError) as caught, high.using(["h"]):
        pass
    assert caught.value.code == "adapter_slots_misfit"
    with pytest.raises(InvalidError) as caught:
        mixed(model, memory_bytes_max=10)
    assert caught.value.code == "adapter_slots_invalid"
    with pytest.raises(InvalidError) as caught, adapters.using(["a0", "a1"]):
        model(torch.zeros(3, 2, dtype=torch.long))
    assert caught.value.code == "adapter_rows_differ"
    with pytest.raises(InvalidError):
        complete_batch(model, adapters, [[]], ["a0"], 3)
