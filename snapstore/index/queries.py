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
Rarity = Mapping[str, int]
"""How many snapshots an app or a label of a query has, up to `ENOUGH`; a label's name begins with ``l``, an app's with
``a``."""


class Query(NamedTuple):
    """What a listing asks for: snapshots that fit all of it, newest first."""

    apps: Sequence[str] = ()
    labels: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None


def rarity_statement(query: Query) -> tuple[Sequence[str], Statement] | None:
    """What to count before the page is asked for, by name; None where there is nothing to choose from."""
    labels, apps = tuple(dict.fromkeys(query.labels)), tuple(dict.fromkeys(query.apps))
    if len(labels) + bool(apps) < 2:
        return None
    counts = [_COUNT_LABEL] * len(labels) + [_COUNT_APP] * len(apps)
    names = [f"l{label}" for label in labels] + [f"a{app}" for app in apps]
    return names, (f"SELECT {', '.join(counts)}", [*map(_checked, labels), *apps])


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
    labels = sorted(dict.fromkeys(query.labels), key=lambda label: rarity.get(f"l{label}", ENOUGH))
    by_app = app is not None and (not labels or rarity.get(f"a{app}", 0) < rarity.get(f"l{labels[0]}", ENOUGH))
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
