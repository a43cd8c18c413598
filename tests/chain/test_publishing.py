"""What is published of a deployment, who signs, and what a relayer's transaction costs."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.chain import Chain, Credit, EmbeddedChain, derived_signer, read_artifact
from headwater.chain.manifest import Manifest
from headwater.chain.outbox import Outbox
from headwater.chain.publishing import describe, standard_json
from headwater.chain.relaying import RELAY_FIRST_GAS, RELAY_GAS, RELAY_SIZE, Offer, relay, relay_fee, typed_data
from headwater.chain.signer import CommandSigner
from headwater.core.errors import ConflictError, InvalidError, MissingError, RefusedError, UpstreamError
from headwater.core.keccak import keccak256
from headwater.settlement import Leaf, PayoutTree, claim_of
from headwater.settlement.claim_to import ClaimTo, payout_domain, sign_claim_to
from headwater.settlement.fees import FeeParameters, fastlz_size

SEED = b"\x34" * 32
CONTRACTS = Path(__file__).parents[2] / "contracts"
RELAYER = derived_signer(SEED, 3).address
PAYEE_KEY = keccak256(b"headwater.embedded.account" + (4).to_bytes(4, "big") + SEED)
PAYEE = derived_signer(SEED, 4).address

SIGNER = """
import json, sys
from eth_account import Account
fields = json.loads(sys.stdin.read())
for name in ("chainId", "nonce", "gas", "maxFeePerGas", "maxPriorityFeePerGas", "value"):
    fields[name] = int(fields[name]) + (1 if name == {greedy!r} else 0)
fields["type"] = 2
print(Account.from_key({key!r}).sign_transaction(fields).raw_transaction.hex())
"""


@pytest.fixture(scope="module")
def embedded():
    """A chain in memory."""
    with EmbeddedChain(seed=SEED, clock_ns=lambda: 1_700_000_000 * 10**9) as chain:
        yield chain


@pytest.fixture(scope="module")
def chain(embedded):
    """A funded deployment without delay."""
    client = Chain(embedded.provider(), embedded.accounts[0])
    client.deploy(guardian=embedded.accounts[1].address, cap=10**12, delay_s=0)
    client.fund(10**10)
    return client


@pytest.mark.parametrize("name", [pytest.param("Payout", marks=pytest.mark.slow), "Credit", "TestToken"])
def test_the_compiler_makes_the_deployed_bytes_of_the_exported_input(name):
    """The standard JSON input alone, fed to the compiler, gives the artifact's code."""
    from vyper.cli.vyper_json import compile_json

    made = compile_json(json.loads(json.dumps(standard_json(name, CONTRACTS))))["contracts"][f"{name}.vy"][name]["evm"]

    assert made["bytecode"]["object"] == read_artifact(name).bytecode
    assert made["deployedBytecode"]["object"] == read_artifact(name).bytecode_runtime


def test_other_sources_are_not_exported(tmp_path):
    """A source that was changed since, or is not there, is refused by name."""
    with pytest.raises(MissingError):
        standard_json("TestToken", tmp_path)
    shutil.copy(CONTRACTS / "TestToken.vy", tmp_path)
    with (tmp_path / "TestToken.vy").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(ConflictError) as refused:
        standard_json("TestToken", tmp_path)
    assert refused.value.code == "source_differs"


def test_a_deployment_is_described_with_all_its_contracts(chain, tmp_path):
    """Addresses, ABIs and digests of what was deployed; the manifest keeps depth and credit."""
    credit = Credit.deploy(chain, delay_s=3_600)
    manifest = replace(chain.manifest, credit=credit.address, confirmations=5)
    manifest.save(tmp_path / "deployment.json")
    described = describe(Manifest.load(tmp_path / "deployment.json"))

    assert {name: one["address"] for name, one in described["contracts"].items()} == {
        "Payout": manifest.payout,
        "Credit": credit.address,
        "TestToken": manifest.token,
    }
    assert any(entry.get("name") == "claim_to" for entry in described["contracts"]["Payout"]["abi"])
    with pytest.raises(InvalidError):
        replace(manifest, confirmations=-1)


def signing(folder: Path, key: bytes, greedy: str = "") -> list[str]:
    """A command that signs with a key, adding one to a field when it is greedy."""
    script = folder / "signer.py"
    script.write_text(SIGNER.format(key=key.hex(), greedy=greedy))
    return [sys.executable, str(script)]


def test_a_command_signs_in_place_of_a_key(embedded, chain, tmp_path):
    """The signer's process holds the key; what it signs is mined."""
    command = CommandSigner(signing(tmp_path, PAYEE_KEY), PAYEE)
    client = Chain(embedded.provider(), command, manifest=chain.manifest, outbox=Outbox(tmp_path / "outbox"))
    client.sender.send(client.payout().functions.set_recipient(RELAYER), "naming a recipient")

    assert "CommandSigner(0x" in repr(command)
    assert PAYEE_KEY.hex() not in repr(command)


@pytest.mark.parametrize(
    ("wrong", "code"), [("value", "signer_differs"), ("gas", "signer_differs"), ("key", "signer_differs")]
)
def test_a_signer_that_signs_something_else_is_refused(embedded, chain, tmp_path, wrong, code):
    """Another amount, another limit or another key: nothing is sent."""
    key = PAYEE_KEY if wrong != "key" else b"\x05" * 32
    command = CommandSigner(signing(tmp_path, key, wrong), PAYEE)
    client = Chain(embedded.provider(), command, manifest=chain.manifest)
    with pytest.raises(RefusedError) as refused:
        client.sender.send(client.payout().functions.set_recipient(PAYEE), "naming a recipient")
    assert refused.value.code == code


def test_a_signer_that_fails_is_told_without_what_it_said(tmp_path):
    """A missing program and one that fails are upstream errors; its output is not repeated."""
    for command in (["/nonexistent/signer"], [sys.executable, "-c", "raise SystemExit('secret-word')"]):
        with pytest.raises(UpstreamError) as refused:
            CommandSigner(command, PAYEE).sign_transaction({"nonce": 0})
        assert refused.value.code == "signer_failed"
        assert "secret-word" not in str(refused.value)


def offered(chain: Chain, epoch: int, amount: int, fee: int) -> Offer:
    """An offer of the payee for an epoch of 10,000 payees that is active."""
    leaves = [Leaf(i, "0x" + keccak256(b"p%d" % i)[:20].hex(), 5) for i in range(10_000)]
    leaves[77] = Leaf(77, RELAYER, amount)
    key = keccak256(b"headwater.embedded.account" + (3).to_bytes(4, "big") + SEED)
    tree = PayoutTree.build(leaves, chain.domain(epoch))
    chain.post(epoch, tree.root, tree.total, bytes(32))
    terms = ClaimTo(RELAYER, amount, "0x" + "aa" * 20, fee, derived_signer(SEED, 5).address, 2**40)
    signature = sign_claim_to(terms, payout_domain(chain.chain_id, chain.manifest.payout), key)
    return Offer(claim_of(tree, 77), terms, signature)


def test_a_relayed_claim_costs_what_the_fee_is_made_of(embedded, chain):
    """Gas and size of a relayed claim among 10,000 payees are within five percent of what a relayer asks for."""
    relayer = chain.acting_as(embedded.accounts[5])
    for holder in ("0x" + "aa" * 20, derived_signer(SEED, 5).address):
        chain.mint(holder, 1)
    early = offered(chain, 1, 1_000, 10)
    first = relay(relayer, Offer.from_json(json.loads(json.dumps(early.as_json()))), now_s=0)
    again = relay(relayer, offered(chain, 2, 3_000, 10), now_s=0)
    sent = chain.sender.web3.eth.get_transaction(again.transaction)

    assert abs(again.gas_used - RELAY_GAS) <= 0.05 * RELAY_GAS
    assert abs(first.gas_used - RELAY_GAS - RELAY_FIRST_GAS) <= 0.05 * (RELAY_GAS + RELAY_FIRST_GAS)
    assert abs(fastlz_size(bytes(sent["input"])) + 120 - RELAY_SIZE) <= 0.1 * RELAY_SIZE
    assert relayer.balance(derived_signer(SEED, 5).address) == 21
    one = relay_fee(FeeParameters(10**9), ether_units=3 * 10**9, first=False)
    assert one == -(-RELAY_GAS * 10**9 * 120 * 3 * 10**9 // (100 * 10**18))


def test_offers_that_do_not_pay_or_do_not_hold_are_refused(embedded, chain):
    """Too low a fee, a deadline that is over, another deployment, changed terms, somebody else's signature."""
    offer = offered(chain, 3, 9_000, 10)
    relayer = chain.acting_as(embedded.accounts[5])
    with pytest.raises(RefusedError):
        relay(relayer, offer, now_s=0, fee_min=11)
    with pytest.raises(RefusedError):
        relay(relayer, offer, now_s=2**40 + 1)
    foreign = replace(offer, claim=replace(offer.claim, domain=replace(offer.claim.domain, chain_id=5)))
    with pytest.raises(InvalidError):
        relay(relayer, foreign, now_s=0)
    value = offer.as_json()
    for change, error in (
        ({"terms": value["terms"] | {"fee": "9"}}, RefusedError),
        ({"terms": value["terms"] | {"cumulative": "8"}}, InvalidError),
        ({"schema": "x"}, InvalidError),
        ({"signature": "0x12"}, InvalidError),
    ):
        with pytest.raises(error):
            Offer.from_json(value | change)


def test_a_wallet_hashes_the_typed_data_to_what_the_payee_signs(chain):
    """Another implementation of EIP-712 gets the same digest from the JSON that a wallet shows."""
    from eth_account.messages import _hash_eip191_message, encode_typed_data

    terms = ClaimTo(PAYEE, 500, "0x" + "aa" * 20, 7, RELAYER, 1_900_000_000)
    data = typed_data(terms, chain_id=chain.chain_id, contract=chain.manifest.payout)
    theirs = _hash_eip191_message(encode_typed_data(full_message=data))

    assert theirs == terms.digest(payout_domain(chain.chain_id, chain.manifest.payout))
