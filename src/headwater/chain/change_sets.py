"""Change sets on the chain itself: sent in parts by the poster, found again by anybody who has nothing but a node.

A reader looks for transactions to the deployment's data address from whoever posted the root, starting at the block
of the post and going both ways, and follows the links in the headers from there; what it has once looked through is
not asked for again. Whether what it finds is right is not decided here: it gives the posted root, or it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from headwater.chain.blobs import blob_base_fee, read_blobs, refuse_without_blobs, send_blobs
from headwater.chain.bulk import ask_many
from headwater.chain.client import Chain, web3_address
from headwater.chain.oracle import read_fees
from headwater.chain.watching import Published
from headwater.core.errors import InvalidError, MissingError
from headwater.settlement.publication import (
    BLOB,
    CALLDATA,
    PART_BYTES_MAX,
    Cost,
    Part,
    blob_cost,
    calldata_cost,
    cut,
    data_address,
    from_blobs,
    header,
    part_bytes_max,
    read_part,
    to_blobs,
    whole_digest,
)

Way = Literal["calldata", "blob"]
NOTHING: Final = bytes(32)
_KINDS: Final = {"calldata": CALLDATA, "blob": BLOB}
_BLOCKS_AT_ONCE: Final = 20
_NEAR: Final = 100  # blocks before a post that are looked through first


class ChangeSender:
    """Puts change sets on the chain of a deployment, with the poster's key."""

    def __init__(self, chain: Chain, *, part_bytes: int = PART_BYTES_MAX) -> None:
        self._chain, self._part_bytes = chain, part_bytes
        self.address = data_address(chain.chain_id, chain.manifest.payout)

    def costs(self, packed: bytes) -> dict[Way, Cost]:
        """What each way costs now; blobs only where the chain takes them."""
        prices = read_fees(self._chain.sender)
        found: dict[Way, Cost] = {"calldata": calldata_cost(packed, prices, part_bytes=self._part_bytes)}
        blob_fee = blob_base_fee(self._chain.sender)
        if blob_fee is not None:
            found["blob"] = blob_cost(packed, prices, blob_fee)
        return found

    def send(self, epoch: int, packed: bytes, way: Way, previous: bytes = NOTHING) -> tuple[str, ...]:
        """Send the change set of an epoch; gives the hashes of its transactions, in order, 0x hex.

        Args:
            previous: hash of the last transaction of the epoch before; zeros for none.

        Raises:
            RefusedError: there is no key, or the chain takes no blobs.
            UpstreamError: the node failed; sending again goes on with what was signed.
        """
        kind, contract = _KINDS[way], self._chain.manifest.payout
        if kind == BLOB:
            refuse_without_blobs(self._chain.sender)
        pieces = cut(packed, part_bytes_max(kind, self._part_bytes))
        hashes = []
        for number, piece in enumerate(pieces):
            head = header(kind, epoch, pieces, number, whole_digest(packed), contract, previous).to_bytes()
            what = f"publishing part {number + 1} of {len(pieces)} of epoch {epoch}"
            sender = self._chain.sender
            if kind == BLOB:
                sent = send_blobs(sender, self.address, head, to_blobs(piece), what)
            else:
                sent = sender.send(_Carrying(sender.web3, self.address, head + piece), what)
            hashes.append(sent.hash)
            previous = bytes.fromhex(sent.hash[2:])
        return tuple(hashes)


class ChangeReader:
    """Change sets as they are on the chain: a `Source` for a watcher."""

    def __init__(
        self,
        chain: Chain,
        *,
        publishers: Sequence[str] = (),
        beacon: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Read through the node of `chain`.

        Args:
            publishers: addresses that are believed beside the poster of a root.
            beacon: address of a beacon node, which has the blobs of a real network.
            progress: called with the number of blocks looked through so far.
        """
        self._chain, self._beacon, self._progress = chain, beacon, progress
        self._address = data_address(chain.chain_id, chain.manifest.payout).lower()
        self._believed = {one.lower() for one in publishers}
        self._parts: dict[str, tuple[Part, bytes, Any]] = {}  # by transaction, and its JSON
        self._first = self._last = -1  # blocks looked through, both included
        self._whole: dict[tuple[int, bytes], bytes] = {}
        self._seen: set[str] = set()

    def __call__(self, epoch: int) -> Published:
        """The change set of an epoch, without a manifest.

        Raises:
            MissingError: it is not on the chain, not whole, or its blobs are gone.
        """
        posted = self._chain.posted(epoch)
        if posted is not None:
            transaction = ask_many(
                self._chain.sender, [("eth_getTransactionByHash", [posted.transaction])], "reading a post"
            )[0]
            self._believed.add(str((transaction or {}).get("from", "")).lower())
        found = self._assembled(epoch)
        if found is None:
            for first, last in self._ranges(posted.block if posted else self._height()):
                self._look(first, last)
                found = self._assembled(epoch)
                if found is not None:
                    break
        if found is None:
            raise MissingError(
                f"no change set of epoch {epoch} is on the chain",
                code="object_missing",
                fix="ask the operator to publish it there, or watch another place",
            )
        return Published(None, found)

    def transactions(self, epoch: int) -> tuple[str, ...]:
        """Those that carry an epoch, in order; `__call__` finds them first."""
        parts = self._newest(epoch)
        return tuple(hash_ for hash_, _ in parts) if parts else ()

    def _height(self) -> int:
        sender = self._chain.sender
        return int(sender.read(lambda: sender.web3.eth.block_number, "reading the height"))

    def _ranges(self, middle: int) -> Any:
        """Blocks that were not looked through: shortly before the post, then after it, then all before."""
        start, head = self._chain.manifest.start_block, self._height()
        if self._last < 0 or self._last > head:  # never, or the chain went back
            self._first, self._last = middle + 1, middle
            yield from self._down(max(start, middle - _NEAR + 1))
        while self._last < head:
            first = self._last + 1
            self._last = min(head, first + _BLOCKS_AT_ONCE - 1)
            yield first, self._last
        yield from self._down(start)

    def _down(self, start: int) -> Any:
        while self._first > start:
            last = self._first - 1
            self._first = max(start, last - _BLOCKS_AT_ONCE + 1)
            yield self._first, last

    def _look(self, first: int, last: int) -> None:
        numbers = range(first, last + 1)
        blocks = ask_many(
            self._chain.sender,
            [("eth_getBlockByNumber", [hex(number), True]) for number in numbers],
            "looking for change sets",
            at_once=_BLOCKS_AT_ONCE,
        )
        for block in blocks:
            for transaction in (block or {}).get("transactions", ()):
                self._take(transaction)
        if self._progress is not None:
            self._progress(self._last - self._first + 1)

    def _take(self, transaction: Any) -> None:
        """Keep a transaction when it carries a part for this deployment; who sent it is looked at later."""
        hash_ = str(transaction["hash"])
        self._seen.add(hash_)
        if str(transaction.get("to") or "").lower() != self._address:
            return
        found = read_part(bytes.fromhex(str(transaction["input"])[2:]))
        if found is not None and found[0].contract == self._chain.manifest.payout:
            self._parts[hash_] = (*found, transaction)

    def _follow(self) -> None:
        """Fetch what the headers of believed parts link to, until nothing new turns up."""
        while True:
            wanted = {
                "0x" + part.previous.hex()
                for part, _, transaction in self._parts.values()
                if part.previous != NOTHING and self._believes(transaction)
            } - self._seen
            if not wanted:
                return
            self._seen |= wanted
            questions: list[tuple[str, list[Any]]] = [("eth_getTransactionByHash", [one]) for one in sorted(wanted)]
            for transaction in ask_many(self._chain.sender, questions, "following change sets"):
                if transaction and transaction.get("blockNumber"):
                    self._take(transaction)

    def _believes(self, transaction: Any) -> bool:
        return str(transaction["from"]).lower() in self._believed

    def _newest(self, epoch: int) -> list[tuple[str, tuple[Part, bytes, Any]]] | None:
        """The parts of the last whole publication of an epoch, in order."""
        by_digest: dict[tuple[bytes, int, int], dict[int, tuple[str, tuple[Part, bytes, Any]]]] = {}
        rows = [(hash_, kept) for hash_, kept in self._parts.items() if kept[0].epoch == epoch]
        for hash_, kept in sorted(rows, key=lambda row: int(row[1][2]["blockNumber"], 16)):
            part = kept[0]
            if self._believes(kept[2]):
                by_digest.setdefault((part.digest, part.kind, part.parts), {})[part.part] = (hash_, kept)
        whole = [parts for (_, _, count), parts in by_digest.items() if len(parts) == count]
        if not whole:
            return None
        last = max(whole, key=lambda parts: max(int(kept[2]["blockNumber"], 16) for _, kept in parts.values()))
        return [last[number] for number in sorted(last)]

    def _assembled(self, epoch: int) -> bytes | None:
        self._follow()
        parts = self._newest(epoch)
        if parts is None:
            return None
        key = (epoch, parts[0][1][0].digest)
        if key not in self._whole:
            pieces = []
            for _, (part, body, transaction) in parts:
                if part.kind == BLOB:
                    blobs = read_blobs(self._chain.sender, transaction, beacon=self._beacon)
                    body = from_blobs(blobs, part.size)
                pieces.append(body)
            packed = b"".join(pieces)
            if whole_digest(packed) != key[1]:
                raise InvalidError(
                    f"the parts of epoch {epoch} do not give the digest in their headers",
                    code="changes_invalid",
                    fix="ask the operator to publish it again",
                )
            self._whole[key] = packed
        return self._whole[key]


class _Carrying:
    """A transaction that does nothing but carry data, in the shape of a bound contract function."""

    def __init__(self, web3: Any, to: str, data: bytes) -> None:
        self._web3, self._to, self._data = web3, web3_address(to), "0x" + data.hex()

    def build_transaction(self, fields: Any) -> Any:
        """All fields of it."""
        return dict(fields) | {"to": self._to, "data": self._data}

    def estimate_gas(self, fields: Any) -> int:
        """The node's estimate."""
        return int(self._web3.eth.estimate_gas(dict(fields) | {"to": self._to, "data": self._data}))
