-- Names of apps and labels that no snapshot has any more go with the last one that had them.

DELETE FROM label WHERE label NOT IN (SELECT label FROM snapshot_label);
DELETE FROM app WHERE app NOT IN (SELECT app FROM snapshot);

CREATE TRIGGER label_unused AFTER DELETE ON snapshot_label
WHEN NOT EXISTS (SELECT 1 FROM snapshot_label WHERE label = old.label)
BEGIN
    DELETE FROM label WHERE label = old.label;
END;

CREATE TRIGGER app_unused AFTER DELETE ON snapshot
WHEN NOT EXISTS (SELECT 1 FROM snapshot WHERE app = old.app)
BEGIN
    DELETE FROM app WHERE app = old.app;
END;
