"""The statements of a listing. Each reads one index from its newest end, and sorts nothing.

That index is the one of the rarest thing asked for (an app, or a label): the others are looked up for each of its rows.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from snapstore.errors import InvalidInput
from snapstore.index import rows

ENOUGH = 1000
"""Rows up to which things are counted to find the rarest: it takes some 30 microseconds, and more is not rare."""

COLUMNS = "s.id, a.name, s.detail"
SELECT = f"SELECT s.position, {COLUMNS} FROM snapshot s JOIN app a USING (app)"

_COUNT_LABEL = (
    "(SELECT count(*) FROM"
    f" (SELECT 1 FROM snapshot_label WHERE label = (SELECT label FROM label WHERE name = ?) LIMIT {ENOUGH}))"
)
_COUNT_APP = (
    f"(SELECT count(*) FROM (SELECT 1 FROM snapshot WHERE app = (SELECT app FROM app WHERE name = ?) LIMIT {ENOUGH}))"
)

Statement = tuple[str, list[Any]]


class Rarity(NamedTuple):
    """How many snapshots each label and app of a query has, up to `ENOUGH`."""

    labels: Mapping[str, int] = {}
    apps: Mapping[str, int] = {}


class Query(NamedTuple):
    """What a listing asks for: snapshots that fit all of it, newest first."""

    apps: Sequence[str] = ()
    labels: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None


class Counting(NamedTuple):
    """A statement that finds out what of a query is rare."""

    sql: str
    labels: Sequence[str]
    apps: Sequence[str]

    @property
    def values(self) -> Sequence[str]:
        return [*self.labels, *self.apps]

    def rarity(self, counts: Sequence[int]) -> Rarity:
        """What the statement's one row says."""
        of_labels, of_apps = counts[: len(self.labels)], counts[len(self.labels) :]
        return Rarity(dict(zip(self.labels, of_labels, strict=True)), dict(zip(self.apps, of_apps, strict=True)))


def counting(query: Query) -> Counting | None:
    """What to count before the page is asked for; None where there is nothing to choose from."""
    labels, apps = tuple(dict.fromkeys(map(_checked, query.labels))), tuple(dict.fromkeys(query.apps))
    if len(labels) + bool(apps) < 2:
        return None
    counts = [_COUNT_LABEL] * len(labels) + [_COUNT_APP] * len(apps)
    return Counting(f"SELECT {', '.join(counts)}", labels, apps)


def page_statement(query: Query, after: tuple[int, bytes] | None, rarity: Rarity) -> Statement:
    """A page's statement and its values, the limit excepted, which comes last."""
    if not query.apps:
        sql, values = _one_listing(query, after, None, rarity)
        return f"{sql} ORDER BY 1 DESC LIMIT ?", values
    parts = [_one_listing(query, after, app, rarity) for app in dict.fromkeys(query.apps)]
    # Several apps are as many listings in order of time, which SQLite merges without sorting.
    sql = " UNION ALL ".join(part for part, _ in parts)
    return f"{sql} ORDER BY 1 DESC LIMIT ?", [value for _, values in parts for value in values]


def _one_listing(query: Query, after: tuple[int, bytes] | None, app: str | None, rarity: Rarity) -> Statement:
    labels = sorted(dict.fromkeys(query.labels), key=lambda label: rarity.labels.get(label, ENOUGH))
    by_app = app is not None and (not labels or rarity.apps.get(app, 0) < rarity.labels.get(labels[0], ENOUGH))
    names = [f"l{number}" for number in range(len(labels))]
    names.insert(0 if by_app else len(names), "s")
    driver, *others = names
    conditions: list[str] = []
    values: list[Any] = []
    for number, label in enumerate(labels):
        conditions.append(f"l{number}.label = (SELECT label FROM label WHERE name = ?)")
        values.append(_checked(label))
    conditions += [f"{name}.position = {driver}.position" for name in others]
    conditions.append("a.app = s.app")
    if app is not None:
        conditions.append("s.app = (SELECT app FROM app WHERE name = ?)")
        values.append(app)
    if query.since is not None:
        conditions.append(f"{driver}.position >= ?")
        values.append(rows.microseconds(query.since))
    if query.until is not None:
        conditions.append(f"{driver}.position < ?")
        values.append(rows.microseconds(query.until))
    if after is not None:
        # Where the snapshot is now: a rebuild may have moved it among those of the same instant.
        conditions.append(f"{driver}.position < coalesce((SELECT position FROM snapshot WHERE id = ?), ?)")
        values += [after[1], after[0]]
    # CROSS JOIN keeps the order of the tables: that of their time, which a cleverer plan would have to sort by.
    tables = ["snapshot s" if name == "s" else f"snapshot_label {name}" for name in names]
    joined = " CROSS JOIN ".join([*tables, "app a"])
    return f"SELECT {driver}.position, {COLUMNS} FROM {joined} WHERE {' AND '.join(conditions)}", values


def _checked(label: str) -> str:
    if not label or label.startswith(":"):
        raise InvalidInput(f"{label!r} is no label to look for: give key:value, or key for any value")
    return label
