import json
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.cli.main import main
from headwater.receipts import Receipt
from headwater.store.receipt_log import ReceiptLog

EXAMPLE = json.loads((Path(__file__).parents[2] / "spec" / "vectors" / "receipt_signed.json").read_text("utf-8"))
RECEIPT = Receipt.from_bytes(EXAMPLE["receipt"].encode())
RAWS = [replace(RECEIPT, call_id=f"call_{number:032x}").to_bytes() for number in range(300)]


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments), "--json"])
        shown = capsys.readouterr()
        text = shown.out or shown.err
        return end.value.code, json.loads(text)

    return call


def append(home, raws):
    with ReceiptLog.open(home / "receipts.log") as log:
        log.append_many([(raw, EXAMPLE["signature"]) for raw in raws])


@pytest.fixture
def home(tmp_path, run):
    folder = tmp_path / "home"
    folder.mkdir()
    run("key", "create", "demo", "--home", folder)
    append(folder, RAWS[:270])
    return folder


def test_a_published_log_is_proved_verified_and_witnessed_from_its_folder_alone(home, run, tmp_path):
    """Publish, prove, verify, cosign, grow and verify the growth; each step says what it found."""
    status, done = run("log", "tiles", "--home", home)
    assert (status, done["size"]) == (0, 270)
    where, key = done["location"], done["key"]
    old = tmp_path / "old.checkpoint"
    old.write_bytes((Path(where) / "checkpoint").read_bytes())
    assert run("log", "prove", 7, "--from", where, "--key", key, "--to", tmp_path / "proof.json")[0] == 0
    status, found = run("log", "verify", "--from", where, "--key", key, "--entries", "--proof", tmp_path / "proof.json")
    assert (status, found["size"], len(found["checks"])) == (0, 270, 3)

    witness = ("log", "witness", "--from", where, "--key", key, "--state", tmp_path / "w", "--name", "w.example")
    assert run(*witness)[0] == 0
    append(home, RAWS[270:])
    assert run("log", "tiles", "--home", home)[1]["size"] == 300
    assert run("log", "verify", "--from", where, "--key", key, "--since", old)[0] == 0
    status, cosigned = run(*witness)
    assert (status, cosigned["size"]) == (0, 300)
    assert cosigned["signature"] in (Path(where) / "checkpoint").read_text("utf-8")


def test_a_fork_and_a_changed_tile_end_with_status_1(home, run, tmp_path):
    """The witness names the fork, the check names the tile."""
    _, done = run("log", "tiles", "--home", home)
    where, key = done["location"], done["key"]
    state = ("--key", key, "--state", tmp_path / "w", "--name", "w.example")
    assert run("log", "witness", "--from", where, *state)[0] == 0
    (home / "receipts.log").unlink()
    append(home, RAWS[1:280])
    assert run("log", "tiles", "--home", home)[1]["error"]["code"] == "log_forked"
    fork = run("log", "tiles", "--home", home, "--to", tmp_path / "fork")[1]["location"]
    status, refused = run("log", "witness", "--from", fork, *state)
    assert (status, refused["error"]["code"]) == (1, "log_forked")
    tile = Path(where) / "tile" / "0" / "000"
    tile.write_bytes(bytes([tile.read_bytes()[0] ^ 1]) + tile.read_bytes()[1:])
    status, refused = run("log", "verify", "--from", where, "--key", key, "--entries")
    assert (status, refused["error"]["code"]) == (1, "entry_differs")


def test_a_sealed_and_dropped_log_is_used_on(home, run):
    """After sealing with --drop the receipts are listed as before and new ones are appended and sealed."""
    before = run("receipt", "list", "--limit", 300, "--home", home)
    status, done = run("log", "seal", "--drop", "--home", home)
    assert (status, done["size"]) == (0, 270)
    assert done["freed_bytes"] > 270 * len(RAWS[0])
    assert run("receipt", "list", "--limit", 300, "--home", home) == before
    append(home, RAWS[270:])
    assert run("log", "seal", "--home", home)[1]["size"] == 300


def test_a_checkpoint_prints_the_key_that_checks_it(home, run):
    """The note's signature line names the key that is printed beside it."""
    _, done = run("log", "checkpoint", "--home", home)
    assert done["note"].startswith(done["origin"] + "\n270\n")
    assert run("log", "checkpoint", "--home", home)[1] == done


def test_an_audit_of_nothing_says_what_is_missing(run, tmp_path):
    """A folder without an export ends in one clean error."""
    status, refused = run("epoch", "audit", 1, "--from", tmp_path)
    assert (status, refused["error"]["code"]) == (1, "object_missing")


def test_forget_needs_to_know_what(home, run):
    """Neither or both of a call and a key is a usage error; an unknown call is named."""
    assert run("receipt", "forget", "--home", home)[1]["error"]["code"] == "usage"
    assert run("receipt", "forget", "call_" + "0" * 32, "--home", home)[1]["error"]["code"] == "call_unknown"
