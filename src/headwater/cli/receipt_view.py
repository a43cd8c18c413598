"""A receipt for people: who supplied how many bits, and the price divided line by line.

Owners who have not enrolled are marked: their money waits in escrow under their names. The names of the demo
were read from public documents, nobody behind them takes part, and they are marked *simulated*.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.output import out
from headwater.core.ids import AccountId
from headwater.core.money import PPB, format_units
from headwater.receipts import Receipt, ReceiptShare
from headwater.registry import Contributor
from headwater.splits import Policy, divide_receipt, explain
from headwater.store.registry_store import RegistryStore

SIMULATED = ("peps", "models")
"""Namespaces whose names were read from public documents for the demo."""

_COUNTED = {
    "upstream": "the upstream's word",
    "bound": "the upstream's word, cut to what was reserved",
    "count": "our count",
}
"""Whose count the tokens of a relayed call are, in words."""


def print_receipt(receipt: Receipt, registry: RegistryStore, policy_text: Callable[[str], str]) -> None:
    """The bit account, then the division in words."""
    out.print(f"[bold]receipt {receipt.id}[/]\ncall {receipt.call_id}, model {escape(receipt.model.name)}")
    print_bits(receipt, registry)
    print_division(receipt, registry)
    policy = Policy.from_toml(policy_text(receipt.policy_digest))
    for sentence in explain(divide_receipt(receipt.price, receipt.attribution, policy), policy):
        out.print(f"  {escape(sentence)}")


def print_bits(receipt: Receipt, registry: RegistryStore) -> None:
    """Who supplied how many bits of the answer."""
    account = receipt.attribution
    if account.estimator == "none":
        whose = _COUNTED.get(str(dict(account.parameters).get("usage")), "an unknown count")
        out.print(
            f"not attributed: no registered contribution was offered, so the pool is the residual's\n"
            f"  [dim]{receipt.usage.prompt_tokens} prompt and {receipt.usage.completion_tokens} answer tokens, "
            f"by {whose}[/]",
            soft_wrap=True,
        )
        return
    table = Table(
        "supplied by",
        Column("bits", justify="right"),
        "interval",
        Column("of the pool", justify="right"),
        "owners",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for share in account.shares:
        contribution = registry.get(share.contribution)
        table.add_row(
            escape(f"{share.kind}: {_short(contribution.title)}"),
            _bits(share.microbits),
            _interval(share),
            _percent(share.weight_ppb),
            escape(_owners(share, registry)),
        )
    table.add_row(
        "base model, by itself",
        _bits(account.base_microbits),
        "exact",
        "",
        f"a bit counts {_percent(account.model_weight_ppm * 1_000)}",
    )
    table.add_row(
        "residual: nobody registered", "", "", _percent(account.residual_ppb), _name(account.residual_account, registry)
    )
    out.print(table)
    passes = dict(account.parameters).get("passes", 0)
    out.print(
        f"  [dim]{account.tokens} tokens, {_bits(account.total_microbits)} bits in all; {account.estimator} "
        f"{account.version}, grade {account.grade}, {passes} prompts scored[/]"
    )


def print_division(receipt: Receipt, registry: RegistryStore) -> None:
    """The price, payout by payout; the last row is their sum."""
    table = Table("line", "to", Column(receipt.currency, justify="right"), box=None, padding=(0, 2, 0, 0))
    for payout in receipt.payouts:
        table.add_row(payout.line, escape(_name(payout.account, registry)), format_units(payout.amount))
    table.add_row("[bold]price paid[/]", "", f"[bold]{format_units(sum(p.amount for p in receipt.payouts))}[/]")
    out.print(table)


def state_of(contributor: Contributor) -> str:
    """Enrolled, in escrow, or simulated: in escrow under a name of the demo."""
    if contributor.enrolled:
        return "enrolled"
    return "simulated" if contributor.namespace in SIMULATED else "in escrow"


def account_name(account: AccountId, registry: RegistryStore) -> str:
    """Whose an account is, in words; money that waits is said to wait."""
    return _name(account, registry)


def _name(account: str, registry: RegistryStore) -> str:
    kind, _, owner = account.partition(":")
    if kind in ("escrow", "contributor"):
        contributor = registry.contributor(owner)  # type: ignore[arg-type]
        return f"{contributor.name} ({state_of(contributor)})" if kind == "escrow" else contributor.name
    return account


def _owners(share: ReceiptShare, registry: RegistryStore) -> str:
    names = [_name(owner.account, registry) for owner in share.owners]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _short(title: str) -> str:
    return title if len(title) <= 36 else title[:35] + "…"


def _bits(microbits: int) -> str:
    sign, (whole, rest) = "-" if microbits < 0 else "", divmod(abs(microbits), 1_000_000)
    return f"{sign}{whole}.{rest // 10_000:02d}"


def _interval(share: ReceiptShare) -> str:
    if share.low_microbits == share.microbits == share.high_microbits:
        return "exact"
    return f"{_bits(share.low_microbits)} … {_bits(share.high_microbits)}"


def _percent(ppb: int) -> str:
    return f"{ppb * 100 // PPB}.{ppb * 10_000 // PPB % 100:02d} %"
