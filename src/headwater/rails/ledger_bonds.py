"""Bonds without a chain: stakes in ledger accounts, slashes in a journal that survives restarts.

A stake is `escrow:bond.<role>.<owner>`, which no root ever holds, so nothing of it can be claimed while it answers.
What happens is written to the journal first and booked under a key made from its line, so a crash in between books
it on the next opening and never twice. Accounts are ledger accounts, units nano. One process writes at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from headwater.core.canonical import canonical, refuse_deep
from headwater.core.errors import InvalidError, InvariantError, MissingError, RefusedError
from headwater.ledger import Kind, TransferDraft, correction, parse_account
from headwater.rails.bond_book import Role, Slash, SlashRequest, SlashState, Stake

NS_PER_S = 10**9
_STAKERS = (Kind.PAYER, Kind.CONTRIBUTOR)


class Booking(Protocol):
    """What is asked of a ledger."""

    def post(self, transfers: Sequence[TransferDraft], /, *, key: str, at_ns: int) -> Any:
        """Book together, once per key."""
        ...


@dataclass(frozen=True, slots=True)
class BondRules:
    """The delays, all in seconds."""

    unbond_s: int = 14 * 86_400
    slash_s: int = 7 * 86_400
    appeal_s: int = 7 * 86_400

    def __post_init__(self) -> None:
        for name, value in (("unbond_s", self.unbond_s), ("slash_s", self.slash_s), ("appeal_s", self.appeal_s)):
            if not 60 <= value <= 60 * 86_400:
                raise InvalidError(f"{name} is {value}", code="bond_rules_invalid", fix="use 60 seconds to 60 days")


class LedgerBonds:
    """Every stake and slash of a ledger."""

    def __init__(
        self, ledger: Booking, journal: Path, *, asset: str, rules: BondRules, now_ns: Callable[[], int]
    ) -> None:
        """Open, and book what a crash left unbooked.

        Raises:
            InvalidError: the journal is damaged.
        """
        self._ledger, self._journal, self._asset, self._rules, self._now_ns = ledger, journal, asset, rules, now_ns
        self._stakes: dict[tuple[str, Role], Stake] = {}
        self._slashes: dict[int, Slash] = {}
        self._lines, self._last_s = 0, 0
        entries = _read(journal)
        self._void = {entry["line"] for entry in entries if entry["do"] == "void"}
        for entry in entries:
            try:
                self._apply(entry)
            except RefusedError:
                # Written and never booked: nobody was told that it is staked. Only the last line can be like that.
                self._append({"do": "void", "line": self._lines, "at_s": self._last_s})
                self._lines += 2
            except (ValueError, KeyError, TypeError) as error:
                raise _damaged(journal, self._lines, error) from None

    # ------------------------------------------------------------------ stakes

    def stake_of(self, account: str, role: Role) -> Stake:
        """All there is to know of a stake."""
        return self._stakes.get((account, role), Stake(0, 0, 0, 0))

    def staked(self, account: str, role: Role) -> int:
        """Nano units that `account` is sure to answer with."""
        return self.stake_of(account, role).counts_units

    def stake(self, account: str, role: Role, units: int) -> Stake:
        """Stake nano units of what `account` has.

        Raises:
            InvalidError: an account that cannot stake, or no units.
            RefusedError: it has less; nothing was staked.
        """
        if parse_account(account).kind not in _STAKERS or units < 1:
            raise InvalidError(
                f"{account} cannot stake {units}", code="stake_invalid", fix="stake what a contributor or payer has"
            )
        self._write({"do": "stake", "account": account, "role": int(role), "units": str(units)})
        return self.stake_of(account, role)

    def ask_back(self, account: str, role: Role, units: int) -> Stake:
        """Announce that `account` takes units back; 0 withdraws that, a new one waits anew.

        Raises:
            RefusedError: more than the stake.
        """
        if not 0 <= units <= self.stake_of(account, role).units:
            raise _refused(f"{units} of {self.stake_of(account, role).units} staked")
        self._write({"do": "ask_back", "account": account, "role": int(role), "units": str(units)})
        return self.stake_of(account, role)

    def take_back(self, account: str, role: Role) -> int:
        """Give back what was asked back and no slash has frozen; gives nano units.

        Raises:
            RefusedError: nothing was asked, it is too early, or all of it is frozen.
        """
        one = self.stake_of(account, role)
        units = min(one.asked_units, one.units - one.frozen_units)
        if one.asked_units == 0 or self._now_s() < one.due_from_s or units == 0:
            raise _refused(f"{one.asked_units} asked back, due from {one.due_from_s}, {one.frozen_units} frozen")
        self._write({"do": "take_back", "account": account, "role": int(role), "units": str(units)})
        return units

    # ------------------------------------------------------------------ slashes

    def slash(self, request: SlashRequest) -> Slash:
        """Freeze the amount and start the time to appeal.

        Raises:
            RefusedError: more than is staked and not frozen.
        """
        one = self.stake_of(request.account, request.role)
        if request.units > one.units - one.frozen_units:
            raise _refused(f"{request.units} of {one.units - one.frozen_units} staked and not frozen")
        parse_account(request.to)
        self._write(
            {
                "do": "slash",
                "account": request.account,
                "role": int(request.role),
                "units": str(request.units),
                "to": request.to,
                "reason": request.reason,
            }
        )
        return self._slashes[len(self._slashes)]

    def slash_of(self, id: int) -> Slash:
        """A slash.

        Raises:
            MissingError: there is none of that number.
        """
        found = self._slashes.get(id)
        if found is None:
            raise MissingError(f"no slash {id}", code="slash_missing", fix=f"there are {len(self._slashes)}")
        return found

    def slashes(self) -> tuple[Slash, ...]:
        """Every slash there was, oldest first."""
        return tuple(self._slashes.values())

    def appeal(self, id: int, account: str) -> Slash:
        """Take a slash of `account` to the arbiter.

        Raises:
            RefusedError: somebody else's, not open, or too late.
        """
        one = self.slash_of(id)
        if one.request.account != account or one.state is not SlashState.OPEN or self._now_s() >= one.until_s:
            raise _refused(f"slash {id} is {one.state}, of {one.request.account}, to appeal before {one.until_s}")
        return self._resolve(id, "appeal")

    def decide(self, id: int, *, upheld: bool) -> Slash:
        """End an appeal.

        Raises:
            RefusedError: no appeal, or too late.
        """
        one = self.slash_of(id)
        if one.state is not SlashState.APPEALED or self._now_s() >= one.until_s:
            raise _refused(f"slash {id} is {one.state}, to decide before {one.until_s}")
        return self._resolve(id, "carry_out" if upheld else "drop")

    def finish(self, id: int) -> Slash:
        """End a slash whose time is over: nobody appealed, or nobody decided.

        Raises:
            RefusedError: it has ended, or its time has not.
        """
        one = self.slash_of(id)
        if one.state not in (SlashState.OPEN, SlashState.APPEALED) or self._now_s() < one.until_s:
            raise _refused(f"slash {id} is {one.state}, its time ends at {one.until_s}")
        return self._resolve(id, "carry_out" if one.state is SlashState.OPEN else "drop")

    # ------------------------------------------------------------------ journal

    def _resolve(self, id: int, what: str) -> Slash:
        self._write({"do": what, "slash": id})
        return self._slashes[id]

    def _now_s(self) -> int:
        # A clock that went back must not bring back what was too late.
        return max(self._now_ns() // NS_PER_S, self._last_s)

    def _write(self, entry: dict[str, Any]) -> None:
        entry["at_s"] = self._now_s()
        self._append(entry)
        try:
            self._apply(entry)
        except RefusedError:
            self._append({"do": "void", "line": self._lines, "at_s": entry["at_s"]})
            self._lines += 2
            raise

    def _append(self, entry: dict[str, Any]) -> None:
        with self._journal.open("ab") as file:
            file.write(canonical(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _apply(self, entry: dict[str, Any]) -> None:
        """Book a line of the journal, and change the state by it; a line that was booked is booked no second time."""
        self._last_s = max(self._last_s, entry["at_s"])
        do, at_s = entry["do"], entry["at_s"]
        if do == "void" or self._lines in self._void:
            self._lines += 1
            return
        self._book(entry, self._lines)
        if do in ("carry_out", "drop", "appeal"):
            self._end(entry["slash"], do, at_s)
        else:
            key, units = (entry["account"], Role(entry["role"])), int(entry["units"])
            one = self._stakes.get(key, Stake(0, 0, 0, 0))
            if do == "stake":
                one = replace(one, units=one.units + units)
            elif do == "ask_back":
                one = replace(one, asked_units=units, due_from_s=at_s + self._rules.unbond_s)
            elif do == "take_back":
                one = replace(one, units=one.units - units, asked_units=one.asked_units - units)
            elif do == "slash":
                one = replace(one, frozen_units=one.frozen_units + units)
                request = SlashRequest(key[0], key[1], units, entry["to"], entry["reason"])
                id = len(self._slashes) + 1
                self._slashes[id] = Slash(id, request, SlashState.OPEN, at_s + self._rules.slash_s)
            else:
                raise ValueError(f"unknown {do!r}")
            self._stakes[key] = one
        self._lines += 1

    def _end(self, id: int, do: str, at_s: int) -> None:
        slash = self._slashes[id]
        if do == "appeal":
            self._slashes[id] = replace(slash, state=SlashState.APPEALED, until_s=at_s + self._rules.appeal_s)
            return
        request = slash.request
        key = (request.account, request.role)
        one = self._stakes[key]
        left = one.units - (request.units if do == "carry_out" else 0)
        if left < 0 or one.frozen_units < request.units:
            raise InvariantError(
                f"slash {id} of {request.units} finds {one.units} staked, {one.frozen_units} frozen",
                code="bond_overdrawn",
                fix="compare the journal with the ledger",
            )
        self._stakes[key] = replace(
            one, units=left, frozen_units=one.frozen_units - request.units, asked_units=min(one.asked_units, left)
        )
        self._slashes[id] = replace(slash, state=SlashState.DONE if do == "carry_out" else SlashState.DROPPED)

    def _book(self, entry: dict[str, Any], line: int) -> None:
        """The transfer that a line stands for, if it moves money."""
        do = entry["do"]
        if do in ("stake", "take_back"):
            account, bond = entry["account"], bond_account(entry["account"], Role(entry["role"]))
            debit, credit = (account, bond) if do == "stake" else (bond, account)
            units = int(entry["units"])
        elif do == "carry_out":
            request = self._slashes[entry["slash"]].request
            debit, credit, units = bond_account(request.account, request.role), request.to, request.units
        else:
            return
        draft = correction(debit, credit, units, asset=self._asset, cause=f"bond:{do}:{line}")
        self._ledger.post([draft], key=f"bond:{line}", at_ns=entry["at_s"] * NS_PER_S)


def _read(journal: Path) -> list[dict[str, Any]]:
    """Whole lines of the journal; a last one that was cut by a crash was never answered and is cut off."""
    raw = journal.read_bytes() if journal.is_file() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        with journal.open("r+b") as file:
            file.truncate(len(whole))
    entries = []
    for number, line in enumerate(whole.splitlines()):
        try:
            refuse_deep(line)
            entry = json.loads(line)
            entries.append({"do": entry["do"], "at_s": int(entry["at_s"])} | entry)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(journal, number, error) from None
    return entries


def _damaged(journal: Path, line: int, error: Exception) -> InvalidError:
    return InvalidError(
        f"line {line + 1} of {journal.name}: {error}", code="bond_journal_invalid", fix="restore it from a copy"
    )


def bond_account(account: str, role: Role) -> str:
    """Where the stake of a ledger account lies.

    >>> bond_account("contributor:ctr_1", Role.REVIEWER)
    'escrow:bond.reviewer.contributor.ctr_1'
    """
    return f"escrow:bond.{role.name.lower()}.{account.replace(':', '.')}"


def _refused(words: str) -> RefusedError:
    return RefusedError(f"the bond refuses: {words}", code="bond_refused", fix="wait, or ask for what is there")
