-- What a sync needs to know of itself: what was changed here meanwhile, what it could not understand, and which rows
-- whoever builds an index anew need not fetch one by one.

ALTER TABLE store ADD COLUMN synced_recent INTEGER;           -- when new snapshots were last looked for, like `synced`
ALTER TABLE store ADD COLUMN syncing INTEGER NOT NULL DEFAULT 0;   -- what the sync under way has signed with, or 0

-- Ids of the rows that calls of ours changed since a sync began. It has read the bucket before them, or after.
CREATE TABLE local_change (
    change INTEGER PRIMARY KEY,
    id BLOB NOT NULL
);

-- Metadata objects that could not be understood; each is read once for as long as it stays as it is.
CREATE TABLE problem (
    id BLOB PRIMARY KEY,
    etag TEXT NOT NULL,
    reason TEXT NOT NULL
) WITHOUT ROWID;

-- Checkpoints of the bucket, as far as this index has read or written them.
CREATE TABLE checkpoint (
    checkpoint INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    modified REAL NOT NULL,                                    -- seconds since 1970, by the store's clock
    snapshots INTEGER NOT NULL                                 -- rows that the file has
);

ALTER TABLE snapshot ADD COLUMN checkpoint INTEGER;           -- one that has this row as it is now
