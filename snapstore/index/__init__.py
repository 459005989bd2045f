"""The SQLite label index: a local copy of what the bucket's metadata says, so that no listing asks the bucket."""
