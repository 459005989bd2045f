"""Objects in a bucket: one small protocol (`base`), the stores that keep it, and what wraps them."""
