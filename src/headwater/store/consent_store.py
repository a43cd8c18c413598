"""Consent on record: who lets their calls be registered, and what was withdrawn, erased or taken down since.

All tables only grow. A consent is in force until a later entry of the same key says otherwise. What was
withdrawn or taken down keeps its record and its past receipts; whoever serves, trains or pays asks
`standing` first. Knows nothing of what a contribution says, and erases no bytes (`headwater.store.erasure`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from headwater.core.canonical import digest_of
from headwater.core.errors import ConflictError, InvalidError, MissingError
from headwater.core.ids import ContributionId
from headwater.registry.consent import ADAPTER_RULES, AdapterRule, Standing, Takedown
from headwater.registry.license import parse_expression
from headwater.store.database import Sql

REASON_CHARS_MAX = 500

_STEPS = (
    """
    CREATE TABLE signal_consents (
      number INTEGER PRIMARY KEY,
      key_id TEXT NOT NULL,
      given INTEGER NOT NULL CHECK (given IN (0, 1)),
      license_expression TEXT NOT NULL,
      at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX signal_consents_by_key ON signal_consents (key_id, number);
    CREATE TABLE withdrawals (
      contribution_id TEXT PRIMARY KEY,
      at_ns INTEGER NOT NULL,
      by_whom TEXT NOT NULL,
      reason TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    "".join(
        f"""
        CREATE TRIGGER {table}_stay_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, 'consent is only ever added to'); END;
        """
        for table in ("signal_consents", "withdrawals")
        for verb in ("UPDATE", "DELETE")
    ),
    """
    CREATE TABLE erasures (
      contribution_id TEXT PRIMARY KEY,
      at_ns INTEGER NOT NULL,
      by_whom TEXT NOT NULL,
      reason TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE takedowns (
      notice TEXT PRIMARY KEY,
      contribution_id TEXT NOT NULL,
      claimant TEXT NOT NULL,
      reason TEXT NOT NULL,
      at_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX takedowns_by_contribution ON takedowns (contribution_id);
    CREATE TABLE takedown_events (
      notice TEXT NOT NULL REFERENCES takedowns (notice),
      event TEXT NOT NULL CHECK (event IN ('countered', 'disputed', 'decided', 'retracted')),
      detail TEXT NOT NULL,
      at_ns INTEGER NOT NULL,
      PRIMARY KEY (notice, event)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE adapter_rules (
      number INTEGER PRIMARY KEY,
      rule TEXT NOT NULL CHECK (rule IN ('stop', 'flag', 'serve')),
      by_whom TEXT NOT NULL,
      at_ns INTEGER NOT NULL
    ) STRICT;
    """,
    "".join(
        f"""
        CREATE TRIGGER {table}_stay_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, 'consent is only ever added to'); END;
        """
        for table in ("erasures", "takedowns", "takedown_events", "adapter_rules")
        for verb in ("UPDATE", "DELETE")
    ),
)


@dataclass(frozen=True, slots=True)
class Consent:
    """A key's standing word that its calls may be registered as contributions."""

    key_id: str
    license_expression: str
    at_ns: int  # given at


class ConsentStore:
    """Consents and withdrawals in `database`; its tables are made on first use."""

    def __init__(self, database: Sql) -> None:
        self._database = database
        database.migrate("consent", _STEPS)

    def in_force(self, key_id: str) -> Consent | None:
        """The key's consent, if its last word was yes; nobody's calls are registered by default."""
        rows = self._database.query(
            "SELECT given, license_expression, at_ns FROM signal_consents WHERE key_id = ?"
            " ORDER BY number DESC LIMIT 1",
            (key_id,),
        )
        return Consent(key_id, rows[0][1], rows[0][2]) if rows and rows[0][0] else None

    def give(self, key_id: str, license_expression: str, now_ns: int) -> Consent:
        """Record that a key's calls may be registered under a licence.

        Raises:
            InvalidError: not a licence expression.
        """
        self._say(key_id, True, parse_expression(license_expression), now_ns)
        return Consent(key_id, parse_expression(license_expression), now_ns)

    def end(self, key_id: str, now_ns: int) -> None:
        """Record that from now on a key's calls are not registered; what was stays until it is withdrawn."""
        self._say(key_id, False, "", now_ns)

    def withdraw(self, contribution_id: ContributionId, by_whom: str, reason: str, now_ns: int) -> bool:
        """Record that a contribution was withdrawn; whether it was not before.

        Raises:
            InvalidError: a reason that is too long or cannot be printed.
        """
        _check_words(reason)
        return bool(
            self._database.execute(
                "INSERT INTO withdrawals VALUES (?, ?, ?, ?) ON CONFLICT (contribution_id) DO NOTHING",
                (contribution_id, now_ns, by_whom, reason),
            )
        )

    def withdrawn(self, contribution_ids: Sequence[ContributionId]) -> dict[ContributionId, str]:
        """Those of some contributions that were withdrawn, with the reason."""
        rows = self._database.query_in(
            "SELECT contribution_id, reason FROM withdrawals WHERE contribution_id IN ({})", contribution_ids
        )
        return {ContributionId(row[0]): row[1] or "no reason given" for row in rows}

    def erased(self, contribution_id: ContributionId, by_whom: str, reason: str, now_ns: int) -> bool:
        """Record that a contribution's bytes are to be erased; whether that is new. It counts as withdrawn too.

        Raises:
            InvalidError: a reason that is too long or cannot be printed.
        """
        _check_words(reason)
        with self._database.transaction():
            self.withdraw(contribution_id, by_whom, reason, now_ns)
            return bool(
                self._database.execute(
                    "INSERT INTO erasures VALUES (?, ?, ?, ?) ON CONFLICT (contribution_id) DO NOTHING",
                    (contribution_id, now_ns, by_whom, reason),
                )
            )

    def standing(self, contribution_ids: Sequence[ContributionId]) -> dict[ContributionId, Standing]:
        """What has been said about some contributions; those about which nothing was said are left out."""
        ids = list(dict.fromkeys(contribution_ids))
        found: dict[ContributionId, Standing] = {}
        for identity, at, reason in self._database.query_in(
            "SELECT contribution_id, at_ns, reason FROM withdrawals WHERE contribution_id IN ({})", ids
        ):
            found[identity] = Standing(withdrawn_at_ns=at, reason=reason)
        for identity, at in self._database.query_in(
            "SELECT contribution_id, at_ns FROM erasures WHERE contribution_id IN ({})", ids
        ):
            found[identity] = replace(found.get(identity, Standing()), erased_at_ns=at)
        for notice in dict.fromkeys(
            row[0]
            for row in self._database.query_in(
                "SELECT notice FROM takedowns WHERE contribution_id IN ({}) ORDER BY at_ns, notice", ids
            )
        ):
            one = self.takedown(notice)
            before = found.get(one.contribution, Standing())
            found[one.contribution] = replace(before, takedowns=(*before.takedowns, one))
        return found

    def stopped(self, contribution_ids: Sequence[ContributionId], now_ns: int) -> dict[ContributionId, str]:
        """Those of some contributions that may be put to no use at `now_ns`, and why."""
        found = self.standing(contribution_ids)
        ended = ((identity, one, one.stopped(now_ns)) for identity, one in found.items())
        return {
            identity: (one.reason or "no reason given") if stopped[0] == "contribution_withdrawn" else stopped[1]
            for identity, one, stopped in ended
            if stopped is not None
        }

    def all_stopped(self, now_ns: int) -> dict[ContributionId, str]:
        """Every contribution that may be put to no use at `now_ns`, and why."""
        rows = self._database.query(
            "SELECT contribution_id FROM withdrawals UNION SELECT contribution_id FROM erasures"
            " UNION SELECT contribution_id FROM takedowns ORDER BY 1"
        )
        return self.stopped([ContributionId(row[0]) for row in rows], now_ns)

    def adapter_rule(self) -> AdapterRule:
        """What becomes of adapters that learned from something withdrawn since; ``stop`` unless somebody decided."""
        rows = self._database.query("SELECT rule FROM adapter_rules ORDER BY number DESC LIMIT 1")
        return cast("AdapterRule", rows[0][0]) if rows else "stop"

    def set_adapter_rule(self, rule: str, by_whom: str, now_ns: int) -> AdapterRule:
        """Say what becomes of such adapters from now on.

        Raises:
            InvalidError: no such rule.
        """
        if rule not in ADAPTER_RULES:
            raise InvalidError(
                f"adapter rule {rule[:40]!r}", code="adapter_rule_unknown", fix=f"use {', '.join(ADAPTER_RULES)}"
            )
        _check_words(by_whom)
        self._database.execute(
            "INSERT INTO adapter_rules (rule, by_whom, at_ns) VALUES (?, ?, ?)", (rule, by_whom, now_ns)
        )
        return self.adapter_rule()

    # Takedowns

    def file_takedown(
        self, contribution_id: ContributionId, claimant: str, reason: str, now_ns: int
    ) -> tuple[Takedown, bool]:
        """File a notice against a contribution, which suspends it at once; and whether the notice is new.

        The same claimant, contribution and reason are the same notice.

        Raises:
            InvalidError: no claimant or no reason, or words that are too long or cannot be printed.
        """
        for text in (claimant, reason):
            _check_words(text)
            if not text.strip():
                raise InvalidError(
                    "a notice without claimant or reason", code="notice_invalid", fix="say who complains, and of what"
                )
        notice = "td_" + digest_of([contribution_id, claimant, reason]).removeprefix("sha256:")[:32]
        new = self._database.execute(
            "INSERT INTO takedowns VALUES (?, ?, ?, ?, ?) ON CONFLICT (notice) DO NOTHING",
            (notice, contribution_id, claimant, reason, now_ns),
        )
        return self.takedown(notice), bool(new)

    def takedown(self, notice: str) -> Takedown:
        """The notice with this id.

        Raises:
            MissingError: there is none.
        """
        rows = self._database.query(
            "SELECT contribution_id, claimant, reason, at_ns FROM takedowns WHERE notice = ?", (notice,)
        )
        if not rows:
            raise MissingError(
                f"no takedown notice {notice[:80]!r}",
                code="notice_missing",
                fix="see `headwater consent show CONTRIBUTION`",
            )
        events = {
            event: (detail, at)
            for event, detail, at in self._database.query(
                "SELECT event, detail, at_ns FROM takedown_events WHERE notice = ?", (notice,)
            )
        }
        counter, dispute = events.get("countered"), events.get("disputed")
        decided, retracted = events.get("decided"), events.get("retracted")
        return Takedown(
            notice,
            ContributionId(rows[0][0]),
            claimant=rows[0][1],
            reason=rows[0][2],
            filed_at_ns=rows[0][3],
            counter=counter[0] if counter else None,
            countered_at_ns=counter[1] if counter else None,
            dispute=dispute[0] if dispute else None,
            upheld=decided[0] == "upheld" if decided else None,
            retracted_at_ns=retracted[1] if retracted else None,
        )

    def counter(self, notice: str, statement: str, now_ns: int) -> Takedown:
        """The owner's counter-notice: unless the claimant opens a dispute in time, the contribution is restored.

        Raises:
            ConflictError: the notice is not waiting for one, or its time is over.
        """
        return self._event(notice, "countered", statement, ("suspended",), now_ns)

    def contest(self, notice: str, dispute: str, now_ns: int) -> Takedown:
        """The claimant opened a dispute about a countered notice: it stays suspended until that is decided.

        Raises:
            ConflictError: it was not countered, or its time is over.
        """
        return self._event(notice, "disputed", dispute, ("countered",), now_ns)

    def decide(self, notice: str, upheld: bool, now_ns: int) -> Takedown:
        """What the dispute about a notice decided.

        Raises:
            ConflictError: no dispute about it is open.
        """
        return self._event(notice, "decided", "upheld" if upheld else "rejected", ("disputed",), now_ns)

    def retract(self, notice: str, now_ns: int) -> Takedown:
        """The claimant gives up.

        Raises:
            ConflictError: it is over already, or in dispute.
        """
        return self._event(notice, "retracted", "", ("suspended", "countered"), now_ns)

    def notices(self, dispute: str) -> tuple[str, ...]:
        """Notices that were contested by this dispute."""
        rows = self._database.query(
            "SELECT notice FROM takedown_events WHERE event = 'disputed' AND detail = ? ORDER BY notice", (dispute,)
        )
        return tuple(row[0] for row in rows)

    def _event(self, notice: str, event: str, detail: str, states: tuple[str, ...], now_ns: int) -> Takedown:
        _check_words(detail)
        with self._database.transaction():
            found = self.takedown(notice)
            state = found.state(now_ns)
            if state not in states:
                raise ConflictError(
                    f"notice {notice} is {state}, it cannot be {event}",
                    code="notice_state",
                    fix=f"that is possible while it is {' or '.join(states)}",
                )
            self._database.execute("INSERT INTO takedown_events VALUES (?, ?, ?, ?)", (notice, event, detail, now_ns))
        return self.takedown(notice)

    def _say(self, key_id: str, given: bool, license_expression: str, now_ns: int) -> None:
        self._database.execute(
            "INSERT INTO signal_consents (key_id, given, license_expression, at_ns) VALUES (?, ?, ?, ?)",
            (key_id, int(given), license_expression, now_ns),
        )


def _check_words(text: str) -> None:
    if len(text) > REASON_CHARS_MAX or not text.isprintable():
        raise InvalidError(
            f"a reason of {len(text)} characters",
            code="reason_invalid",
            fix=f"use at most {REASON_CHARS_MAX} printable characters",
        )
