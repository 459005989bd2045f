"""Exclude patterns in gitignore syntax, from a call and from a folder's own ``.snapignore``.

pathspec translates the patterns. It matches whole paths at once, where git asks at each level whether the entry itself
is excluded, and does not look into a folder that is; the two differ where patterns take back others. As we walk as git
does, each pattern is asked about the entry itself.
"""

import re
from collections.abc import Iterable

import pathspec

from snapstore.errors import InvalidInput

IGNORE_FILE = ".snapignore"


class Excludes:
    """Decides whether a path is left out; later patterns win, ``!`` takes back, as gitignore(5) says."""

    def __init__(self, patterns: Iterable[str]) -> None:
        lines = [line for line in patterns if line.strip() and not line.startswith("#")]
        try:
            spec = pathspec.GitIgnoreSpec.from_lines(lines)
        except ValueError as error:
            raise InvalidInput(f"an exclude pattern cannot be understood (gitignore syntax): {error}") from error
        self._patterns = [pattern for pattern in spec.patterns if pattern.include is not None]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def __contains__(self, path: str) -> bool:
        """Whether ``path`` is excluded by itself; a folder's path ends with a slash. Its folders were asked before."""
        for pattern in reversed(self._patterns):
            if pattern.regex is not None and _matches_itself(pattern.regex, path):
                return bool(pattern.include)
        return False


def _matches_itself(regex: re.Pattern[str], path: str) -> bool:
    """Whether one of pathspec's expressions is about ``path``, and not about a folder on the way to it."""
    if "ps_d" in regex.groupindex:  # it ends with the name, and the slash of a folder
        return bool(regex.fullmatch(path)) if regex.pattern.startswith("^") else path.endswith("/")
    if regex.pattern == ".":  # anything at all
        return True
    found = regex.match(path)  # it ends with a folder's slash, and means what is in the folder
    return found is not None and found.end() < len(path)
