"""The model served in process: llama.cpp's server inside `xllamacpp`, asked with token ids.

The server renders no chat template and reads no text: it is given the token ids that the scorer will
read. It is asked in short bursts of exact token ids; each burst goes on from the key/value cache of
the one before, in a slot that belongs to the call. That costs a millisecond a burst and gives what
the server's own stream does not: every generated id (its stream leaves out the ids of characters
that span tokens), stop strings matched on bytes, and a stop within a few tokens of the caller going away.

The listener is on loopback, on a free port, and refuses whoever lacks a key drawn at start-up.

Adapters are loaded with the server and chosen by each request. One that is not loaded yet makes a
second server with it, over the same mapped weights, to which new calls go; the first ends with its
last call. The server computes requests of one adapter together and those of different ones in turn.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from headwater.core.errors import HeadwaterError, InvalidError, MissingError, UpstreamError
from headwater.models.adapters import AdapterStore, StoredAdapter
from headwater.models.backend import Piece, Sampling, TokenLogprob
from headwater.models.gguf_file import open_gguf
from headwater.models.outlet import Opening, Outlet
from headwater.models.smollm import MODEL_NAME, file_digest, smollm_path
from headwater.models.structured import check_follows
from headwater.models.tokenizer import Tokenizer, load_tokenizer

BURST_TOKENS = 4  # after the first; more would delay text and cancelling, less would cost more round trips
REQUEST_TIMEOUT_S = 600.0
SEED_MODULUS = 2**32 - 1  # the server reads 2**32 - 1 as "draw one"
LOGPROB_MIN = -9999.0
ADAPTERS_MAX = 32  # loaded at once: each adds work to every switch
ADAPTERS_BYTES_MAX = 64 * 2**20


class LlamaBackend:
    """Serves one GGUF model and its adapters. Safe for concurrent calls; calls beyond `parallel` wait for a slot."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        name: str = MODEL_NAME,
        context_tokens_max: int = 4096,
        parallel: int = 2,
        threads: int = 1,
        tokenizer: Tokenizer | None = None,
        adapters: AdapterStore | None = None,
        adapters_bytes_max: int = ADAPTERS_BYTES_MAX,
    ) -> None:
        """Load the model, and as many adapters of its weights as may be loaded at once, and start the server.

        Args:
            path: GGUF file; by default the demo model.
            name: what callers call it.
            context_tokens_max: window of each call; at most the model's own.
            parallel: calls that run at once; each holds a window of key/value cache.
            threads: compute threads.
            tokenizer: one already loaded from the same file.
            adapters: where adapters are; without it the base model alone is served.
            adapters_bytes_max: size of the adapters loaded at once; beyond it the one used longest ago gives way.

        Raises:
            MissingError: no model file, or xllamacpp is not installed.
            InvalidError: the window is larger than the model's, or a count is not positive.
            UpstreamError: the server refused the model.
        """
        path = smollm_path() if path is None else path
        file = open_gguf(path)
        trained = int(file.value(f"{file.value('general.architecture')}.context_length"))
        if not 1 <= context_tokens_max <= trained:
            raise InvalidError(
                f"context_tokens_max is {context_tokens_max}, the model has 1..{trained} tokens",
                code="context_window_invalid",
                fix=f"use at most {trained}",
            )
        if parallel < 1 or threads < 1:
            raise InvalidError(
                f"parallel is {parallel} and threads is {threads}", code="engine_invalid", fix="use at least 1 of each"
            )
        self._name, self._digest, self._context_tokens_max = name, file_digest(path), context_tokens_max
        self._tokenizer = load_tokenizer(file) if tokenizer is None else tokenizer
        self._path, self._parallel, self._threads = path, parallel, threads
        self._store, self._adapters_bytes_max = adapters, adapters_bytes_max
        self._used: OrderedDict[str, StoredAdapter] = OrderedDict()  # loaded adapters, the one used longest ago first
        self._switch = threading.Lock()
        for stored in self._servable():
            if self._size([*self._used.values(), stored]) > adapters_bytes_max or len(self._used) == ADAPTERS_MAX:
                break  # the others are loaded when they are asked
            self._used[stored.name] = stored
        self._engine: _Engine | None = self._start()

    @property
    def name(self) -> str:
        """The model name callers use."""
        return self._name

    @property
    def digest(self) -> str:
        """Digest of the weights served: the file's SHA-256."""
        return self._digest

    @property
    def path(self) -> Path:
        """The file of the weights served."""
        return self._path

    @property
    def context_tokens_max(self) -> int:
        """The longest prompt and answer together, in tokens."""
        return self._context_tokens_max

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in use, to share with a scorer of the same weights."""
        return self._tokenizer

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the loaded adapters, the one used longest ago first."""
        return tuple(self._used)

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:
        """Token ids of a piece of prompt; special tokens are honoured only when `control`."""
        return self._tokenizer.tokenize(text, control=control)

    def with_adapter(self, name: str) -> AdapterBackend:
        """The same model with an adapter of its store, loaded when it is first asked.

        Raises:
            MissingError: no such adapter.
            InvalidError: it was trained on other weights.
        """
        stored = self._stored(name)
        return AdapterBackend(self, stored)

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, *, adapter: StoredAdapter | None = None
    ) -> Generator[Piece]:
        """Answer `prompt`: a piece for each token, then one with the finish reason. Closing it stops the model."""
        if self._engine is None:
            raise UpstreamError("the model server is closed", code="model_closed", fix="make a new backend")
        ids = [int(token) for token in prompt]
        if not ids:
            raise InvalidError("the prompt has 0 tokens", code="prompt_empty", fix="send at least one token")
        for token in ids:
            self._tokenizer.bytes_of(token)
        _check_sampling(sampling)
        if len(ids) + sampling.max_tokens > self._context_tokens_max:
            raise InvalidError(
                f"prompt of {len(ids)} and answer of up to {sampling.max_tokens} tokens do not fit "
                f"the window of {self._context_tokens_max}",
                code="context_too_long",
                fix="shorten the prompt or ask for fewer tokens",
            )
        return self._answer(ids, sampling, adapter)

    def close(self) -> None:
        """Stop the server and free the model. Calls that are under way fail."""
        with self._switch:
            if self._engine is not None:
                self._engine.close()
            self._engine = None

    def __enter__(self) -> LlamaBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> _Engine:
        files = {name: stored.gguf for name, stored in self._used.items()}
        return _Engine(
            self._path,
            self._tokenizer,
            window=self._context_tokens_max,
            parallel=self._parallel,
            threads=self._threads,
            adapters=files,
        )

    def _servable(self) -> Iterator[StoredAdapter]:
        """Whole adapters of these weights; a damaged one is left to whoever asks for it."""
        for name in self._store.names() if self._store else ():
            with contextlib.suppress(HeadwaterError):
                yield self._stored(name)

    def _stored(self, name: str) -> StoredAdapter:
        if self._store is None:
            raise MissingError(f"no adapter {name[:80]!r}", code="adapter_missing", fix="serve with an adapter store")
        stored = self._store.get(name)
        if stored.lineage.base_digest != self._digest:
            raise InvalidError(
                f"adapter {stored.name!r} was trained on {stored.lineage.base_digest}, {self._name} is {self._digest}",
                code="adapter_base_mismatch",
                fix="serve it on the base it was trained on",
            )
        self._store.check(stored)
        return stored

    @staticmethod
    def _size(adapters: Sequence[StoredAdapter]) -> int:
        return sum(stored.gguf.stat().st_size for stored in adapters)

    def _engine_for(self, adapter: StoredAdapter | None) -> _Engine:
        """A running server that has the adapter loaded."""
        with self._switch:
            if self._engine is None:
                raise UpstreamError("the model server is closed", code="model_closed", fix="make a new backend")
            if adapter is None:
                return self._engine
            self._used[adapter.name] = self._used.pop(adapter.name, adapter)
            if adapter.name in self._engine.adapters:
                return self._engine
            before = tuple(self._used)
            while len(self._used) > 1 and (
                len(self._used) > ADAPTERS_MAX or self._size(tuple(self._used.values())) > self._adapters_bytes_max
            ):
                self._used.popitem(last=False)
            try:
                self._engine = self._start()  # the one before it ends when its last call does
            except HeadwaterError:
                for name in set(before) - set(self._engine.adapters):
                    self._used.pop(name, None)
                raise
            return self._engine

    def _answer(self, ids: list[int], sampling: Sampling, adapter: StoredAdapter | None) -> Generator[Piece]:
        engine = self._engine_for(adapter)
        name = adapter.name if adapter else None
        slot = engine.slots.get()
        connection = engine.connect()
        try:
            outlet = Outlet(tuple(stop.encode("utf-8") for stop in sampling.stop))
            made, burst = 0, 1
            opening = Opening(self._tokenizer, sampling.grammar_after) if sampling.grammar_after else None
            schema = "" if opening else sampling.grammar
            if schema:
                burst = sampling.max_tokens  # a grammar is followed from its beginning, so all of it is one burst
            while True:
                burst = min(burst, sampling.max_tokens - made)
                tokens, likely, ended = engine.burst(
                    connection, slot, ids, burst, sampling, first=made == 0, adapter=name, schema=schema
                )
                opened = False
                if schema:
                    said = b"".join(self._tokenizer.bytes_of(token) for token in tokens).decode("utf-8", "replace")
                    check_follows(schema, said, whole=ended)
                elif opening is not None:
                    tokens, likely, opened = opening.take(tokens, likely)
                    ended = ended and not opened
                for place, token in enumerate(tokens):
                    yield from outlet.take(token, self._tokenizer.bytes_of(token), likely[place : place + 1])
                    if outlet.stopped:
                        ended = True
                        break
                ids.extend(tokens)
                made += len(tokens)
                if ended or made >= sampling.max_tokens:
                    yield from outlet.finish("stop" if ended else "length")
                    return
                burst = BURST_TOKENS
                if opened:
                    yield from outlet.release()
                    outlet = Outlet(())  # a stop string does not cut what has to follow a grammar
                    schema, opening, burst = sampling.grammar, None, sampling.max_tokens
        finally:
            connection.close()
            engine.slots.put(slot)


class AdapterBackend:
    """One adapter of a served model: the same server, tokenizer and window, other answers."""

    def __init__(self, base: LlamaBackend, stored: StoredAdapter) -> None:
        self._base, self.stored = base, stored

    @property
    def name(self) -> str:
        """The model name callers use."""
        return f"{self._base.name}+{self.stored.name}"

    @property
    def digest(self) -> str:
        """Digest of the base weights; the adapter's own is in its record."""
        return self._base.digest

    @property
    def context_tokens_max(self) -> int:
        """The longest prompt and answer together, in tokens."""
        return self._base.context_tokens_max

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:
        """Token ids of a piece of prompt, as the base reads it."""
        return self._base.tokenize(text, control=control)

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Generator[Piece]:
        """Answer `prompt` with the adapter applied."""
        return self._base.generate(prompt, sampling, adapter=self.stored)


class _Engine:
    """One running server with the adapters it was started with. It ends when nobody refers to it any more."""

    def __init__(
        self, path: Path, tokenizer: Tokenizer, *, window: int, parallel: int, threads: int, adapters: dict[str, Path]
    ) -> None:
        try:
            import xllamacpp
        except ImportError:
            raise MissingError(
                "xllamacpp is not installed", code="engine_missing", fix="pip install 'headwater[demo]'"
            ) from None
        self._tokenizer = tokenizer
        self._key = secrets.token_hex(24)
        self.adapters = {name: number for number, name in enumerate(adapters)}
        parameters = xllamacpp.CommonParams()
        parameters.verbosity = -1
        parameters.model.path = os.fspath(path)
        parameters.n_ctx, parameters.n_parallel = window * parallel, parallel
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.n_threads_http = parallel + 1
        parameters.api_keys = [self._key]
        parameters.ui = parameters.endpoint_slots = False
        parameters.cache_ram_mib = 0
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(os.fspath(file), 0.0) for file in adapters.values()]
        try:
            self._server: Any = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise UpstreamError(
                f"the model server did not start: {error}",
                code="model_failed",
                fix="check the model file and its adapters, and free memory",
            ) from error
        address = urlsplit(self._server.listening_address)
        self._host, self._port = address.hostname or "127.0.0.1", address.port
        self._begin()
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(parallel):
            self.slots.put(slot)

    def close(self) -> None:
        """Stop the server; calls under way fail."""
        self._server = None

    def connect(self) -> http.client.HTTPConnection:
        """A connection for the bursts of one call."""
        return http.client.HTTPConnection(self._host, self._port, timeout=REQUEST_TIMEOUT_S)

    def _begin(self) -> None:
        """Ask for one token: a server that has not begun its loop when it is told to stop never stops."""
        connection = self.connect()
        try:
            self.burst(connection, 0, [0], 1, Sampling(1), first=True)
        finally:
            connection.close()

    def burst(
        self,
        connection: http.client.HTTPConnection,
        slot: int,
        ids: list[int],
        count: int,
        sampling: Sampling,
        *,
        first: bool,
        adapter: str | None = None,
        schema: str = "",
    ) -> tuple[list[int], list[TokenLogprob], bool]:
        """Up to `count` more tokens after `ids`, how likely each was if that is asked, and whether the turn ended.

        The first burst forgets what the slot held, so an answer never depends on earlier calls. Each
        burst has a seed of its own, made from the caller's and the position.
        """
        body = {
            "prompt": ids,
            "n_predict": count,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "samplers": ["top_p", "temperature"],
            "seed": (sampling.seed * 1_000_003 + len(ids)) % SEED_MODULUS,
            "cache_prompt": not first,
            "id_slot": slot,
            "return_tokens": True,
            "stream": False,
            **({} if sampling.logprobs is None else {"n_probs": max(1, sampling.logprobs)}),
            **({"json_schema": json.loads(schema)} if schema else {}),
            "lora": [{"id": number, "scale": float(name == adapter)} for name, number in self.adapters.items()],
        }
        try:
            connection.request(
                "POST",
                "/completion",
                json.dumps(body),
                {"content-type": "application/json", "authorization": f"Bearer {self._key}"},
            )
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UpstreamError(
                f"the model server failed: {error}",
                code="model_failed",
                fix="try again; if it lasts, restart the service",
            ) from error
        if response.status != http.client.OK:
            message = answer.get("error", {}).get("message", "no message")
            if response.status == http.client.BAD_REQUEST and schema:
                raise InvalidError(
                    f"the JSON schema cannot be followed: {message[:200]}",
                    code="schema_invalid",
                    fix="send a JSON schema of objects, arrays, strings, numbers and enums",
                )
            raise UpstreamError(
                f"the model server answered {response.status}: {message}",
                code="model_failed",
                fix="try again; if it lasts, restart the service",
            )
        tokens = [int(token) for token in answer["tokens"]]
        ended = answer["stop_type"] == "eos"
        if ended and tokens and tokens[-1] in self._tokenizer.control_ids:
            tokens.pop()  # the end of the turn is not part of the answer
        likely: list[TokenLogprob] = []
        if sampling.logprobs is not None:
            rows = answer.get("completion_probabilities", [])[: len(tokens)]
            likely = [_logprob(row, sampling.logprobs) for row in rows]
        return tokens, likely, ended


def _logprob(row: dict[str, Any], top: int) -> TokenLogprob:
    """What the server says of one token."""
    best = row["top_logprobs"][:top]
    return TokenLogprob(
        *(row["token"], tuple(row["bytes"]), _finite(row["logprob"])),
        tuple((other["token"], tuple(other["bytes"]), _finite(other["logprob"])) for other in best),
    )


def _finite(logprob: float | None) -> float:
    """JSON has no infinity; the server's least number stands for it."""
    return LOGPROB_MIN if logprob is None else max(LOGPROB_MIN, float(logprob))


def _check_sampling(sampling: Sampling) -> None:
    if sampling.max_tokens < 1:
        raise InvalidError(
            f"max_tokens is {sampling.max_tokens}", code="sampling_invalid", fix="ask for at least 1 token"
        )
    if not 0.0 <= sampling.temperature <= 10.0:
        raise InvalidError(
            f"temperature is {sampling.temperature}", code="sampling_invalid", fix="use 0 to 10; 0 is greedy"
        )
    if not 0.0 < sampling.top_p <= 1.0:
        raise InvalidError(f"top_p is {sampling.top_p}", code="sampling_invalid", fix="use more than 0 and at most 1")
    if any(not stop for stop in sampling.stop):
        raise InvalidError("a stop string is empty", code="sampling_invalid", fix="leave it out")
