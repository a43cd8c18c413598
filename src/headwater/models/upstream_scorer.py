"""The scorer for a server that returns the log-probabilities of a prompt: vLLM's completions API.

Prompt and answer go out as token ids in one `POST /v1/completions` (several prompts a request); what comes
back is the log-probability of every prompt token, of which the answer's are kept. Two spellings are known:
``prompt_logprobs`` (vLLM), and ``echo`` with ``logprobs`` (the older form, which several servers speak).

What was measured is kept until it is asked for again, so a call that failed midway resumes where it stopped.
The ids of every row are compared with those sent: a server that reads the ids otherwise is refused.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from headwater.core.canonical import refuse_deep
from headwater.core.errors import HeadwaterError, InvalidError, UpstreamError
from headwater.models.window import check_window

Spelling = Literal["prompt_logprobs", "echo"]
Tokenize = Callable[[str, bool], Sequence[int]]
"""Text and whether special tokens are honoured in it, to token ids."""

PROTOCOL_VERSION = 1
RESPONSE_SIZE_BYTES_MAX = 256 * 2**20
KEPT_ROWS_MAX = 65_536
LOGPROB_MIN = -9_000.0
"""Natural logarithm below which a server has clipped minus infinity."""
LOGPROB_SLACK = 1e-3
"""How far above zero rounding may leave a log-probability."""
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class UpstreamScorer:
    """Scores answers on a served model. Safe for concurrent calls."""

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenize: Tokenize,
        *,
        context_tokens_max: int,
        weights_digest: str,
        spelling: Spelling = "prompt_logprobs",
        api_key: str | None = None,
        timeout_s: float = 120.0,
        attempts: int = 3,
        pause_s: float = 0.5,
        batch: int = 16,
        parallel: int = 2,
    ) -> None:
        """Nothing is sent yet; `check` asks the server.

        Args:
            base_url: such as ``http://127.0.0.1:8000/v1``.
            model: the name it serves the model under.
            tokenize: the served model's own tokenizer, run here, so that a caller's text never becomes template.
            context_tokens_max: longest prompt and answer together.
            weights_digest: what is served, as its operator states it; the server cannot prove it.
            spelling: how log-probabilities of the prompt are asked for.
            api_key: sent as a bearer token.
            timeout_s: for each connection, and for each wait for bytes.
            attempts: how often a request is tried in all; only what may succeed later is tried again.
            pause_s: before the second attempt; doubled before each further one.
            batch: prompts in one request.
            parallel: requests at once.

        Raises:
            InvalidError: an address, or a number, that cannot be used.
        """
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InvalidError(
                f"{base_url!r} is no http address", code="upstream_url_invalid", fix="write http://host:port/v1"
            )
        if min(context_tokens_max, attempts, batch, parallel) < 1 or timeout_s <= 0 or pause_s < 0:
            raise InvalidError(
                "a limit of the upstream is not positive", code="upstream_limit_invalid", fix="use at least 1"
            )
        self._address, self._path = address, address.path.rstrip("/")
        self._model, self._tokenize, self._spelling, self._key = model, tokenize, spelling, api_key
        self._context_tokens_max, self._batch, self._parallel = context_tokens_max, batch, parallel
        self._timeout_s, self._attempts, self._pause_s = timeout_s, attempts, pause_s
        said = f"headwater upstream {PROTOCOL_VERSION} {spelling} {model} {weights_digest}"
        self._digest = "sha256:" + hashlib.sha256(said.encode()).hexdigest()
        self._kept: OrderedDict[bytes, NDArray[np.float64]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:
        """Digest of the model's name, what its operator says of its weights, and how it is asked."""
        return self._digest

    @property
    def context_tokens_max(self) -> int:
        """The longest prompt and answer together, in tokens."""
        return self._context_tokens_max

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:
        """Token ids of one part; special tokens are honoured only when `control`."""
        return tuple(int(token) for token in self._tokenize(text, control))

    def check(self, text: str = "The river's source, 1 of 2: über-naïve 🦊.") -> None:
        """Ask the server whether it serves the model, with a window as large as stated, and reads `text` as we do.

        Raises:
            UpstreamError: it cannot be reached.
            InvalidError: it does not serve the model, its window is smaller, or its tokenizer is another.
        """
        listed = self._exchange("GET", "/models", None)
        cards = {str(card.get("id")): card for card in _list(listed.get("data")) if isinstance(card, dict)}
        if self._model not in cards:
            raise InvalidError(
                f"the server has no model {self._model!r}",
                code="model_not_found",
                fix=f"use one of {sorted(cards)[:5]}",
            )
        window = cards[self._model].get("max_model_len")
        if isinstance(window, int) and window < self._context_tokens_max:
            raise InvalidError(
                f"context_tokens_max is {self._context_tokens_max}, the server's window is {window}",
                code="context_window_invalid",
                fix=f"use at most {window}",
            )
        ours = self.tokenize(text, control=False)
        body = {"model": self._model, "prompt": text, "max_tokens": 1, "temperature": 0, "add_special_tokens": False}
        given = self._exchange("POST", "/completions", body | self._asking())
        counted = given.get("usage")
        count = counted.get("prompt_tokens") if isinstance(counted, dict) else None
        if count != len(ours):
            raise _mismatch(f"the server reads {count} tokens where our tokenizer reads {len(ours)}")
        choices = _list(given.get("choices"))
        if len(choices) != 1 or not isinstance(choices[0], dict):
            raise UpstreamError(
                f"the server gave {len(choices)} answers to 1 prompt",
                code="upstream_malformed",
                fix="check that it speaks the completions API",
            )
        self._read(choices[0], ours, len(ours) - 1)  # compares the ids themselves where the server names them

    def score(self, contexts: Sequence[Sequence[int]], answer: Sequence[int]) -> NDArray[np.float64]:
        """log2 p(answer token | context, earlier answer tokens): (contexts, answer tokens), all <= 0 and finite.

        Raises:
            InvalidError: an empty context, or context and answer beyond the window; the server's tokenizer differs.
            UpstreamError: no answer after all attempts, or one that is not finite. What was measured is kept: the
                same call goes on with the rest.
        """
        target = tuple(int(token) for token in answer)
        read = [tuple(int(token) for token in context) for context in contexts]
        check_window(read, target, self._context_tokens_max)
        if not read or not target:
            return np.zeros((len(read), len(target)), dtype=np.float64)
        key_of = {context: _key(context, target) for context in dict.fromkeys(read)}
        with self._lock:
            found = {key: self._kept[key] for key in key_of.values() if key in self._kept}
        # Neighbours in this order share the longest prefixes, which a server may have cached.
        missing = sorted(context for context, key in key_of.items() if key not in found)
        batches = [missing[at : at + self._batch] for at in range(0, len(missing), self._batch)]
        failures: list[HeadwaterError] = []

        def run(batch: list[tuple[int, ...]]) -> None:
            if failures:
                return
            try:
                rows = self._ask(batch, target)
            except HeadwaterError as error:
                failures.append(error)
                return
            with self._lock:
                for context, row in zip(batch, rows, strict=True):
                    found[key_of[context]] = self._kept[key_of[context]] = row
                while len(self._kept) > KEPT_ROWS_MAX:
                    self._kept.popitem(last=False)

        with ThreadPoolExecutor(self._parallel, "headwater-upstream") as pool:
            list(pool.map(run, batches))
        if failures:
            raise failures[0]
        return np.stack([found[key_of[context]] for context in read])

    def _ask(self, contexts: Sequence[tuple[int, ...]], answer: tuple[int, ...]) -> list[NDArray[np.float64]]:
        prompts = [[*context, *answer] for context in contexts]
        body = {"model": self._model, "prompt": prompts, "max_tokens": 1, "temperature": 0}
        given = self._exchange("POST", "/completions", body | self._asking())
        choices = {c.get("index"): c for c in _list(given.get("choices")) if isinstance(c, dict)}
        if len(choices) != len(prompts) or set(choices) != set(range(len(prompts))):
            raise UpstreamError(
                f"the server gave {len(choices)} answers to {len(prompts)} prompts",
                code="upstream_malformed",
                fix="check that it speaks the completions API",
            )
        return [self._read(choices[i], prompt, len(answer)) for i, prompt in enumerate(prompts)]

    def _asking(self) -> dict[str, Any]:
        return {"prompt_logprobs": 0} if self._spelling == "prompt_logprobs" else {"echo": True, "logprobs": 1}

    def _read(self, choice: Mapping[str, Any], prompt: Sequence[int], tokens: int) -> NDArray[np.float64]:
        """log2-probabilities of the last `tokens` of a prompt."""
        read = self._prompt_row if self._spelling == "prompt_logprobs" else self._echo_row
        return read(choice, prompt, tokens)

    def _prompt_row(self, choice: Mapping[str, Any], prompt: Sequence[int], tokens: int) -> NDArray[np.float64]:
        """From ``prompt_logprobs``: for each prompt token a table of ids, the token itself always among them."""
        rows = choice.get("prompt_logprobs")
        if not isinstance(rows, list):
            raise _unsupported("prompt_logprobs")
        if len(rows) != len(prompt):
            raise _mismatch(f"the server read {len(rows)} tokens of {len(prompt)} that were sent")
        values = []
        for token, row in zip(prompt[-tokens:], rows[-tokens:], strict=True):
            entry = row.get(str(token)) if isinstance(row, dict) else None
            if entry is None:
                raise _mismatch(f"the server has no log-probability of token {token}, which was sent")
            values.append(entry.get("logprob") if isinstance(entry, dict) else entry)
        return _log2(values)

    def _echo_row(self, choice: Mapping[str, Any], prompt: Sequence[int], tokens: int) -> NDArray[np.float64]:
        """From ``echo`` and ``logprobs``: one number a token, of the prompt and then of what was generated."""
        table = choice.get("logprobs")
        values = table.get("token_logprobs") if isinstance(table, dict) else None
        if not isinstance(values, list):
            raise _unsupported("logprobs")
        if len(values) not in (len(prompt), len(prompt) + 1):  # one token may have been generated
            raise _mismatch(f"the server read {len(values)} tokens of {len(prompt)} that were sent")
        return _log2(values[len(prompt) - tokens : len(prompt)])

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """One request, tried again while that may help."""
        payload = None if body is None else json.dumps(body).encode()
        for attempt in range(1, self._attempts + 1):
            try:
                return self._once(method, path, payload)
            except UpstreamError:
                if attempt == self._attempts:
                    raise
                time.sleep(self._pause_s * 2 ** (attempt - 1))
        raise AssertionError("every attempt returns or raises")

    def _once(self, method: str, path: str, payload: bytes | None) -> Mapping[str, Any]:
        host, port = self._address.hostname or "", self._address.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=ssl.create_default_context())
            if self._address.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        )
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, self._path + path, body=payload, headers=headers)
            response = connection.getresponse()
            raw = response.read(RESPONSE_SIZE_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise UpstreamError(
                f"the scoring server did not answer: {type(error).__name__}: {error}",
                code="upstream_unreachable",
                fix="check that it runs; what was measured is kept",
            ) from None
        finally:
            connection.close()
        if response.status in _RETRIED:
            raise UpstreamError(
                f"the scoring server answered {response.status}", code="upstream_failed", fix="try again later"
            )
        if response.status != 200:
            said = raw[:200].decode("utf-8", "replace")
            raise InvalidError(
                f"the scoring server refused with {response.status}: {said}",
                code="upstream_refused",
                fix="check the model's name, the key, and that the server returns prompt log-probabilities",
            )
        return _parsed(raw)


def _parsed(raw: bytes) -> Mapping[str, Any]:
    if len(raw) > RESPONSE_SIZE_BYTES_MAX:
        raise UpstreamError(
            f"an answer has over {RESPONSE_SIZE_BYTES_MAX} bytes", code="upstream_malformed", fix="use smaller batches"
        )
    try:
        refuse_deep(raw)
        value = json.loads(raw)
    except (ValueError, HeadwaterError):
        value = None
    if not isinstance(value, dict):
        raise UpstreamError(
            f"the scoring server gave no JSON object: {raw[:60]!r}",
            code="upstream_malformed",
            fix="check that it speaks the completions API",
        )
    return value


def _log2(values: Sequence[Any]) -> NDArray[np.float64]:
    """Natural log-probabilities as logarithms to base 2; what is no such number is refused."""
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not LOGPROB_MIN < value <= LOGPROB_SLACK:
            raise UpstreamError(
                f"the scoring server gave {value!r} as a log-probability",
                code="scorer_not_finite",
                fix="check the served model; a clipped minus infinity cannot be paid on",
            )
    bits: NDArray[np.float64] = np.minimum(np.array(values, dtype=np.float64), 0.0) / np.log(2)
    return bits


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _key(context: tuple[int, ...], answer: tuple[int, ...]) -> bytes:
    said = np.array([len(context), *context, *answer], dtype=np.int64).tobytes()
    return hashlib.sha256(said).digest()


def _mismatch(message: str) -> InvalidError:
    return InvalidError(
        message,
        code="tokenizer_mismatch",
        fix="use the served model's tokenizer; the server must add no tokens",
    )


def _unsupported(field: str) -> InvalidError:
    return InvalidError(
        f"the scoring server gave no {field} of the prompt",
        code="upstream_without_logprobs",
        fix="use a server that returns prompt log-probabilities, or grade C",
    )
