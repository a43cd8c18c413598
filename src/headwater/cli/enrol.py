"""`headwater enrol …`: prove to be a contributor whose money waits; vouch, object, settle; shares that all agree on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.markup import escape

from headwater.cli.disputing import enrolments_of, owners_of, record_json
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.core.errors import MissingError
from headwater.core.ids import AccountId, ContributionId, ContributorId
from headwater.core.money import format_units
from headwater.receipts import Receipt
from headwater.registry.clusters import Flowed, SignKind, self_dealing
from headwater.registry.enrolment import PROOF_BYTES_MAX, Anchor, Method, Proof
from headwater.store.cluster_store import ClusterStore
from headwater.store.enrolment_store import Record

app = App(name="enrol", help="Prove who you are and be paid what waits in escrow under your name.")
cluster_app = App(name="cluster", help="Signs that people act together: shared keys, addresses, funding, words.")
app.command(cluster_app)


@app.command
def anchor(
    contributor: str,
    kind: Anchor,
    value: str,
    /,
    *,
    source: Annotated[str, Parameter(help="Where that is known from; kept on record.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Record a fact by which a contributor can be recognised later; only before a claim is open.

    Parameters
    ----------
    contributor
        Its id, ctr_….
    kind
        ssh, openpgp (fingerprints), commit (id of a signed commit), domain or wallet (address).
    value
        As `ssh-keygen -l`, `gpg --fingerprint` or `git rev-parse` print it.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        office, who = enrolments_of(opened), ContributorId(contributor)
        office.anchor(who, kind, value, source, time.time_ns())
        rows = [{"kind": k, "value": v, "source": s} for k, v, s in office.anchors(who)]
        if json:
            print_json({"contributor": who, "anchors": rows})
        else:
            for row in rows:
                out.print(escape(f"{row['kind']} {row['value']}  ({row['source']})"), soft_wrap=True)
    return result.status


@app.command(name="open")
def open_claim(contributor: str, address: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Begin to claim what waits under a name; prints the statement to sign or to publish.

    Parameters
    ----------
    contributor
        Its id, ctr_….
    address
        EVM address to be paid at, 0x….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print(enrolments_of(opened).open(ContributorId(contributor), address, time.time_ns()), json)
    return result.status


@app.command
def prove(
    enrolment: str,
    method: Method,
    /,
    *,
    signature: Annotated[Path | None, Parameter(help="File with the signature of the statement.")] = None,
    domain: Annotated[str, Parameter(help="With dns and well-known: the domain that publishes it.")] = "",
    key: Annotated[Path | None, Parameter(help="With OpenPGP: file with the armoured public key.")] = None,
    commit: Annotated[Path | None, Parameter(help="With commit: file of `git cat-file commit ID`.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Prove an open claim. What it shows counts by itself when it was recorded before as an anchor.

    Parameters
    ----------
    enrolment
        Its id, enr_….
    method
        ssh (`ssh-keygen -Y sign -n headwater-enrolment`), openpgp, commit, dns (TXT of _headwater.DOMAIN),
        well-known (https://DOMAIN/.well-known/headwater-enrolment.txt) or wallet (personal_sign).
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        text = domain if method in ("dns", "well-known") else _text(signature)
        proof = Proof(method, text, _text(key), _read(commit))
        _print(enrolments_of(opened).prove(enrolment, proof, time.time_ns()), json)
    return result.status


@app.command
def speak(
    contributor: str,
    account: str,
    /,
    *,
    by: Annotated[str, Parameter(help="Who vouches for it; kept on record.")] = "operator",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Record that the key of an account speaks for a contributor over HTTP: disputes, counter-notices, withdrawals.

    Parameters
    ----------
    contributor
        Its id, ctr_….
    account
        payer:key_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        enrolments_of(opened).let_speak(ContributorId(contributor), AccountId(account), by, time.time_ns())
        if json:
            print_json({"contributor": contributor, "account": account})
        else:
            out.print(f"{account} speaks for {contributor}")
    return result.status


@app.command
def vouch(
    enrolment: str,
    /,
    *,
    by: Annotated[str, Parameter(help="A reviewer, ctr_….")],
    reason: Annotated[str, Parameter(help="Kept on record.")],
    against: Annotated[bool, Parameter(negative=(), help="It is not who it says.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Say as a reviewer whether a claimant is who it says; two must where nothing anchored is proved.

    Parameters
    ----------
    enrolment
        Its id, enr_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        office = enrolments_of(opened)
        _print(office.vouch(enrolment, ContributorId(by), not against, reason, time.time_ns()), json)
    return result.status


@app.command(name="object")
def object_to(enrolment: str, /, *, by: str, reason: str, home: HomeOption = None, json: JsonOption = False) -> int:
    """Object to a claim in its public period: reviewers must then decide.

    Parameters
    ----------
    enrolment
        Its id, enr_….
    by
        Who objects; kept on record.
    reason
        Why; kept on record.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print(enrolments_of(opened).object(enrolment, by, reason, time.time_ns()), json)
    return result.status


@app.command
def settle(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """End claims whose period is over: enrol, and release their escrow."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        granted = enrolments_of(opened).settle_due(time.time_ns())
        if json:
            print_json(
                {
                    "granted": [
                        {"enrolment": claim.id, "contributor": claim.contributor, "released_units": str(units)}
                        for claim, units in granted
                    ]
                }
            )
        else:
            for claim, units in granted:
                out.print(f"{claim.contributor} is enrolled; {format_units(units)} left escrow")
            if not granted:
                out.print("nothing is due")
    return result.status


@app.command
def show(enrolment: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """A claim and what was said about it.

    Parameters
    ----------
    enrolment
        Its id, enr_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print(enrolments_of(opened).get(enrolment, time.time_ns()), json)
    return result.status


@app.command(name="list")
def list_claims(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """Every claim, oldest first: the public register to look for objections in."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        found = enrolments_of(opened).claims(time.time_ns())
        if json:
            print_json({"enrolments": [record_json(one) for one in found]})
        else:
            for one in found:
                out.print(
                    f"{one.claim.id}  {one.state}  {one.claim.contributor} at {one.claim.address}", soft_wrap=True
                )
            if not found:
                out.print("nobody has claimed anything")
    return result.status


@app.command
def shares(
    contribution: str,
    owners: Annotated[tuple[str, ...], Parameter(help="ctr_…=PPB each, summing to 10^9.")],
    /,
    *,
    signature: Annotated[
        tuple[str, ...], Parameter(negative=(), help="0x… of personal_sign by each owner before and after; repeat.")
    ] = (),
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Change the shares of co-authors by signatures of all; without signatures, print what is to be signed.

    Parameters
    ----------
    contribution
        Its id, ctb_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        office, one, wanted = enrolments_of(opened), ContributionId(contribution), owners_of(owners)
        statement = office.agreement(one, wanted).statement
        if signature:
            office.agree(one, wanted, signature, time.time_ns())
        if json:
            print_json({"contribution": one, "statement": statement, "changed": bool(signature)})
        else:
            out.print("the shares are changed" if signature else f"to be signed by all: {statement}", soft_wrap=True)
    return result.status


@cluster_app.command(name="add")
def add_sign(
    who: str,
    kind: SignKind,
    value: str,
    /,
    *,
    source: Annotated[str, Parameter(help="Where it was seen; kept on record.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Record a sign that somebody was seen with; `declared` is one's own word, and earns the amnesty.

    Parameters
    ----------
    who
        Contributor ctr_… or account payer:key_….
    kind
        address, key, funding, content or declared.
    value
        What was seen; people with the same value of a kind are one cluster.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        ClusterStore(opened.db).add(who, kind, value, source, time.time_ns())
        _print_clusters(opened, json)
    return result.status


@cluster_app.command(name="list")
def list_clusters(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """Clusters: one vote each, one cap each, on no panel about their own."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print_clusters(opened, json)
    return result.status


@cluster_app.command
def dealing(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """What came back to whom of what they paid for calls: by cluster, most first; status 1 when all of it came back."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        flows = []
        newest = {one.call_id: one for one in (Receipt.from_bytes(e.raw) for e in opened.log.entries(0))}
        for call, receipt in newest.items():
            flows += [
                Flowed(opened.calls.get(call).payer, payout.account.partition(":")[2] or payout.account, payout.amount)
                for payout in receipt.payouts
                if payout.amount
            ]
        found = [one for one in self_dealing(flows, {}, ClusterStore(opened.db).clusters()) if one.flagged]
        found.sort(key=lambda one: -one.returned_units)
        result.status = int(any(one.returned_units >= one.paid_units for one in found))
        if json:
            rows = [
                {"cluster": one.cluster, "paid_units": str(one.paid_units), "returned_units": str(one.returned_units)}
                for one in found
            ]
            print_json({"self_dealing": rows})
        else:
            for one in found:
                part = f"{one.return_ppb / 10**7:.1f} %"
                out.print(f"{one.cluster}: {part} of {format_units(one.paid_units)} came back", soft_wrap=True)
            if not found:
                out.print("nobody was paid for calls of their own")
    return result.status


def _print_clusters(home: Home, as_json: bool) -> None:
    found = ClusterStore(home.db).clusters()
    if as_json:
        rows = [
            {"cluster": c.name, "members": list(c.members), "kinds": list(c.kinds), "declared": c.declared}
            for c in found
        ]
        print_json({"clusters": rows})
        return
    for one in found:
        word = "declared" if one.declared else "found"
        out.print(f"{one.name}  {word} by {', '.join(one.kinds)}: {', '.join(one.members)}", soft_wrap=True)
    if not found:
        out.print("nobody is known to act with others")


def _print(record: Record, as_json: bool) -> None:
    if as_json:
        print_json(record_json(record))
        return
    how = "proved" if record.standing.proved else f"{len(record.standing.for_)} vouch"
    out.print(f"{record.claim.id}  {record.state}, {how}", soft_wrap=True)
    for by, why in record.objections:
        out.print(escape(f"  objection of {by}: {why}"), soft_wrap=True)
    out.print(f"  to be signed or published: {record.claim.statement}", soft_wrap=True)


def _text(path: Path | None) -> str:
    return _read(path).decode("utf-8", "replace")


def _read(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            return file.read(PROOF_BYTES_MAX + 1)
    except OSError as error:
        raise MissingError(f"{path}: {error.strerror}", code="file_missing", fix="give the path of a file") from None
