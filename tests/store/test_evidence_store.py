import pytest

from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, MissingError, RefusedError, UpstreamError
from headwater.core.ids import call_id
from headwater.ledger import deposit, payouts
from headwater.store.call_store import CallStore
from headwater.store.database import Database
from headwater.store.evidence_store import KEY_FILE, EvidenceCipher
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger

pytestmark = pytest.mark.both_engines

TEXT = b"the quick brown fox asked something private"
ANSWER = b"and was told something private, too"


@pytest.fixture
def home(tmp_path):
    with Database(tmp_path / "headwater.db") as db:
        ledger, keys = Ledger(db), KeyStore(db)
        calls = CallStore(db, ledger, keys, run_id="run")
        owners = []
        for name in ("first", "second"):
            _, key = keys.create(name, name.encode().ljust(32), 0, budget_units=5_000)
            ledger.post([deposit(key.account, 1_000, asset="USD", cause=f"deposit:{name}")], key=name, at_ns=0)
            owners.append(key.key_id)
        yield calls, owners
        calls.close()


def answer(calls, owner, number, *, attribute=True):
    cid = call_id(number.to_bytes(16, "big"))
    calls.begin(
        call_id=cid, key_id=owner, idempotency_key=f"k{number}", request_digest=digest(b"r"), model="m",
        ceiling_units=100, asset="USD", at_ns=1,
    )  # fmt: skip
    calls.progress(cid, answer=ANSWER[:10], evidence=TEXT, price_units=10, at_ns=2)
    calls.answered(cid, answer=ANSWER, evidence=TEXT, price_units=60, at_ns=3)
    if attribute:
        receipt = f"{number:064x}"
        calls.attributed(cid, receipt, payouts([("commons", 60)], asset="USD", receipt_id=receipt), at_ns=4)
    return cid


def disk(calls):
    """Every byte of the database and its write-ahead log."""
    return b"".join(path.read_bytes() for path in calls.db.path.parent.iterdir() if path.is_file())


@pytest.mark.sqlite
def test_no_readable_text_ever_reaches_the_disk(home):
    """Neither database nor write-ahead log holds a request or an answer, while both are read back as they were."""
    calls, (owner, _) = home
    cid = answer(calls, owner, 1)
    assert (calls.get(cid).answer, calls.get(cid).evidence) == (ANSWER, TEXT)
    assert calls.begin(
        call_id=call_id(bytes(16)), key_id=owner, idempotency_key="k1", request_digest=digest(b"r"), model="m",
        ceiling_units=100, asset="USD", at_ns=9,
    ).call.answer == ANSWER  # fmt: skip
    for fragment in (TEXT[:12], TEXT[-12:], ANSWER[:10], ANSWER[-12:]):
        assert fragment not in disk(calls)


@pytest.mark.sqlite
def test_erasing_an_owner_erases_all_its_text_and_nothing_else(home):
    """The key is gone from file and log; digests, price and receipt stay, and so does another owner's text."""
    calls, (owner, other) = home
    mine = [answer(calls, owner, number) for number in (1, 2)]
    theirs = answer(calls, other, 3)
    [(wrapped,)] = calls.db.query("SELECT wrapped FROM evidence_keys WHERE owner = ?", (owner,))
    [(sealed,)] = calls.db.query("SELECT answer FROM calls WHERE call_id = ?", (mine[0],))
    before = [calls.get(cid) for cid in mine]
    assert wrapped in disk(calls)

    assert calls.forget_owner(owner, at_ns=9) == 2

    assert wrapped not in disk(calls)
    assert sealed not in disk(calls)
    for cid, record in zip(mine, before, strict=True):
        now = calls.get(cid)
        assert (now.answer, now.evidence) == (None, None)
        assert (now.answer_digest, now.evidence_digest) == (digest(ANSWER), digest(TEXT))
        assert (now.price_units, now.receipt_id, now.state) == (record.price_units, record.receipt_id, record.state)
    assert calls.get(theirs).answer == ANSWER
    assert calls.check() == ()
    assert calls.forget_owner(owner, at_ns=10) == 0
    assert calls.get(answer(calls, owner, 4)).answer == ANSWER
    with pytest.raises(MissingError):
        calls.begin(
            call_id=call_id(bytes(16)), key_id=owner, idempotency_key="k1", request_digest=digest(b"r"), model="m",
            ceiling_units=100, asset="USD", at_ns=9,
        )  # fmt: skip


def test_a_copy_without_the_owners_key_cannot_be_read(home):
    """A ciphertext that survives somewhere is worth nothing once the key row is gone."""
    calls, (owner, _) = home
    cid = answer(calls, owner, 1)
    [(sealed,)] = calls.db.query("SELECT answer FROM calls WHERE call_id = ?", (cid,))
    cipher = EvidenceCipher(calls.db)
    assert cipher.open(owner, cid, "answer", sealed) == ANSWER
    calls.forget_owner(owner, at_ns=9)
    assert cipher.open(owner, cid, "answer", sealed) is None
    assert EvidenceCipher(calls.db).open(owner, cid, "answer", sealed) is None


def test_text_still_needed_is_not_erased(home):
    """While a call waits for its attribution, its owner's key stays."""
    calls, (owner, _) = home
    cid = answer(calls, owner, 1, attribute=False)
    with pytest.raises(ConflictError):
        calls.forget_owner(owner, at_ns=9)
    assert calls.get(cid).answer == ANSWER


def test_a_ciphertext_fits_its_own_place_only(home):
    """Moved to another call, owner or kind, or changed in any byte, it is refused."""
    calls, (owner, other) = home
    one, two = answer(calls, owner, 1), answer(calls, owner, 2)
    answer(calls, other, 3)
    [(sealed,)] = calls.db.query("SELECT answer FROM calls WHERE call_id = ?", (one,))
    cipher = EvidenceCipher(calls.db)
    for where in ((owner, two, "answer"), (owner, one, "evidence"), (other, one, "answer")):
        with pytest.raises(UpstreamError):
            cipher.open(*where, sealed)
    for at in range(4, len(sealed)):
        with pytest.raises(UpstreamError):
            cipher.open(owner, one, "answer", sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])


def test_another_home_key_reads_nothing(home, tmp_path):
    """With the key file replaced the texts are refused, not misread; an exposed key file is refused."""
    calls, (owner, _) = home
    cid = answer(calls, owner, 1)
    path = tmp_path / KEY_FILE
    path.write_text("11" * 32)
    with pytest.raises(UpstreamError):
        CallStore(calls.db, Ledger(calls.db), KeyStore(calls.db)).get(cid)
    path.chmod(0o644)
    with pytest.raises(RefusedError):
        CallStore(calls.db, Ledger(calls.db), KeyStore(calls.db)).get(cid)


def test_text_from_before_encryption_is_still_read(home):
    """A home that was begun with readable texts goes on; they can be erased like all others."""
    calls, (owner, _) = home
    cid = answer(calls, owner, 1)
    calls.db.execute("UPDATE calls SET answer = ? WHERE call_id = ?", (ANSWER, cid))
    assert calls.get(cid).answer == ANSWER
    calls.forget(cid, at_ns=9)
    assert ANSWER not in disk(calls)
