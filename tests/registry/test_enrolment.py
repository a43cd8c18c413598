"""Proofs of who somebody is, checked against what ssh-keygen, gpg and git really write; and what a claim's state is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError, RefusedError
from headwater.core.ids import ContributorId
from headwater.core.money import PPB
from headwater.receipts import KeySigner
from headwater.receipts.signing import recover_address
from headwater.registry import Ownership, checksum_address, unenrolled
from headwater.registry.enrolment import (
    NAMESPACE,
    PERIOD_NS,
    Agreement,
    Claim,
    Proof,
    Seams,
    Standing,
    check_agreement,
    check_anchor,
    claim_of,
    personal_digest,
    prove,
    state,
)
from headwater.registry.openpgp_signature import check_openpgp_signature
from headwater.registry.ssh_signature import check_ssh_signature

ADA = unenrolled("t", "Ada Lovelace")
CLAIM = claim_of(ADA.id, "0x" + "11" * 20, 5)
STATEMENT = CLAIM.statement.encode()


def silent(*_: object) -> bytes:
    """A domain that says nothing."""
    return b""


def seams(**told: object) -> Seams:
    """The outside, as a test wants it."""
    return Seams(recover_address, told.get("records", lambda _: ()), told.get("fetch", silent))  # type: ignore[arg-type]


def ssh_key(folder: Path, kind: str = "ed25519") -> tuple[Path, str]:
    """A key file and its fingerprint as ssh-keygen prints it."""
    path = folder / f"key-{kind}"
    size = ["-b", "2048"] if kind == "rsa" else []
    subprocess.run(["ssh-keygen", "-q", "-t", kind, *size, "-N", "", "-C", "", "-f", path], check=True)
    told = subprocess.run(["ssh-keygen", "-l", "-f", path], check=True, capture_output=True, text=True).stdout
    return path, told.split()[1]


def ssh_sign(key: Path, message: bytes, namespace: str) -> str:
    """What ssh-keygen signs."""
    done = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-n", namespace, "-f", key], input=message, check=True, capture_output=True
    )
    return done.stdout.decode()


need_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
need_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="no gpg")


@need_ssh
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_what_ssh_keygen_signs_is_recognised_and_nothing_else(tmp_path, kind):
    """The key's fingerprint comes out; another message, namespace, key or a changed byte is refused."""
    key, fingerprint = ssh_key(tmp_path, kind)
    armoured = ssh_sign(key, STATEMENT, NAMESPACE)

    assert check_ssh_signature(STATEMENT, armoured, NAMESPACE).fingerprint == fingerprint
    assert prove(CLAIM, ADA.name, Proof("ssh", armoured), seams()) == (("ssh", fingerprint),)
    for message, text, space in (
        (STATEMENT + b" ", armoured, NAMESPACE),
        (STATEMENT, armoured, "git"),
        (STATEMENT, armoured.replace("A", "B", 3), NAMESPACE),
        (STATEMENT, armoured[:80], NAMESPACE),
        (STATEMENT, "", NAMESPACE),
    ):
        with pytest.raises(InvalidError) as refused:
            check_ssh_signature(message, text, space)
        assert refused.value.code == "signature_invalid"


def gpg(home: Path, *arguments: str, message: bytes = b"") -> bytes:
    """What gpg answers."""
    home.mkdir(mode=0o700, exist_ok=True)
    command = ["gpg", "--homedir", str(home), "--batch", "--no-tty", "--pinentry-mode", "loopback", *arguments]
    return subprocess.run(command, input=message, check=True, capture_output=True).stdout


@need_gpg
@pytest.mark.parametrize("kind", ["ed25519", "rsa2048"])
def test_what_gpg_signs_is_recognised_and_nothing_else(tmp_path, kind):
    """Fingerprint as gpg has it; another message or another key is refused."""
    home = Path("/tmp") / f"hw-gpg-{os.getpid()}-{kind}"  # gpg's sockets need a short path
    try:
        gpg(home, "--passphrase", "", "--quick-gen-key", "Ada", kind, "sign", "never")
        fingerprint = next(
            line.split(":")[9] for line in gpg(home, "--with-colons", "-K").decode().splitlines() if line[:4] == "fpr:"
        )
        public = gpg(home, "--armor", "--export").decode()
        armoured = gpg(home, "--armor", "--detach-sign", message=STATEMENT).decode()

        assert check_openpgp_signature(STATEMENT, armoured, public).fingerprint == fingerprint
        for message, text, key in (
            (STATEMENT + b"!", armoured, public),
            (STATEMENT, armoured, armoured),
            (b"", "", ""),
        ):
            with pytest.raises(InvalidError) as refused:
                check_openpgp_signature(message, text, key)
            assert refused.value.code == "signature_invalid"
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


@need_ssh
@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_a_signed_commit_of_the_same_author_proves_its_id_and_key(tmp_path):
    """As git writes it; a commit of another author, or signed by another key than the statement, proves nothing."""
    key, fingerprint = ssh_key(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = ssh_key(tmp_path / "other")

    def git(*arguments: str, author: str = ADA.name) -> bytes:
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": author, "GIT_AUTHOR_EMAIL": "x",
            "GIT_COMMITTER_NAME": author, "GIT_COMMITTER_EMAIL": "x",
        }  # fmt: skip
        command = ["git", "-C", str(tmp_path), "-c", "gpg.format=ssh", "-c", f"user.signingkey={key}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, env=environment).stdout

    git("init", "-q", ".")
    git("commit", "-q", "--allow-empty", "-S", "-m", "a page")
    commit, identity = git("cat-file", "commit", "HEAD"), git("rev-parse", "HEAD").decode().strip()
    statement = ssh_sign(key, STATEMENT, NAMESPACE)

    assert prove(CLAIM, "ada  lovelace", Proof("commit", statement, commit=commit), seams()) == (
        ("commit", identity),
        ("ssh", fingerprint),
    )
    for name, text, raw in (
        ("Somebody Else", statement, commit),
        (ADA.name, ssh_sign(other, STATEMENT, NAMESPACE), commit),
        (ADA.name, statement, commit.replace(b"a page", b"a book")),
        (ADA.name, statement, b"tree 0\nauthor Ada Lovelace <x> 0 +0000\n\nunsigned"),
    ):
        with pytest.raises(InvalidError):
            prove(CLAIM, name, Proof("commit", text, commit=raw), seams())


def test_a_domain_proves_itself_by_the_exact_statement_only():
    """In a TXT record of `_headwater.`, or at the well-known path; a statement for another address is none."""
    asked: list[str] = []

    def records(name: str) -> tuple[str, ...]:
        asked.append(name)
        return ("v=spf1 -all", CLAIM.statement)

    def fetch(domain: str, path: str) -> bytes:
        asked.append(domain + path)
        return f"hello\n  {CLAIM.statement} \n".encode()

    assert prove(CLAIM, "x", Proof("dns", "Example.ORG"), seams(records=records)) == (("domain", "example.org"),)
    assert prove(CLAIM, "x", Proof("well-known", "example.org"), seams(fetch=fetch)) == (("domain", "example.org"),)
    assert asked == ["_headwater.example.org", "example.org/.well-known/headwater-enrolment.txt"]
    other = claim_of(ADA.id, "0x" + "22" * 20, 5)
    with pytest.raises(InvalidError) as refused:
        prove(other, "x", Proof("dns", "example.org"), seams(records=records))
    assert other.statement in str(refused.value.fix)
    for bad in ("localhost", "10.0.0.1", "example.org/path", "-a.org", "a" * 300 + ".org"):
        with pytest.raises(InvalidError):
            prove(CLAIM, "x", Proof("dns", bad), seams(records=records))


def test_a_wallet_proves_itself_by_a_personal_signature():
    """EIP-191; the recovered address is what is shown, whoever's it is."""
    signer = KeySigner(b"\x07" * 32)
    signature = "0x" + signer.sign(personal_digest(STATEMENT)).hex()
    assert prove(CLAIM, "x", Proof("wallet", signature), seams()) == (("wallet", checksum_address(signer.address)),)
    with pytest.raises(InvalidError):
        prove(CLAIM, "x", Proof("wallet", "0x12"), seams())


def test_personal_signatures_are_those_of_other_wallets():
    """The digest is the one that an independent implementation signs."""
    from eth_account import Account
    from eth_account.messages import encode_defunct

    account = Account.from_key(b"\x09" * 32)
    signed = account.sign_message(encode_defunct(STATEMENT))
    assert prove(CLAIM, "x", Proof("wallet", signed.signature.hex()), seams()) == (("wallet", account.address),)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("ssh", "md5:00"), ("openpgp", "12"), ("domain", "a b"), ("wallet", "0x1"), ("shoe", "42"), ("commit", "zz")],
)
def test_anchors_are_written_in_one_form(kind, value):
    """Whatever could not be compared later is refused now."""
    with pytest.raises(InvalidError):
        check_anchor(kind, value)


OPENED = Claim("enr_1", ContributorId("ctr_1"), "0x", 1_000)


@given(
    proved=st.booleans(),
    for_=st.integers(0, 4),
    against=st.integers(0, 4),
    objected=st.none() | st.integers(1_000, 1_000 + PERIOD_NS - 1),
    now=st.integers(1_000, 1_000 + 4 * PERIOD_NS),
)
def test_a_claim_is_granted_only_after_its_period_and_always_ends(proved, for_, against, objected, now):
    """Nobody is paid before everybody could object; two periods after the last word it is over."""
    names = tuple(str(i) for i in range(for_)), tuple(str(9 + i) for i in range(against))
    found = state(OPENED, Standing(proved, *names, objected), now)

    if now < OPENED.opened_at_ns + PERIOD_NS:
        assert found in ("waiting", "contested")
    if found == "granted":
        assert for_ >= against + 2 or (objected is None and (proved or for_ >= 2))
    if now >= OPENED.opened_at_ns + 3 * PERIOD_NS:
        assert found in ("granted", "refused")


def test_shares_change_only_by_signatures_of_all_concerned():
    """Everybody who owns before or after, each with the address they are paid to, and for this state only."""
    signers = [KeySigner(bytes([i]) * 32) for i in (1, 2, 3)]
    people = [ContributorId(f"ctr_{i}") for i in (1, 2, 3)]
    owners = (Ownership(people[0], PPB // 2), Ownership(people[1], PPB // 2))
    agreement = Agreement("ctb_1", owners, 0)  # type: ignore[arg-type]
    signatures = [s.sign(personal_digest(agreement.statement.encode())).hex() for s in signers]
    concerned = [(p, checksum_address(s.address)) for p, s in zip(people[:2], signers, strict=False)]

    check_agreement(agreement, signatures[:2], concerned, recover_address)
    for given_, of in (
        (signatures[:1], concerned),
        (signatures[:2], [*concerned, (people[2], None)]),
    ):
        with pytest.raises(RefusedError) as missing:
            check_agreement(agreement, given_, of, recover_address)
        assert missing.value.code == "signature_missing"
    with pytest.raises(InvalidError):
        check_agreement(agreement, signatures, concerned, recover_address)
    with pytest.raises(RefusedError):
        check_agreement(Agreement("ctb_1", owners, 1), signatures[:2], concerned, recover_address)  # type: ignore[arg-type]
