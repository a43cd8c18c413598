"""An adapter's lineage: what it was made of, how, and what came out, signed by the operator who made it.

The record names everything a stranger needs to make the same bits again on a like machine, and holds
no clock. Its canonical bytes are the content of the adapter's contribution, so the contribution's id
says which training it is. Knows nothing of files, of torch or of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from headwater.core.canonical import Json, canonical, digest, parse_canonical
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.ids import ContributionId, contribution_id
from headwater.core.keccak import keccak256

SCHEMA: Final = "headwater.adapter/1"
_DOMAIN: Final = b"headwater adapter lineage 1\x00"


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """One contribution that an adapter was trained on."""

    contribution: ContributionId
    content_digest: str
    rows: int
    tokens: int  # read in one epoch


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How an adapter did on rows it was not trained on; losses in micro-nats."""

    rows: int
    loss_micronats: int  # a token of texts and answers
    pairs: int
    pair_loss_micronats: int  # a preference pair
    pairs_right: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """The record of one training."""

    name: str
    base_name: str
    base_digest: str  # of the weights it was trained on
    parent: str | None  # digest of the adapter it went on from
    adapter_digest: str  # of its factors and scale
    files: tuple[tuple[str, str], ...]  # (file name, digest), sorted
    recipe: Json  # every hyper-parameter, the seed among them
    code_version: str
    code_digest: str  # of the sources that trained it
    data_digest: str  # of all rows in their order, and of which were held out
    order_digest: str  # of the examples of every step
    trained_on: tuple[TrainedOn, ...]  # sorted by contribution
    left_out: int  # rows that repeat an earlier one
    steps: int
    checkpoints: tuple[tuple[int, str], ...]  # (step, digest)
    before: HeldOut
    after: HeldOut
    operator: str  # address of the signer

    def to_bytes(self) -> bytes:
        """The canonical bytes: what is signed and registered."""
        return canonical(
            {
                "schema": SCHEMA,
                "name": self.name,
                "base": {"name": self.base_name, "digest": self.base_digest},
                "parent": self.parent,
                "adapter_digest": self.adapter_digest,
                "files": dict(self.files),
                "recipe": self.recipe,
                "code": {"version": self.code_version, "digest": self.code_digest},
                "data": {
                    "digest": self.data_digest,
                    "order_digest": self.order_digest,
                    "left_out": self.left_out,
                    "contributions": [
                        {
                            "id": one.contribution,
                            "content_digest": one.content_digest,
                            "rows": one.rows,
                            "tokens": one.tokens,
                        }
                        for one in self.trained_on
                    ],
                },
                "steps": self.steps,
                "checkpoints": [{"step": step, "digest": text} for step, text in self.checkpoints],
                "held_out": {"before": _measured(self.before), "after": _measured(self.after)},
                "operator": self.operator,
            }
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the record."""
        return digest(self.to_bytes())

    @property
    def contribution(self) -> ContributionId:
        """The id of the adapter's contribution."""
        return contribution_id("adapter", self.to_bytes())


def read_lineage(raw: bytes) -> Lineage:
    """The record whose canonical bytes are `raw`.

    Raises:
        InvalidError: not a lineage record in its one form.
    """
    try:
        value = parse_canonical(raw)
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}")
        data, held = value["data"], value["held_out"]
        made = Lineage(
            name=value["name"],
            base_name=value["base"]["name"],
            base_digest=value["base"]["digest"],
            parent=value["parent"],
            adapter_digest=value["adapter_digest"],
            files=tuple(sorted(value["files"].items())),
            recipe=value["recipe"],
            code_version=value["code"]["version"],
            code_digest=value["code"]["digest"],
            data_digest=data["digest"],
            order_digest=data["order_digest"],
            trained_on=tuple(
                TrainedOn(ContributionId(one["id"]), one["content_digest"], one["rows"], one["tokens"])
                for one in data["contributions"]
            ),
            left_out=data["left_out"],
            steps=value["steps"],
            checkpoints=tuple((one["step"], one["digest"]) for one in value["checkpoints"]),
            before=_held_out(held["before"]),
            after=_held_out(held["after"]),
            operator=value["operator"],
        )
        if made.to_bytes() != raw:
            raise ValueError("fields that the record does not have")
        return made
    except (HeadwaterError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidError(
            f"not a lineage record: {error}", code="lineage_invalid", fix="use the record as it was written"
        ) from None


def signing_digest(raw: bytes) -> bytes:
    """The 32 bytes an operator signs for the lineage record `raw`."""
    return keccak256(_DOMAIN + raw)


def check_signature(raw: bytes, signature: bytes, recover: Callable[[bytes, bytes], str]) -> Lineage:
    """The record, if the operator it names signed it.

    Args:
        recover: the address whose key made a signature over a digest.

    Raises:
        InvalidError: not a record, or signed by somebody else.
    """
    lineage = read_lineage(raw)
    signer = recover(signing_digest(raw), signature)
    if signer != lineage.operator:
        raise InvalidError(
            f"the lineage of {lineage.name!r} names the operator {lineage.operator}, it is signed by {signer}",
            code="lineage_signature_wrong",
            fix="use the record and signature as they were written",
        )
    return lineage


def _measured(held: HeldOut) -> Json:
    return {name: getattr(held, name) for name in HeldOut.__slots__}


def _held_out(value: Any) -> HeldOut:
    return HeldOut(**value)
