"""Signs of who acts together, kept; and the clusters that follow from them and from what the registry knows.

Signs are only ever added. Payout addresses and keys that enrolments showed are read where they are, so that nothing
has to be copied. Knows nothing of what a cluster is capped or kept from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from headwater.core.errors import InvalidError
from headwater.core.ids import ContributorId
from headwater.registry.clusters import Cluster, Sign, SignKind, cluster_of, clusters
from headwater.store.database import Sql

SOURCE_CHARS_MAX = 300
KEYS_SHOWN = ("ssh", "openpgp", "wallet", "domain")
"""Kinds of what enrolments show that only one person, or those who act as one, can have."""

_STEPS = (
    """
    CREATE TABLE cluster_signs (
      who TEXT NOT NULL,
      kind TEXT NOT NULL CHECK (kind IN ('address', 'key', 'funding', 'content', 'declared')),
      value TEXT NOT NULL,
      source TEXT NOT NULL,
      at_ns INTEGER NOT NULL,
      PRIMARY KEY (who, kind, value)
    ) STRICT, WITHOUT ROWID;
    """,
    "".join(
        f"""
        CREATE TRIGGER cluster_signs_stay_{verb} BEFORE {verb} ON cluster_signs
        BEGIN SELECT RAISE(ABORT, 'a sign stays as it was seen'); END;
        """
        for verb in ("UPDATE", "DELETE")
    ),
)


class ClusterStore:
    """Signs kept in `database`; its table is made on first use."""

    def __init__(self, database: Sql) -> None:
        self._database = database
        database.migrate("clusters", _STEPS)

    def add(self, who: str, kind: SignKind, value: str, source: str, now_ns: int) -> bool:
        """Record a sign, and where it was seen; whether it is new.

        Raises:
            InvalidError: no such kind, or words that cannot be kept.
        """
        sign = Sign(who, kind, value, now_ns)
        if not 0 < len(source) <= SOURCE_CHARS_MAX or not source.isprintable():
            raise InvalidError(
                f"a source of {len(source)} characters",
                code="sign_invalid",
                fix=f"say in 1 to {SOURCE_CHARS_MAX} printable characters where it was seen",
            )
        return bool(
            self._database.execute(
                "INSERT INTO cluster_signs VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (sign.who, sign.kind, sign.value, source, now_ns),
            )
        )

    def signs(self) -> tuple[Sign, ...]:
        """Every sign: those recorded, payout addresses of the enrolled, and keys that enrolments showed control of.

        An address that is only claimed says nothing: anybody may write down anybody's.
        """
        found = [
            Sign(who, kind, value, at)
            for who, kind, value, at in self._database.query("SELECT who, kind, value, at_ns FROM cluster_signs")
        ]
        # Who asks may have opened a database that knows no enrolments, or no registry, yet.
        kept = {row[0] for row in self._database.query("SELECT module FROM migrations")}
        if "enrolment" in kept:
            found += self._shown()
        if "registry" in kept:
            found += [
                Sign(who, "address", address.lower(), 0)
                for who, address in self._database.query(
                    "SELECT id, payout_address FROM contributors WHERE payout_address IS NOT NULL"
                )
            ]
        return tuple(found)

    def _shown(self) -> Iterator[Sign]:
        """Keys that enrolments showed control of, each since it was first shown."""
        first: dict[tuple[str, str], int] = {}
        for who, detail, at in self._database.query(
            "SELECT c.contributor_id, e.detail, e.at_ns FROM enrolment_events e"
            " JOIN enrolment_claims c ON c.id = e.claim WHERE e.kind = 'shown'"
        ):
            shown = json.loads(detail)
            if shown["kind"] in KEYS_SHOWN:
                pair = who, shown["value"]
                first[pair] = min(at, first.get(pair, at))
        for (who, value), at in first.items():
            yield Sign(who, "key", value, at)

    def clusters(self) -> tuple[Cluster, ...]:
        """Everybody whom signs join."""
        return clusters(self.signs())

    def cluster_of(self) -> Mapping[ContributorId, str]:
        """The cluster of everybody who is in one."""
        return cluster_of(self.clusters())
