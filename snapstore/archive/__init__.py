"""tar + zstd, synchronous and free of network: folders in, bytes out, and back."""
