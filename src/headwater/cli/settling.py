"""The chain of a home and the settlement over it: the embedded chain unless an RPC address is set.

While a process keeps the embedded chain open it serves it on loopback and leaves the address in
`chain/address`, so that other commands of the same home find it.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwater.chain import Chain, EmbeddedChain, Manifest, Signer, signer_from_environment, signer_from_file
from headwater.chain.outbox import Outbox
from headwater.chain.signer import CommandSigner
from headwater.cli.home import Home
from headwater.core.errors import ConflictError, UpstreamError
from headwater.core.ids import AccountId
from headwater.core.money import NANO
from headwater.corrections import Books
from headwater.settle import Settlement
from headwater.store.close_sealed import SealedClose
from headwater.store.key_file import load_or_create_signer

DEPLOYMENT = "deployment.json"
CAP_UNITS = 1_000_000 * 10**6
"""Token units by which one epoch of a demo deployment may raise the total."""

GAS_WEI = 10 * 10**18
"""Play ether given to each key of an embedded chain."""


@contextmanager
def open_chain(home: Home, *, gas_for: Sequence[str] = ()) -> Iterator[tuple[Chain, str]]:
    """The chain of a home with the operator's key, and the RPC address it answers on.

    Args:
        gas_for: addresses that get play ether too, when the chain is the embedded one.

    Raises:
        MissingError: no deployment yet for an RPC address that is not the embedded chain.
    """
    home.signer  # noqa: B018  # the operator's key exists from here on
    if home.settings.rpc_url:
        chain = Chain(home.settings.rpc_url, chain_signer(home), outbox=outbox_of(home))
        chain.attach(Manifest.load(home.path / DEPLOYMENT))
        yield chain, home.settings.rpc_url
        return
    signer = signer_from_file(home.path / "operator.key")
    folder = home.path / "chain"
    folder.mkdir(exist_ok=True, mode=0o700)
    address_file = folder / "address"
    try:
        embedded = EmbeddedChain(folder)
    except ConflictError:
        address = served_address(folder)
        chain = Chain(address, signer, poll_s=0.05)
        chain.attach(Manifest.load(home.path / DEPLOYMENT))
        yield chain, address
        return
    with embedded:
        address = embedded.serve()
        address_file.write_text(address + "\n", "ascii")
        try:
            for account in (signer.address, *gas_for):
                give_gas(embedded, account)
            chain = Chain(embedded.provider(), signer, poll_s=0.02)
            if (home.path / DEPLOYMENT).exists():
                chain.attach(Manifest.load(home.path / DEPLOYMENT))
            else:
                guardian = embedded.accounts[1].address
                chain.deploy(guardian=guardian, cap=CAP_UNITS, delay_s=home.settings.root_delay_s).save(
                    home.path / DEPLOYMENT
                )
            yield chain, address
        finally:
            address_file.unlink(missing_ok=True)


def served_address(folder: Path) -> str:
    """Where the process that has the embedded chain open serves it.

    Raises:
        UpstreamError: it does not say.
    """
    try:
        return (folder / "address").read_text("ascii").strip()
    except FileNotFoundError:
        raise UpstreamError(
            "another process has the embedded chain open and does not serve it",
            code="chain_busy",
            fix="wait until it has ended, then try again",
        ) from None


def give_gas(embedded: EmbeddedChain, address: str) -> None:
    """Send play ether to a key of an embedded chain, if it has little."""
    provider, rich = embedded.provider(), embedded.accounts[0]

    def ask(method: str, *params: object) -> str:
        answer: Any = provider.make_request(method, list(params))  # type: ignore[arg-type]
        if "error" in answer:
            raise UpstreamError(
                f"the embedded chain refused {method}: {answer['error']}", code="chain_unavailable", fix="try again"
            )
        return str(answer["result"])

    if int(ask("eth_getBalance", address, "latest"), 16) > GAS_WEI // 2:
        return
    transfer = {
        "chainId": embedded.chain_id,
        "nonce": int(ask("eth_getTransactionCount", rich.address, "latest"), 16),
        "to": address,
        "value": GAS_WEI,
        "gas": 21_000,
        "maxFeePerGas": 10 * 10**9,
        "maxPriorityFeePerGas": 10**9,
        "type": 2,
    }
    ask("eth_sendRawTransaction", "0x" + rich.sign_transaction(transfer).hex())


def books(home: Home) -> Books:
    """What settlement reads and writes in a home; operator accounts are paid to keys of their own there."""
    accounts = [line.account for line in home.policy.lines] + [AccountId("commons")]
    return Books(
        registry=home.registry,
        ledger=home.ledger,
        log=home.log,
        epochs=home.epochs,
        currency=home.policy.currency,
        maturity_s=home.settings.maturity_s,
        operator_addresses={account: _account_address(home, account) for account in dict.fromkeys(accounts)},
        policy_text=home.policy_by_digest,
        now_ns=time.time_ns,
        sealed=SealedClose(home.path / "receipts.segments", home.path / "payout-rows", home.log),
    )


def settlement(home: Home, chain: Chain) -> Settlement:
    """The settlement of a home on a chain."""
    return Settlement(books(home), chain)


def _account_address(home: Home, account: AccountId) -> str:
    folder = home.path / "payees"
    folder.mkdir(exist_ok=True, mode=0o700)
    return load_or_create_signer(folder / f"{account.replace(':', '-')}.key").address


def tokens(units: int) -> str:
    """Token units with six decimals as a decimal string."""
    whole, fraction = divmod(units, NANO // 1_000)
    return f"{whole}.{fraction:06d}"


def chain_signer(home: Home, environment: Mapping[str, str] = os.environ) -> Signer:
    """Who sends for a home: HEADWATER_CHAIN_SIGNER (``address command …``), HEADWATER_CHAIN_KEY, or the operator."""
    external = environment.get("HEADWATER_CHAIN_SIGNER", "")
    if external:
        address, *command = shlex.split(external)
        return CommandSigner(command, address)
    if environment.get("HEADWATER_CHAIN_KEY"):
        return signer_from_environment("HEADWATER_CHAIN_KEY", environment)
    home.signer  # noqa: B018  # the operator's key exists from here on
    return signer_from_file(home.path / "operator.key")


def outbox_of(home: Home) -> Outbox:
    """Where a home keeps transactions whose fate is not known yet."""
    return Outbox(home.path / "outbox")
