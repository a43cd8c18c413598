"""The policy as a form: changed field by field, compared, simulated, and published with an entry in the trail.

Publishing writes the file that the server reads when it starts; the policy in force is the one it was started with,
and receipts name the one they were divided by. A policy that was written over meanwhile is refused, not overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from headwater.core.errors import ConflictError, InvalidError
from headwater.core.money import BPS, allocate
from headwater.dashboard.jobs import whole
from headwater.dashboard.site import Site
from headwater.splits import Policy
from headwater.splits.policy import GRADES, SCHEMA
from headwater.store.audit_trail import AuditTrail

LINES_MAX: Final = 12
_PLAIN: Final = (
    "name", "version", "currency", "take_cap_bps", "model_weight_ppm", "evidence_floor_millibits", "residual",
)  # fmt: skip


def in_file(site: Site) -> Policy:
    """The policy that the server would start with now."""
    path = policy_path(site)
    return Policy.from_toml(path.read_text("utf-8")) if path.exists() else site.flow.parts.policy


def policy_path(site: Site) -> Path:
    """The file that the server reads its policy from: the settings', or the home's own."""
    return Path(site.settings.policy) if site.settings.policy else site.folder / "policy.toml"


def from_form(form: Mapping[str, str], before: Policy) -> Policy:
    """The policy that a form describes, one version after `before`.

    Raises:
        InvalidError: a field of the wrong form, or a policy that may not be.
    """
    rows: Any = before.to_json()
    shared = {row["name"]: {"payees": row["payees"]} for row in rows["lines"] if "payees" in row}
    lines: list[dict[str, Any]] = []
    for number in range(LINES_MAX):
        name = form.get(f"line_{number}_name", "").strip()
        if name:
            lines.append(
                {
                    "name": name,
                    "account": form.get(f"line_{number}_account", "").strip(),
                    "bps": whole(form.get(f"line_{number}_bps", ""), f"{name} in bps", 0, BPS),
                    "rule": form.get(f"line_{number}_rule", "").strip(),
                    **shared.get(name, {}),
                }
            )
    return Policy.from_json(
        {
            "schema": SCHEMA,
            "name": form.get("name", before.name).strip(),
            "version": before.version + 1,
            "currency": before.currency,  # accounts are in it: another one is another ledger
            "take_cap_bps": whole(form.get("take_cap_bps", ""), "take_cap_bps", 0, BPS),
            "model_weight_ppm": whole(form.get("model_weight_ppm", ""), "model_weight_ppm", 0, 10**6),
            "evidence_floor_millibits": whole(form.get("evidence_floor_millibits", ""), "floor", 0, 10**9),
            "residual": form.get("residual", before.residual),
            "grade_discount_bps": {
                grade: whole(form.get(f"discount_{grade}", ""), f"discount of {grade}", 0, BPS) for grade in GRADES
            },
            "lines": lines,
        }
    )


def to_toml(policy: Policy) -> str:
    """The policy as a file; reading it gives the same digest."""
    text = policy.to_toml()
    if Policy.from_toml(text).digest != policy.digest:
        raise InvalidError("the policy cannot be written down", code="policy_invalid", fix="use plain words in rules")
    return text


def differences(before: Policy, after: Policy) -> list[dict[str, str]]:
    """What differs, field by field; an empty text where there was or is nothing."""
    old, new = _flat(before), _flat(after)
    return [
        {"field": name, "before": old.get(name, ""), "after": new.get(name, "")}
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def example(policy: Policy, price_units: int) -> list[dict[str, Any]]:
    """How a policy divides one price before shares: its lines, and what is left for contributors."""
    *amounts, pool = allocate(price_units, [line.bps for line in policy.lines] + [BPS - policy.take_bps])
    rows = [{"line": line.name, "units": units} for line, units in zip(policy.lines, amounts, strict=True)]
    return [*rows, {"line": "contributors", "units": pool}]


def publish(site: Site, text: str, *, replaces: str, actor: str) -> Policy:
    """Write a policy as the one the server starts with, and the act into the trail, in one step.

    Args:
        text: TOML.
        replaces: digest of the policy in the file when the change was made.

    Raises:
        InvalidError: not a policy, or in another currency.
        ConflictError: ``policy_changed``: somebody published another meanwhile.
    """
    policy, path = Policy.from_toml(text), policy_path(site)
    trail = AuditTrail(site.db)
    with site.db.transaction():  # of two who publish at once, one comes second and sees the other's
        before = in_file(site)
        if before.digest == policy.digest:
            return policy
        if before.digest != replaces:
            raise ConflictError(
                f"the policy in the file is {before.name} version {before.version} now",
                code="policy_changed",
                fix="look at it, and make the change again",
            )
        if policy.currency != site.currency:
            raise InvalidError(
                f"the policy is in {policy.currency}", code="policy_invalid", fix=f"keep {site.currency}"
            )
        changed = {row["field"]: {"from": row["before"], "to": row["after"]} for row in differences(before, policy)}
        trail.record(site.now_ns(), actor, "policy.publish", policy.digest, {"replaces": before.digest, **changed})
        keep = site.folder / "policies"
        keep.mkdir(exist_ok=True)
        for target in (keep / f"{policy.digest.removeprefix('sha256:')}.toml", path):
            draft = target.with_name(f".{target.name}.draft")
            draft.write_text(text, "utf-8")
            draft.replace(target)
    return policy


def _flat(policy: Policy) -> dict[str, str]:
    plain: Any = policy.to_json()
    found = {name: str(plain[name]) for name in _PLAIN}
    found |= {f"grade {grade} discount": f"{bps} bps" for grade, bps in policy.grade_discount_bps}
    for line in policy.lines:
        to = f"{len(line.payees)} payees" if line.payees else line.account
        found[f"line {line.name}"] = f"{line.bps} bps to {to}: {line.rule}"
    return found
