"""The chain in the process: kept in a folder, replayed to the same blocks, readable from elsewhere."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from headwater.chain import Chain, EmbeddedChain, Manifest
from headwater.core.errors import ConflictError, UpstreamError
from headwater.core.limits import REQUEST_SIZE_BYTES_MAX
from headwater.settlement import Leaf, PayoutTree

SEED = b"\x22" * 32
NOW_S = 1_700_000_000


def clock_ns() -> int:
    """A clock that stands still."""
    return NOW_S * 10**9


def ask(chain: EmbeddedChain, method: str, *params):
    """One JSON-RPC call in process."""
    answer = chain.provider().make_request(method, list(params))
    assert "error" not in answer, answer
    return answer["result"]


def settled(chain: EmbeddedChain) -> tuple[Manifest, PayoutTree]:
    """Deploy, fund, post and pay one payee."""
    client = Chain(chain.provider(), chain.accounts[0])
    manifest = client.deploy(guardian=chain.accounts[1].address, cap=10**9, delay_s=60)
    client.fund(10**6)
    tree = PayoutTree.build([Leaf(i, f"0x{i + 1:040x}", 100) for i in range(4)], client.domain(1))
    client.post(1, tree.root, tree.total, b"\7" * 32)
    client.jump(60)
    client.claim(1, tree.prove(2))
    return manifest, tree


def test_a_chain_comes_back_as_it_was(tmp_path):
    """Blocks, balances, events and the clock are the same after a restart, and it goes on from there."""
    with EmbeddedChain(tmp_path, seed=SEED, clock_ns=clock_ns) as chain:
        manifest, tree = settled(chain)
        before = [
            ask(chain, "eth_getBlockByNumber", hex(n), True) for n in range(int(ask(chain, "eth_blockNumber"), 16) + 1)
        ]
    with EmbeddedChain(tmp_path, clock_ns=clock_ns) as chain:
        client = Chain(chain.provider(), chain.accounts[0], manifest=manifest)
        after = [ask(chain, "eth_getBlockByNumber", hex(n), True) for n in range(len(before))]

        assert after == before
        assert client.paid(2) == 100
        assert client.posted(1).root == tree.root
        assert client.claim(1, tree.prove(3)).amount == 100


def test_blocks_depend_on_seed_clock_and_transactions_alone(tmp_path):
    """Two chains that are asked the same have the same block hashes."""
    heads = []
    for name in ("one", "two"):
        with EmbeddedChain(tmp_path / name, seed=SEED, clock_ns=clock_ns) as chain:
            settled(chain)
            heads.append(ask(chain, "eth_getBlockByNumber", "latest", False)["hash"])

    assert heads[0] == heads[1]


def test_a_torn_last_line_is_forgotten(tmp_path):
    """A line that a crash cut short was never acknowledged: the chain starts without it and goes on."""
    with EmbeddedChain(tmp_path, seed=SEED, clock_ns=clock_ns) as chain:
        settled(chain)
        height = int(ask(chain, "eth_blockNumber"), 16)
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-30])
    with EmbeddedChain(tmp_path, clock_ns=clock_ns) as chain:
        assert int(ask(chain, "eth_blockNumber"), 16) == height - 1
        ask(chain, "evm_mine")
    lines = journal.read_bytes().splitlines()

    assert lines[:-1] == whole.splitlines()[:-1]
    with EmbeddedChain(tmp_path, clock_ns=clock_ns) as chain:
        assert int(ask(chain, "eth_blockNumber"), 16) == height


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda line: b"{" + line, "journal_damaged"),
        (lambda line: line.replace(b'"at_s":17', b'"at_s":18'), "journal_mismatch"),
        (lambda line: json.dumps(json.loads(line) | {"block": "00" * 32}).encode(), "journal_mismatch"),
        (lambda line: json.dumps(json.loads(line) | {"tx": "02" + "00" * 50}).encode(), "journal_mismatch"),
    ],
    ids=["not JSON", "time", "hash", "transaction"],
)
def test_a_journal_that_was_changed_is_not_replayed(tmp_path, spoil, code):
    """Damage before the last line, and any line that makes another block, stop the start."""
    with EmbeddedChain(tmp_path, seed=SEED, clock_ns=clock_ns) as chain:
        settled(chain)
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_bytes().splitlines()
    lines[2] = spoil(lines[2])
    journal.write_bytes(b"\n".join(lines) + b"\n")

    with pytest.raises(UpstreamError) as refused:
        EmbeddedChain(tmp_path, clock_ns=clock_ns)
    assert refused.value.code == code


def test_another_seed_is_refused(tmp_path):
    """A folder keeps the seed it was made with."""
    EmbeddedChain(tmp_path, seed=SEED, clock_ns=clock_ns).close()
    with pytest.raises(ConflictError):
        EmbeddedChain(tmp_path, seed=b"\x33" * 32, clock_ns=clock_ns)
    with EmbeddedChain(tmp_path, clock_ns=clock_ns) as chain:
        assert "0x" in chain.accounts[0].address
    assert (tmp_path / "seed").stat().st_mode & 0o077 == 0


def test_one_process_keeps_a_folder(tmp_path):
    """A second start on the same folder is refused while the first runs, and succeeds after it."""
    with EmbeddedChain(tmp_path, seed=SEED, clock_ns=clock_ns):
        code = (
            "import sys; from pathlib import Path; from headwater.chain import EmbeddedChain\n"
            "try: EmbeddedChain(Path(sys.argv[1]))\n"
            "except Exception as error: print(error.code)\n"
        )
        told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert told.stdout.strip() == "chain_locked"
    EmbeddedChain(tmp_path, clock_ns=clock_ns).close()


def test_a_process_without_a_database_reads_it(tmp_path):
    """With an address and a manifest another process verifies a payee's proof against the chain."""
    with EmbeddedChain(tmp_path, seed=SEED, clock_ns=clock_ns) as chain:
        manifest, tree = settled(chain)
        manifest.save(tmp_path / "deployment.json")
        code = (
            "import sys; from pathlib import Path; from headwater.chain import Chain, Manifest\n"
            "chain = Chain(sys.argv[1], manifest=Manifest.load(Path(sys.argv[2])))\n"
            "print(chain.root_at(1).hex(), chain.data_hash(1).hex(), chain.paid(2), chain.status_of(1))\n"
        )
        told = subprocess.run(
            [sys.executable, "-c", code, chain.serve(), str(tmp_path / "deployment.json")],
            capture_output=True,
            text=True,
            check=True,
        )

    assert told.stdout.split() == [tree.root.hex(), "07" * 32, "100", "active"]


def test_time_passes_by_the_clock_and_by_jumps(tmp_path):
    """A delay ends when the clock says so, without a transaction, and a jump survives a restart."""
    now = [NOW_S]
    with EmbeddedChain(tmp_path, seed=SEED, clock_ns=lambda: now[0] * 10**9) as chain:
        client = Chain(chain.provider(), chain.accounts[0])
        manifest = client.deploy(guardian=chain.accounts[1].address, cap=10**9, delay_s=600)
        client.post(1, b"\1" * 32, 0, b"\7" * 32)
        assert client.status_of(1) == "pending"
        now[0] += 300
        assert client.status_of(1) == "pending"
        now[0] += 310
        assert client.status_of(1) == "active"
        client.post(2, b"\2" * 32, 0, b"\7" * 32)
        client.jump(600)
    with EmbeddedChain(tmp_path, clock_ns=lambda: now[0] * 10**9) as chain:
        assert Chain(chain.provider(), manifest=manifest).status_of(2) == "active"


def test_snapshots_go_back_only_in_memory(tmp_path):
    """A chain without a folder can be put back; one with a folder appends only."""
    with EmbeddedChain(seed=SEED, clock_ns=clock_ns) as chain:
        number = ask(chain, "evm_snapshot")
        settled(chain)
        assert ask(chain, "evm_revert", number) is True
        assert ask(chain, "eth_blockNumber") == "0x0"
        assert "error" in chain.provider().make_request("evm_revert", [number])
    with EmbeddedChain(tmp_path, seed=SEED, clock_ns=clock_ns) as chain:
        assert "error" in chain.provider().make_request("evm_snapshot", [])


def test_a_full_disk_stops_the_chain(tmp_path, monkeypatch):
    """When a transaction cannot be kept it is not acknowledged, and nothing is answered from memory any more."""
    with EmbeddedChain(tmp_path, seed=SEED, clock_ns=clock_ns) as chain:
        ask(chain, "evm_mine")

        def full(*_: object) -> int:
            raise OSError("no space left")

        monkeypatch.setattr("headwater.chain.journal.os.fsync", full)
        assert "no space left" in chain.provider().make_request("evm_mine", [])["error"]["message"]
        monkeypatch.undo()
        assert "cannot be written" in chain.provider().make_request("eth_blockNumber", [])["error"]["message"]


@pytest.fixture(scope="module")
def served():
    """A chain behind HTTP."""
    with EmbeddedChain(seed=SEED, clock_ns=clock_ns) as chain:
        yield chain.serve()


def post(url: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Status and body of one request."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    try:
        connection.request("POST", "/", body, {"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_server_is_reached_from_this_machine_only(served):
    """It listens on the loopback address."""
    assert urlsplit(served).hostname == "127.0.0.1"


def test_requests_that_a_web_page_could_forge_are_refused(served):
    """A foreign Host name and a form's content type get no answer."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}'

    assert post(served, body)[0] == 200
    assert post(served, body, Host="example.org")[0] == 403
    assert post(served, body, **{"Content-Type": "text/plain"})[0] == 415


def test_large_requests_are_refused(served):
    """A body beyond the limit is not read."""
    assert post(served, b"", **{"Content-Length": str(REQUEST_SIZE_BYTES_MAX + 1)})[0] == 413


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"[" * 100_000, -32600),
        (b'"\\""' + b"[" * 33, -32600),
        (b'"' + b'\\"' * 200_000, -32700),
        (b'{"a":"' + b"x" * 100_000, -32700),
        (b"1", -32600),
        (b"[]", -32600),
        (b'{"method":"eth_call","params":{}}', -32602),
        (b'{"method":"eth_call","params":[]}', -32602),
        (b'{"method":"eth_call","params":[{"to":"0x12"}]}', -32602),
        (b'{"method":"eth_getLogs","params":[{"fromBlock":"x"}]}', -32602),
        (b'{"method":"eth_getBalance","params":[7]}', -32602),
        (b'{"method":"evm_increaseTime","params":[-1]}', -32602),
        (b'{"method":"eth_sendRawTransaction","params":["0x02"]}', -32000),
        (b'{"method":"eth_accounts","params":[]}', -32601),
        (b'{"method":"eth_getBalance","params":["0x1111111111111111111111111111111111111111","0x7"]}', -32000),
    ],
)
def test_requests_that_make_no_sense_are_told_so(served, body, code):
    """Whatever is sent, the answer is a JSON-RPC error and the server lives on."""
    status, answer = post(served, body)

    assert status == 200
    assert json.loads(answer)["error"]["code"] == code


def test_batches_are_answered_in_order(served):
    """A list of requests gets a list of answers."""
    body = json.dumps([{"jsonrpc": "2.0", "id": i, "method": "eth_chainId", "params": []} for i in range(3)]).encode()
    answers = json.loads(post(served, body)[1])

    assert [answer["id"] for answer in answers] == [0, 1, 2]


def test_logs_are_found_by_topic_address_and_block(served):
    """A filter finds the events it describes and no others."""
    with EmbeddedChain(seed=SEED, clock_ns=clock_ns) as chain:
        manifest, _ = settled(chain)
        every = ask(chain, "eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest"})
        token = ask(chain, "eth_getLogs", {"fromBlock": "0x0", "address": manifest.token.lower()})
        topic = every[-1]["topics"][0]
        same = ask(chain, "eth_getLogs", {"fromBlock": "0x0", "topics": [[topic, "0x" + "00" * 32]]})

        assert token == [log for log in every if log["address"] == manifest.token.lower()]
        assert same == [log for log in every if log["topics"][0] == topic]
        assert ask(chain, "eth_getLogs", {"fromBlock": "0x0", "topics": [None, None, None, None, None]}) == []
        assert ask(chain, "eth_getLogs", {"blockHash": every[0]["blockHash"]})[0] == every[0]


def test_nothing_of_web3_is_imported_before_it_is_used(tmp_path: Path):
    """The package and its chain layer import without web3, the EVM or the compiler."""
    code = (
        "import sys, headwater, headwater.chain\n"
        "heavy = ('web3', 'eth', 'eth_tester', 'eth_account', 'vyper', 'requests')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)

    assert told.stdout.strip() == "[]"
