"""Reads the file that names upstream servers and the models they answer.

    [upstream.local]
    base_url = "http://127.0.0.1:8000/v1"
    key_env = "LOCAL_KEY"                 # or key_file; neither for a server without keys
    connect_s = 5                         # also head_s, silence_s and connections
    health = "/models"                    # asked every health_every_s = 10; an upstream that is unwell is asked last

    [model."qwen"]
    targets = [{ upstream = "local", model = "Qwen/Qwen3-0.6B" }]   # in order of preference
    request_price = "0.001"               # in the currency; also input_token_price, output_token_price, minimum_price
    answer_tokens_max = 4096
    retries = 1                           # times that all targets are asked again when none of them would answer
    sources = 4                           # passages that are put before every question; prompt = "ctb_…" likewise

    [model."qwen".own_key]                # callers may send their own key for one of its upstreams, at these prices
    upstream = "local"
    request_price = "0.0001"

    [model."qwen".scoring]                # a server that returns log-probabilities of prompts, for grades A and B
    upstream = "local"
    model = "Qwen/Qwen3-0.6B"
    tokenizer = "tokenizer.json"          # of the served model: a tokenizer.json, or a GGUF file
    context_tokens = 32768
    weights = "sha256:…"                  # what is served, as the operator states it
    spelling = "prompt_logprobs"          # or "echo"

A model with scoring is one that speaks ChatML: its conversations are laid out so, to be scored.
An unknown word is refused with the nearest known one: a mistyped price would cost somebody money.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from headwater.attribution.layout import Scorer
from headwater.core.canonical import digest_of
from headwater.core.errors import InvalidError
from headwater.core.ids import ContributionId
from headwater.core.limits import SOURCES_MAX
from headwater.core.money import parse_units
from headwater.gateway.relay import OwnKey, RelayedModel
from headwater.models.upstream import Limits, Origin, Target, Upstream, Upstreams
from headwater.serving import OutsideModel
from headwater.splits import Prices

_LIMITS: Final = tuple(field.name for field in fields(Limits))
_UPSTREAM: Final = ("base_url", "key_env", "key_file", "health", "health_every_s", *_LIMITS)
_PRICES: Final = ("request_price", "input_token_price", "output_token_price", "minimum_price")
_MODEL: Final = ("targets", "answer_tokens_max", "sources", "prompt", "scoring", "own_key", "retries", *_PRICES)
_SCORING: Final = ("upstream", "model", "tokenizer", "context_tokens", "weights", "spelling")
_ANSWER_TOKENS_MAX: Final = 4_096
_NAME_CHARS_MAX: Final = 200
_RETRIES_MAX: Final = 5


def read_upstreams(
    text: str, *, environment: Mapping[str, str], folder: Path, scoring: bool = True
) -> tuple[dict[str, RelayedModel], Upstreams]:
    """The models and upstreams that a file names.

    Args:
        text: its TOML.
        environment: where `key_env` is looked up.
        folder: where a relative `key_file` is looked up.
        scoring: whether scorers are made ready too; a process that serves no calls with sources needs none.

    Raises:
        InvalidError: ``upstreams_invalid``, with the place.
    """
    try:
        file = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _wrong(f"not TOML: {error}", "mend the line it names") from None
    _known(file, ("upstream", "model"), "the file")
    upstreams = [_upstream(name, table, environment, folder) for name, table in _tables(file, "upstream")]
    named = {upstream.name: upstream for upstream in upstreams}
    models: dict[str, RelayedModel] = {}
    targets: dict[str, Sequence[Target]] = {}
    rows = _tables(file, "model")
    for name, table in rows:
        model, targets[name] = _model(name, table, named)
        scorer = _scorer(f"model.{name}.scoring", table.get("scoring"), named, folder) if scoring else None
        models[name] = replace(model, attributed=_attributed(model, table, scorer))
    return models, Upstreams(upstreams, targets, {name: _retries(name, table) for name, table in rows})


def _tables(file: Mapping[str, Any], kind: str) -> list[tuple[str, dict[str, Any]]]:
    tables = file.get(kind, {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise _wrong(f"{kind} holds no tables", f"write [{kind}.NAME]")
    for name in tables:
        if not 0 < len(name) <= _NAME_CHARS_MAX or not name.isprintable():
            raise _wrong(f"{kind} {name[:80]!r}", f"use 1 to {_NAME_CHARS_MAX} printable characters")
    return list(tables.items())


def _upstream(name: str, table: dict[str, Any], environment: Mapping[str, str], folder: Path) -> Upstream:
    where = f"upstream.{name}"
    _known(table, _UPSTREAM, where)
    limits: dict[str, Any] = {}
    for key in _LIMITS:
        if key in table:
            value = _positive(table, key, where)
            limits[key] = int(value) if key == "connections" else value
    return Upstream(
        name,
        Origin.parse(_text(table, "base_url", where)),
        Limits(**limits),
        _secret(table, where, environment, folder),
        health=_health(table, where),
        health_every_s=_positive(table, "health_every_s", where) if "health_every_s" in table else 10.0,
    )


def _health(table: Mapping[str, Any], where: str) -> str | None:
    if "health" not in table:
        return None
    path = _text(table, "health", where)
    if not path.startswith("/") or any(c <= " " or c > "~" or c == "#" for c in path):
        raise _wrong(f"{where}.health is {path[:200]!r}", 'give a path below base_url, such as "/models"')
    return path


def _positive(table: Mapping[str, Any], key: str, where: str) -> float:
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 86_400:
        raise _wrong(f"{where}.{key} is {value!r}", "give a number above 0")
    return float(value)


def _secret(table: dict[str, Any], where: str, environment: Mapping[str, str], folder: Path) -> str | None:
    if "key_env" in table and "key_file" in table:
        raise _wrong(f"{where} has key_env and key_file", "give one of them")
    if "key_env" in table:
        variable = _text(table, "key_env", where)
        secret = environment.get(variable, "").strip()
        missing = f"{where}.key_env: the environment has no {variable}"
    elif "key_file" in table:
        path = folder / _text(table, "key_file", where)
        try:
            secret = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong(f"{where}.key_file cannot be read: {error}", "check its path and its rights") from None
        missing = f"{where}.key_file is empty"
    else:
        return None
    if not secret or not secret.isascii() or not secret.isprintable():
        raise _wrong(missing, "put the upstream's API key there, in one line of ASCII")
    return secret


def _model(
    name: str, table: dict[str, Any], upstreams: Mapping[str, Upstream]
) -> tuple[RelayedModel, tuple[Target, ...]]:
    where = f"model.{name}"
    _known(table, _MODEL, where)
    rows = table.get("targets")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise _wrong(f"{where}.targets is missing or no list", 'write [{ upstream = "NAME", model = "MODEL" }]')
    targets = []
    for row in rows:
        _known(row, ("upstream", "model"), f"{where}.targets")
        upstream = _text(row, "upstream", f"{where}.targets")
        if upstream not in upstreams:
            raise _wrong(f"{where}.targets names the upstream {upstream!r}", _nearest(upstream, tuple(upstreams)))
        targets.append(Target(upstream, _text(row, "model", f"{where}.targets")))
    most = table.get("answer_tokens_max", _ANSWER_TOKENS_MAX)
    if type(most) is not int or not 1 <= most <= 2**20:
        raise _wrong(f"{where}.answer_tokens_max is {most!r}", "give a whole number from 1 to 1048576")
    said = {"name": name, "targets": [[t.upstream, t.model] for t in targets]}
    own = _own_key(table.get("own_key"), f"{where}.own_key", targets)
    return RelayedModel(name, _prices(table, where), most, digest_of(said), own_key=own), tuple(targets)


def _retries(name: str, table: Mapping[str, Any]) -> int:
    wanted = table.get("retries", 1)
    if type(wanted) is not int or not 0 <= wanted <= _RETRIES_MAX:
        raise _wrong(f"model.{name}.retries is {wanted!r}", f"give a whole number from 0 to {_RETRIES_MAX}")
    return wanted


def _prices(table: Mapping[str, Any], where: str) -> Prices:
    units = [parse_units(_text(table, key, where), where=f"{where}.{key}") if key in table else 0 for key in _PRICES]
    if min(units) < 0:
        raise _wrong(f"{where} has a negative price", "prices are >= 0")
    return Prices(*units)


def _own_key(table: object, where: str, targets: Sequence[Target]) -> OwnKey | None:
    if table is None:
        return None
    if not isinstance(table, dict):
        raise _wrong(f"{where} is no table", f"write [{where}]")
    _known(table, ("upstream", *_PRICES), where)
    names = [target.upstream for target in targets]
    upstream = _text(table, "upstream", where) if "upstream" in table or len(names) > 1 else names[0]
    if upstream not in names:
        raise _wrong(f"{where} names {upstream!r}, which is no target of the model", _nearest(upstream, names))
    return OwnKey(upstream, _prices(table, where))


def _attributed(model: RelayedModel, table: Mapping[str, Any], scorer: Scorer | None) -> OutsideModel:
    """How calls of the model with sources are served."""
    where = f"model.{model.name}"
    sources, prompt = table.get("sources", 0), table.get("prompt")
    if type(sources) is not int or not 0 <= sources <= SOURCES_MAX:
        raise _wrong(f"{where}.sources is {sources!r}", f"give a whole number from 0 to {SOURCES_MAX}")
    if prompt is not None and not (isinstance(prompt, str) and prompt.startswith("ctb_")):
        raise _wrong(f"{where}.prompt is {prompt!r}", "give the ctb_… of a registered prompt")
    return OutsideModel(
        *(model.name, model.digest, model.prices, model.answer_tokens_max),
        prompt=None if prompt is None else ContributionId(prompt),
        sources=sources,
        scorer=scorer,
    )


def _scorer(where: str, table: object, upstreams: Mapping[str, Upstream], folder: Path) -> Scorer | None:
    if table is None:
        return None
    if not isinstance(table, dict):
        raise _wrong(f"{where} is no table", f"write [{where}]")
    _known(table, _SCORING, where)
    upstream = upstreams.get(_text(table, "upstream", where))
    if upstream is None:
        raise _wrong(f"{where} names the upstream {table['upstream']!r}", _nearest(table["upstream"], tuple(upstreams)))
    window, spelling = table.get("context_tokens"), table.get("spelling", "prompt_logprobs")
    if type(window) is not int or not 1 <= window <= 2**24:
        raise _wrong(f"{where}.context_tokens is {window!r}", "give the server's window, a whole number of tokens")
    if spelling not in ("prompt_logprobs", "echo"):
        raise _wrong(f"{where}.spelling is {spelling!r}", "use prompt_logprobs or echo")
    from headwater.models.tokenizer_file import load_tokenize  # heavy where the file is JSON
    from headwater.models.upstream_scorer import UpstreamScorer

    origin = upstream.origin
    return UpstreamScorer(
        f"{'https' if origin.tls else 'http'}://{origin.authority}{origin.path}",
        _text(table, "model", where),
        load_tokenize(folder / _text(table, "tokenizer", where)),
        context_tokens_max=window,
        weights_digest=_text(table, "weights", where),
        spelling=spelling,
        api_key=upstream.secret,
        timeout_s=upstream.limits.head_s,
    )


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise _wrong(f"{where}.{key} is missing or no text", "write it as a string in quotes")
    return value


def _known(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise _wrong(f"{where} has an unknown {key[:80]!r}", _nearest(key, known))


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"


def _wrong(message: str, fix: str) -> InvalidError:
    return InvalidError(f"upstreams: {message}", code="upstreams_invalid", fix=fix)
