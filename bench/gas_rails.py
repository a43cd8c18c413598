"""Gas of the rails, measured on the embedded chain: ``python bench/gas_rails.py [--json] [--write]``.

Each figure is one transaction of an account that holds the token already, after a first one of its kind; *first* writes
storage that was empty. `--write` keeps the figures beside those of settlement in the tests' snapshot.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from headwater.chain import Chain, Deployments, EmbeddedChain
from headwater.core.keccak import keccak256
from headwater.rails import VoterRoll, cluster_key, governance_domain, sign_roll

SNAPSHOT = Path(__file__).parents[1] / "tests/contracts/gas_snapshot.json"
SEED = b"\x44" * 32
NOW_NS = 1_700_000_000 * 10**9
VOTERS = 1_000
UNITS = 10**9
DAY_S = 86_400


class Scene:
    """A chain, two people with tokens, and what each step has cost."""

    def __init__(self, embedded: EmbeddedChain) -> None:
        self.chain = Chain(embedded.provider(), embedded.accounts[0])
        self.chain.deploy(guardian=embedded.accounts[1].address, cap=2**60, delay_s=0)
        self.me, self.other, self.third, self.fourth = (account.address for account in embedded.accounts[:4])
        self.key = keccak256(b"headwater.embedded.account" + (0).to_bytes(4, "big") + SEED)
        self.contracts = Deployments(self.chain)
        for address in (self.me, self.other, self.third):
            self.chain.mint(address, 10 * UNITS)
        self.figures: dict[str, int] = {}

    def create(self, name: str, *arguments: object):
        """Deploy, and let it take tokens."""
        made = self.contracts.create(name, *arguments)
        self.contracts.approve(5 * UNITS, made.address)
        return made

    def note(self, name: str, sent) -> None:
        """Keep what a transaction cost."""
        self.figures[name] = sent.gas_used

    def jump(self, seconds: int) -> None:
        """Move the clock."""
        self.chain.jump(seconds)

    def now_s(self) -> int:
        """Of the newest block."""
        return self.contracts.now_s()


def measure() -> dict[str, int]:
    """Gas of each step."""
    with EmbeddedChain(seed=SEED, clock_ns=lambda: NOW_NS) as embedded:
        scene = Scene(embedded)
        for part in (shares, bond, stream, advance, governance):
            part(scene)
    return scene.figures


def shares(scene: Scene) -> None:
    """Income that nobody has counted, a collection, and a transfer that has to count it."""
    one = scene.create("RevenueShare", scene.contracts.token, scene.me, 10_000, b"\1" * 32, "Shares", "S")
    one.send("transfer", scene.other, 100)
    for name in ("first", "repeat"):
        scene.chain.mint(one.address, UNITS)
        scene.note(f"shares_collect_{name}", one.send("collect", scene.me))
    scene.note("shares_transfer", one.send("transfer", scene.other, 100))
    scene.chain.mint(one.address, UNITS)
    scene.note("shares_transfer_with_income", one.send("transfer", scene.other, 100))


def bond(scene: Scene) -> None:
    """From a stake to what is owed for a slash."""
    token, me, other = scene.contracts.token, scene.me, scene.other
    one = scene.create("Bond", token, me, other, me, other, DAY_S, DAY_S, DAY_S)
    for name in ("first", "repeat"):
        scene.note(f"bond_stake_{name}", one.send("stake", me, 1, UNITS // 2))
    scene.note("bond_slash", one.send("slash", me, 1, 1_000, scene.third, b"\1" * 32))
    scene.jump(DAY_S)
    scene.note("bond_finish", one.send("finish", 1))
    scene.note("bond_ask_back", one.send("ask_back", 1, 1_000))
    scene.jump(DAY_S)
    scene.note("bond_take_back", one.send("take_back", 1, me))


def stream(scene: Scene) -> None:
    """Opening, and taking what has vested."""
    one = scene.create("Stream", scene.contracts.token)
    start = scene.now_s() + 3_600
    scene.note("stream_open", one.send("open", scene.other, UNITS, start, start + 10 * DAY_S, False))
    for name in ("first", "repeat"):
        scene.jump(3 * DAY_S)
        scene.note(f"stream_take_{name}", one.send("take", 1))


def advance(scene: Scene) -> None:
    """A deposit, an advance and a collection that repays it and passes the rest on."""
    me = scene.me
    lane_code = scene.contracts.create("Lane").address
    limits = (5_000, 8_000, 7_000, 50, 200)
    one = scene.create("Advance", scene.contracts.token, me, scene.other, me, lane_code, limits, 30 * DAY_S, 7 * DAY_S)
    for name in ("first", "repeat"):
        scene.note(f"advance_deposit_{name}", one.send("deposit", UNITS))
    opened = one.send("open_lane", me)
    scene.note("advance_open_lane", opened)
    lane = one.told("LaneOpened", opened)[0]["lane"]
    scene.note("advance_attest", one.send("attest", lane, UNITS, 100, scene.now_s() + 100 * DAY_S))
    scene.note("advance_draw", one.send("draw", lane, UNITS // 10, UNITS))
    scene.chain.mint(lane, UNITS // 5)
    scene.note("advance_collect", one.send("collect", lane))


def governance(scene: Scene) -> None:
    """A roll of a thousand people, a proposal, a vote and its execution."""
    me = scene.me
    one = scene.contracts.create("Governance", me, scene.other, me, b"\1" * 32, DAY_S, DAY_S, 1)
    clusters = {f"ctr_{number}": ["0x" + keccak256(number.to_bytes(4, "big"))[:20].hex()] for number in range(VOTERS)}
    roll = VoterRoll.build(clusters | {"ctr_me": [me]})
    domain = governance_domain(scene.contracts.chain_id, one.address)
    signature = sign_roll(roll, 1, domain, scene.key)
    scene.note("govern_post_roll", one.send("post_roll", roll.root, roll.clusters_count, signature))
    scene.jump(DAY_S)
    key, path = cluster_key("ctr_me"), list(roll.proof(me))
    scene.note("govern_propose", one.send("propose", b"\2" * 32, b"\3" * 32, "", 1, key, path))
    scene.note("govern_vote", one.send("vote", 1, key, True, path))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Gas of the rails")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="keep the figures in the tests' snapshot")
    arguments = parser.parse_args()
    figures = measure()
    if arguments.write:
        kept = json.loads(SNAPSHOT.read_text()) | {"rails": figures}
        SNAPSHOT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    if arguments.json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
        return 0
    for name, gas in figures.items():
        sys.stdout.write(f"{name:28}{gas:>12,}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
