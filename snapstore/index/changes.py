"""The statements that change an index; each function belongs into a transaction of its caller."""

from collections.abc import Iterable, Sequence

from aiosqlite import Connection

from snapstore.index.rows import Row

FREE = """
(WITH RECURSIVE tried (p, n) AS (
    SELECT {first}, 0 UNION ALL
    SELECT {wanted} + 1 + abs(random() % (1 << min(n, 19))), n + 1 FROM tried
    WHERE EXISTS (SELECT 1 FROM main.snapshot WHERE position = p AND id <> {id})
) SELECT p FROM tried ORDER BY n DESC LIMIT 1)
"""
"""The position for a snapshot: the time that is ``wanted``, or near behind it where that is taken.

How near is drawn from twice as many positions after each that is taken: thousands may be of one second, and to walk
past them all would take the square of their number. ``first`` is where it may be already.
"""
_PUT = f"""
INSERT INTO snapshot (position, id, app, etag, detail, checkpoint) VALUES (
    {FREE.format(first="coalesce((SELECT position FROM snapshot WHERE id = ?2), ?1)", wanted="?1", id="?2")},
    ?2, (SELECT app FROM app WHERE name = ?3), ?4, ?5, ?6)
ON CONFLICT (id) DO UPDATE SET
    app = excluded.app, etag = excluded.etag, detail = excluded.detail, checkpoint = excluded.checkpoint
"""


async def put(connection: Connection, found: Sequence[Row], checkpoint: int | None = None) -> None:
    """Add these rows, or bring them up to date; ``checkpoint`` is the one that has them."""
    if not found:
        return
    # First all that goes: with it go the names that nothing else has.
    await connection.executemany(
        "DELETE FROM snapshot WHERE id = ?1 AND position NOT BETWEEN ?2 AND ?2 + 1000000",  # its time was changed
        [(row.id, row.position) for row in found],
    )
    await connection.executemany(
        "DELETE FROM snapshot_label WHERE position = (SELECT position FROM snapshot WHERE id = ?)",
        [(row.id,) for row in found],
    )
    await connection.executemany("INSERT OR IGNORE INTO app (name) VALUES (?)", {(row.app,) for row in found})
    await connection.executemany(
        "INSERT OR IGNORE INTO label (name) VALUES (?)", {(name,) for row in found for name in row.labels}
    )
    await connection.executemany(_PUT, [(*row[:5], checkpoint) for row in found])
    await connection.executemany(
        "INSERT OR IGNORE INTO snapshot_label SELECT l.label, s.position FROM label l, snapshot s"
        " WHERE l.name = ? AND s.id = ?",
        [(name, row.id) for row in found for name in row.labels],
    )


async def remove(connection: Connection, ids: Iterable[bytes]) -> None:
    """Drop rows; those that are not there are no error."""
    await connection.executemany("DELETE FROM snapshot WHERE id = ?", [(snapshot_id,) for snapshot_id in ids])


async def note(connection: Connection, ids: Iterable[bytes]) -> None:
    """These were changed by a call of ours: a sync that is under way may have read them before that."""
    await connection.executemany(
        "INSERT INTO local_change (id) SELECT ? FROM store WHERE syncing", [(snapshot_id,) for snapshot_id in ids]
    )
