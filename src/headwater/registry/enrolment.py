"""Enrolment: somebody proves to be a contributor known by name only, and can then be paid what waits for them.

A claim names a contributor, a payout address and a proof; its *statement* is what is signed or published, word for
word. A proof convinces by itself when it fits an *anchor*: a fact recorded about the contributor beforehand (a key's
fingerprint, a signed commit of theirs, a domain, a wallet). Without one, two reviewers must vouch. Either way a period
follows in which anybody may object; an objection leaves it to the reviewers, in as long a time, and then it lapses.

    waiting --period over, proved or vouched by two, no objection--> granted
    waiting --an objection, or neither proved nor vouched--> contested --two more for than against--> granted
    contested --its time is over--> refused

Pure: instants are arguments and signatures are checked by what is given. Knows nothing of money.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from headwater.core.canonical import digest_of
from headwater.core.errors import InvalidError, RefusedError
from headwater.core.ids import ContributionId, ContributorId
from headwater.core.instants import DAY_NS
from headwater.core.keccak import keccak256
from headwater.registry.contribution import Ownership
from headwater.registry.contributor import checksum_address
from headwater.registry.openpgp_signature import check_openpgp_signature
from headwater.registry.ssh_signature import check_ssh_signature

Method = Literal["ssh", "openpgp", "commit", "dns", "well-known", "wallet", "vouch"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

Anchor = Literal["ssh", "openpgp", "commit", "domain", "wallet"]
ANCHORS: Final[tuple[Anchor, ...]] = get_args(Anchor)

State = Literal["waiting", "contested", "granted", "refused"]

NAMESPACE: Final = "headwater-enrolment"
PERIOD_NS: Final = 7 * DAY_NS
VOUCHES_MIN: Final = 2
PROOF_BYTES_MAX: Final = 65_536

_DOMAIN = re.compile(r"(?=.{4,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")
_ANCHOR_FORMS: Final = {
    "ssh": re.compile(r"SHA256:[A-Za-z0-9+/]{43}"),
    "openpgp": re.compile(r"[0-9A-F]{40}"),
    "commit": re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}"),
    "domain": _DOMAIN,
}


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody says to be a contributor."""

    id: str  # enr_ and 32 hex digits
    contributor: ContributorId
    address: str  # where to be paid, EIP-55
    opened_at_ns: int  # of the deadline clock

    @property
    def statement(self) -> str:
        """What is signed or published to prove it, one line."""
        return f"headwater enrolment 1 {self.id} contributor={self.contributor} address={self.address}"


@dataclass(frozen=True, slots=True)
class Proof:
    """What somebody offers to prove a claim."""

    method: Method
    text: str = ""  # an armoured signature, a domain, or 0x and the hex of a wallet's signature
    key: str = ""  # openpgp, and a commit signed with it: the armoured public key
    commit: bytes = b""  # commit: the commit object, as `git cat-file commit` gives it

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise _wrong(f"the method {str(self.method)[:40]!r}", f"use {', '.join(METHODS)}")
        if len(self.text) + len(self.key) + len(self.commit) > PROOF_BYTES_MAX:
            raise _wrong("more than 64 KiB of proof", "send the signature and the key alone")


def claim_of(contributor: ContributorId, address: str, opened_at_ns: int) -> Claim:
    """A claim; its id follows from what it says and when.

    Raises:
        InvalidError: not an address.
    """
    checked = checksum_address(address)
    id = "enr_" + digest_of([contributor, checked, str(opened_at_ns)]).removeprefix("sha256:")[:32]
    return Claim(id, contributor, checked, opened_at_ns)


def check_anchor(kind: str, value: str) -> str:
    """An anchor's value in its one form.

    Raises:
        InvalidError: no such kind, or not written as that kind is.
    """
    if kind == "wallet":
        return checksum_address(value)
    form = _ANCHOR_FORMS.get(kind)
    if form is None:
        raise _wrong(f"an anchor of kind {kind[:40]!r}", f"use {', '.join(ANCHORS)}")
    plain = value.strip().replace(" ", "").upper() if kind == "openpgp" else value.strip()
    plain = plain.lower() if kind in ("domain", "commit") else plain
    if form.fullmatch(plain) is None:
        raise _wrong(f"the {kind} {value[:80]!r}", "write it as its own programs print it")
    return plain


@dataclass(frozen=True, slots=True)
class Seams:
    """What checking a proof asks of the outside."""

    recover: Callable[[bytes, bytes], str]  # the address whose key signed a 32-byte digest
    text_records: Callable[[str], Sequence[str]]  # DNS TXT records of a name
    fetch: Callable[[str, str], bytes]  # (domain, path) over HTTPS, never from a private address


def prove(claim: Claim, name: str, proof: Proof, seams: Seams) -> tuple[tuple[Anchor, str], ...]:
    """What a proof shows control of: one or more (anchor kind, value).

    Args:
        name: of the contributor; the author of a commit must bear it.

    Raises:
        InvalidError: ``signature_invalid``, or the proof shows nothing.
        UpstreamError: a resolver or server did not answer.
    """
    statement = claim.statement.encode()
    if proof.method == "ssh":
        return (("ssh", check_ssh_signature(statement, proof.text, NAMESPACE).fingerprint),)
    if proof.method == "openpgp":
        return (("openpgp", check_openpgp_signature(statement, proof.text, proof.key).fingerprint),)
    if proof.method == "commit":
        return _commit(statement, name, proof)
    if proof.method == "wallet":
        return (("wallet", checksum_address(seams.recover(personal_digest(statement), _signature(proof.text)))),)
    if proof.method in ("dns", "well-known"):
        domain = check_anchor("domain", proof.text)
        if proof.method == "dns":
            told: Sequence[str] = seams.text_records(f"_headwater.{domain}")
        else:
            told = seams.fetch(domain, "/.well-known/headwater-enrolment.txt").decode("utf-8", "replace").splitlines()
        if claim.statement not in [" ".join(line.split()) for line in told]:
            raise _wrong(
                f"{domain}, which does not publish the statement", f"publish exactly this line: {claim.statement}"
            )
        return (("domain", domain),)
    return ()


def _commit(statement: bytes, name: str, proof: Proof) -> tuple[tuple[Anchor, str], ...]:
    """The commit that was signed by whoever signed the statement, and that key."""
    raw, signature, author = _unsigned_commit(proof.commit)
    if " ".join(author.casefold().split()) != " ".join(name.casefold().split()):
        raise _wrong(f"a commit of {author[:80]!r}", f"give a commit whose author is {name!r}")
    identity = hashlib.sha1(b"commit %d\x00" % len(proof.commit) + proof.commit, usedforsecurity=False).hexdigest()
    kind: Anchor = "openpgp" if proof.key else "ssh"
    if proof.key:
        of_commit = check_openpgp_signature(raw, signature, proof.key).fingerprint
        of_statement = check_openpgp_signature(statement, proof.text, proof.key).fingerprint
    else:
        of_commit = check_ssh_signature(raw, signature, "git").fingerprint
        of_statement = check_ssh_signature(statement, proof.text, NAMESPACE).fingerprint
    if of_commit != of_statement:
        raise _wrong(f"a commit signed by {of_commit}, a statement by {of_statement}", "sign with the commit's key")
    return (("commit", identity), (kind, of_commit))


def _unsigned_commit(commit: bytes) -> tuple[bytes, str, str]:
    """(what a commit's signature covers, the signature, the author's name)."""
    head, gap, body = commit.partition(b"\n\n")
    kept: list[bytes] = []
    signature: list[bytes] = []
    author, inside = "", False
    for line in head.split(b"\n"):
        if line.startswith(b"gpgsig "):
            inside = True
            signature.append(line[7:])
        elif inside and line.startswith(b" "):
            signature.append(line[1:])
        else:
            inside = False
            kept.append(line)
            if line.startswith(b"author "):
                author = line[7:].partition(b" <")[0].decode("utf-8", "replace")
    if not gap or not signature or not author:
        raise _wrong("a commit without author or signature", "give what `git cat-file commit ID` prints, byte for byte")
    return b"\n".join(kept) + gap + body, b"\n".join(signature).decode("ascii", "replace"), author


def personal_digest(message: bytes) -> bytes:
    """The 32 bytes that a wallet signs for a message (EIP-191, version 0x45, `personal_sign`)."""
    return keccak256(b"\x19Ethereum Signed Message:\n%d" % len(message) + message)


def _signature(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text.strip().removeprefix("0x"))
    except ValueError:
        raw = b""
    if len(raw) != 65:
        raise InvalidError(
            f"{text[:20]!r}… is no wallet's signature",
            code="signature_invalid",
            fix="give 0x and 130 hex digits, as personal_sign returns them",
        )
    return raw[:64] + bytes([raw[64] + 27 if raw[64] < 2 else raw[64]])


@dataclass(frozen=True, slots=True)
class Standing:
    """What has been said about a claim."""

    proved: bool  # by something anchored beforehand
    for_: tuple[str, ...] = ()  # reviewers who vouch, each once
    against: tuple[str, ...] = ()
    objected_at_ns: int | None = None  # the first objection
    ended: Literal["granted", "refused"] | None = None


def state(claim: Claim, standing: Standing, now_ns: int) -> State:
    """Where a claim stands at an instant of the deadline clock; `ended` is what was carried out, and final."""
    if standing.ended is not None:
        return standing.ended
    enough = standing.proved or len(standing.for_) >= VOUCHES_MIN
    if standing.objected_at_ns is None and enough:
        return "granted" if now_ns >= claim.opened_at_ns + PERIOD_NS else "waiting"
    if standing.objected_at_ns is None and now_ns < claim.opened_at_ns + PERIOD_NS:
        return "waiting"
    begun = standing.objected_at_ns if standing.objected_at_ns is not None else claim.opened_at_ns + PERIOD_NS
    if len(standing.for_) >= len(standing.against) + VOUCHES_MIN:
        return "granted" if now_ns >= claim.opened_at_ns + PERIOD_NS else "contested"
    return "contested" if now_ns < begun + PERIOD_NS else "refused"


# Shares that co-authors agree on


@dataclass(frozen=True, slots=True)
class Agreement:
    """Other shares of a contribution, in force once everybody concerned has signed."""

    contribution: ContributionId
    owners: tuple[Ownership, ...]
    changes: int  # how often its owners had changed before: an old agreement cannot be used again

    @property
    def id(self) -> str:
        """agr_ and 32 hex digits."""
        rows = [[owner.contributor_id, owner.share_ppb] for owner in self.owners]
        return "agr_" + digest_of([self.contribution, rows, self.changes]).removeprefix("sha256:")[:32]

    @property
    def statement(self) -> str:
        """What everybody signs with the wallet they are paid to (`personal_sign`), one line."""
        shares = " ".join(f"{owner.contributor_id}={owner.share_ppb}" for owner in self.owners)
        return f"headwater shares 1 {self.id} contribution={self.contribution} {shares}"


def check_agreement(
    agreement: Agreement,
    signatures: Sequence[str],
    addresses: Sequence[tuple[ContributorId, str | None]],
    recover: Callable[[bytes, bytes], str],
) -> None:
    """Refuse an agreement that not all have signed.

    Args:
        signatures: hex, in any order.
        addresses: of everybody who owns a share before or after, None for who has not enrolled.

    Raises:
        RefusedError: ``signature_missing``, with who has not signed or cannot.
        InvalidError: a signature of nobody concerned.
    """
    digest = personal_digest(agreement.statement.encode())
    signed = {checksum_address(recover(digest, _signature(text))) for text in signatures}
    wanted = dict(addresses)
    lacking = sorted(name for name, address in wanted.items() if address is None or address not in signed)
    if lacking:
        raise RefusedError(
            f"{', '.join(lacking)[:300]} did not sign {agreement.id}",
            code="signature_missing",
            fix=f"everybody concerned enrols, and signs with the address they are paid to: {agreement.statement}",
        )
    strangers = sorted(signed - {address for address in wanted.values() if address is not None})
    if strangers:
        raise InvalidError(
            f"{strangers[0]} signed {agreement.id} and is not concerned", code="signature_invalid", fix="leave it out"
        )


def _wrong(what: str, fix: str) -> InvalidError:
    return InvalidError(f"an enrolment with {what}", code="enrolment_invalid", fix=fix)
