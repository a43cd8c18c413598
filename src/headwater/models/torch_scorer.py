"""The scorer for any causal language model that `transformers` can run, on a processor or a GPU.

Prompts are walked as a prefix tree. A node's keys and values are computed once and forked, by reference, to
everything below it; nodes that are ready run together, deepest first, so memory holds few branches. The answer
is appended to the last node of each prompt, and only its positions reach the vocabulary.

Unlike `LocalScorer`, a row may differ in its last digits with what is scored beside it: about 1e-4 bits an
answer in float32, up to 1 bit in bfloat16. Needs the extra `torch`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError, InvariantError, MissingError
from headwater.models.prefix_tree import PrefixTree, build_tree
from headwater.models.smollm import file_digest
from headwater.models.window import check_window

if TYPE_CHECKING:
    import torch

TorchPrecision = Literal["float32", "bfloat16"]
Tokenize = Callable[[str, bool], Sequence[int]]
"""Text and whether special tokens are honoured in it, to token ids."""

ARITHMETIC_VERSION = 1
BATCH_TOKENS = 2048  # new tokens, padding included, that run together
CHECK_BITS = {"float32": 0.01, "bfloat16": 2.0}
"""How far a forked pass may be from a plain one before a model is refused."""


@dataclass(frozen=True, slots=True, eq=False)
class _Branch:
    """Keys and values of one node: per layer (2, heads, tokens, width), and the branch above it."""

    above: _Branch | None
    layers: tuple[torch.Tensor, ...]
    end: int  # position after its last token

    def path(self) -> list[_Branch]:
        found, branch = [self], self.above
        while branch is not None:
            found.append(branch)
            branch = branch.above
        return found[::-1]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Tokens to run after a branch: a node to keep, or the end of a prompt with the answer."""

    above: _Branch | None
    tokens: tuple[int, ...]
    node: int
    final: bool


class TorchScorer:
    """Scores answers with one `transformers` model. Calls do not overlap: hold it on one thread."""

    def __init__(
        self,
        model: Any,
        tokenize: Tokenize,
        *,
        weights_digest: str,
        context_tokens_max: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        """Take a loaded model, in evaluation mode, on the device and in the precision it has.

        A short prompt is scored in one pass and through forked caches; a model for which they differ is refused.

        Args:
            model: a causal language model of `transformers`.
            tokenize: its tokenizer, one part at a time, without tokens added by itself.
            weights_digest: ``sha256:…`` of the weights.
            context_tokens_max: longest prompt and answer together; by default the model's own.
            batch_tokens: what runs together; lower it when memory is short.

        Raises:
            InvalidError: the model's caches cannot be forked, its precision is another, or the window is too large.
        """
        trained = int(getattr(model.config, "max_position_embeddings", 0) or 0)
        window = trained if context_tokens_max is None else context_tokens_max
        if not 1 <= window <= (trained or window):
            raise InvalidError(
                f"context_tokens_max is {window}, the model's window is {trained}",
                code="context_window_invalid",
                fix=f"use at most {trained}" if trained else "give context_tokens_max",
            )
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        if dtype not in CHECK_BITS:
            raise InvalidError(
                f"the model is in {dtype}", code="precision_unknown", fix="load it in float32 or bfloat16"
            )
        self.precision: TorchPrecision = "float32" if dtype == "float32" else "bfloat16"
        self._model, self._tokenize, self._context_tokens_max, self._batch_tokens = (
            model,
            tokenize,
            window,
            max(1, batch_tokens),
        )
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        said = f"headwater torch {ARITHMETIC_VERSION} {self.precision} {weights_digest}"
        self._digest = "sha256:" + hashlib.sha256(said.encode()).hexdigest()
        self._check()

    @property
    def digest(self) -> str:
        """Digest of the weights' own digest, the precision and the version of the arithmetic."""
        return self._digest

    @property
    def context_tokens_max(self) -> int:
        """The longest prompt and answer together, in tokens."""
        return self._context_tokens_max

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:
        """Token ids of one part; special tokens are honoured only when `control`."""
        return tuple(int(token) for token in self._tokenize(text, control))

    def score(self, contexts: Sequence[Sequence[int]], answer: Sequence[int]) -> NDArray[np.float64]:
        """log2 p(answer token | context, earlier answer tokens): (contexts, answer tokens), all <= 0 and finite.

        Raises:
            InvalidError: an empty context, an unknown token, or context and answer beyond the window.
            InvariantError: the model gave a number that is not finite.
        """
        target = self._tokens(answer, "the answer")
        read = [self._tokens(context, f"context {index}") for index, context in enumerate(contexts)]
        check_window(read, target, self._context_tokens_max)
        if not read or not target:
            return np.zeros((len(read), len(target)), dtype=np.float64)
        tree = build_tree(read)
        rows = np.minimum(self._walk(tree, target), 0.0)
        if not np.isfinite(rows).all():
            raise InvariantError(
                "the model gave a log-probability that is not finite",
                code="score_not_finite",
                fix="check the weights, or use float32",
            )
        return rows[list(tree.ends)]

    def _tokens(self, ids: Sequence[int], where: str) -> tuple[int, ...]:
        tokens = tuple(int(token) for token in ids)
        for token in tokens:
            if not 0 <= token < self._vocabulary:
                raise InvalidError(
                    f"{where} holds token id {token}, outside 0..{self._vocabulary - 1}",
                    code="token_unknown",
                    fix="use ids of this model's tokenizer",
                )
        return tokens

    def _walk(self, tree: PrefixTree, answer: tuple[int, ...]) -> NDArray[np.float64]:
        """(nodes, answer tokens) log2-probabilities, filled where a prompt ends."""
        rows = np.full((len(tree.nodes), len(answer)), np.nan)
        ends = set(tree.ends)
        children: dict[int | None, list[int]] = {}
        for index, node in enumerate(tree.nodes):
            children.setdefault(node.parent, []).append(index)

        def jobs(above: _Branch | None, parent: int | None) -> list[_Job]:
            made = []
            for index in children.get(parent, ()):
                tokens = tree.nodes[index].tokens
                if index in children:
                    made.append(_Job(above, tokens, index, final=False))
                if index in ends:  # the last answer token predicts nothing that is asked for
                    made.append(_Job(above, tokens + answer[:-1], index, final=True))
            return made

        waiting = jobs(None, None)
        while waiting:
            batch = self._next(waiting)
            branches = self._run(batch, answer, rows)
            for job, branch in zip(batch, branches, strict=True):
                if branch is not None:
                    waiting += jobs(branch, job.node)
        rows[[index for index in range(len(rows)) if index not in ends]] = 0.0
        return rows

    def _next(self, waiting: list[_Job]) -> list[_Job]:
        """Take what runs next off the list: the deepest jobs of one kind, as many as fit.

        Jobs without anything before them run alone: beside a longer one their padding would see nothing at all.
        """
        batch = [waiting.pop()]
        if batch[0].above is None:
            return batch
        longest, at = len(batch[0].tokens), len(waiting) - 1
        while at >= 0:
            job = waiting[at]
            width = max(longest, len(job.tokens))
            if job.final == batch[0].final and job.above is not None:
                if width * (len(batch) + 1) > self._batch_tokens:
                    break
                batch.append(waiting.pop(at))
                longest = width
            at -= 1
        return batch

    def _run(self, batch: list[_Job], answer: tuple[int, ...], rows: NDArray[np.float64]) -> list[_Branch | None]:
        """One pass. Everything is padded on the left: [padding, past][padding, new tokens]."""
        import torch
        from transformers import DynamicCache

        device = self._model.device
        starts = [0 if job.above is None else job.above.end for job in batch]
        past, new = max(starts), max(len(job.tokens) for job in batch)
        ids = torch.zeros((len(batch), new), dtype=torch.long)
        positions = torch.zeros((len(batch), new), dtype=torch.long)
        mask = torch.zeros((len(batch), past + new), dtype=torch.long)
        for row, (job, start) in enumerate(zip(batch, starts, strict=True)):
            size = len(job.tokens)
            ids[row, new - size :] = torch.tensor(job.tokens)
            positions[row, new - size :] = torch.arange(start, start + size)
            mask[row, past - start : past] = 1
            mask[row, past + new - size :] = 1
        final = batch[0].final
        arguments: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
        arguments = {name: value.to(device) for name, value in arguments.items()}
        arguments["past_key_values"] = DynamicCache(self._past(batch, starts, past)) if past else DynamicCache()
        if self._keeps:
            arguments["logits_to_keep"] = len(answer) if final else 1
        with torch.inference_mode():
            output = self._model(**arguments, use_cache=True)
            if final:
                logits = output.logits[:, -len(answer) :].float()
                chosen = logits.gather(2, torch.tensor(answer, device=device).expand(len(batch), -1)[..., None])[..., 0]
                log2 = (chosen - logits.logsumexp(dim=2)).double() / np.log(2)
                rows[[job.node for job in batch]] = log2.cpu().numpy()
                return [None] * len(batch)
            layers = output.past_key_values.layers
            kept: list[_Branch | None] = []
            for row, (job, start) in enumerate(zip(batch, starts, strict=True)):
                size = len(job.tokens)
                own = tuple(torch.stack((one.keys[row, :, -size:], one.values[row, :, -size:])) for one in layers)
                kept.append(_Branch(job.above, own, start + size))
            return kept

    def _past(self, batch: list[_Job], starts: list[int], past: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer the keys and values before each job: (jobs, heads, past, width), zeros on the left."""
        import torch

        paths = [job.above.path() if job.above is not None else [] for job in batch]
        made = []
        for layer, sample in enumerate(paths[0][0].layers):
            whole = sample.new_zeros((2, len(batch), sample.shape[1], past, sample.shape[3]))
            for row, (path, start) in enumerate(zip(paths, starts, strict=True)):
                torch.cat([branch.layers[layer] for branch in path], dim=2, out=whole[:, row, :, past - start :])
            made.append((whole[0], whole[1]))
        return made

    def _check(self) -> None:
        """Refuse a model whose forked caches do not give what one plain pass gives."""
        import torch

        size = min(self._vocabulary, 64)
        draw = np.random.default_rng(0).integers(0, size, 40).tolist()
        head, a, b, answer = draw[:6], draw[6:15], draw[15:30], tuple(draw[30:34])
        prompts = [tuple(p) for p in (head + a + b, head + b, head + a, head)]
        if len(prompts[0]) + len(answer) > self._context_tokens_max:
            raise InvalidError(
                f"a window of {self._context_tokens_max} tokens is too small",
                code="context_window_invalid",
                fix="use at least 64",
            )
        forked = self.score(prompts, answer)
        for prompt, row in zip(prompts, forked, strict=True):
            ids = torch.tensor([[*prompt, *answer]], device=self._model.device)
            with torch.inference_mode():
                logits = self._model(input_ids=ids).logits[0, -len(answer) - 1 : -1].double()
            plain = (logits.log_softmax(1)[range(len(answer)), list(answer)] / np.log(2)).cpu().numpy()
            if not abs(float(row.sum() - plain.sum())) <= CHECK_BITS[self.precision]:
                raise InvalidError(
                    f"forked caches give {row.sum():.4f} bits where a plain pass gives {plain.sum():.4f}",
                    code="model_not_forkable",
                    fix="use a model with plain attention caches and explicit positions",
                )


def load_torch_scorer(
    folder: Path,
    *,
    precision: TorchPrecision = "float32",
    device: str | None = None,
    context_tokens_max: int | None = None,
) -> TorchScorer:
    """A scorer on a model folder in the `transformers` layout; nothing is downloaded, no code in it is run.

    Args:
        folder: with config.json, weights as safetensors, and the tokenizer's files.
        precision: of weights and products; log-probabilities are always taken in float32.
        device: such as ``cuda``; by default a GPU if there is one.
        context_tokens_max: longest prompt and answer together; by default the model's own.

    Raises:
        MissingError: torch or transformers is not installed, or there is no such folder.
        InvalidError: it holds no causal language model.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise MissingError(
            "torch and transformers are not installed", code="engine_missing", fix="pip install 'headwater[torch]'"
        ) from None
    if not (folder / "config.json").is_file():
        raise MissingError(
            f"{folder.name} holds no config.json", code="model_missing", fix="give a folder with a transformers model"
        )
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidError(
            f"{folder.name} cannot be read as a causal language model: {error}",
            code="model_unreadable",
            fix="use a folder that transformers can load, with safetensors",
        ) from None

    def tokenize(text: str, control: bool) -> Sequence[int]:
        ids: Sequence[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=not control)["input_ids"]
        return ids

    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".model", ".txt"))
    said = "\n".join(f"{path.name} {file_digest(path)}" for path in files)
    digest = "sha256:" + hashlib.sha256(said.encode()).hexdigest()
    return TorchScorer(
        model.to(where, getattr(torch, precision)).eval(),
        tokenize,
        weights_digest=digest,
        context_tokens_max=context_tokens_max,
    )
