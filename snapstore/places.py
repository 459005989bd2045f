"""Where things are kept that nobody told us to keep elsewhere."""

import hashlib
import os


def data_home() -> str:
    """snapstore's folder below the user's data home (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_DATA_HOME", "")
    return os.path.join(home if os.path.isabs(home) else os.path.expanduser("~/.local/share"), "snapstore")


def default_index(store_url: str) -> str:
    """The index file of a store for which none was named."""
    digest = hashlib.sha256(store_url.encode()).hexdigest()[:16]
    return os.path.join(data_home(), f"index-{digest}.db")


def default_store() -> str:
    """The folder store that the command line uses where none was named."""
    return os.path.join(data_home(), "store")
