-- Objects where metadata belongs whose names are no snapshots' ids, as the last whole sync has seen them.

CREATE TABLE misnamed (
    key TEXT PRIMARY KEY
) WITHOUT ROWID;

-- The window of the last sync, where that looked for new snapshots alone, in microseconds; NULL for a whole one.
ALTER TABLE store ADD COLUMN recent_window INTEGER;
