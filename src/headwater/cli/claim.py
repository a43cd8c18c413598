"""`headwater claim …`: proofs, claims by anybody, claims that a relayer sends, files for wallets, recipients."""

from __future__ import annotations

import json as json_text
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape

from headwater.chain import Chain, Payees, signer_from_file
from headwater.chain.oracle import read_fees
from headwater.chain.relaying import Offer, check_fee_line, claim_many, relay, relay_fee, typed_data, wallet_file
from headwater.cli.epoch import _number
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.cli.settle_plan import _units
from headwater.cli.settling import open_chain, settlement, tokens
from headwater.core.canonical import refuse_deep
from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.core.ids import AccountId
from headwater.core.limits import BUNDLE_SIZE_BYTES_MAX
from headwater.settle import Settlement
from headwater.settlement.claim_to import ClaimTo, payout_domain, sign_claim_to

app = App(name="claim", help="Prove and claim what an account is owed.")

EpochOption = Annotated[int | None, Parameter(name="--epoch", help="The newest by default.")]
KeyFile = Annotated[
    Path | None, Parameter(name="--key-file", help="Who pays the chain's fee; the operator by default.")
]
Ether = Annotated[str, Parameter(name="--ether", help="What an ether is worth, in tokens.")]
_DAY_S = 86_400


@app.command
def proof(account: str, /, *, epoch: EpochOption = None, home: HomeOption = None, json: JsonOption = False) -> int:  # noqa: ARG001  # a proof is always JSON
    """Print the claim of an account: anybody may submit it, only the payee gains.

    Parameters
    ----------
    account
        Such as contributor:ctr_….
    """
    with outcome(True) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        print_json(settlement(opened, chain).claim(_number(opened, epoch), AccountId(account)).as_json())
    return result.status


@app.command
def submit(
    *accounts: str,
    epoch: EpochOption = None,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Claim what accounts are owed: one by a claim, several in as few transactions as cost the least.

    Parameters
    ----------
    accounts
        Such as contributor:ctr_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        books, which = settlement(opened, chain), _number(opened, epoch)
        indices = _indices(books, which, accounts)
        rows = []
        for paid in claim_many(_acting(chain, key_file), which, books.tree(which), indices):
            rows.append(
                {
                    "token_units": str(paid.amount),
                    "payees": paid.payees,
                    "skipped": [list(one) for one in paid.skipped],
                    "gas": paid.gas_used,
                    "transaction": paid.transaction,
                }
            )
        books.sync()
        if json:
            print_json(rows[0] if len(rows) == 1 else {"claims": rows})
        else:
            for row in rows:
                many = f" for {row['payees']} payees" if len(indices) > 1 else ""
                out.print(
                    f"claimed {tokens(int(str(row['token_units'])))} tokens{many} for {row['gas']} gas, "
                    f"transaction {row['transaction']}"
                )
                for index, reason in row["skipped"]:  # type: ignore[attr-defined]
                    out.print(f"  index {index} was skipped and stays due: {reason}")
    return result.status


@app.command
def wallet(
    *accounts: str,
    to: Annotated[Path, Parameter(help="File to write.")],
    epoch: EpochOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Write the claim of one or several accounts as transactions that a wallet sends: to, value, data, chain id.

    Parameters
    ----------
    accounts
        Such as contributor:ctr_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        books, which = settlement(opened, chain), _number(opened, epoch)
        value: Any = wallet_file(chain, which, books.tree(which), _indices(books, which, accounts))
        to.write_text(json_text.dumps(value, indent=1) + "\n", "utf-8")
        if json:
            print_json(value)
        else:
            out.print(f"{len(value['transactions'])} transactions written to {escape(str(to))}")
    return result.status


@app.command
def offer(
    account: str,
    /,
    *,
    relayer: Annotated[str, Parameter(help="Address that gets the fee.")],
    receiver: Annotated[str | None, Parameter(name="--to", help="Who receives the rest; the payee by default.")] = None,
    fee: Annotated[str | None, Parameter(help="Tokens for the relayer; what sending costs now by default.")] = None,
    payee_key: Annotated[Path | None, Parameter(help="The payee's key; without it, what a wallet signs.")] = None,
    days: Annotated[int, Parameter(help="How long the offer counts.")] = 7,
    ether: Ether = "3000",
    epoch: EpochOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Let somebody else send a claim: print the signed offer, or the typed data that the payee's wallet signs.

    What is due, the fee and what arrives are shown first: on standard error with the offer, in the JSON otherwise.

    Parameters
    ----------
    account
        Such as contributor:ctr_….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        claim = settlement(opened, chain).claim(_number(opened, epoch), AccountId(account))
        leaf, paid = claim.proof.leaf, chain.paid(claim.proof.leaf.index)
        ether_units = _units(ether, "ether", 10**6)
        asked = (
            relay_fee(read_fees(chain.sender), ether_units=ether_units, first=not paid)
            if fee is None
            else _units(fee, "fee", 10**6)
        )
        deadline = int(time.time()) + days * _DAY_S
        terms = ClaimTo(leaf.address, leaf.amount, receiver or leaf.address, asked, relayer, deadline)
        line = dict(check_fee_line(terms, leaf.amount - paid))
        data = typed_data(terms, chain_id=chain.chain_id, contract=chain.manifest.payout)
        value: Any = {"fee_line": line, "claim": claim.as_json(), "typed_data": data}
        if payee_key is not None:
            domain = payout_domain(chain.chain_id, chain.manifest.payout)
            signature = sign_claim_to(terms, domain, _key_bytes(payee_key))
            value = {"fee_line": line, "offer": Offer(claim, terms, signature).as_json()}
        if not json:
            out.print(
                f"due {tokens(int(line['due']))}, the relayer keeps {tokens(int(line['fee']))}, "
                f"{tokens(int(line['arrives']))} arrives at {line['to']}",
                soft_wrap=True,
            )
        print_json(value)
    return result.status


@app.command(name="relay")
def relay_offer(
    file: Path,
    /,
    *,
    key_file: KeyFile = None,
    any_fee: Annotated[bool, Parameter(negative=(), help="Send it even when the fee does not cover the gas.")] = False,
    ether: Ether = "3000",
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Send a claim that its payee signed; refused when its fee does not cover the gas.

    Parameters
    ----------
    file
        What `claim offer --json` printed.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        found = Offer.from_json(_read_offer(file))
        first = not chain.paid(found.claim.proof.leaf.index)
        ether_units = _units(ether, "ether", 10**6)
        least = (
            0 if any_fee else relay_fee(read_fees(chain.sender), ether_units=ether_units, first=first, margin_percent=0)
        )
        paid = relay(_acting(chain, key_file), found, now_s=int(time.time()), fee_min=least)
        settlement(opened, chain).sync()
        if json:
            print_json(
                {
                    "token_units": str(paid.amount),
                    "fee_token_units": str(found.terms.fee),
                    "gas": paid.gas_used,
                    "transaction": paid.transaction,
                }
            )
        else:
            out.print(
                f"paid {tokens(paid.amount - found.terms.fee)} to {found.terms.to}, "
                f"{tokens(found.terms.fee)} to the relayer, transaction {paid.transaction}",
                soft_wrap=True,
            )
    return result.status


@app.command
def recipient(
    address: str | None = None,
    /,
    *,
    payee_key: Annotated[Path | None, Parameter(help="The payee's key, to name a recipient.")] = None,
    account: Annotated[str | None, Parameter(help="Address whose recipient is shown.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Show who receives what an address is due, or name somebody else: that counts two days later.

    Parameters
    ----------
    address
        The new recipient; the payee's own address undoes an earlier one.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        signer = None if payee_key is None else signer_from_file(payee_key)
        gas_for = () if signer is None else (signer.address,)
        with open_chain(opened, gas_for=gas_for) as (chain, _):
            whose = account or (signer.address if signer else None)
            if whose is None or (address is not None and signer is None):
                raise InvalidError(
                    "no payee", code="payee_missing", fix="give --payee-key to change, or --account to look"
                )
            payees = Payees(chain.acting_as(signer))
            if address is not None:
                payees.set_recipient(address)
            found = payees.recipient_of(whose)
            if json:
                print_json({"now": found.now, "named": found.named, "counts_from_s": found.counts_from_s})
            else:
                out.print(f"{whose} is paid at {found.now}")
                if found.named != found.now:
                    out.print(f"from second {found.counts_from_s} on at {found.named}")
    return result.status


def _indices(books: Settlement, epoch: int, accounts: tuple[str, ...]) -> list[int]:
    if not accounts:
        raise InvalidError("no account", code="account_missing", fix="name accounts such as contributor:ctr_…")
    return sorted({books.claim(epoch, AccountId(account)).proof.leaf.index for account in accounts})


def _acting(chain: Chain, key_file: Path | None) -> Chain:
    return chain if key_file is None else chain.acting_as(signer_from_file(key_file))


def _read_offer(file: Path) -> Any:
    if not file.is_file():
        raise MissingError(f"no offer at {file.name}", code="offer_missing", fix="give what `claim offer` printed")
    raw = file.read_bytes()
    if len(raw) > BUNDLE_SIZE_BYTES_MAX:
        raise InvalidError(f"an offer of {len(raw)} bytes", code="offer_invalid", fix="give one offer")
    refuse_deep(raw)
    try:
        value = json_text.loads(raw)
    except ValueError:
        raise InvalidError(
            "the offer is not JSON", code="offer_invalid", fix="give what `claim offer` printed"
        ) from None
    return value.get("offer", value) if isinstance(value, dict) else value


def _key_bytes(path: Path) -> bytes:
    """A payee's 32 bytes, under the same conditions as any key that signs here."""
    signer_from_file(path)  # refuses what others may read, and what is no key
    text = path.read_text("ascii").strip().removeprefix("0x")
    if len(text) != 64:
        raise RefusedError("not a key", code="key_invalid", fix="give 64 hex digits")
    return bytes.fromhex(text)
