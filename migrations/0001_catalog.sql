-- The label index of one store: a cache of the bucket's _metadata/ objects, and never the truth.
--
-- A snapshot's row number is its time of creation in microseconds since 1970, moved on by one while that is taken.
-- So every index that ends in it is in order of time, and a page of the newest is read from its end.

PRAGMA application_id = 0x534E4150;        -- "SNAP"

CREATE TABLE store (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    url TEXT NOT NULL,
    filled INTEGER NOT NULL DEFAULT 0    -- whether it has held all of the bucket once
);

CREATE TABLE app (
    app INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

CREATE TABLE label (
    label INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE            -- 'key:value', and 'key' for any value of it
);

CREATE TABLE snapshot (
    position INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    app INTEGER NOT NULL REFERENCES app,
    etag TEXT NOT NULL,
    detail BLOB NOT NULL                 -- the rest of the metadata, as index/rows.py packs it
);

CREATE INDEX snapshot_by_app ON snapshot (app, position);

CREATE TABLE snapshot_label (
    label INTEGER NOT NULL REFERENCES label,
    position INTEGER NOT NULL REFERENCES snapshot ON DELETE CASCADE,
    PRIMARY KEY (label, position)
) WITHOUT ROWID;

-- What deleting a snapshot asks for.
CREATE INDEX snapshot_label_by_position ON snapshot_label (position);
