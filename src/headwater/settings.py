"""Configuration: `headwater.toml` < `HEADWATER_*` environment < flags, and where each value came from.

Settings are flat, few and typed. Nothing below this layer reads configuration; the stages are given
values. Secrets are never settings: keys live in files of the home folder, readable by their owner only.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from headwater.core.errors import InvalidError
from headwater.core.limits import COALITIONS_MAX, RELAYED_BODY_BYTES_DEFAULT, REQUEST_SIZE_BYTES_MAX, SOURCES_MAX
from headwater.core.money import parse_units
from headwater.store.database_address import parse_address
from headwater.store.database_address import shown as shown_address

ENVIRONMENT_PREFIX = "HEADWATER_"
FILE_NAME = "headwater.toml"
WORKERS_MAX = 64
RELAYED_BODY_BYTES_MAX = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default; `help` says what it is for."""

    home: Path = field(default=Path(".headwater"), metadata={"help": "folder that holds records, keys and indexes"})
    database: str = field(
        default="",
        repr=False,  # may hold a password
        metadata={"help": "postgresql:// address of the records, ?schema= for a schema; empty: a file in the home"},
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address the gateway listens on"})
    port: int = field(default=8484, metadata={"help": "port the gateway listens on, 0 for any free one"})
    public_url: str = field(
        default="",
        metadata={"help": "where others reach gateway and pages, such as https://ai.example; empty: host and port"},
    )
    workers: int = field(
        default=1, metadata={"help": "processes that answer calls to models of other servers; 1: one for everything"}
    )
    pages: bool = field(default=True, metadata={"help": "serve the pages beside the gateway"})
    policy: str = field(default="", metadata={"help": "path of a policy TOML; empty for the shipped default"})
    model_name: str = field(default="smollm2-135m", metadata={"help": "name callers use for the model without sources"})
    grounded_suffix: str = field(
        default="-grounded", metadata={"help": "added to the model name: with sources and the registered prompt"}
    )
    embedding_model: str = field(
        default="wordllama-static", metadata={"help": "name callers use for the embeddings in process; empty for none"}
    )
    sources: int = field(default=4, metadata={"help": f"sources offered to a grounded answer, 0..{SOURCES_MAX}"})
    datanet: str = field(
        default="", metadata={"help": "NAME@VERSION whose members alone are sources; empty: every document there is"}
    )
    request_price: str = field(default="0.002", metadata={"help": "price of a call before any token, in the currency"})
    input_token_price: str = field(default="0.000004", metadata={"help": "price of one prompt token"})
    output_token_price: str = field(default="0.0001", metadata={"help": "price of one answer token"})
    minimum_price: str = field(default="0", metadata={"help": "what an answered call costs at least"})
    upstreams: str = field(
        default="", metadata={"help": "path of a TOML that names upstream servers and their models; empty for none"}
    )
    relayed_body_bytes_max: int = field(
        default=RELAYED_BODY_BYTES_DEFAULT,
        metadata={"help": "bytes that the body of a call to a model of another server may have"},
    )
    local_model: bool = field(default=True, metadata={"help": "serve the model in process too"})
    operator_name: str = field(default="", metadata={"help": "who runs it, for people; empty: the operator's address"})
    publish_log: bool = field(default=False, metadata={"help": "serve the receipt log's tiles under /log/"})
    webhook_hosts: str = field(
        default="", metadata={"help": "hosts of this network that webhooks may reach, parted by spaces"}
    )
    log_format: str = field(default="", metadata={"help": "text or json: a line a call on standard error; empty: none"})
    x402: bool = field(
        default=False, metadata={"help": "take payments by x402 in the chain's token; needs the extra x402 and a chain"}
    )
    x402_pay_to: str = field(
        default="", metadata={"help": "address that payments by x402 go to; empty: the operator's"}
    )
    failed_keys_per_minute: int = field(
        default=60, metadata={"help": "wrong API keys a minute that one address may try; 0: no bound"}
    )
    trusted_proxies: str = field(
        default="",
        metadata={
            "help": "addresses and networks of reverse proxies whose X-Forwarded-For is believed, parted by spaces"
        },
    )
    max_passes: int = field(default=256, metadata={"help": "prompts scored to measure one answer, at most"})
    max_cost_bps: int = field(
        default=900, metadata={"help": "what measuring may add to a call's price, in hundredths of a percent"}
    )
    scored_token_price: str = field(
        default="0", metadata={"help": "price of a token read while measuring; 0: the policy's lines pay for it"}
    )
    threads: int = field(default=1, metadata={"help": "processor threads of the model in process"})
    maturity_s: int = field(default=7 * 86_400, metadata={"help": "seconds a receipt may be disputed"})
    rpc_url: str = field(default="", metadata={"help": "JSON-RPC of the chain; empty for the embedded one"})
    root_delay_s: int = field(default=3_600, metadata={"help": "seconds between posting a root and claims against it"})
    rails: bool = field(default=False, metadata={"help": "use bonds, revenue shares, advances, streams, governance"})

    def shown(self, name: str) -> str:
        """A setting's value as people may see it."""
        value = getattr(self, name)
        return shown_address(value) if name == "database" else str(value)

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            if not low <= getattr(self, name) <= high:
                raise _wrong(f"{name} is {getattr(self, name)}", f"use a whole number from {low} to {high}")
        if self.log_format not in ("", "text", "json"):
            raise _wrong(f"log_format is {self.log_format[:80]!r}", "use text, json or nothing")
        if self.database:
            parse_address(self.database)
        for name in _PRICES:
            if parse_units(getattr(self, name), where=name) < 0:
                raise _wrong(f"{name} is negative: {getattr(self, name)}", "prices are >= 0")


@dataclass(frozen=True, slots=True)
class Sourced:
    """Settings, and for each one where its value came from."""

    settings: Settings
    sources: Mapping[str, str]  # setting -> "default", "file PATH", "environment NAME" or "flag"


_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_PRICES = ("request_price", "input_token_price", "output_token_price", "minimum_price", "scored_token_price")
_RANGES = (
    ("port", 0, 65_535),
    ("workers", 1, WORKERS_MAX),
    ("sources", 0, SOURCES_MAX),
    ("relayed_body_bytes_max", REQUEST_SIZE_BYTES_MAX, RELAYED_BODY_BYTES_MAX),
    ("failed_keys_per_minute", 0, 1_000_000),
    ("max_passes", 2, COALITIONS_MAX),
    ("max_cost_bps", 0, 10_000),
    ("threads", 1, 256),
    ("maturity_s", 0, 365 * 86_400),
    ("root_delay_s", 0, 30 * 86_400),
)


def load(
    flags: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Sourced:
    """Read the settings in force.

    Args:
        flags: values given on the command line; `None` values are not given.
        environment: defaults to the process's.
        folder: where `headwater.toml` is looked for; defaults to the working folder.

    Raises:
        InvalidError: an unknown setting, or a value of the wrong type or out of range.
    """
    environment = os.environ if environment is None else environment
    known = {f.name: f for f in fields(Settings)}
    values: dict[str, Any] = {}
    sources = dict.fromkeys(known, "default")

    def take(name: str, value: Any, source: str) -> None:
        if name not in known:
            raise _wrong(f"unknown setting {name!r} ({source})", f"the settings are {', '.join(sorted(known))}")
        values[name], sources[name] = _typed(name, value, known[name].default), source

    path = (folder or Path.cwd()) / FILE_NAME
    if path.exists():
        try:
            table = tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise _wrong(f"{path} is not TOML: {error}", "mend the line it names") from None
        for name, value in table.items():
            take(name, value, f"file {FILE_NAME}")
    for variable in sorted(environment):
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if variable.startswith(ENVIRONMENT_PREFIX) and name in known:
            take(name, environment[variable], f"environment {variable}")
    for name, value in (flags or {}).items():
        if value is not None:
            take(name, value, "flag")
    return Sourced(Settings(**values), sources)


def _typed(name: str, value: Any, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return value if isinstance(value, bool) else _WORDS[str(value).lower()]
        if isinstance(value, bool):
            raise ValueError
        if isinstance(default, int):
            return int(value)
        return Path(value) if isinstance(default, Path) else str(value)
    except (TypeError, ValueError, KeyError):
        raise _wrong(f"{name} is {value!r}", f"give a value like {default!r}") from None


def _wrong(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="setting_invalid", fix=fix)
