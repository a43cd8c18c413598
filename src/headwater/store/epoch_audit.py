"""An epoch recomputed from what its operator published, and nothing else: which receipt, line and value differ.

    export     the folder is whole: manifests chain, the checkpoint is signed, files have the digests they are named by
    receipts   every receipt hashes to its id and its leaf, every column says what the signed bytes say
    log        the leaves lead to the root the manifest names
    sample     some receipts (or all) in full: form and sums, signature, split under their policy
    epoch      totals, change set, tree and manifest computed again from the receipts, compared field by field

What was only sampled is said in the outcome. Not shown: that bits were measured honestly; for that the
operator discloses a call's evidence and the shares are measured again.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from typing import Any, Final

import pyarrow as pa

from headwater.core.canonical import digest, parse_canonical
from headwater.core.errors import HeadwaterError, InvalidError, Problem
from headwater.core.ids import AccountId, ContributionId
from headwater.core.instants import parse_instant
from headwater.receipts import LogTree, Receipt, leaf_hash, recover
from headwater.receipts.checkpoint import Checkpoint, NoteKey
from headwater.receipts.tiles import TileTree
from headwater.registry import registry_digest
from headwater.settlement.disputes import Span, Version, adjustments
from headwater.settlement.epoch import Payee, Window, close, read_manifest
from headwater.settlement.tree import Domain
from headwater.splits import Policy, recompute_split
from headwater.store.epoch_export import EXPORT, SCHEMA, Folder
from headwater.store.log_tiles import CHECKPOINT
from headwater.store.object_store import ObjectStore, open_source
from headwater.store.receipt_segments import (
    SCHEMA as COLUMNS,
)
from headwater.store.receipt_segments import (
    SealedRow,
    Segment,
    SegmentManifest,
    columns_of,
    read_tables,
)
from headwater.store.receipt_segments import read_manifest as read_segments

PROBLEMS_MAX: Final = 100
"""Most that are listed; all are counted."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The published folder, read and found whole."""

    location: str
    epoch: int
    operator: str
    currency: str
    manifests: tuple[dict[str, Any], ...]  # of epochs 1..epoch
    raws: tuple[bytes, ...]  # their bytes
    segments: SegmentManifest
    checkpoint: Checkpoint
    policies: Mapping[str, str]
    registry: str  # digest
    related: tuple[tuple[int, bytes], ...]  # (seq, receipt) outside the window that corrections in it refer to


@dataclass(slots=True)
class _Window:
    """What the receipts of a window come to, gathered segment by segment."""

    leaves: list[bytes] = field(default_factory=list)
    paid: Counter[str] = field(default_factory=Counter)  # by account, of receipts in the epoch's currency
    policies: set[str] = field(default_factory=set)
    corrected: set[bytes] = field(default_factory=set)  # calls with a correction here
    chains: dict[bytes, list[tuple[int, bytes]]] = field(default_factory=dict)  # all their receipts here, by call
    problems: list[Problem] = field(default_factory=list)
    receipts: int = 0
    sampled: int = 0
    signatures: int = 0

    def take(self, other: _Window) -> None:
        self.leaves += other.leaves
        self.paid.update(other.paid)
        self.policies |= other.policies
        self.corrected |= other.corrected
        self.problems += other.problems
        self.receipts += other.receipts
        self.sampled += other.sampled
        self.signatures += other.signatures


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was checked, how much of it, and everything that differs."""

    epoch: int
    receipts: int
    in_full: int  # receipts whose form, sums and split were checked
    signatures: int  # receipts whose signature was checked
    checked: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is checked in full."""

    sample: int = 1_000  # receipts checked in full, chosen by `seed`
    every: bool = False  # all of them
    signatures: bool = False  # the signature of every receipt, whatever the sample
    seed: int = 0
    processes: int = 1


def audit(
    source: ObjectStore,
    epoch: int,
    *,
    extent: Extent,
    log_key: NoteKey | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AuditReport:
    """Recompute an epoch from an export.

    Raises:
        MissingError: a file of the export is not there.
        InvalidError: one cannot be read at all, or is of another epoch.
    """
    inputs = read_inputs(source, epoch, log_key)
    manifest = inputs.manifests[-1]
    window = _read_window(inputs, extent, progress)
    problems = list(window.problems)
    problems += _log(source, inputs, window)
    problems += _epoch(inputs, window)
    expected = manifest["log_size"] - manifest["log_from"]
    if window.receipts != expected:
        problems.append(
            _problem("receipts/manifest.json", "receipts_missing", f"{window.receipts} receipts, {expected} expected")
        )
    return AuditReport(
        epoch, window.receipts, window.sampled, window.signatures, _CHECKED, tuple(problems[:PROBLEMS_MAX])
    )


def read_inputs(source: ObjectStore, epoch: int, log_key: NoteKey | None) -> Inputs:
    """Everything of an export but its receipts, each file held against the digest that names it."""
    about = parse_canonical(source.read(EXPORT))
    if not isinstance(about, dict) or about.get("schema") != SCHEMA or about.get("epoch") != epoch:
        raise InvalidError(
            f"{source.location} is no export of epoch {epoch}", code="export_invalid", fix="give the epoch it holds"
        )
    raws = tuple(source.read(f"epochs/{number}.json") for number in range(1, epoch + 1))
    manifests = tuple(read_manifest(raw) for raw in raws)
    checkpoint = Checkpoint.from_bytes(source.read(CHECKPOINT))
    checkpoint.verify(log_key or NoteKey.from_text(about["log_key"]))
    policies = {}
    for name in about["policies"]:
        text = source.read(f"policies/{name.removeprefix('sha256:')}.toml").decode()
        if Policy.from_toml(text).digest != name:
            raise InvalidError(
                f"the policy {name} has digest {Policy.from_toml(text).digest}",
                code="policy_differs",
                fix="ask the operator for the policy the receipts name",
            )
        policies[name] = text
    rows = parse_canonical(source.read("registry.json"))
    related = parse_canonical(source.read("related.json"))
    return Inputs(
        source.location,
        epoch,
        about["operator"],
        about["currency"],
        manifests,
        raws,
        read_segments(Folder(source, "receipts")),
        checkpoint,
        policies,
        registry_digest((ContributionId(name), record) for name, record in rows),
        tuple((seq, base64.b64decode(raw, validate=True)) for seq, raw in related),
    )


# Receipts


def _read_window(inputs: Inputs, extent: Extent, progress: Callable[[int, int], None] | None) -> _Window:
    whole, done = _Window(), 0
    total = sum(one.count for one in inputs.segments.segments)
    jobs = [(inputs, one, extent, _chosen(one, inputs.segments, extent)) for one in inputs.segments.segments]
    for segment, found in zip(inputs.segments.segments, _map(jobs, extent.processes), strict=True):
        whole.take(found)
        done += segment.count
        if progress is not None:
            progress(done, total)
    whole.corrected |= {raw_call(raw) for _, raw in inputs.related}
    if whole.corrected:
        _gather_chains(inputs, whole)
    return whole


def _gather_chains(inputs: Inputs, whole: _Window) -> None:
    """Read the receipts of corrected calls once more: the first of a chain does not say that another follows it."""
    for segment in inputs.segments.segments:
        at = segment.first
        try:
            folder = Folder(open_source(inputs.location), "receipts")
            for table in read_tables(folder, segment, columns=("call_id", "raw")):
                for row, call in enumerate(table["call_id"].to_pylist()):
                    if call in whole.corrected:
                        whole.chains.setdefault(call, []).append((at + row, table["raw"][row].as_py()))
                at += table.num_rows
        except HeadwaterError as error:
            again = _problem(f"receipts/{segment.file}", error.code, error.message)
            if again not in whole.problems:
                whole.problems.append(again)


def _map(jobs: Sequence[Any], processes: int) -> Iterator[_Window]:
    if processes == 1 or len(jobs) == 1:
        yield from map(_segment, jobs)
        return
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_segment, jobs)


def _chosen(segment: Segment, manifest: SegmentManifest, extent: Extent) -> frozenset[int]:
    """The places of a segment that are checked in full; each segment has its part of the sample."""
    if extent.every:
        return frozenset(range(segment.first, segment.first + segment.count))
    total = sum(one.count for one in manifest.segments)
    wanted = min(segment.count, -(-extent.sample * segment.count // total))
    places = range(segment.first, segment.first + segment.count)
    return frozenset(random.Random(f"{extent.seed}:{segment.first}").sample(places, wanted))


def _segment(job: tuple[Inputs, Segment, Extent, frozenset[int]]) -> _Window:
    inputs, segment, extent, chosen = job
    found, at = _Window(), segment.first
    try:
        for table in read_tables(Folder(open_source(inputs.location), "receipts"), segment):
            _group(inputs, extent, chosen, at, table, found)
            at += table.num_rows
    except HeadwaterError as error:
        found.problems.append(_problem(f"receipts/{segment.file}", error.code, error.message))
    return found


def _group(
    inputs: Inputs,
    extent: Extent,
    chosen: frozenset[int],
    first: int,
    table: pa.Table,
    found: _Window,
) -> None:
    raws, signatures = table["raw"].to_pylist(), table["signature"].to_pylist()
    rows = [
        SealedRow(hashlib.sha256(raw).digest(), leaf_hash(raw), signature, raw)
        for raw, signature in zip(raws, signatures, strict=True)
    ]
    columns = columns_of(first, rows)
    expected = pa.table(columns, schema=COLUMNS)
    if not expected.equals(table):
        found.problems += _different_columns(first, expected, table)
    found.receipts += len(rows)
    found.leaves += columns["leaf_hash"]
    found.policies.update(columns["policy_digest"])
    paid, payouts = found.paid, columns["payouts"]
    accounts, amounts = (payouts.values.field(name).to_pylist() for name in ("account", "amount"))
    for currency, (start, end) in zip(columns["currency"], pairwise(payouts.offsets.to_pylist()), strict=True):
        if currency == inputs.currency:
            for at in range(start, end):
                paid[accounts[at]] += amounts[at]
    for call, named in zip(columns["call_id"], columns["supersedes"], strict=True):
        if named is not None:
            found.corrected.add(call)
    for place in range(first, first + len(rows)):
        whole = place in chosen
        if whole or extent.signatures:
            row = rows[place - first]
            found.problems += check_receipt(inputs, place, row.raw, row.signature, split=whole)
            found.sampled += whole
            found.signatures += 1


def check_receipt(inputs: Inputs, place: int, raw: bytes, signature: bytes, *, split: bool) -> list[Problem]:
    """One receipt in full: form and sums, signature, and payouts computed again from its shares."""
    where = f"receipt {place} ({hashlib.sha256(raw).hexdigest()})"
    try:
        receipt = Receipt.from_bytes(raw)
        signer = recover(receipt, raw, "0x" + signature.hex())
        if signer != inputs.operator or receipt.operator != signer:
            return [_problem(where, "signature_wrong", f"signed by {signer}, the operator is {inputs.operator}")]
        if not split:
            return []
        policy = inputs.policies.get(receipt.policy_digest)
        if policy is None:
            return [_problem(where, "policy_missing", f"names the policy {receipt.policy_digest}, not in the export")]
        again = recompute_split(receipt, policy)
    except HeadwaterError as error:
        return [_problem(where, error.code, error.message)]
    if again == receipt.payouts:
        return []
    for line in range(max(len(again), len(receipt.payouts))):
        ours = again[line] if line < len(again) else None
        theirs = receipt.payouts[line] if line < len(receipt.payouts) else None
        if ours != theirs:
            return [_problem(where, "split_differs", f"payout {line} should be {ours}, the receipt has {theirs}")]
    return []


def _different_columns(first: int, expected: pa.Table, table: pa.Table) -> Iterator[Problem]:
    for name in COLUMNS.names:
        ours, theirs = expected[name].to_pylist(), table[name].to_pylist()
        for place, (mine, other) in enumerate(zip(ours, theirs, strict=True), first):
            if mine != other:
                yield _problem(
                    f"receipt {place}, column {name}",
                    "column_differs",
                    f"holds {_shown(other)}, the receipt {_shown(mine)}",
                )
                break


# Log


def _log(source: ObjectStore, inputs: Inputs, window: _Window) -> Iterator[Problem]:
    manifest, head = inputs.manifests[-1], inputs.checkpoint.head
    first, size = manifest["log_from"], manifest["log_size"]
    if head.size < size:
        yield _problem("checkpoint", "checkpoint_old", f"of {head.size} entries, the epoch closed at {size}")
        return
    tree = TileTree(head.size, source.read)
    if tree.root() != head.root:
        yield _problem("tile/", "tiles_differ", f"lead to {tree.root().hex()}, the checkpoint says {head.root.hex()}")
        return
    if tree.root(size).hex() != manifest["log_root"]:
        yield _problem(
            f"epochs/{inputs.epoch}.json log_root",
            "log_root_differs",
            f"is {manifest['log_root']}, the log has {tree.root(size).hex()} at size {size}",
        )
    for place, leaf in enumerate(window.leaves, first):
        if place >= size or tree.leaf(place) != leaf:
            yield _problem(
                f"receipt {place}", "not_in_log", f"hashes to {leaf.hex()}, the log holds another entry there"
            )
            break
    for place, raw in inputs.related:
        if place >= head.size or tree.leaf(place) != leaf_hash(raw):
            yield _problem(f"related.json, receipt {place}", "not_in_log", "is not the entry the log holds there")
    # The tiles' leaves make the tiles' nodes: the upper levels are recomputed, not believed.
    if LogTree(tree.leaf(place) for place in range(head.size)).root() != head.root:
        yield _problem("tile/0/", "tiles_differ", f"the leaves do not lead to the checkpoint's root {head.root.hex()}")


# Epoch


def _epoch(inputs: Inputs, window: _Window) -> Iterator[Problem]:
    for number in range(1, inputs.epoch):
        told, found = inputs.manifests[number].get("previous"), digest(inputs.raws[number - 1])
        if told != found:
            yield _problem(
                f"epochs/{number + 1}.json previous", "previous_differs", f"is {told}, epoch {number} is {found}"
            )
    told = inputs.manifests[-1]
    before = inputs.manifests[-2] if inputs.epoch > 1 else None
    if told["log_from"] != (before["log_size"] if before else 0):
        yield _problem(f"epochs/{inputs.epoch}.json log_from", "window_gap", f"is {told['log_from']}")
    try:
        again = _closed_again(inputs, window, told, before)
    except HeadwaterError as error:
        yield _problem(f"epochs/{inputs.epoch}.json", error.code, error.message)
        return
    yield from _different_fields(f"epochs/{inputs.epoch}.json", told, again)


def _closed_again(
    inputs: Inputs, window: _Window, told: Mapping[str, Any], before: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    payouts = [(AccountId(account), amount) for account, amount in window.paid.items()]
    spans = [Span(m["log_from"], m["log_size"], m["log_seen"]) for m in inputs.manifests]
    chains: dict[bytes, list[tuple[int, bytes]]] = {call: list(rows) for call, rows in window.chains.items()}
    for place, raw in inputs.related:
        chains.setdefault(raw_call(raw), []).append((place, raw))
    for rows in chains.values():
        chain = [(seq, Receipt.from_bytes(raw)) for seq, raw in sorted(set(rows)) if seq < told["log_seen"]]
        ours = [one for one in chain if one[1].currency == inputs.currency]
        if len(ours) > 1:
            versions = [Version(seq, tuple((p.account, p.amount) for p in one.payouts)) for seq, one in ours]
            payouts += adjustments(versions, spans).items()
    payees = [Payee(row["index"], AccountId(row["account"]), row["address"]) for row in told["payees"]]
    closed = close(
        Window(
            told["epoch"],
            told["log_from"],
            told["log_size"],
            bytes.fromhex(told["log_root"]),
            parse_instant(told["closed_at"]),
            told["log_seen"],
        ),
        payouts,
        previous={r["account"]: int(r["cumulative_units"]) for r in before["totals"]} if before else {},
        previous_amounts=[int(r["cumulative_token_units"]) for r in before["payees"]] if before else (),
        previous_digest=digest(inputs.raws[-2]) if before else None,
        payees=payees,
        domain=Domain(told["chain_id"], told["contract"], told["token"], told["epoch"]),
        token_decimals=told["token_decimals"],
        policy_digests=sorted(window.policies),
        registry_digest=inputs.registry,
    )
    again: Mapping[str, Any] = read_manifest(closed.manifest)
    return again


def _different_fields(file: str, told: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[Problem]:
    for name in sorted({*told, *again}):
        theirs, ours = told.get(name), again.get(name)
        if theirs == ours:
            continue
        if not (isinstance(theirs, list) and isinstance(ours, list)):
            yield _problem(f"{file} {name}", f"{name}_differs", f"is {_shown(theirs)}, the inputs give {_shown(ours)}")
            continue
        for line in range(max(len(theirs), len(ours))):
            mine = ours[line] if line < len(ours) else None
            other = theirs[line] if line < len(theirs) else None
            if mine != other:
                yield _problem(
                    f"{file} {name}[{line}]", f"{name}_differ", f"is {_shown(other)}, the inputs give {_shown(mine)}"
                )


def raw_call(raw: bytes) -> bytes:
    """The 16 bytes of a receipt's call."""
    return bytes.fromhex(Receipt.from_bytes(raw).call_id[5:])


def _problem(where: str, code: str, message: str) -> Problem:
    return Problem(where, code, message, "ask the operator to explain it, with this line")


def _shown(value: Any) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."


_CHECKED: Final = (
    "manifests chain to each other by their digests",
    "the checkpoint is signed and the tiles lead to its root, all of them recomputed",
    "every receipt is the log's entry at its place, every column says what its bytes say",
    "totals, change set, tree and manifest follow from the receipts, field by field",
)
