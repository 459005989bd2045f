"""Objects in a bucket: the stores that keep the protocol of `snapstore.objectstore`, and what wraps them."""
