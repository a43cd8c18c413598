"""A Credit contract: payers' deposits, and vouchers closed many at a time.

Whatever is sent is safe to repeat: vouchers are cumulative. Knows nothing of who holds which voucher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headwater.chain.artifacts import read_artifact
from headwater.chain.client import Chain, web3_address
from headwater.chain.sender import Sent
from headwater.core.errors import InvalidError
from headwater.settlement.typed_data import SigningDomain
from headwater.settlement.voucher import SignedVoucher, credit_domain

VOUCHERS_MAX = 128
"""Vouchers of one closing."""

_REASONS = {1: "not_signed", 2: "nothing_due", 3: "no_credit"}


@dataclass(frozen=True, slots=True)
class CreditAccount:
    """What a payer has, in token units."""

    balance: int
    asked_back: int  # can be more than the balance when vouchers were closed since
    due_from_s: int  # when it can be taken, seconds since 1970

    @property
    def covers(self) -> int:
        """What a voucher taken now is sure to be paid from."""
        return max(0, self.balance - self.asked_back)


@dataclass(frozen=True, slots=True)
class ClosedVouchers:
    """What a closing has paid."""

    amount: int  # token units, in one transfer
    paid: tuple[tuple[str, int], ...]  # (payer, token units)
    skipped: tuple[tuple[str, str], ...]  # (payer, reason)
    gas_used: int
    fee_wei: int
    transaction: str  # 0x hex


class Credit:
    """One Credit contract in the token of a deployment, seen by one account."""

    def __init__(self, chain: Chain, address: str) -> None:
        self._chain, self.address = chain, address

    @classmethod
    def deploy(cls, chain: Chain, *, delay_s: int) -> Credit:
        """Deploy one that takes the token of `chain`'s deployment.

        Args:
            delay_s: seconds a payer waits for its money, 60 to 30 days.
        """
        return cls(chain, chain.create("Credit", chain.manifest.token, delay_s))

    @property
    def domain(self) -> SigningDomain:
        """What vouchers for it are signed for."""
        return credit_domain(self._chain.chain_id, self.address)

    def acting_as(self, chain: Chain) -> Credit:
        """The same contract with the key of `chain`."""
        return Credit(chain, self.address)

    def deposit(self, payer: str, amount: int) -> Sent:
        """Put token units of the signer's into a payer's account, approving them first."""
        self._chain.approve(amount, "depositing", spender=self.address)
        return self._send("deposit", web3_address(payer), amount)

    def ask_back(self, amount: int) -> Sent:
        """Announce that the signer takes money back; 0 withdraws the announcement."""
        return self._send("ask_back", amount)

    def take_back(self) -> Sent:
        """Send the signer what it asked back, after the delay."""
        return self._send("take_back")

    def account_of(self, payer: str) -> CreditAccount:
        """What a payer has."""
        return CreditAccount(*self._read("account_of", web3_address(payer)))

    def newest_block(self) -> int:
        """The number of the chain's newest block."""
        web3 = self._chain.sender.web3
        return int(self._chain.sender.read(lambda: web3.eth.block_number, "reading the newest block"))

    def asking(self, from_block: int) -> tuple[tuple[str, ...], int]:
        """Payers that have asked money back since a block, and the block to go on from."""
        newest = self.newest_block()
        if newest < from_block:
            return (), from_block
        event = self._contract().events.AskedBack()
        logs = self._chain.sender.read(
            lambda: event.get_logs(from_block=from_block, to_block=newest), "reading who asks money back"
        )
        return tuple(dict.fromkeys(str(log["args"]["payer"]).lower() for log in logs)), newest + 1

    def closed(self, payer: str, payee: str) -> int:
        """Token units that `payee` has had from `payer` in all."""
        return int(self._read("closed", web3_address(payer), web3_address(payee)))

    def close(self, payee: str, vouchers: Sequence[SignedVoucher]) -> ClosedVouchers:
        """Pay a payee what its vouchers are worth, whoever the signer is.

        Raises:
            InvalidError: no vouchers, too many, or one of another payee.
            RevertedError: the payee cannot receive.
        """
        if not 1 <= len(vouchers) <= VOUCHERS_MAX:
            raise InvalidError(
                f"{len(vouchers)} vouchers in one closing", code="vouchers_invalid", fix=f"close 1..{VOUCHERS_MAX}"
            )
        named = {signed.voucher.payee for signed in vouchers}
        if named != {payee.lower()}:
            raise InvalidError(
                f"vouchers for {', '.join(sorted(named))}", code="vouchers_invalid", fix="close one payee's at a time"
            )
        rows = [(web3_address(payer), *rest) for payer, *rest in (signed.compact() for signed in vouchers)]
        sent = self._send("close", web3_address(payee), rows)
        closed, skipped = self._decoded("Closed", sent), self._decoded("Skipped", sent)
        paid = tuple((log["args"]["payer"], log["args"]["amount"]) for log in closed)
        return ClosedVouchers(
            sum(amount for _, amount in paid),
            paid,
            tuple((log["args"]["payer"], _REASONS[log["args"]["reason"]]) for log in skipped),
            sent.gas_used,
            sent.fee_wei,
            sent.hash,
        )

    def _contract(self) -> Any:
        return self._chain.sender.web3.eth.contract(web3_address(self.address), abi=read_artifact("Credit").abi)

    def _decoded(self, name: str, sent: Sent) -> list[Any]:
        from web3.logs import DISCARD

        return list(self._contract().events[name]().process_receipt({"logs": sent.logs}, errors=DISCARD))

    def _read(self, name: str, *arguments: Any) -> Any:
        return self._chain.sender.read(self._contract().functions[name](*arguments), f"reading {name}")

    def _send(self, name: str, *arguments: Any) -> Sent:
        return self._chain.sender.send(self._contract().functions[name](*arguments), f"sending {name}")
