-- Objects where metadata belongs whose names are no snapshots' ids, as the last whole sync has seen them.

CREATE TABLE misnamed (
    key TEXT PRIMARY KEY
) WITHOUT ROWID;
