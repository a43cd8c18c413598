"""A real server as a process of its own: the demo model, the pages, and an embedded chain with a posted epoch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from eth_account import Account
from eth_account.signers.local import LocalAccount

QUESTION = "Where does the river Marlow begin and end?"
PASSWORD = "correct horse battery staple"
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"

_TEXTS = (
    (
        *("Springs of the hills", "Ada Spring"),
        "The river Marlow begins at Otter Spring, high in the hills above the village of Stell, and its water is cold"
        " in May.",
    ),
    (
        *("Bays of the coast", "Ben Shore"),
        "The river Marlow ends in Gull Bay, where seals rest on the sand.\n\nA river ends where it meets the sea.",
    ),
    (
        "Clouds",
        "Ben Shore",
        "A cloud is water in the air. Clouds bring rain to the hills.",
    ),
    ("Stones", "Cleo Stone", "A stone rolls in the river until it is round and smooth."),
)


@dataclass
class Live:
    """A home, and the server that runs over it."""

    home: Path
    database: str = ""  # the address of its PostgreSQL schema; empty for the file in its folder
    url: str = ""
    secret: str = ""
    key_id: str = ""
    question: str = QUESTION
    first_receipt: str = ""  # of the call whose epoch is posted
    contributor: str = ""
    wallet: LocalAccount = field(default_factory=lambda: Account.from_key(b"\x07" * 32))

    def run(self, *arguments: str, given: str = "") -> str:
        """A command of headwater over this home; gives what it prints."""
        command = [sys.executable, "-m", "headwater", *arguments, "--home", str(self.home)]
        done = subprocess.run(command, input=given, capture_output=True, text=True, env=self.environment(), check=False)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What a command prints as JSON."""
        return json.loads(self.run(*arguments, "--json"))

    def ask(self) -> str:
        """Ask over HTTP and wait for the receipt; gives its id."""
        said = [{"role": "user", "content": self.question}]
        body = {"model": "smollm2-135m-grounded", "messages": said, "max_tokens": 24}
        call = self._http("/v1/chat/completions", body)["headwater"]["receipt"]
        until = time.monotonic() + 120
        while (found := self._http(f"/v1/receipts/{call}"))["status"] != "final":
            assert time.monotonic() < until, found
            time.sleep(0.2)
        return str(found["id"])

    def environment(self) -> dict[str, str]:
        """What its processes are given: short waits, and where its records are."""
        given = {**os.environ, "HEADWATER_MATURITY_S": "0", "HEADWATER_ROOT_DELAY_S": "0", "OMP_NUM_THREADS": "1"}
        given.pop("HEADWATER_TEST_URL", None)  # a home that names its server needs none put under it
        return {**given, "HEADWATER_DATABASE": self.database}

    def _http(self, path: str, body: object = None) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {self.secret}", "content-type": "application/json"}
        request = urllib.request.Request(self.url + path, raw, headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)


@contextlib.contextmanager
def serving(live: Live) -> Iterator[None]:
    """`headwater serve` over the home while the block runs, on a free port."""
    command = [sys.executable, "-m", "headwater", "serve", "--port", "0", "--home", str(live.home)]
    log = live.home.parent / "serve.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=live.environment())
    try:
        until = time.monotonic() + 120
        while (found := re.search(r"pages at (http://\S+?)/\s", log.read_text())) is None:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        live.url = found[1]
        yield
    finally:
        server.terminate()
        server.wait(60)


@contextlib.contextmanager
def live_site(
    folder: Path,
    rows: Sequence[Mapping[str, object]] | None = None,
    question: str = QUESTION,
    database: str = "",
) -> Iterator[Live]:
    """A home with a few documents, a prompt, an enrolled contributor and a posted epoch, served.

    Args:
        rows: documents, as lines of a file to add; the first owner is enrolled. Else four, and a hostile one.
        question: what is asked for the epoch.
        database: the address of a PostgreSQL schema for its records.
    """
    live = Live(folder / "home", database, question=question)
    rows = rows or _rows()
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    owner = str(rows[0]["owners"][0])  # type: ignore[index]
    live.run("contribution", "add", str(texts), "--owner", owner, "--license", "CC0-1.0", *_uses())
    words = folder / "prompt.txt"
    words.write_text("Answer in one sentence, from the sources alone.")
    live.run("contribution", "add", str(words), "--kind", "prompt", "--owner", "Dan Word", "--license", "CC0-1.0")
    made = live.json("key", "create", "a caller")
    live.secret, live.key_id = made["secret"], made["key_id"]
    live.run("key", "deposit", live.key_id, "50", "--reference", "first")
    live.run("pages", "password", given=PASSWORD + "\n")
    with serving(live):
        live.first_receipt = live.ask()
        live.contributor = _contributor(live, owner)
    live.run("contributor", "enroll", live.contributor, live.wallet.address)
    live.run("epoch", "close")
    live.run("epoch", "post", "1")
    with serving(live):
        yield live


def _uses() -> list[str]:
    return [flag for use in ("ground", "train", "reproduce") for flag in ("--use", use)]


def _rows() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"text": f"# {title}\n\n{text}\n", "title": title, "owners": [owner]} for title, owner, text in _TEXTS
    ]
    return [*rows, {"text": f"A river of {HOSTILE} is no river.", "title": HOSTILE, "owners": [HOSTILE]}]


def _contributor(live: Live, name: str) -> str:
    with urllib.request.urlopen(f"{live.url}/search.json?{urlencode({'q': name})}", timeout=30) as response:
        return str(json.load(response)["people"][0]["id"])
