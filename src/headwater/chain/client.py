"""Settlement on a chain: deploy, fund, post, claim, push, and read everything back.

One client for the embedded chain, a development node and any real network; only the RPC address differs.
Whatever is sent is safe to repeat: a post that is already there is found, and amounts are cumulative.
Reading needs no key and no database. Knows nothing of ledgers or of how an epoch is computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headwater.chain.artifacts import read_artifact
from headwater.chain.bulk import paid_by_index
from headwater.chain.manifest import Manifest
from headwater.chain.outbox import Outbox
from headwater.chain.sender import Patience, RevertedError, Sender, Sent
from headwater.chain.signer import Signer
from headwater.core.address import format_address, parse_address
from headwater.core.errors import ConflictError, InvalidError, MissingError, RefusedError, UpstreamError
from headwater.settlement.tree import Domain, Proof, RangeProof

if TYPE_CHECKING:
    from web3.providers.base import BaseProvider

TOKEN_DECIMALS = 6
"""Amounts are millionths of the token, whatever decimals it has itself."""

LOG_BLOCKS_MAX = 9_000
"""Blocks asked for at once; public nodes refuse more."""

EPOCH_STATUSES = ("unknown", "pending", "active", "expired")
_SKIP_REASONS = {
    1: "index_taken",  # the index has paid another account
    2: "account_bound",  # the account is paid at another index
    3: "transfer_failed",  # the token refused: stays due
}
_PAUSE_FLAGS = {"post": 1, "claim": 2, "push": 4, "deposit": 8}


@dataclass(frozen=True, slots=True)
class PostedEpoch:
    """A root on the chain."""

    epoch: int
    root: bytes  # 32
    total: int  # cumulative token units
    data_hash: bytes  # 32
    active_at_s: int  # seconds since 1970
    block: int
    transaction: str  # 0x hex


@dataclass(frozen=True, slots=True)
class Paid:
    """What a claim or a push has paid."""

    amount: int  # token units
    payees: int
    skipped: tuple[tuple[int, str], ...]  # (index, reason); those payees stay due
    gas_used: int
    fee_wei: int
    transaction: str  # 0x hex


@dataclass(frozen=True, slots=True)
class VaultStatus:
    """The state of a deployment, in token units and seconds."""

    funded: int  # ever deposited
    promised: int  # total of the newest root, pending or active
    held: int  # the token's balance of the contract
    cap: int
    delay_s: int
    newest_epoch: int  # 0 before the first
    newest_active_at_s: int
    highest_epoch: int  # ever used, cancelled ones included
    paused: tuple[str, ...]
    owner: str
    poster: str
    guardian: str
    bond: int  # what a poster stakes and a challenger puts up
    staked: int  # by the poster
    bonds_held: int  # stake, open challenge and bonds not yet withdrawn; part of `held`

    @property
    def paid(self) -> int:
        """Paid out so far: deposits that are no longer there. Tokens sent without a deposit lower it."""
        return self.funded + self.bonds_held - self.held


class Chain:
    """One deployment on one chain, seen with one key or with none."""

    def __init__(
        self,
        rpc: str | BaseProvider,
        signer: Signer | None = None,
        *,
        manifest: Manifest | None = None,
        receipt_timeout_s: float = 180.0,
        poll_s: float = 0.25,
        patience: Patience | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        """Connect.

        Args:
            rpc: address of a node, or a web3 provider such as `EmbeddedChain.provider()`.
            signer: who sends; reading needs none.
            manifest: the deployment; `deploy` makes one.
            patience: how long to wait and for how many blocks, in place of the two times.
            outbox: of the signer; one on disk survives a crash between sending and the receipt.

        Raises:
            UpstreamError: nobody answers there.
            ConflictError: the node is on another chain than the deployment, or there is no contract.
        """
        self._sender = Sender(
            rpc, signer, receipt_timeout_s=receipt_timeout_s, poll_s=poll_s, patience=patience, outbox=outbox
        )
        self._manifest: Manifest | None = None
        if manifest is not None:
            self.attach(manifest)

    # ------------------------------------------------------------------ deployment

    @property
    def chain_id(self) -> int:
        """EIP-155 id of the chain."""
        return self._sender.chain_id

    @property
    def manifest(self) -> Manifest:
        """The deployment in use.

        Raises:
            MissingError: none yet.
        """
        if self._manifest is None:
            raise MissingError("no deployment in use", code="manifest_missing", fix="deploy, or give a manifest")
        return self._manifest

    def attach(self, manifest: Manifest) -> None:
        """Use a deployment that exists.

        Raises:
            ConflictError: it is on another chain, or there is no contract at its address.
        """
        if manifest.chain_id != self.chain_id:
            raise ConflictError(
                f"the deployment is on chain {manifest.chain_id}, the node on {self.chain_id}",
                code="chain_differs",
                fix="connect to the deployment's chain",
            )
        code = self._sender.read(lambda: self._sender.web3.eth.get_code(web3_address(manifest.payout)), "reading code")
        if not code:
            raise ConflictError(
                f"there is no contract at {manifest.payout}",
                code="contract_missing",
                fix="connect to the node that the contract was deployed through",
            )
        if manifest.confirmations > self._sender.patience.confirmations:
            self._sender.patience = replace(self._sender.patience, confirmations=manifest.confirmations)
        self._manifest = manifest

    def acting_as(self, signer: Signer | None) -> Chain:
        """The same deployment with another key."""
        other = Chain.__new__(Chain)
        other._sender = Sender(self._sender.web3.provider, signer, patience=self._sender.patience)
        other._manifest = self._manifest
        return other

    def deploy(
        self,
        *,
        guardian: str,
        cap: int,
        delay_s: int,
        token: str | None = None,
        owner: str | None = None,
        poster: str | None = None,
        bond: int = 0,
    ) -> Manifest:
        """Deploy Payout, and a test token when none is given, and use them.

        Args:
            guardian: address that may cancel a pending root; never the poster.
            cap: token units by which one epoch may raise the total.
            delay_s: seconds between a post and its claims; 0 for demonstrations only.
            token: ERC-20 with 6 to 18 decimals; amounts are millionths of it.
            owner: sets roles and limits; the signer by default.
            poster: posts roots; the signer by default.
            bond: token units that a poster stakes and a challenger puts up; 0 for demonstrations only.

        Raises:
            RevertedError: a role or limit that the contract refuses.
        """
        me = self._me("deploying")
        address, start = token, self._sender.read(lambda: self._sender.web3.eth.block_number, "reading the height")
        if address is None:
            address = self.create("TestToken", me)
        payout = self.create("Payout", address, owner or me, poster or me, guardian, cap, delay_s, bond)
        contract = self._sender.web3.eth.contract(web3_address(payout), abi=read_artifact("Payout").abi)
        unit = int(self._sender.read(contract.functions.unit(), "reading the token's unit"))
        self._manifest = Manifest(self.chain_id, payout, address, TOKEN_DECIMALS, start, token is None, unit)
        return self._manifest

    def domain(self, epoch: int) -> Domain:
        """What the root of `epoch` has to be bound to."""
        return self.manifest.domain(epoch)

    # ------------------------------------------------------------------ money in

    def fund(self, amount: int) -> Sent:
        """Deposit token units of the signer's, approving them first; the test token is minted as needed.

        Raises:
            RevertedError: the balance is too low, or the token takes a fee.
        """
        self.approve(amount, "funding")
        return self._sender.send(self.payout().functions.deposit(amount), "depositing")

    def approve(self, amount: int, what: str, *, spender: str | None = None) -> Sent:
        """Let a contract of ours take token units of the signer's; the test token is minted as needed.

        Args:
            what: for a refusal, what it is for.
            spender: the Payout contract by default.
        """
        me = self._me(what)
        if self.manifest.test_token:
            missing = amount - self.balance(me)
            if missing > 0:
                self.mint(me, missing)
        call = self._token().functions.approve(
            web3_address(spender or self.manifest.payout), amount * self.manifest.token_unit
        )
        return self._sender.send(call, "approving")

    def mint(self, to: str, amount: int) -> Sent:
        """Make test tokens; only their owner, who deployed them, can.

        Raises:
            RefusedError: the deployment pays in a token that is not ours.
        """
        if not self.manifest.test_token:
            raise RefusedError("this deployment pays in a real token", code="token_real", fix="transfer tokens instead")
        return self._sender.send(self._token().functions.mint(web3_address(to), amount), "minting")

    def balance(self, address: str) -> int:
        """Token units that `address` holds."""
        held = self._sender.read(self._token().functions.balanceOf(web3_address(address)), "reading a balance")
        return int(held) // self.manifest.token_unit

    # ------------------------------------------------------------------ epochs

    def post(self, epoch: int, root: bytes, total: int, data_hash: bytes) -> PostedEpoch:
        """Post a root, or find it when it is there already.

        Args:
            total: cumulative token units after this epoch, the tree's total.
            data_hash: 32-byte digest of the epoch's published data.

        Raises:
            ConflictError: the epoch was posted with another root, total or digest, or it was cancelled.
            RevertedError: not funded, above the cap, a root pending, not the next epoch or not the poster.
        """
        if len(root) != 32 or len(data_hash) != 32:
            raise InvalidError(
                f"root and data hash have 32 bytes, got {len(root)} and {len(data_hash)}",
                code="digest_invalid",
                fix="give the bytes, not their hex",
            )
        posted = self._same_post(epoch, root, total, data_hash)
        if posted is not None:
            return posted
        try:
            sent = self._sender.send(
                self.payout().functions.post(epoch, root, total, data_hash), f"posting epoch {epoch}"
            )
        except RevertedError:
            # Somebody else with the same key may have been faster.
            posted = self._same_post(epoch, root, total, data_hash)
            if posted is None:
                raise
            return posted
        return self._posted_from(self.decoded("Posted", sent.logs)[0])

    def posted(self, epoch: int) -> PostedEpoch | None:
        """The epoch as it was posted, from the chain's events; also when it was cancelled since."""
        logs = self._find("Posted", epoch)
        return self._posted_from(logs[0]) if logs else None

    def root_at(self, epoch: int) -> bytes | None:
        """The root of `epoch`, or None when it was not posted or was cancelled."""
        root = bytes(self._sender.read(self.payout().functions.root_at(epoch), "reading a root"))
        return root if any(root) else None

    def data_hash(self, epoch: int) -> bytes:
        """The digest of the data that `epoch` can be recomputed from.

        Raises:
            MissingError: the epoch was not posted.
        """
        posted = self.posted(epoch)
        if posted is None:
            raise MissingError(f"epoch {epoch} was not posted", code="epoch_missing", fix="ask for a posted epoch")
        return posted.data_hash

    def status_of(self, epoch: int) -> str:
        """``unknown`` (never posted, or cancelled), ``pending``, ``active`` or ``expired``."""
        return EPOCH_STATUSES[self._sender.read(self.payout().functions.status_of(epoch), "reading a status")]

    def cancel(self, epoch: int) -> Sent:
        """Cancel the pending root; the signer is the guardian."""
        return self._sender.send(self.payout().functions.cancel(epoch), f"cancelling epoch {epoch}")

    def pause(self, functions: Iterable[str]) -> Sent:
        """Stop ``post``, ``claim``, ``push`` or ``deposit``; the signer is the guardian or the owner."""
        return self._sender.send(self.payout().functions.pause(_flags(functions)), "pausing")

    def unpause(self, functions: Iterable[str]) -> Sent:
        """Let functions run again; the signer is the owner."""
        return self._sender.send(self.payout().functions.unpause(_flags(functions)), "unpausing")

    # ------------------------------------------------------------------ money out

    def claim(self, epoch: int, proof: Proof) -> Paid:
        """Pay one payee what is due to it, whoever the signer is.

        Raises:
            RevertedError: nothing due, no active root, or a proof that does not reach it.
        """
        leaf = proof.leaf
        sent = self._sender.send(
            self.payout().functions.claim(
                epoch, leaf.index, web3_address(leaf.address), leaf.amount, words(proof.path)
            ),
            f"claiming for index {leaf.index}",
        )
        amount = self.decoded("Claimed", sent.logs)[0]["args"]["amount"]
        return Paid(amount, 1, (), sent.gas_used, sent.fee_wei, sent.hash)

    def push(self, epoch: int, proof: RangeProof, *, wanted: Iterable[int] | None = None) -> Paid:
        """Pay the payees of a range what is due to them, whoever the signer is.

        Args:
            wanted: indices to pay; all of the range by default. The others stay due.

        Raises:
            RevertedError: no active root, or a range that does not reach it. A failing payee is skipped instead.
        """
        places = (leaf.index for leaf in proof.leaves) if wanted is None else wanted
        mask = 0
        for index in places:
            if not 0 <= index - proof.start < proof.count:
                raise InvalidError(
                    f"index {index} is not in {proof.start}..{proof.start + proof.count - 1}",
                    code="index_outside_range",
                    fix="push the range that holds it",
                )
            mask |= 1 << (index - proof.start)
        call = self.payout().functions.push(epoch, proof.payload(), mask, words(proof.path))
        # With too little gas the last transfers would fail and their payees be skipped.
        sent = self._sender.send(call, f"pushing from index {proof.start}", gas_margin_percent=30)
        pushed = self.decoded("Pushed", sent.logs)[0]["args"]
        skipped = tuple(
            (log["args"]["index"], _SKIP_REASONS.get(log["args"]["reason"], "unknown"))
            for log in self.decoded("Skipped", sent.logs)
        )
        return Paid(pushed["amount"], pushed["payees"], skipped, sent.gas_used, sent.fee_wei, sent.hash)

    def paid(self, index: int) -> int:
        """Token units that the payee with this index has received in all."""
        return int(self._sender.read(self.payout().functions.paid(index), "reading what was paid"))

    def paid_many(self, indices: Iterable[int]) -> dict[int, int]:
        """The same of many payees, in few round trips."""
        return paid_by_index(self._sender, self.manifest.payout, indices)

    def index_of(self, address: str) -> int | None:
        """The index that `address` was first paid at, or None when it never was."""
        bound, index = self._sender.read(self.payout().functions.index_of(web3_address(address)), "reading an index")
        return int(index) if bound else None

    def status(self) -> VaultStatus:
        """The whole state of the deployment, as of the newest block."""
        functions = self.payout().functions
        names = ["funded", "promised", "cap", "delay_s", "highest", "paused", "owner", "poster", "guardian"]
        names += ["bond", "staked", "bonds_held"]
        read = {name: self._sender.read(functions[name](), f"reading {name}") for name in names}
        newest, active_at_s = self._sender.read(functions.newest(), "reading the newest epoch")
        return VaultStatus(
            funded=read["funded"],
            promised=read["promised"],
            held=self.balance(self.manifest.payout),
            cap=read["cap"],
            delay_s=read["delay_s"],
            newest_epoch=newest,
            newest_active_at_s=active_at_s,
            highest_epoch=read["highest"],
            paused=tuple(name for name, flag in _PAUSE_FLAGS.items() if read["paused"] & flag),
            owner=read["owner"],
            poster=read["poster"],
            guardian=read["guardian"],
            bond=read["bond"],
            staked=read["staked"],
            bonds_held=read["bonds_held"],
        )

    def jump(self, seconds: int) -> None:
        """Move the clock of an embedded chain or a development node; a real network refuses.

        Raises:
            UpstreamError: the node does not let its clock be moved.
        """
        for method, params in (("evm_increaseTime", [seconds]), ("evm_mine", [])):
            answer: Any = self._sender.read(
                lambda m=method, p=params: self._sender.web3.provider.make_request(m, p), "moving the clock"
            )
            if "error" in answer:
                raise UpstreamError(
                    f"the node refuses {method}: {answer['error'].get('message', '')}",
                    code="clock_fixed",
                    fix="wait until the delay has passed",
                )

    # ------------------------------------------------------------------ for the clients beside this one

    @property
    def sender(self) -> Sender:
        """Reads and sends."""
        return self._sender

    def _me(self, what: str) -> str:
        if self._sender.signer is None:
            raise RefusedError(f"{what} needs a key", code="signer_missing", fix="connect with a signer")
        return self._sender.signer.address

    def create(self, name: str, *arguments: Any) -> str:
        """Deploy one of our contracts; gives its address. Text arguments are addresses."""
        artifact = read_artifact(name)
        factory = self._sender.web3.eth.contract(abi=artifact.abi, bytecode=artifact.bytecode)
        values = [web3_address(value) if isinstance(value, str) else value for value in arguments]
        sent = self._sender.send(factory.constructor(*values), f"deploying {name}")
        if sent.contract is None:
            raise UpstreamError(f"no address for {name}", code="chain_unavailable", fix="try another node")
        return sent.contract

    def payout(self) -> Any:
        """The deployment's contract, as web3 has it."""
        return self._sender.web3.eth.contract(web3_address(self.manifest.payout), abi=read_artifact("Payout").abi)

    def calldata(self, name: str, *arguments: Any) -> str:
        """0x hex of a call to the deployment's contract, for a wallet to send."""
        return str(self.payout().encode_abi(name, args=list(arguments)))

    def _token(self) -> Any:
        return self._sender.web3.eth.contract(web3_address(self.manifest.token), abi=read_artifact("TestToken").abi)

    def _same_post(self, epoch: int, root: bytes, total: int, data_hash: bytes) -> PostedEpoch | None:
        """What is posted for `epoch` when it is the same; None when nothing is."""
        known = self.root_at(epoch)
        if known is None and epoch > self._sender.read(self.payout().functions.highest(), "reading the highest epoch"):
            return None
        posted = self.posted(epoch)
        if known is None:
            raise ConflictError(
                f"epoch {epoch} was {'cancelled' if posted else 'left out'}",
                code="epoch_used",
                fix="close a corrected epoch under the next number",
            )
        if posted is None or (known, posted.total, posted.data_hash) != (root, total, data_hash):
            raise ConflictError(
                f"epoch {epoch} is on the chain with root {known.hex()}"
                + ("" if posted is None else f", total {posted.total} and data hash {posted.data_hash.hex()}")
                + f"; asked for root {root.hex()}, total {total}, data hash {data_hash.hex()}",
                code="epoch_conflict",
                fix="a posted epoch cannot be changed: correct it in the next one",
            )
        return posted

    def _find(self, name: str, epoch: int) -> list[Any]:
        """Events called `name` of `epoch`, searched from the newest block back to the deployment's first."""
        event = self.payout().events[name]()
        last = self._sender.read(lambda: self._sender.web3.eth.block_number, "reading the height")
        while last >= self.manifest.start_block:
            first = max(self.manifest.start_block, last - LOG_BLOCKS_MAX + 1)
            found: list[Any] = self._sender.read(
                lambda a=first, b=last: event.get_logs(from_block=a, to_block=b, argument_filters={"epoch": epoch}),
                f"looking for {name}",
            )
            if found:
                return found
            last = first - 1
        return []

    def decoded(self, name: str, logs: tuple[Any, ...]) -> list[Any]:
        """The events called `name` of the deployment's contract among `logs`."""
        from web3.logs import DISCARD

        return list(self.payout().events[name]().process_receipt({"logs": logs}, errors=DISCARD))

    def _posted_from(self, log: Any) -> PostedEpoch:
        values = log["args"]
        return PostedEpoch(
            epoch=values["epoch"],
            root=bytes(values["root"]),
            total=values["total"],
            data_hash=bytes(values["data_hash"]),
            active_at_s=values["active_at"],
            block=log["blockNumber"],
            transaction=log["transactionHash"].to_0x_hex(),
        )


def web3_address(text: str) -> Any:
    """EIP-55, which web3 insists on."""
    return format_address(parse_address(text))


def words(path: Iterable[bytes]) -> list[int]:
    """Siblings as the contract takes them: words, each a hash and a sum."""
    return [int.from_bytes(sibling, "big") for sibling in path]


def _flags(functions: Iterable[str]) -> int:
    flags = 0
    for name in functions:
        if name not in _PAUSE_FLAGS:
            raise InvalidError(
                f"{name!r} cannot be paused", code="pause_unknown", fix=f"name any of {', '.join(_PAUSE_FLAGS)}"
            )
        flags |= _PAUSE_FLAGS[name]
    return flags
