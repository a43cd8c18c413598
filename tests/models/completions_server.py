"""A small model behind the completions API as vLLM speaks it: run as a process, asked over loopback.

    python completions_server.py [PORT]

Prints its port. `prompt` is text, token ids, or a list of either; `prompt_logprobs`, and `echo` with `logprobs`,
give natural log-probabilities of the prompt, nothing for its first token.

Faults are asked for in the path, ``/{"nan": true}/v1``, percent-encoded: answer 503 to the first requests; end the
process after some; sleep; ask for a key; give NaN, a clipped number or nothing; add a token; read ids as others.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np

from headwater.models.scorer import LocalScorer
from headwater.models.tokenizer import Tokenizer, byte_alphabet
from headwater.models.weights import tiny_weights

NAME = "tiny"
WINDOW = 512
BYTES = Tokenizer((*byte_alphabet(), "<|im_start|>", "<|im_end|>"), (), (256, 257))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """The list of models."""
        self._give(200, {"object": "list", "data": [{"id": NAME, "object": "model", "max_model_len": WINDOW}]})

    def do_POST(self) -> None:
        """A completion."""
        server: Server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = unquote(self.path.partition("/v1/")[0]).strip("/")
        faults, number = json.loads(path or "{}"), server.count(path)
        if faults.get("key") and self.headers.get("authorization") != f"Bearer {faults['key']}":
            return self._give(401, {"error": {"message": "no such key"}})
        if number <= faults.get("fail_first", 0):
            return self._give(503, {"error": {"message": "starting"}})
        if faults.get("die_after") and number > faults["die_after"]:
            os._exit(3)
        if faults.get("sleep_s"):
            time.sleep(faults["sleep_s"])
        if body["model"] != NAME:
            return self._give(404, {"error": {"message": "no such model"}})
        prompts = body["prompt"]
        if isinstance(prompts, str) or isinstance(prompts[0], int):
            prompts = [prompts]
        choices = [self._choice(index, prompt, body, faults) for index, prompt in enumerate(prompts)]
        usage = {"prompt_tokens": sum(len(choice.pop("_ids")) for choice in choices), "completion_tokens": 1}
        return self._give(200, {"object": "text_completion", "model": NAME, "choices": choices[::-1], "usage": usage})

    def _choice(self, index: int, prompt: str | list[int], body: dict, faults: dict) -> dict:
        ids = list(BYTES.tokenize(prompt, control=True)) if isinstance(prompt, str) else prompt
        ids = [(token + faults.get("id_shift", 0)) % 258 for token in ids]
        if faults.get("bos"):
            ids = [256, *ids]
        logs = (self.server.scorer.score([ids[:1]], ids[1:])[0] * np.log(2)).tolist()
        if faults.get("nan"):
            logs[-1] = float("nan")
        if faults.get("clipped"):
            logs[-1] = -9999.0
        choice = {"index": index, "text": "x", "finish_reason": "length", "logprobs": None, "_ids": ids}
        if body.get("prompt_logprobs") is not None and not faults.get("mute"):
            choice["prompt_logprobs"] = [None] + [
                {str(token): {"logprob": value, "rank": 1, "decoded_token": BYTES.text([token])}}
                for token, value in zip(ids[1:], logs, strict=True)
            ]
        if body.get("echo") and not faults.get("mute"):
            choice["logprobs"] = {
                "token_logprobs": [None, *logs, -0.5],
                "tokens": [BYTES.text([t]) for t in ids] + ["x"],
            }
        return choice

    def _give(self, status: int, value: dict) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


class Server(ThreadingHTTPServer):
    """Holds the model and how many completions were asked for."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.scorer = LocalScorer(tiny_weights(7), BYTES, precision="float32", context_tokens_max=WINDOW)
        self._lock, self._counts = threading.Lock(), Counter[str]()

    def count(self, path: str) -> int:
        """The number of this completion among those asked under `path`, from 1."""
        with self._lock:
            self._counts[path] += 1
            return self._counts[path]


if __name__ == "__main__":
    server = Server(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(server.server_address[1], flush=True)
    server.serve_forever()
