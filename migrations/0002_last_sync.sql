-- When the index was last made equal to its bucket, in microseconds since 1970.

ALTER TABLE store ADD COLUMN synced INTEGER;
