"""Exclude patterns in gitignore syntax, from a call and from a folder's own ``.snapignore``."""

from collections.abc import Iterable

import pathspec

from snapstore.errors import InvalidInput

IGNORE_FILE = ".snapignore"


class Excludes:
    """Decides whether a path is left out; later patterns win, ``!`` takes back, as gitignore(5) says."""

    def __init__(self, patterns: Iterable[str]) -> None:
        lines = [line for line in patterns if line.strip() and not line.startswith("#")]
        try:
            self._spec = pathspec.GitIgnoreSpec.from_lines(lines) if lines else None
        except ValueError as error:
            raise InvalidInput(f"an exclude pattern cannot be understood (gitignore syntax): {error}") from error

    def __bool__(self) -> bool:
        return self._spec is not None

    def __contains__(self, path: str) -> bool:
        """Whether ``path`` is excluded by itself; a folder's path ends with a slash. Its folders were asked before."""
        return self._spec is not None and self._spec.match_file(path)
