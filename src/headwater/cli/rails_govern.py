"""`headwater rails govern …`: change the policy by a vote of people on a simulated impact, after a timelock."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.options import HomeOption, JsonOption, outcome
from headwater.cli.output import out, print_json, progress
from headwater.cli.rails_home import KeyFile, OpenRails, open_rails
from headwater.core.canonical import digest, refuse_deep
from headwater.core.errors import ConflictError, InvalidError, MissingError
from headwater.core.limits import BUNDLE_SIZE_BYTES_MAX
from headwater.rails import Governance, Proposal, VoterRoll, sign_roll
from headwater.splits import Policy

app = App(name="govern", help="Policies by a vote of people, one cluster one vote, after a timelock.")

RollFile = Annotated[Path, Parameter(name="--roll", help="Who may vote: what `govern roll` wrote.")]
ScenarioFile = Annotated[
    Path | None, Parameter(name="--scenario", help="Assumptions in TOML; the shipped ones by default.")
]
Seeds = Annotated[int, Parameter(name="--seeds", help="Runs under each policy.")]


@app.command
def roll(
    clusters: Path,
    /,
    *,
    to: Annotated[Path, Parameter(help="File to write and publish.")],
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Sign a roll with the registrar's key and post it; it counts after the timelock.

    Parameters
    ----------
    clusters
        JSON: {"cluster id": ["address", …], …}, one cluster for each person.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        made, rules = VoterRoll.build(_clusters(_read_json(clusters))), _rules(rails)
        secret = _secret(key_file or rails.home.path / "operator.key")
        number = rules.post_roll(made, sign_roll(made, rules.next_roll(), rules.domain, secret))
        to.write_text(json_text.dumps(made.as_json() | {"number": number}, indent=1) + "\n", "utf-8")
        value = {"number": number, "root": made.root.hex(), "clusters": made.clusters_count, "file": str(to)}
        if json:
            print_json(value)
        else:
            out.print(f"roll {number} of {made.clusters_count} people posted and written to {escape(str(to))}")
    return result.status


@app.command
def impact(
    policy: Path,
    /,
    *,
    to: Annotated[Path, Parameter(help="File to write.")],
    scenario: ScenarioFile = None,
    seeds: Seeds = 5,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Run the economy under the policy in force and under another, and write what would change.

    Parameters
    ----------
    policy
        The other one, in TOML.
    """
    with outcome(json) as result, open_rails(home) as rails:
        value = _simulated(rails, policy, scenario, seeds, to, quiet=json)
        _show_impact(value, json)
    return result.status


@app.command
def propose(
    policy: Path,
    /,
    *,
    roll: RollFile,
    to: Annotated[Path, Parameter(help="File for the simulated impact, to publish beside the policy.")],
    scenario: ScenarioFile = None,
    seeds: Seeds = 5,
    link: Annotated[str, Parameter(help="Where both can be read.")] = "",
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Simulate a policy and propose it, with the digest of what the simulation says.

    Parameters
    ----------
    policy
        The policy, in TOML.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        rules, voters = _rules(rails), _roll(roll)
        voters.cluster_of(rails.contracts.me)  # refused before a simulation is spent on it
        value = _simulated(rails, policy, scenario, seeds, to, quiet=json)
        id = rules.propose(value["new_policy"], value["digest"], voters, link=link)
        if json:
            print_json({"proposal": id, **value})
        else:
            _show_impact(value, False)
            out.print(f"proposal {id}: {value['new_policy']}", soft_wrap=True)
    return result.status


@app.command
def vote(
    proposal: int,
    /,
    *,
    support: Annotated[bool, Parameter(name="--for", negative="--against", help="For or against.")],
    roll: RollFile,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Cast the vote of the acting key's cluster.

    Parameters
    ----------
    proposal
        Its number.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        rules = _rules(rails)
        rules.vote(proposal, _roll(roll), support=support)
        _show((rules.proposal(proposal),), json, many=False)
    return result.status


@app.command
def execute(
    proposal: int,
    /,
    *,
    policy: Annotated[Path | None, Parameter(help="Its TOML: becomes this home's policy.toml.")] = None,
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Put a policy in force that was voted for and has waited.

    Parameters
    ----------
    proposal
        Its number.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        rules = _rules(rails)
        one = rules.proposal(proposal)
        text = None if policy is None else _policy_text(policy)
        if text is not None and Policy.from_toml(text).digest != one.policy:
            raise ConflictError(
                f"{policy} is {Policy.from_toml(text).digest}, the proposal {one.policy}",
                code="policy_differs",
                fix="give the policy that was voted for",
            )
        rules.execute(proposal)
        if text is not None:
            target = rails.home.path / "policy.toml"
            draft = target.with_suffix(".partial")
            draft.write_text(text, "utf-8")
            draft.replace(target)
        _show((rules.proposal(proposal),), json, many=False)
    return result.status


@app.command
def strike(
    proposal: int,
    /,
    *,
    reason: Annotated[Path, Parameter(help="The published reason.")],
    key_file: KeyFile = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """End a proposal; the acting key is the guardian.

    Parameters
    ----------
    proposal
        Its number.
    """
    with outcome(json) as result, open_rails(home, key_file) as rails:
        rules = _rules(rails)
        if not reason.is_file():
            raise MissingError(f"no reason at {reason.name}", code="reason_missing", fix="give its file")
        rules.strike(proposal, digest(reason.read_bytes()))
        _show((rules.proposal(proposal),), json, many=False)
    return result.status


@app.command
def show(
    proposal: int | None = None,
    /,
    *,
    impact: Annotated[Path | None, Parameter(help="Compare a report with the digest that the proposal names.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """One proposal, or all of them and the policy in force.

    Parameters
    ----------
    proposal
        Its number.
    """
    with outcome(json) as result, open_rails(home) as rails:
        rules = _rules(rails)
        if proposal is None:
            status = rules.status()
            if json:
                print_json({"in_force": status, "proposals": [asdict(one) for one in rules.proposals()]})
            else:
                out.print(f"in force: {status['policy']}, since {status['since_s']}", soft_wrap=True)
                _show(rules.proposals(), False, many=True)
            return 0
        one = rules.proposal(proposal)
        if impact is not None and digest(_read(impact)) != one.impact:
            raise ConflictError(
                f"{impact.name} is {digest(_read(impact))}, the proposal names {one.impact}",
                code="impact_differs",
                fix="ask the proposer for the report that was voted on",
            )
        _show((one,), json, many=False)
    return result.status


def _rules(rails: OpenRails) -> Governance:
    return Governance(rails.contracts, rails.address_of("governance"))


def _simulated(
    rails: OpenRails, policy: Path, scenario: Path | None, seeds: int, to: Path, *, quiet: bool
) -> dict[str, Any]:
    # Its kernels load slowly: only who simulates waits for them.
    from headwater.economy.impact import impact as simulate_impact
    from headwater.economy.scenario import default_scenario, load_scenario

    chosen = default_scenario() if scenario is None else load_scenario(scenario)
    new = Policy.from_toml(_policy_text(policy))
    with progress(quiet=quiet) as bars:
        task = bars.add_task("simulating both policies", total=2 * seeds)
        report = simulate_impact(
            chosen.with_values({"policy": rails.home.policy}), new, seeds=seeds, on_run=lambda: bars.advance(task)
        )
    to.write_bytes(report.to_bytes())
    return {
        "old_policy": rails.home.policy.digest,
        "new_policy": new.digest,
        "digest": report.digest,
        "file": str(to),
        "changes": [asdict(one) for one in report.changes],
    }


def _show_impact(value: dict[str, Any], json: bool) -> None:
    if json:
        print_json(value)
        return
    amounts = (Column(name, justify="right") for name in ("before", "after", "change", "± 95 %"))
    table = Table("figure", *amounts, box=None)
    for one in value["changes"]:
        row = (f"{one[name]:.4g}" for name in ("before", "after", "difference", "half_width"))
        table.add_row(one["figure"], *row)
    out.print(table)
    out.print(f"{value['digest']} written to {escape(value['file'])}", soft_wrap=True)


def _show(proposals: tuple[Proposal, ...], json: bool, *, many: bool) -> None:
    if json:
        rows = [asdict(one) for one in proposals]
        print_json(rows if many else rows[0])
        return
    for one in proposals:
        out.print(
            f"proposal {one.id}, {one.state}: {one.votes_for} for, {one.votes_against} against, "
            f"until {one.votes_until_s}"
        )
        out.print(f"  policy {one.policy}\n  impact {one.impact}", soft_wrap=True)


def _policy_text(path: Path) -> str:
    if not path.is_file():
        raise MissingError(f"no policy at {path}", code="policy_missing", fix="give the path of a policy TOML")
    return path.read_text("utf-8")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise MissingError(f"there is no {path.name}", code="file_missing", fix="give the path of the file")
    raw = path.read_bytes()
    if len(raw) > BUNDLE_SIZE_BYTES_MAX:
        raise InvalidError(f"{path.name} has {len(raw)} bytes", code="file_too_large", fix="give the file itself")
    return raw


def _read_json(path: Path) -> Any:
    raw = _read(path)
    refuse_deep(raw)
    try:
        return json_text.loads(raw)
    except ValueError as error:
        raise InvalidError(f"{path.name} is not JSON: {error}", code="file_invalid", fix="mend it") from None


def _clusters(value: Any) -> dict[str, list[str]]:
    good = isinstance(value, dict) and all(
        isinstance(row, list) and all(isinstance(one, str) for one in row) for row in value.values()
    )
    if not good:
        raise InvalidError("no clusters", code="roll_invalid", fix='write {"cluster": ["0x…", …], …}')
    return dict(value)


def _roll(path: Path) -> VoterRoll:
    value = _read_json(path)
    roll = VoterRoll.build(_clusters(value.get("clusters") if isinstance(value, dict) else None))
    if roll.root.hex() != value.get("root"):
        raise ConflictError(
            f"{path.name} gives the root {roll.root.hex()}, it says {value.get('root')}",
            code="roll_differs",
            fix="ask the registrar for the roll that was posted",
        )
    return roll


def _secret(path: Path) -> bytes:
    from headwater.chain import signer_from_file

    signer_from_file(path)  # refuses a file that others can read, or that holds no key
    return bytes.fromhex(path.read_text("ascii").strip().removeprefix("0x"))
