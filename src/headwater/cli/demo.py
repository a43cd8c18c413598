"""`headwater demo`: one cent's whole path on real input, from a question to a coin and a proof.

Real model, real proposals, real openai client over loopback, real contracts on an embedded chain. Run it
again and it goes on from where the last run ended: new calls, the next epoch.
"""

from __future__ import annotations

import json as json_lib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from headwater.chain import Chain, signer_from_file
from headwater.cli.demo_material import (
    ANSWER_TOKENS,
    PROMPT_AUTHOR_KEY,
    QUESTIONS,
    SMALL_TALK,
    Question,
    paying_key,
    prompt_author,
    register,
)
from headwater.cli.demo_report import closing, closing_json, print_closing
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import brief, err, out, print_json, progress
from headwater.cli.receipt_view import print_bits, print_division
from headwater.cli.serve import gateway
from headwater.cli.settling import open_chain, settlement, tokens
from headwater.core.errors import InvariantError, MissingError, UpstreamError
from headwater.core.ids import AccountId
from headwater.core.money import format_units
from headwater.flow import Flow
from headwater.gateway import serving
from headwater.receipts import Receipt
from headwater.registry import account_for
from headwater.settle import Settlement

MEASURE_TIMEOUT_S = 600


@dataclass(slots=True)
class Story:
    """What one run of the demo did, step by step; printed at the end with `--json`."""

    quiet: bool
    started_s: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)

    def step(self, number: int, words: str) -> None:
        """Announce a step."""
        if not self.quiet:
            elapsed = time.monotonic() - self.started_s
            out.print(f"\n[bold cyan]{number}. {words}[/] [dim]({elapsed:.0f} s)[/]")

    def say(self, words: str) -> None:
        """A line for people."""
        if not self.quiet:
            out.print(words)


def demo(
    *,
    keep: Annotated[bool, Parameter(negative=(), help="Leave the gateway and the chain running afterwards.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """One cent's whole path on real input: questions, answers, bits, money, chain and proof."""
    with outcome(json) as result, ExitStack() as stack:
        story = Story(quiet=json)
        chosen = settings(home, maturity_s=0, root_delay_s=60)
        opened = stack.enter_context(Home(chosen, writer=True))
        _register(story, opened)
        author = prompt_author(opened).payout_address or ""
        chain, rpc = stack.enter_context(open_chain(opened, gas_for=[author]))
        books = settlement(opened, chain)
        app, flow = stack.enter_context(gateway(opened, books, quiet=json))
        url = stack.enter_context(serving(app, chosen.host, 0))
        receipts = _ask(story, opened, flow, url)
        _settle(story, opened, books, chain)
        _verify(story, books, receipts[0], chain, rpc)
        _close(story, opened, receipts, books)
        if json:
            print_json(story.facts)
        if keep:
            _keep(url, rpc)
    return result.status


def _register(story: Story, home: Home) -> None:
    story.step(1, "Registering who contributed what")
    with progress(quiet=story.quiet) as bars:
        task = bars.add_task("reading proposals", total=None)
        found = register(home, lambda done, total: bars.update(task, completed=done, total=total))
    for problem in found.problems:
        err.print(problem, markup=False)
    story.facts["registered"] = {
        "documents": found.documents,
        "authors": found.authors,
        "not_permitted_to_ground": found.closed,
        "new": found.new,
        "problems": list(found.problems),
    }
    story.say(
        f"{found.documents} proposals by {found.authors} authors, 1 prompt by an enrolled author, 1 base model; "
        f"{found.new} of them new"
    )
    story.say(
        "[bold]The authors have not enrolled: what they earn is simulated and waits in escrow under their names.[/]"
    )
    story.say(
        f"{found.closed} proposals state no licence that permits grounding: the gate keeps them out of every answer"
    )


def _ask(story: Story, home: Home, flow: Flow, url: str) -> list[Receipt]:
    story.step(2, f"Asking {len(QUESTIONS) + 1} questions with the openai client, from a prepaid key")
    secret, key = paying_key(home)
    story.say(f"gateway at {url}/v1, key {key.key_id}")
    with _client(url, secret) as client:
        answers = [_answer(story, home, client, question) for question in QUESTIONS]
        answers.append(_answer(story, home, client, Question(SMALL_TALK, 0)))
    story.step(3, "Who supplied the answers, and how each price was divided")
    receipts, leaders = [], 0
    story.facts["answers"] = []
    for question, (call, text) in zip((*QUESTIONS, Question(SMALL_TALK, 0)), answers, strict=True):
        with _waiting(story, f"measuring: {question.text}"):
            receipt = _receipt(flow, call)
        leader = _largest_source(receipt, home)
        leads = leader is not None and leader.startswith(f"PEP {question.proposal}:")
        leaders += leads
        receipts.append(receipt)
        story.facts["answers"].append(_answer_json(question, text, receipt, leader, leads))
        if not story.quiet:
            out.print(f"\n[bold]{question.text}[/]")
            out.print(f"  {text.strip()}", markup=False, style="italic")
            print_bits(receipt, home.registry)
            print_division(receipt, home.registry)
    story.facts["questions_led_by_their_proposal"] = f"{leaders} of {len(QUESTIONS)}"
    story.say(f"\nin {leaders} of {len(QUESTIONS)} questions the proposal that answers it has the largest source share")
    return receipts


@contextmanager
def _client(url: str, secret: str) -> Iterator[Any]:
    try:
        from openai import OpenAI
    except ImportError:
        raise MissingError(
            "the openai client is not installed", code="client_missing", fix="pip install 'headwater[demo]'"
        ) from None
    with OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0, timeout=MEASURE_TIMEOUT_S) as client:
        yield client


def _answer(story: Story, home: Home, client: Any, question: Question) -> tuple[str, str]:
    """Ask one question; gives the call id and the text."""
    asked = {
        "model": home.settings.model_name + home.settings.grounded_suffix,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
    }
    story.say(f"\n[bold]{question.text}[/]" + (" [dim](streamed)[/]" if question.streamed else ""))
    if not question.streamed:
        raw = client.chat.completions.with_raw_response.create(**asked)
        text = raw.parse().choices[0].message.content or ""
        story.say(f"  [italic]{text.strip()}[/]" if "[" not in text else "  " + text.strip().replace("[", "\\["))
        return raw.headers["headwater-receipt"], text
    pieces: list[str] = []
    with client.chat.completions.with_streaming_response.create(**asked, stream=True) as response:
        for chunk in response.parse():
            piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            pieces.append(piece)
            if not story.quiet:
                out.print(piece if len(pieces) > 1 else "  " + piece, end="", markup=False, style="italic")
        call = response.headers["headwater-receipt"]
    story.say("")
    return call, "".join(pieces)


def _receipt(flow: Flow, call: str) -> Receipt:
    """The receipt of a call, once the worker has issued it."""
    deadline = time.monotonic() + MEASURE_TIMEOUT_S
    while time.monotonic() < deadline:
        logged = flow.parts.log.in_force(call)
        if logged is not None and flow.parts.calls.get(call).receipt_id is not None:
            return Receipt.from_bytes(logged.raw)
        time.sleep(0.05)
    raise UpstreamError(
        f"{call} has no receipt after {MEASURE_TIMEOUT_S} s", code="attribution_late", fix="see /readyz"
    )


def _settle(story: Story, home: Home, books: Settlement, chain: Chain) -> None:
    story.step(4, "Closing the epoch and settling it on the embedded chain")
    record = books.close()
    posted = books.post(record.epoch)
    story.say(
        f"epoch {record.epoch}: root 0x{posted.root.hex()} posted, promises {tokens(posted.total)} test tokens in all"
    )
    delay = home.settings.root_delay_s
    story.say(f"{delay} s must pass, in which a wrong root can be cancelled: the embedded clock is moved on")
    chain.jump(delay + 1)
    author = account_for(prompt_author(home))
    claimed: dict[str, Any] | None = None
    tree = books.tree(record.epoch)
    owed = {payee.account: payee.index for payee in home.epochs.payees()}
    if author in owed and tree.leaf(owed[author]).amount > chain.paid(owed[author]):
        claimed = _claim(home, books, chain, record.epoch, author)
        story.say(
            f"the prompt author claims with a key of its own: {tokens(claimed['token_units'])} tokens "
            f"for {claimed['gas']} gas, holds {tokens(claimed['holds_token_units'])}"
        )
    else:
        story.say("the prompt earned nothing new in this epoch, so its author has nothing to claim")
    pushes = []
    for _, paid in books.push(record.epoch):
        pushes.append({"payees": paid.payees, "token_units": paid.amount, "gas": paid.gas_used})
        story.say(
            f"anybody may push: {paid.payees} payees of a subtree got {tokens(paid.amount)} tokens, {paid.gas_used} gas"
        )
    booked = books.sync()
    problems = [*home.calls.check(), *books.reconcile()]
    if problems:
        raise InvariantError(f"the books do not balance: {problems[0]}", code="books_differ")
    story.say(
        f"booked {format_units(booked)} {home.policy.currency} as paid; ledger and chain agree, every check holds"
    )
    story.facts["epoch"] = {
        "epoch": record.epoch,
        "root": "0x" + posted.root.hex(),
        "data_hash": "0x" + posted.data_hash.hex(),
        "contract": chain.manifest.payout,
        "promised_token_units": str(posted.total),
        "claim": claimed,
        "pushes": pushes,
    }


def _claim(home: Home, books: Settlement, chain: Chain, epoch: int, account: AccountId) -> dict[str, Any]:
    signer = signer_from_file(home.path / "payees" / PROMPT_AUTHOR_KEY)
    paid = chain.acting_as(signer).claim(epoch, books.claim(epoch, account).proof)
    return {"token_units": paid.amount, "gas": paid.gas_used, "holds_token_units": chain.balance(signer.address)}


def _verify(story: Story, books: Settlement, receipt: Receipt, chain: Chain, rpc: str) -> None:
    story.step(5, "A stranger checks one receipt: a file and the chain, in a fresh process without a database")
    raw = books.bundle(receipt.id).to_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "receipt.bundle.json"
        path.write_bytes(raw)
        held = _verify_elsewhere(path, rpc, chain.manifest.payout)
        for check in held["checks"]:
            story.say(f"  [green]holds[/]  {check['name']:10} {brief(check['detail'])}")
        if not held["verified"]:
            raise InvariantError("a receipt just issued does not verify", code="receipt_not_verified")
        path.write_bytes(_flip_a_byte(raw))
        flipped = _verify_elsewhere(path, rpc, chain.manifest.payout)
    if flipped["verified"]:
        raise InvariantError("a changed receipt verifies", code="receipt_not_verified")
    failed = [check for check in flipped["checks"] if not check["passed"]]
    story.say("one digit of the price changed:")
    for check in failed:
        story.say(f"  [red]FAILED[/] {check['name']:10} {brief(check['detail'])}")
    story.facts["verified"] = {
        "receipt": receipt.id,
        "as_issued": held["verified"],
        "one_byte_changed": flipped["verified"],
    }


def _verify_elsewhere(path: Path, rpc: str, contract: str) -> dict[str, Any]:
    """`headwater receipt verify` in a process of its own that shares nothing with this one but the chain's address."""
    command = [
        sys.executable,
        "-m",
        "headwater",
        "receipt",
        "verify",
        str(path),
        "--rpc",
        rpc,
        "--contract",
        contract,
        "--json",
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    done = subprocess.run(command, cwd=path.parent, env=clean, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise UpstreamError(
            f"verifying failed: {done.stderr[-300:]}", code="verify_failed", fix="run the command by hand"
        )
    answer: dict[str, Any] = json_lib.loads(done.stdout)
    return answer


def _flip_a_byte(bundle: bytes) -> bytes:
    """The bundle with one digit of the receipt's price changed."""
    import base64

    value = json_lib.loads(bundle)
    receipt = bytearray(base64.b64decode(value["receipt"]))
    at = receipt.index(b'"price":"') + len(b'"price":"')
    receipt[at] = ord("9") if receipt[at] != ord("9") else ord("8")
    value["receipt"] = base64.b64encode(receipt).decode()
    return json_lib.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _close(story: Story, home: Home, receipts: list[Receipt], books: Settlement) -> None:
    story.step(6, "Where the money went")
    totals = closing(receipts, home.registry)
    if not story.quiet:
        print_closing(totals, home.policy.currency)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # a child's would count this process again
    took_s = time.monotonic() - story.started_s
    story.facts |= {"closing": closing_json(totals), "seconds": round(took_s, 1), "peak_mib": peak_mib}
    status = books.chain.status()
    story.facts["chain"] = {"funded_token_units": str(status.funded), "paid_token_units": str(status.paid)}
    story.say(
        f"\n[dim]{took_s:.0f} s, at most {peak_mib:,} MiB. Look around: headwater ledger check, receipt list, …[/]"
    )


def _keep(url: str, rpc: str) -> None:
    err.print(f"\nleft running: gateway {url}/v1, chain {rpc} - press Ctrl-C to stop")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        err.print("stopping")


def _largest_source(receipt: Receipt, home: Home) -> str | None:
    sources = [share for share in receipt.attribution.shares if share.kind == "document" and share.weight_ppb]
    best = max(sources, key=lambda share: share.weight_ppb, default=None)
    return home.registry.get(best.contribution).title if best else None


def _answer_json(question: Question, text: str, receipt: Receipt, leader: str | None, leads: bool) -> dict[str, Any]:
    account = receipt.attribution
    return {
        "question": question.text,
        "answer": text,
        "receipt": receipt.id,
        "price_units": str(receipt.price),
        "base_microbits": account.base_microbits,
        "shares": [
            {"contribution": s.contribution, "kind": s.kind, "microbits": s.microbits, "weight_ppb": s.weight_ppb}
            for s in account.shares
        ],
        "residual_ppb": account.residual_ppb,
        "largest_source": leader,
        "expected_source_leads": leads if question.proposal else None,
        "payouts": [{"account": p.account, "amount_units": str(p.amount), "line": p.line} for p in receipt.payouts],
    }


@contextmanager
def _waiting(story: Story, words: str) -> Iterator[None]:
    if story.quiet:
        yield
        return
    with err.status(words):
        yield
