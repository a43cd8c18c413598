"""What the MCP server's tools find out, over an opened home: for everybody, or for the owner of one API key.

For everybody: contributions, prices, and whether a file that somebody sent holds. For the owner of a key: the receipts
it paid for and its own statement, and nothing of anybody else's: what belongs to another key looks exactly like what
does not exist. Knows nothing of the protocol; every result is plain JSON values.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

from headwater.cli.home import Home, passages
from headwater.cli.receipt import checks_of
from headwater.cli.settling import DEPLOYMENT, open_chain
from headwater.cli.statement_view import statement_json
from headwater.core.canonical import parse_canonical
from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.core.ids import ContributionId
from headwater.core.instants import format_instant, parse_instant
from headwater.core.money import format_units
from headwater.gateway.own_calls import own_call
from headwater.receipts import Bundle, Check, Receipt, leaf_hash, recover, verify_inclusion
from headwater.registry import Contribution, permits
from headwater.retrieval import PassageIndex
from headwater.splits import Policy, Prices, divide_receipt, explain, recompute_split
from headwater.store.consent_store import ConsentStore
from headwater.store.database import INT64_MAX
from headwater.store.key_store import KeyRecord
from headwater.store.receipt_log import LoggedReceipt

FOUND_MAX: Final = 20
LINES_MAX: Final = 500
QUERY_CHARS_MAX: Final = 2_000


@dataclass(slots=True)
class Tools:
    """The tools over `home`, for the owner of `secret`.

    Args:
        secret: an API key; empty for nobody in particular.
    """

    home: Home
    secret: str = field(default="", repr=False)
    _index: PassageIndex | None = None
    _building: threading.Lock = field(default_factory=threading.Lock)

    # For everybody

    def find(self, query: str, limit: int = 5) -> dict[str, Any]:
        """Passages of registered documents that answer `query`, each with its contribution, owners and licence."""
        if not query.strip() or len(query) > QUERY_CHARS_MAX:
            raise InvalidError("the query is empty or too long", code="query_invalid", fix="ask in a sentence")
        if not 1 <= limit <= FOUND_MAX:
            raise InvalidError(f"limit is {limit}", code="limit_invalid", fix=f"use 1 to {FOUND_MAX}")
        if query.startswith("ctb_"):
            one = self.home.registry.get(ContributionId(query.strip()))
            return {"found": [self._contribution(one)]}
        found = self._passages().search(query, limit, now_ns=time.time_ns())
        return {
            "found": [
                {**self._contribution(self.home.registry.get(one.contribution_id)), "passage": one.text}
                for one in found
            ]
        }

    def quote(self, model: str, prompt_tokens: int, answer_tokens: int) -> dict[str, Any]:
        """What a call to `model` costs, to the unit, if it uses so many tokens; the ceiling is reserved before it."""
        if not (0 <= prompt_tokens <= 2**31 and 0 <= answer_tokens <= 2**31):
            raise InvalidError(
                f"{prompt_tokens} and {answer_tokens} tokens", code="tokens_invalid", fix="use 0 to 2147483648"
            )
        prices = self._prices()
        if model not in prices:
            raise MissingError(
                f"the model {model[:80]!r} does not exist",
                code="model_not_found",
                fix=f"choose one of {', '.join(sorted(prices))}"[:500],
            )
        table = prices[model]
        return {
            "model": model,
            "currency": self.home.policy.currency,
            "price": format_units(table.price(prompt_tokens, answer_tokens)),
            **table.as_json(),
        }

    def verify(self, bundle: str = "", receipt: str = "") -> dict[str, Any]:
        """Whether a receipt holds: a bundle that somebody sent, against the chain; or a receipt of this key, against
        its signature, the log and the policy."""
        if bool(bundle) == bool(receipt):
            raise InvalidError("one of bundle and receipt", code="verify_invalid", fix="give one of them")
        checks = self._of_bundle(bundle) if bundle else self._of_receipt(receipt)
        return {
            "verified": all(check.passed for check in checks),
            "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks],
        }

    # For the owner of a key

    def explain(self, receipt: str) -> dict[str, Any]:
        """Who supplied an answer of this key, in bits and money, in words; by the id of its call or its receipt."""
        logged = self._own(receipt)
        found = Receipt.from_bytes(logged.raw)
        policy = Policy.from_toml(self.home.policy_by_digest(found.policy_digest))
        account = found.attribution
        return {
            "id": found.id,
            "call": found.call_id,
            "issued_at": format_instant(found.issued_at_ns),
            "model": found.model.name,
            "price": format_units(found.price),
            "currency": found.currency,
            "grade": account.grade,
            "estimator": f"{account.estimator} {account.version}",
            "residual_percent": _percent(account.residual_ppb),
            "shares": [
                {
                    "contribution": share.contribution,
                    "kind": share.kind,
                    "title": self.home.registry.get(share.contribution).title,
                    "channel": share.channel,
                    "bits": f"{share.microbits / 1e6:.2f}",
                    "percent_of_the_pool": _percent(share.weight_ppb),
                }
                for share in account.shares
            ],
            "in_words": list(explain(divide_receipt(found.price, account, policy), policy)),
        }

    def statement(self, since: str = "", until: str = "", limit: int = 100) -> dict[str, Any]:
        """What moved this key's account, oldest first."""
        key = self._key()
        if not 1 <= limit <= LINES_MAX:
            raise InvalidError(f"limit is {limit}", code="limit_invalid", fix=f"use 1 to {LINES_MAX}")
        ledger, currency = self.home.ledger, self.home.policy.currency
        page = ledger.statement(
            key.account,
            currency,
            since_ns=parse_instant(since) if since else 0,
            until_ns=parse_instant(until) if until else INT64_MAX,
            limit=limit,
        )
        balance = ledger.balance(key.account, currency)
        return {
            **statement_json(page),
            "balance": format_units(balance.balance_units),
            "reserved": format_units(balance.reserved_out_units),
        }

    # What they read

    def _key(self) -> KeyRecord:
        if not self.secret:
            raise RefusedError(
                "this needs an API key", code="invalid_api_key", fix="start the server with HEADWATER_KEY set to one"
            )
        return self.home.keys.authenticate(self.secret)  # each time: it may have been revoked

    def _own(self, receipt: str) -> LoggedReceipt:
        """A receipt that this key paid for; anybody else's looks like one that does not exist."""
        key = self._key()
        self.home.log.refresh()
        call = own_call(self.home.calls, receipt, key)
        logged = self.home.log.in_force(call.call_id)
        if logged is None:
            raise MissingError(
                f"{call.call_id} has no receipt yet", code="receipt_pending", fix="ask again when it is final"
            )
        return logged

    def _passages(self) -> PassageIndex:
        with self._building:
            if self._index is None:
                self._index = passages(self.home, None)
            return self._index

    def _prices(self) -> dict[str, Prices]:
        settings, prices = self.home.settings, {}
        if settings.local_model:
            own = self.home.prices()
            prices = {settings.model_name: own, settings.model_name + settings.grounded_suffix: own}
        relays = self.home.relays()
        return prices | ({} if relays is None else {name: model.prices for name, model in relays.models.items()})

    def _contribution(self, one: Contribution) -> dict[str, Any]:
        now_ns = time.time_ns()
        stopped = ConsentStore(self.home.db).stopped([one.id], now_ns)
        return {
            "contribution": one.id,
            "kind": one.kind,
            "title": one.title,
            "owners": [self.home.registry.contributor(owner.contributor_id).name for owner in one.owners],
            "license": one.license.expression,
            "may_ground_an_answer": permits(one, "ground", now_ns) is None and one.id not in stopped,
            "price_floor": format_units(one.license.price_floor_units),
        }

    def _of_bundle(self, text: str) -> tuple[Check, ...]:
        sent = Bundle.from_bytes(text.strip().encode())
        if not self.home.settings.rpc_url and not (self.home.path / DEPLOYMENT).exists():
            raise MissingError(
                "this home settles on no chain to hold the bundle against",
                code="chain_missing",
                fix="use `headwater receipt verify FILE --rpc URL`",
            )
        with open_chain(self.home) as (chain, _):
            return checks_of(sent, chain)

    def _of_receipt(self, receipt: str) -> tuple[Check, ...]:
        logged = self._own(receipt)
        found = Receipt.from_bytes(logged.raw)
        signer = recover(found, logged.raw, logged.signature)
        proof = self.home.log.prove(found.id)
        text = self.home.policy_by_digest(found.policy_digest)
        try:
            same, detail = recompute_split(found, text) == found.payouts, "shares and payouts follow from its bits"
        except InvalidError as error:
            same, detail = False, error.message
        return (
            Check("receipt", parse_canonical(logged.raw) is not None, f"its id is {found.id}"),
            Check("signature", signer == found.operator, f"signed by {signer}"),
            Check("log", verify_inclusion(leaf_hash(logged.raw), proof), f"entry {proof.index} of {proof.size}"),
            Check("split", same, detail),
        )


def _percent(ppb: int) -> str:
    return f"{ppb / 1e7:.2f}"
