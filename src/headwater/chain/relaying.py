"""Claims that somebody else sends, claims of many at once, and claims as a file that a wallet sends.

A relayer asks for a fee that covers its gas with a margin; the payee sees it before it signs and can refuse. Nothing
here moves money to anybody but the payee, its recipient, or where the payee's signature says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from headwater.chain.client import Chain, Paid, web3_address, words
from headwater.chain.payees import Payees
from headwater.core.canonical import Json
from headwater.core.errors import InvalidError, RefusedError
from headwater.settlement.claim import Claim, plan_pushes
from headwater.settlement.claim_to import ClaimTo, check_claim_to, payout_domain
from headwater.settlement.fees import FeeParameters, fee_of_size
from headwater.settlement.planning import WEI
from headwater.settlement.tree import PayoutTree

OFFER_SCHEMA: Final = "headwater.claim-to/1"
WALLET_SCHEMA: Final = "headwater.wallet/1"
RELAY_GAS, RELAY_FIRST_GAS, RELAY_SIZE = 77_500, 39_600, 730
"""A signed claim that somebody else sends, at 10,000 payees, when its receiver and the relayer hold the token already.

A first payment is taken to be the first of its four, too."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A claim with the terms that its payee signed: whoever holds it may send it."""

    claim: Claim
    terms: ClaimTo
    signature: bytes  # 65

    def as_json(self) -> Json:
        """The offer as JSON."""
        return {
            "schema": OFFER_SCHEMA,
            "claim": self.claim.as_json(),
            "terms": {name: str(value) for name, value in asdict(self.terms).items()},
            "signature": "0x" + self.signature.hex(),
        }

    @classmethod
    def from_json(cls, value: Json) -> Offer:
        """Read what `as_json` wrote, and see that the payee signed it.

        Raises:
            InvalidError: not an offer.
            RefusedError: signed by somebody else, for other terms or for another contract.
        """
        try:
            if value["schema"] != OFFER_SCHEMA:
                raise ValueError(f"schema {value['schema']!r}")
            claim, terms = Claim.from_json(value["claim"]), value["terms"]
            read = ClaimTo(
                terms["account"],
                int(terms["cumulative"]),
                terms["to"],
                int(terms["fee"]),
                terms["relayer"],
                int(terms["deadline_s"]),
            )
            signature = bytes.fromhex(value["signature"].removeprefix("0x"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidError(f"not an offer: {error}", code="offer_invalid", fix="make it again") from None
        leaf = claim.proof.leaf
        if (read.account, read.cumulative) != (leaf.address, leaf.amount):
            raise InvalidError(
                f"terms for {read.cumulative} units of {read.account}, a claim for {leaf.amount} of {leaf.address}",
                code="offer_invalid",
                fix="sign terms for the amount of this claim",
            )
        check_claim_to(read, signature, payout_domain(claim.domain.chain_id, claim.domain.contract))
        return cls(claim, read, signature)


def relay_fee(prices: FeeParameters, *, ether_units: int, first: bool, margin_percent: int = 20) -> int:
    """Token units that a relayer asks for: what sending costs, and a margin.

    Args:
        ether_units: token units that an ether is worth.
        first: whether the payee was never paid by this contract, which costs more.
    """
    cost = fee_of_size(RELAY_SIZE, RELAY_GAS + (RELAY_FIRST_GAS if first else 0), prices).total_wei
    return -(-cost * (100 + margin_percent) * ether_units // (100 * WEI))


def relay(chain: Chain, offer: Offer, *, now_s: int, fee_min: int = 0) -> Paid:
    """Send an offer; the signer pays the gas, the relayer that it names gets the fee.

    Args:
        fee_min: token units below which it is not worth sending.

    Raises:
        RefusedError: the fee is too low, or the offer is over.
        InvalidError: it is for another deployment.
        RevertedError: nothing is due any more, or the payee has named a recipient.
    """
    domain = offer.claim.domain
    if domain != chain.domain(domain.epoch):
        raise InvalidError(
            f"an offer for {domain.contract} on chain {domain.chain_id}",
            code="deployment_differs",
            fix="connect to that deployment",
        )
    if offer.terms.fee < fee_min or now_s > offer.terms.deadline_s:
        raise RefusedError(
            f"the offer pays {offer.terms.fee} token units until {offer.terms.deadline_s}, sending costs {fee_min}",
            code="offer_refused",
            fix="ask the payee for another offer",
        )
    return Payees(chain).claim_to(domain.epoch, offer.claim.proof, offer.terms, offer.signature)


def typed_data(terms: ClaimTo, *, chain_id: int, contract: str) -> Json:
    """What a wallet is given to sign (`eth_signTypedData_v4`); it shows every field, the fee among them."""
    addresses, numbers = ("account", "to", "relayer"), {"cumulative", "fee", "deadline"}
    order = ("account", "cumulative", "to", "fee", "relayer", "deadline")
    values = asdict(terms) | {"deadline": terms.deadline_s}
    return {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "ClaimTo": [{"name": name, "type": "uint256" if name in numbers else "address"} for name in order],
        },
        "primaryType": "ClaimTo",
        "domain": {"name": "headwater payout", "version": "1", "chainId": chain_id, "verifyingContract": contract},
        "message": {
            name: str(web3_address(values[name])) if name in addresses else str(values[name]) for name in order
        },
    }


def claim_many(chain: Chain, epoch: int, tree: PayoutTree, indices: Sequence[int]) -> Iterator[Paid]:
    """Pay several payees in as few transactions as cost the least; one that fails stays due and stops nobody."""
    if len(indices) == 1:
        yield chain.claim(epoch, tree.prove(indices[0]))
        return
    for start, count in plan_pushes(tree, indices):
        chosen = [index for index in indices if start <= index < start + count]
        yield chain.push(epoch, tree.prove_range(start, count), wanted=chosen)


def wallet_file(chain: Chain, epoch: int, tree: PayoutTree, indices: Sequence[int]) -> Json:
    """The same as transactions that a wallet can send: to, value, data and chain id."""
    calls: list[tuple[str, str]] = []
    if len(indices) == 1:
        proof = tree.prove(indices[0])
        leaf = proof.leaf
        arguments = (epoch, leaf.index, web3_address(leaf.address), leaf.amount, words(proof.path))
        calls.append((f"claim for index {leaf.index}", chain.calldata("claim", *arguments)))
    else:
        for start, count in plan_pushes(tree, indices):
            part = tree.prove_range(start, count)
            mask = sum(1 << (index - start) for index in indices if start <= index < start + count)
            data = chain.calldata("push", epoch, part.payload(), mask, words(part.path))
            calls.append((f"push {mask.bit_count()} payees from index {start}", data))
    return {
        "schema": WALLET_SCHEMA,
        "epoch": epoch,
        "transactions": [
            {"about": about, "chainId": chain.chain_id, "to": chain.manifest.payout, "value": "0", "data": data}
            for about, data in calls
        ],
    }


def check_fee_line(terms: ClaimTo, due: int) -> Mapping[str, str]:
    """The line a payee reads before it signs: what is due, what the relayer keeps, what arrives.

    Raises:
        RefusedError: the fee is not below what is due.
    """
    if terms.fee >= due:
        raise RefusedError(
            f"a fee of {terms.fee} on {due} token units that are due",
            code="fee_above_due",
            fix="claim it yourself, or wait until more is due",
        )
    return {"due": str(due), "fee": str(terms.fee), "arrives": str(due - terms.fee), "to": terms.to}
