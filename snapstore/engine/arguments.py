"""What callers pass, found to be what was meant."""

import os
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta

from snapstore import keys
from snapstore.errors import InvalidInput


def app_folder(apps: str | None, app: str) -> str:
    """The folder of an app in the folder of apps, which its name never leads out of. InvalidInput."""
    if apps is None:
        raise InvalidInput(
            f"the folder of {app!r} is not known: give a folder, or say in which one the applications live"
            " (apps=, --apps, SNAPSTORE_APPS)"
        )
    keys.check_app(app)
    if "/" in app:
        raise InvalidInput(f"{app!r} is no name of a folder in {apps!r}: give a folder")
    return os.path.join(apps, app)


def check_duration(value: object, what: str) -> None:
    """A number does not say of what it is one."""
    if not isinstance(value, timedelta):
        raise InvalidInput(f"{what} is a timedelta, such as timedelta(minutes=5), not {value!r}")


def strings(values: Iterable[str], what: str) -> Collection[str]:
    """A string is a collection of strings to Python, and never what is meant here."""
    if isinstance(values, str):
        raise InvalidInput(f"{what} takes several strings: write [{values!r}]")
    found = () if isinstance(values, Mapping) else tuple(values)
    if isinstance(values, Mapping) or not all(isinstance(value, str) for value in found):
        raise InvalidInput(f"{what} takes strings, such as 'owner:42', not {values!r}")
    return found
