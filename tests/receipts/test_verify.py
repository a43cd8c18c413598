import json
from dataclasses import replace

import pytest

from headwater.core.canonical import canonical, digest
from headwater.core.errors import InvalidError
from headwater.core.ids import receipt_id
from headwater.core.keccak import keccak256
from headwater.receipts import (
    Bundle,
    EpochManifest,
    LogTree,
    PayoutProof,
    Receipt,
    issue,
    leaf_hash,
    manifest_hash,
    verify_receipt,
)
from headwater.receipts.signing import signing_digest

POLICY = "name = 'demo'  # as published\n"
LEAVES = 13
INDEX = 5


@pytest.fixture(scope="module")
def case(example):
    """A bundle with its arguments: a receipt in a log of 13, an epoch, and the hash the chain would hold."""
    policy_digest = digest(POLICY.encode())
    signed = issue(replace(example.receipt, policy_digest=policy_digest), example.signer)
    leaves = [leaf_hash(bytes([i])) for i in range(LEAVES)]
    leaves[INDEX] = leaf_hash(signed.raw)
    proof = LogTree(leaves).prove_inclusion(INDEX)
    manifest = canonical(
        {
            "schema": "headwater.epoch/1",
            "epoch": 7,
            "log_size": LEAVES,
            "log_root": proof.root.hex(),
            "policy_digests": ["sha256:" + "0" * 64, policy_digest],
            "registry_digest": example.receipt.registry_digest,
            "total_units": "10000000",
            "tree_root": "ab" * 32,
            "receipts": 13,
        }
    )
    payout = PayoutProof("commons", 0, "0x" + "11" * 20, 1_800_000, (bytes(32),))
    return (
        Bundle(signed.raw, signed.signature, proof, POLICY, manifest, (payout,)),
        example.receipt.operator,
        example.signer,
    )


def checks_of(bundle, operator, on_chain, *, split=None, payouts=None):
    return verify_receipt(
        bundle,
        expected_operator=operator,
        data_hash_on_chain=on_chain,
        policy_digest=lambda text: digest(text.encode()),
        recompute_split=split,
        check_payout=payouts,
    )


def failed(case, bundle=None, **changes):
    """Names of the checks that fail for a bundle; the chain holds the hash of the true manifest."""
    true, operator, _ = case
    arguments = {
        "operator": operator,
        "on_chain": keccak256(true.manifest),
        "split": lambda receipt, _: receipt.payouts,
        "payouts": lambda proof, manifest: proof in true.payout_proofs and manifest.tree_root == b"\xab" * 32,
    } | changes
    return [check.name for check in checks_of(bundle or true, **arguments) if not check.passed]


def test_a_true_bundle_passes_every_check(case):
    """A stranger with the file and one number of the chain sees seven checks, all passed, each with its reason."""
    bundle, operator, _ = case
    checks = checks_of(
        Bundle.from_bytes(bundle.to_bytes()),
        operator.upper().replace("X", "x"),
        manifest_hash(bundle.manifest),
        split=lambda receipt, _: receipt.payouts,
        payouts=lambda *_: True,
    )

    assert [check.name for check in checks] == ["receipt", "signature", "manifest", "log", "policy", "split", "payouts"]
    assert all(check.passed and check.detail for check in checks)


def test_rules_that_were_not_given_are_not_said_to_hold(case):
    """Without the rules of split and payout tree their checks are absent, not passed."""
    bundle, operator, _ = case
    names = [check.name for check in checks_of(bundle, operator, manifest_hash(bundle.manifest))]
    assert names == ["receipt", "signature", "manifest", "log", "policy"]


def flips(raw: bytes):
    for at in range(len(raw)):
        yield raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :]


def test_one_flipped_bit_at_every_byte_of_the_receipt_is_refused(case):
    """Whatever the change leaves of the receipt, signature and log no longer fit it."""
    for raw in flips(case[0].receipt):
        assert {"signature", "log"} <= set(failed(case, replace(case[0], receipt=raw)))


def test_one_flipped_bit_at_every_byte_of_the_manifest_is_refused(case):
    """The chain's hash binds the whole manifest, fields we do not read included."""
    for raw in flips(case[0].manifest):
        assert "manifest" in failed(case, replace(case[0], manifest=raw))


def test_one_flipped_bit_at_every_byte_of_signature_path_and_root_is_refused(case):
    """Each part fails the check that reads it."""
    bundle = case[0]
    for raw in flips(bundle.signature.encode()):
        assert failed(case, replace(bundle, signature=raw.decode("latin-1"))) == ["signature"]
    for i, node in enumerate(bundle.proof.path):
        for other in flips(node):
            path = (*bundle.proof.path[:i], other, *bundle.proof.path[i + 1 :])
            assert failed(case, replace(bundle, proof=replace(bundle.proof, path=path))) == ["log"]
    for other in flips(bundle.proof.root):
        assert failed(case, replace(bundle, proof=replace(bundle.proof, root=other))) == ["log"]
    for change in ({"index": 4}, {"size": 12}, {"size": 14}, {"path": bundle.proof.path[1:]}):
        assert failed(case, replace(bundle, proof=replace(bundle.proof, **change))) == ["log"]


def test_one_flipped_bit_at_every_byte_of_the_file_is_refused(case):
    """The file as sent has no byte that may change: its form breaks or a check fails."""
    for raw in flips(case[0].to_bytes()):
        try:
            bundle = Bundle.from_bytes(raw)
        except InvalidError:
            continue
        assert failed(case, bundle)


def test_every_check_can_fail_alone(case):
    """Each check fails for its own reason while the others hold."""
    bundle = case[0]
    assert failed(case) == []
    assert failed(case, operator="0x" + "22" * 20) == ["signature"]
    assert failed(case, on_chain=bytes(32)) == ["manifest"]
    assert failed(case, replace(bundle, policy=POLICY + "#")) == ["policy"]
    assert failed(case, split=lambda receipt, _: receipt.payouts[1:]) == ["split"]
    assert failed(case, split=lambda receipt, _: (*receipt.payouts, receipt.payouts[0])) == ["split"]
    assert failed(case, payouts=lambda *_: False) == ["payouts"]
    stranger = replace(bundle.payout_proofs[0], account="contributor:ctr_" + "0" * 32)
    assert failed(case, replace(bundle, payout_proofs=(stranger,))) == ["payouts"]
    proof = replace(bundle.payout_proofs[0], path=(b"\x01" * 32,))
    assert failed(case, replace(bundle, payout_proofs=(proof,))) == ["payouts"]


def test_an_honest_receipt_of_another_log_is_refused(case, example):
    """A proof that verifies, but under a root that the epoch does not name, does not count."""
    bundle = case[0]
    other = LogTree([leaf_hash(bundle.receipt)]).prove_inclusion(0)
    assert failed(case, replace(bundle, proof=other)) == ["log"]


def test_a_policy_the_epoch_does_not_know_is_refused(case, example):
    """The right text for the receipt is not enough: the epoch must have been closed with that policy."""
    bundle = case[0]
    value = json.loads(bundle.manifest)
    value["policy_digests"] = value["policy_digests"][:1]
    other = replace(bundle, manifest=canonical(value))
    assert failed(case, other, on_chain=manifest_hash(other.manifest)) == ["policy"]


def test_a_receipt_that_names_another_operator_than_its_signer_is_refused(case):
    """The operator's own signature does not help a receipt that says somebody else issued it."""
    bundle = case[0]
    receipt = replace(Receipt.from_bytes(bundle.receipt), operator="0x" + "22" * 20)
    raw = receipt.to_bytes()
    sums = signing_digest(receipt_id(raw), receipt.call_id, receipt.price, receipt.policy_digest)
    forged = replace(bundle, receipt=raw, signature="0x" + case[2].sign(sums).hex())
    checks = {check.name: check for check in checks_of(forged, case[1], manifest_hash(bundle.manifest))}
    assert not checks["signature"].passed
    assert "names 0x2222" in checks["signature"].detail


def test_rules_that_break_are_a_failed_check(case):
    """A rule that raises, even on purpose, ends in a failed check with its words, not in a crash."""

    def broken(*_):
        raise ZeroDivisionError("oh")

    assert failed(case, split=broken, payouts=broken) == ["split", "payouts"]
    bundle, operator, _ = case
    details = [check.detail for check in checks_of(bundle, operator, manifest_hash(bundle.manifest), split=broken)]
    assert "ZeroDivisionError: oh" in details[-1]


def test_garbage_fails_every_check_that_reads_it(case):
    """A bundle of nonsense gives failed checks, not exceptions."""
    bundle = replace(case[0], receipt=b"", manifest=b"{}", signature="")
    assert failed(case, bundle) == ["receipt", "signature", "manifest", "log", "policy", "split", "payouts"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", "headwater.bundle/2"),
        ("receipt", "AAA"),
        ("receipt", "AB=="),  # the last bits of B are not zero
        ("receipt", "A A="),
        ("signature", "0x"),
        ("policy", ""),
        ("manifest", None),
        ("proof", {}),
        ("payout_proofs", [{}]),
        ("note", "hello"),
    ],
)
def test_a_bundle_of_another_form_is_refused(case, field, value):
    """Every field of the file is checked before anything is computed from it."""
    with pytest.raises(InvalidError) as refusal:
        Bundle.from_bytes(canonical(json.loads(case[0].to_bytes()) | {field: value}))
    assert refusal.value.code in ("field_invalid", "field_missing", "field_unknown")


def test_a_path_beyond_the_limit_is_refused(case):
    """No log needs more than 64 steps; a longer path is refused unread."""
    long = replace(case[0], proof=replace(case[0].proof, path=(bytes(32),) * 65))
    with pytest.raises(InvalidError):
        Bundle.from_bytes(long.to_bytes())
    assert failed(case, long) == ["log"]


def test_a_manifest_is_read_with_its_own_fields_beside_ours(case):
    """Fields that belong to the epoch alone are let through; ours are all demanded."""
    manifest = EpochManifest.from_bytes(case[0].manifest)
    assert (manifest.epoch, manifest.log_size, manifest.total_units) == (7, LEAVES, 10_000_000)
    value = json.loads(case[0].manifest)
    for name in ("epoch", "log_size", "log_root", "policy_digests", "registry_digest", "total_units", "tree_root"):
        with pytest.raises(InvalidError) as refusal:
            EpochManifest.from_bytes(canonical({key: value[key] for key in value if key != name}))
        assert refusal.value.code == "field_missing"
