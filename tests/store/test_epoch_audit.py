import http.server
import json
import threading
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.attribution.bits import sure_and_unsure, weigh
from headwater.core.canonical import canonical, digest
from headwater.core.errors import HeadwaterError, InvalidError, MissingError
from headwater.receipts import KeySigner, Receipt, ReceiptOwner, ReceiptShare, issue
from headwater.receipts.checkpoint import NoteKey, NoteSigner
from headwater.registry import registry_digest
from headwater.settlement.epoch import Payee, Window, close
from headwater.settlement.tree import Domain
from headwater.splits import Policy, divide_receipt, payouts_of
from headwater.store.epoch_audit import Extent, audit
from headwater.store.epoch_export import Folder, write_export
from headwater.store.epoch_store import EpochRecord
from headwater.store.object_store import LocalStore, open_source
from headwater.store.receipt_log import ReceiptLog
from headwater.store.receipt_segments import SCHEMA, read_manifest

EXAMPLE = json.loads((Path(__file__).parents[2] / "spec" / "vectors" / "receipt_signed.json").read_text("utf-8"))
RECEIPT = Receipt.from_bytes(EXAMPLE["receipt"].encode())
SIGNER = KeySigner(bytes(range(1, 33)))
LOG_SIGNER = NoteSigner("example.org/log", bytes(range(32)))
POLICY_TEXT = files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8")
POLICY = Policy.from_toml(POLICY_TEXT)
REGISTRY = [("ctb_" + "1" * 32, "sha256:" + "2" * 64)]
ALL = Extent(every=True, signatures=True)


def signed(number, *, supersedes=None, bits=40_000_000, price=10_000_000):
    """A receipt as the path issues it: weights from bits, payouts from weights, signed by the operator."""
    weights, residual = weigh(
        *[[bits] if name == "g" else [] for name in ("g", "r")],
        RECEIPT.attribution.base_microbits,
        model_weight_ppm=POLICY.model_weight_ppm,
        evidence_floor_millibits=POLICY.evidence_floor_millibits,
        unsure=sure_and_unsure([(bits, bits)])[1],
    )
    owner = "ctr_" + f"{number % 5:032x}"
    share = ReceiptShare(
        "ctb_" + f"{number % 5:032x}", "document", "grounded", weights[0], bits, bits, bits,
        (ReceiptOwner(f"contributor:{owner}", owner, 10**9),),
    )  # fmt: skip
    account = replace(
        RECEIPT.attribution,
        shares=(share,),
        total_microbits=RECEIPT.attribution.base_microbits + bits,
        residual_ppb=residual,
        residual_account="commons",
        parameters=(("evidence_floor_millibits", POLICY.evidence_floor_millibits),),
        model_weight_ppm=POLICY.model_weight_ppm,
        grade="A",
    )
    receipt = replace(
        RECEIPT,
        call_id=f"call_{number:032x}",
        operator=SIGNER.address,
        price=price,
        policy_digest=POLICY.digest,
        attribution=account,
        payouts=payouts_of(divide_receipt(price, account, POLICY)),
        supersedes=supersedes,
    )
    return issue(receipt, SIGNER)


def closed(number, log, log_from, size, before, *, seen=None, payouts=None):
    """An epoch over [log_from, size), closed by the settlement stage from what the receipts say."""
    receipts = [Receipt.from_bytes(log.at(index).raw) for index in range(log_from, size)]
    told = json.loads(before.manifest) if before else None
    previous = {row["account"]: int(row["cumulative_units"]) for row in told["totals"]} if told else {}
    found = payouts or [(p.account, p.amount) for receipt in receipts for p in receipt.payouts]
    accounts = ["commons", "contributor:ctr_" + f"{1:032x}"]
    epoch = close(
        Window(number, log_from, size, log.root(size), 1_795_356_000_000_000_000 + number, seen or len(log)),
        found,
        previous=previous,
        previous_amounts=[int(row["cumulative_token_units"]) for row in told["payees"]] if told else (),
        previous_digest=digest(before.manifest) if before else None,
        payees=[Payee(i, account, "0x" + f"{i + 1:040x}") for i, account in enumerate(accounts)],
        domain=Domain(31337, "0x" + "aa" * 20, "0x" + "bb" * 20, number),
        token_decimals=6,
        policy_digests=[POLICY.digest],
        registry_digest=registry_digest(REGISTRY),
    )
    return EpochRecord(number, size, epoch.manifest, epoch.window.closed_at_ns, None)


def export(folder, log, record, before):
    write_export(
        LocalStore(folder), log, record, before, operator=SIGNER.address, currency="USD", signer=LOG_SIGNER,
        policies={POLICY.digest: POLICY_TEXT}, registry=REGISTRY,
    )  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two epochs, 30 and 25 receipts, the second one exported."""
    folder = tmp_path_factory.mktemp("audit")
    with ReceiptLog.open(folder / "receipts.log") as log:
        log.append_many([(one.raw, one.signature) for one in map(signed, range(55))])
        first = closed(1, log, 0, 30, None)
        second = closed(2, log, 30, 55, first)
        export(folder / "export", log, second, [first])
    return folder / "export"


@pytest.fixture
def copy(published, tmp_path):
    """The export, to be changed."""
    target = tmp_path / "export"
    for path in published.rglob("*"):
        if path.is_file():
            (target / path.relative_to(published)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(published)).write_bytes(path.read_bytes())
    return target


def checked(folder, extent=ALL):
    return audit(open_source(folder), 2, extent=extent, log_key=LOG_SIGNER.key)


def test_an_honest_epoch_passes(published):
    """Every receipt in full, every signature, and each field of the manifest follows from the inputs."""
    report = checked(published)
    assert report.problems == ()
    assert (report.receipts, report.in_full, report.signatures) == (25, 25, 25)


def test_a_sample_says_how_much_it_looked_at(published):
    """What was not checked is not claimed."""
    report = checked(published, Extent(sample=4))
    assert report.passed
    assert (report.receipts, report.in_full, report.signatures) == (25, 4, 4)


def test_a_web_server_is_a_source(published):
    """The same audit over HTTP from any static server."""
    handler = partial(Quiet, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            assert audit(open_source(address), 2, extent=ALL).passed
        finally:
            server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def change_manifest(folder, change):
    path = folder / "epochs" / "2.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(canonical(value))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda m: m.update(paid_units=str(int(m["paid_units"]) + 1)), "paid_units"),
        (lambda m: m["totals"][0].update(cumulative_units="1"), "totals[0]"),
        (lambda m: m["payees"][1].update(cumulative_token_units="7"), "payees[1]"),
        (lambda m: m.update(tree_root="00" * 32), "tree_root"),
        (lambda m: m.update(log_root="00" * 32), "log_root"),
        (lambda m: m.update(previous="sha256:" + "0" * 64), "previous"),
        (lambda m: m.update(registry_digest="sha256:" + "0" * 64), "registry_digest"),
        (lambda m: m.update(policy_digests=["sha256:" + "0" * 64]), "policy_digests[0]"),
        (lambda m: m.update(changes_digest="sha256:" + "0" * 64), "changes_digest"),
        (lambda m: m.update(total_token_units="5"), "total_token_units"),
    ],
)
def test_a_changed_field_of_the_manifest_is_named(copy, change, where):
    """The place and both values are said for each field an operator could have got wrong."""
    change_manifest(copy, change)
    problems = checked(copy).problems
    assert any(where in problem.where for problem in problems), problems


def rewrite(folder, change):
    """Change rows of the segment and make its file and manifest fit each other again."""
    store = Folder(LocalStore(folder), "receipts")
    manifest = read_manifest(store)
    path = folder / "receipts" / manifest.segments[0].file
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    segment = replace(manifest.segments[0], sha256=digest(path.read_bytes()).removeprefix("sha256:"), count=len(rows))
    store.write("manifest.json", replace(manifest, segments=(segment,), size=segment.first + len(rows)).to_bytes())


def test_a_changed_column_is_named_with_its_receipt(copy):
    """A payout that the column says and the signed bytes do not: receipt, column and values are said."""

    def change(rows):
        rows[3]["payouts"][0]["amount"] += 1

    rewrite(copy, change)
    problems = checked(copy).problems
    assert [problem.where for problem in problems] == ["receipt 33, column payouts"]


def other_receipt(place, **changes):
    def change(rows):
        receipt = replace(Receipt.from_bytes(rows[place]["raw"]), **changes)
        fresh = issue(receipt, SIGNER)
        rows[place].update(raw=fresh.raw, signature=bytes.fromhex(fresh.signature[2:]))

    return change


def test_a_replaced_receipt_is_not_in_the_log(copy):
    """Even one the operator signed: the log holds another entry at its place."""
    rewrite(copy, other_receipt(4, payer="pay_other"))
    assert any(p.code == "not_in_log" and p.where == "receipt 34" for p in checked(copy).problems)


def test_a_missing_receipt_shows(copy):
    """A window with a receipt less does not give the epoch."""
    rewrite(copy, lambda rows: rows.pop())
    codes = {problem.code for problem in checked(copy).problems}
    assert {"receipts_missing", "paid_units_differs"} <= codes


def test_a_wrong_signature_is_named(copy):
    """The signature column is outside the log, so it is checked against the operator's key."""

    def change(rows):
        rows[5]["signature"] = rows[6]["signature"]

    rewrite(copy, change)
    assert any(p.where.startswith("receipt 35 ") for p in checked(copy).problems)


def found_out(folder):
    """Whether the audit refuses the folder, or lists what differs in it."""
    try:
        return not checked(folder).passed
    except HeadwaterError:
        return True


@pytest.mark.parametrize("victim", ["tile/0/000.p/55", "checkpoint", "registry.json", "export.json", "related.json"])
def test_a_flipped_byte_in_any_other_input_shows(copy, victim):
    """No published file can change without the audit saying so."""
    path = copy / victim
    raw = path.read_bytes()
    at = len(raw) // 2
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] if raw != b"[]" else b"[[]")
    assert found_out(copy)


def test_a_changed_policy_is_refused(copy):
    """A policy must have the digest that receipts name."""
    path = next((copy / "policies").iterdir())
    path.write_text(path.read_text().replace("take_cap_bps = 3500", "take_cap_bps = 3400"))
    with pytest.raises(InvalidError):
        checked(copy)


def test_a_lost_file_is_named(copy):
    """What is missing is said by its name; a missing segment is a problem among others."""
    segment = next((copy / "receipts").glob("*.parquet"))
    segment.unlink()
    assert any(segment.name in problem.where for problem in checked(copy).problems)
    (copy / "epochs" / "1.json").unlink()
    with pytest.raises(MissingError, match=r"1\.json"):
        checked(copy)


def test_another_log_key_is_refused(published):
    """Who knows the operator's key from elsewhere does not accept an export signed by another one."""
    stranger = NoteSigner("example.org/log", bytes(range(1, 33))).key
    with pytest.raises(InvalidError) as refusal:
        audit(open_source(published), 2, extent=ALL, log_key=NoteKey.from_text(stranger.text))
    assert refusal.value.code == "checkpoint_unsigned"


def test_a_split_the_policy_does_not_give_is_named(tmp_path):
    """An operator that signs, logs and sums a wrong split is found out by receipt, line and value."""
    honest = signed(2)
    first, second, *rest = honest.receipt.payouts
    bent = issue(
        replace(
            honest.receipt,
            payouts=(replace(first, amount=first.amount + 1), replace(second, amount=second.amount - 1), *rest),
        ),
        SIGNER,
    )
    with ReceiptLog.open(tmp_path / "receipts.log") as log:
        log.append_many([(one.raw, one.signature) for one in (signed(0), signed(1), bent)])
        record = closed(1, log, 0, 3, None)
        export(tmp_path / "export", log, record, [])
    problems = audit(open_source(tmp_path / "export"), 1, extent=ALL).problems
    assert [problem.code for problem in problems] == ["split_differs"]
    assert problems[0].where == f"receipt 2 ({bent.id})"
    assert "payout 0" in problems[0].message
    assert audit(open_source(tmp_path / "export"), 1, extent=Extent(sample=0)).passed


def test_corrections_are_netted_as_the_books_net_them(tmp_path):
    """A receipt corrected after it settled pays only what is new; the audit needs the earlier one and has it."""
    from headwater.settlement.disputes import Span, Version, adjustments

    with ReceiptLog.open(tmp_path / "receipts.log") as log:
        log.append_many([(one.raw, one.signature) for one in map(signed, range(4))])
        first = closed(1, log, 0, 4, None)
        old = signed(1)
        fresh = signed(1, supersedes=old.id, price=12_000_000)
        log.append(fresh.raw, fresh.signature)
        spans = [Span(0, 4, 4), Span(4, 5, 5)]
        chain = [
            Version(seq, tuple((p.account, p.amount) for p in one.receipt.payouts))
            for seq, one in ((1, old), (4, fresh))
        ]
        payouts = [(p.account, p.amount) for p in fresh.receipt.payouts]
        second = closed(2, log, 4, 5, first, payouts=payouts + list(adjustments(chain, spans).items()))
        export(tmp_path / "export", log, second, [first])
    report = checked(tmp_path / "export")
    assert report.problems == ()
    (tmp_path / "export" / "related.json").write_bytes(b"[]")
    assert not checked(tmp_path / "export").passed


def test_a_correction_in_the_window_of_what_it_corrects_counts_alone(tmp_path):
    """Both receipts of a call lie in one window: only the later one pays, and the epoch follows from that."""
    with ReceiptLog.open(tmp_path / "receipts.log") as log:
        log.append_many([(one.raw, one.signature) for one in map(signed, range(3))])
        fresh = signed(1, supersedes=signed(1).id, price=7_000_000)
        log.append(fresh.raw, fresh.signature)
        standing = [signed(0), fresh, signed(2)]
        payouts = [(p.account, p.amount) for one in standing for p in one.receipt.payouts]
        record = closed(1, log, 0, 4, None, payouts=payouts)
        export(tmp_path / "export", log, record, [])
    report = audit(open_source(tmp_path / "export"), 1, extent=ALL)
    assert (report.problems, report.receipts) == ((), 4)
