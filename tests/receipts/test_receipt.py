import copy
import hashlib
import json
import re
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.canonical import canonical
from headwater.core.errors import InvalidError, InvariantError
from headwater.core.limits import RECEIPT_SIZE_BYTES_MAX
from headwater.receipts import (
    ModelUse,
    Receipt,
    ReceiptAttribution,
    ReceiptOwner,
    ReceiptPayout,
    ReceiptShare,
    microbits,
)
from headwater.receipts.receipt import Usage

SPEC = Path(__file__).parents[2] / "spec"
INVALID = json.loads((SPEC / "vectors" / "receipt_invalid.json").read_text("utf-8"))["cases"]
SCHEMA = json.loads((SPEC / "receipt-v1.schema.json").read_text("utf-8"))


def changed(raw: bytes, case: dict) -> dict:
    value = json.loads(raw)
    *path, last = case.get("set") or case["drop"]
    place = value
    for step in path:
        place = place[step]
    if "set" in case:
        place[last] = case["to"]
    else:
        del place[last]
    return value


def test_the_example_is_read_and_written_back_byte_for_byte(example):
    """A receipt has one text: reading it and writing it again gives the same bytes and the same id."""
    receipt = Receipt.from_bytes(example.raw)

    assert receipt.to_bytes() == example.raw
    assert receipt.id == example.id == hashlib.sha256(example.raw).hexdigest()
    assert receipt.price == sum(payout.amount for payout in receipt.payouts) == 10_000_000


def test_every_field_of_the_example_reaches_the_bytes(example):
    """Changing any single value of a receipt changes its bytes or is refused: nothing is left unsaid."""

    def variants(value):
        if is_dataclass(value):
            for field in fields(value):
                for other in variants(getattr(value, field.name)):
                    yield replace(value, **{field.name: other})
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                for other in variants(item):
                    yield (*value[:i], other, *value[i + 1 :])
        elif isinstance(value, int):
            yield value + 1
        elif isinstance(value, str):
            yield value[:-1] + ("1" if value[-1] == "0" else "0")
        else:
            yield "sha256:" + "0" * 64

    seen = {example.raw}
    refused = 0
    for other in variants(example.receipt):
        try:
            raw = other.to_bytes()
        except InvariantError:
            refused += 1
        else:
            assert raw not in seen
            seen.add(raw)
    assert len(seen) > 30
    assert refused > 10


@pytest.mark.parametrize("case", INVALID, ids=[case["name"] for case in INVALID])
def test_a_wrong_receipt_is_refused_with_its_place(example, case):
    """Each wrong receipt of the published list is refused with the stated code and the place in the message."""
    value = changed(example.raw, case)

    with pytest.raises(InvalidError) as refusal:
        Receipt.from_bytes(canonical(value))

    assert refusal.value.code == case["code"]
    assert refusal.value.message.startswith("$")
    assert refusal.value.fix


@pytest.mark.parametrize("case", INVALID, ids=[case["name"] for case in INVALID])
def test_the_json_schema_refuses_every_wrong_form(example, case):
    """The published JSON Schema and the reader agree on form; sums, orders and the calendar are the reader's alone."""
    validator = jsonschema.Draft202012Validator(SCHEMA)

    assert validator.is_valid(json.loads(example.raw))
    assert validator.is_valid(changed(example.raw, case)) is not case["form"]


def test_the_json_schema_is_one(example):
    """The schema file is itself valid and closed: no object of it takes unknown fields by accident."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def objects(node):
        if isinstance(node, dict):
            if node.get("type") == "object":
                yield node
            for item in node.values():
                yield from objects(item)
        elif isinstance(node, list):
            for item in node:
                yield from objects(item)

    found = list(objects(SCHEMA))
    assert len(found) == 8
    assert all("additionalProperties" in node for node in found)


def test_any_flipped_byte_makes_another_receipt_or_none(example):
    """No byte can be changed unseen: what is left is refused, or is a receipt with another id."""
    for at in range(len(example.raw)):
        for flip in (1, 0x20, 0x80):
            raw = example.raw[:at] + bytes([example.raw[at] ^ flip]) + example.raw[at + 1 :]
            try:
                receipt = Receipt.from_bytes(raw)
            except InvalidError:
                continue
            assert receipt.to_bytes() == raw
            assert receipt.id != example.id


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'"\\ud800"',
        b'["' * 300_000,
        b'"\\"' * 300_000,
        b"[" * 500 + b"]" * 500,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"price":1e400}',
        b'{"price":NaN}',
        b"1" * 5_000,
        b'{"a":1,"a":1}',
        b" {}",
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_bytes_that_are_no_receipt_are_refused_cleanly(raw):
    """Whatever is sent instead of a receipt ends in InvalidError, never in an error of a parser."""
    with pytest.raises(InvalidError):
        Receipt.from_bytes(raw)


def test_nesting_is_refused_even_when_recursion_is_unbounded():
    """Depth is counted first: a raised recursion limit does not let a nested file overflow the stack."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        for raw in (b"[" * 500_000, b'{"a":' * 200_000, b'["\\"[",' + b"[" * 500_000):
            with pytest.raises(InvalidError) as refusal:
                Receipt.from_bytes(raw)
            assert refusal.value.code == "json_too_deep"
    finally:
        sys.setrecursionlimit(limit)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_cleanly(raw):
    """Noise ends in InvalidError."""
    with pytest.raises(InvalidError):
        Receipt.from_bytes(raw)


def test_the_same_receipt_in_other_spacing_is_refused(example):
    """Only the canonical bytes are the receipt; a pretty-printed one has another digest and is not accepted."""
    text = example.raw.decode()
    backwards = json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":"), ensure_ascii=False)
    twice = text[:-1] + ',"supersedes":null}'
    escaped = text.replace("Ω", "\\u03a9").replace("SmolLM2", "\\u0053molLM2")
    signed_zero = text.replace('"seed":0', '"seed":-0')
    for other in (json.dumps(json.loads(text)), text + "\n", backwards, twice, escaped, signed_zero):
        with pytest.raises(InvalidError) as refusal:
            Receipt.from_bytes(other.encode())
        assert refusal.value.code == "not_canonical"


def test_a_receipt_beyond_the_size_limit_is_refused_before_it_is_parsed():
    """The limit is checked first, and named."""
    with pytest.raises(InvalidError, match=str(RECEIPT_SIZE_BYTES_MAX)) as refusal:
        Receipt.from_bytes(b"[" * (RECEIPT_SIZE_BYTES_MAX + 1))
    assert refusal.value.code == "receipt_too_large"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda r: replace(r, price=r.price + 1), "payouts_unequal"),
        (lambda r: replace(r, price=1.0), "field_invalid"),
        (lambda r: replace(r, price=-1), "field_invalid"),
        (lambda r: replace(r, issued_at_ns=-1), "field_invalid"),
        (lambda r: replace(r, issued_at_ns=10**30), "field_invalid"),
        (lambda r: replace(r, operator=r.operator.upper()), "field_invalid"),
        (lambda r: replace(r, payer="\ud800"), "field_invalid"),
        (lambda r: replace(r, payouts=()), "payouts_unequal"),
        (lambda r: replace(r, attribution=replace(r.attribution, residual_ppb=0)), "weights_unequal"),
        (lambda r: replace(r, attribution=replace(r.attribution, parameters=(("a", 1), ("a", 2)))), "field_invalid"),
        (lambda r: replace(r, attribution=replace(r.attribution, parameters=(("a", 0.5),))), "field_invalid"),
    ],
)
def test_a_wrong_receipt_is_never_issued(example, change, code):
    """The same checks stand at the way out: a wrong value is a bug of ours and becomes no bytes."""
    with pytest.raises(InvariantError) as refusal:
        change(example.receipt).to_bytes()
    assert refusal.value.code == code


def test_an_issued_receipt_that_is_too_large_is_refused(example):
    """Many long payouts pass every rule of their own, and together the limit."""
    rows = tuple(ReceiptPayout("operator:" + "x" * 150, 0, "y" * 200, None) for _ in range(4_000))
    with pytest.raises(InvariantError) as refusal:
        replace(example.receipt, payouts=example.receipt.payouts + rows).to_bytes()
    assert refusal.value.code == "receipt_too_large"


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: "sha256:" + raw.hex())
hex16 = st.binary(min_size=16, max_size=16).map(bytes.hex)
amounts = st.integers(0, 10**30)
wide = st.integers(-(2**45), 2**45)


@st.composite
def receipts(draw):
    """Any receipt that the rules allow, from parts drawn apart and sums that are made to close."""
    shares = []
    left = 10**9
    for name in draw(st.lists(hex16, max_size=4, unique=True)):
        weight = draw(st.integers(0, left))
        left -= weight
        low, middle, high = sorted(draw(st.lists(st.integers(0, 2**45) if weight else wide, min_size=3, max_size=3)))
        first = draw(st.integers(0, 10**9))
        owners = tuple(ReceiptOwner(f"escrow:ctr_{name}", f"ctr_{name}", ppb) for ppb in (first, 10**9 - first))
        channel = draw(st.sampled_from(["grounded", "learned", "reproduced"]))
        shares.append(ReceiptShare(f"ctb_{name}", "document", channel, weight, middle, low, high, owners))
    payouts = tuple(
        ReceiptPayout("commons", amount, line, None)
        for amount, line in draw(st.lists(st.tuples(amounts, names), max_size=4))
    )
    base = draw(wide)
    attribution = ReceiptAttribution(
        estimator="owen-context",
        version="1",
        grade=draw(st.sampled_from("ABC")),
        parameters=tuple(sorted(draw(st.dictionaries(st.sampled_from("abcdef"), wide | names, max_size=3)).items())),
        seed=draw(st.integers(0, 2**53 - 1)),
        reference_digest=draw(digests),
        index_digest=draw(st.none() | digests),
        scorer_digest=draw(digests),
        tokens=draw(st.integers(0, 10**6)),
        base_microbits=base,
        total_microbits=base + sum(share.microbits for share in shares if share.channel != "reproduced"),
        model_weight_ppm=draw(st.integers(0, 10**6)),
        shares=tuple(shares),
        residual_ppb=left,
        residual_account="commons",
    )
    return Receipt(
        call_id="call_" + draw(hex16),
        issued_at_ns=draw(st.integers(0, 253_402_300_799 * 10**9)),
        operator="0x" + draw(st.binary(min_size=20, max_size=20)).hex(),
        payer=draw(names),
        model=ModelUse(draw(names), draw(digests), draw(st.none() | digests)),
        request_digest=draw(digests),
        answer_digest=draw(digests),
        usage=Usage(draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))),
        currency="USD",
        price=sum(payout.amount for payout in payouts),
        policy_digest=draw(digests),
        registry_digest=draw(digests),
        attribution=attribution,
        payouts=payouts,
        supersedes=draw(st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex)),
    )


@given(receipts())
def test_bytes_are_rfc_8785_and_read_back_as_the_same_value(receipt):
    """The fast encoder gives what the RFC 8785 library gives, the schema accepts it, and reading returns the value."""
    raw = receipt.to_bytes()

    assert raw == canonical(json.loads(raw))
    assert Receipt.from_bytes(raw) == receipt
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(raw))


@given(st.floats(-(10**9), 10**9))
def test_micro_bits_are_the_nearest_integer(bits):
    """Rounding moves a measured value by half a micro-bit at most, and keeps order."""
    assert abs(microbits(bits) - bits * 1_000_000) <= 0.5
    assert microbits(bits) <= microbits(bits + 1)


@pytest.mark.parametrize("bits", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_what_is_no_number_of_bits_has_no_micro_bits(bits):
    """A broken measurement stops the receipt instead of becoming a number."""
    with pytest.raises(InvariantError) as refusal:
        microbits(bits)
    assert refusal.value.code == "microbits_out_of_range"


def test_the_example_holds_every_field_of_the_schema(example):
    """The published example shows each field once, so that the list of wrong receipts can reach them all."""
    value = copy.deepcopy(json.loads(example.raw))
    assert set(value) == set(SCHEMA["required"]) == set(SCHEMA["properties"])
    assert re.fullmatch(SCHEMA["properties"]["issued_at"]["pattern"], value["issued_at"])
