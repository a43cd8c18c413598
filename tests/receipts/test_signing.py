from dataclasses import replace

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError, InvariantError
from headwater.receipts import KeySigner, issue, recover
from headwater.receipts.signing import parse_signature, recover_address, signing_digest

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

secrets = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
ids = st.binary(min_size=32, max_size=32).map(bytes.hex)


def typed_data(identity: str, call_id: str, price: int, policy_digest: str) -> dict:
    """The same message as a wallet is given it."""
    return {
        "types": {
            "EIP712Domain": [{"name": "name", "type": "string"}, {"name": "version", "type": "string"}],
            "Receipt": [
                {"name": "id", "type": "bytes32"},
                {"name": "callId", "type": "string"},
                {"name": "price", "type": "string"},
                {"name": "policyDigest", "type": "bytes32"},
            ],
        },
        "primaryType": "Receipt",
        "domain": {"name": "headwater", "version": "1"},
        "message": {
            "id": bytes.fromhex(identity),
            "callId": call_id,
            "price": str(price),
            "policyDigest": bytes.fromhex(policy_digest.removeprefix("sha256:")),
        },
    }


def test_the_published_signature_is_made_and_recovered(example):
    """The signature that another program made of the example is the one we make, and leads to the operator."""
    signed = issue(example.receipt, example.signer)

    assert (signed.raw, signed.id, signed.signature) == (example.raw, example.id, example.signature)
    assert recover(example.receipt, example.raw, example.signature) == example.receipt.operator
    receipt = example.receipt
    assert signing_digest(example.id, receipt.call_id, receipt.price, receipt.policy_digest) == example.signing_digest


@given(
    secret=secrets, identity=ids, policy=ids, call=st.binary(min_size=16, max_size=16), price=st.integers(0, 10**38 - 1)
)
def test_wallets_sign_and_recover_as_we_do(secret, identity, policy, call, price):
    """eth-account makes the same 65 bytes from the same key, and reads ours back to the same address."""
    call_id, policy_digest = "call_" + call.hex(), "sha256:" + policy
    message = typed_data(identity, call_id, price, policy_digest)
    signer = KeySigner(secret)
    digest = signing_digest(identity, call_id, price, policy_digest)

    ours = signer.sign(digest)

    theirs = Account.sign_typed_data(secret, full_message=message)
    assert theirs.message_hash == digest
    assert theirs.signature == ours
    assert Account.recover_message(encode_typed_data(full_message=message), signature=ours).lower() == signer.address
    assert recover_address(digest, bytes(theirs.signature)) == signer.address
    assert Account.from_key(secret).address.lower() == signer.address


def test_signing_is_deterministic(example):
    """The same receipt gets the same signature each time, so that issuing twice is issuing once."""
    assert issue(example.receipt, example.signer) == issue(example.receipt, example.signer)


def test_any_changed_digit_of_a_signature_is_refused(example):
    """No character of a signature can be changed: it has another form, or leads to another address."""
    for at in range(len(example.signature)):
        for flip in (1, 2, 0x20):
            text = example.signature[:at] + chr(ord(example.signature[at]) ^ flip) + example.signature[at + 1 :]
            try:
                found = recover(example.receipt, example.raw, text)
            except InvalidError:
                continue
            assert found != example.receipt.operator


def test_the_mirrored_signature_is_refused(example):
    """The twin with a high s recovers the same address elsewhere; here it has the wrong form."""
    raw = parse_signature(example.signature)
    twin = raw[:32] + (ORDER - int.from_bytes(raw[32:64], "big")).to_bytes(32, "big") + bytes([55 - raw[64]])

    assert Account._recover_hash(example.signing_digest, signature=twin).lower() == example.receipt.operator
    with pytest.raises(InvalidError, match="upper half"):
        recover_address(example.signing_digest, twin)


@pytest.mark.parametrize(
    "signature",
    [b"", bytes(64), bytes(65), bytes(64) + b"\x1b", b"\xff" * 32 + bytes(31) + b"\x01\x1b", bytes(64) + b"\x00"],
    ids=bytes.hex,
)
def test_bytes_that_are_no_signature_are_refused(example, signature):
    """Numbers off the curve and wrong lengths end in InvalidError, never in an error of the library."""
    with pytest.raises(InvalidError) as refusal:
        recover_address(example.signing_digest, signature)
    assert refusal.value.code == "signature_invalid"


@pytest.mark.parametrize(
    "secret", [b"", bytes(31), bytes(32), ORDER.to_bytes(32, "big"), bytes([255] * 32)], ids=bytes.hex
)
def test_numbers_outside_the_curve_are_no_keys(secret):
    """Zero and numbers from the order on are refused, and the message does not show the key."""
    with pytest.raises(InvalidError) as refusal:
        KeySigner(secret)
    assert refusal.value.code == "signing_key_invalid"
    assert not secret or secret.hex() not in str(refusal.value)


def test_a_key_is_never_shown(example):
    """Printing a signer gives its address only."""
    assert repr(example.signer) == f"KeySigner({example.receipt.operator})"


def test_a_receipt_of_another_operator_is_not_signed(example):
    """A receipt that names somebody else is a bug of ours and gets no signature."""
    with pytest.raises(InvariantError) as refusal:
        issue(replace(example.receipt, operator="0x" + "00" * 20), example.signer)
    assert refusal.value.code == "operator_mismatch"


def test_what_is_signed_beside_the_id_matters(example):
    """Id, call, price and policy each change the digest."""
    receipt = example.receipt
    parts = [example.id, receipt.call_id, receipt.price, receipt.policy_digest]
    digests = {signing_digest(*parts)}
    digests.add(signing_digest("00" * 32, *parts[1:]))
    digests.add(signing_digest(parts[0], "call_" + "0" * 32, *parts[2:]))
    digests.add(signing_digest(*parts[:2], receipt.price + 1, parts[3]))
    digests.add(signing_digest(*parts[:3], "sha256:" + "0" * 64))
    assert len(digests) == 5
