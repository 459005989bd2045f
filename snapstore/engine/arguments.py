"""What callers pass, found to be what was meant."""

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta

from snapstore import keys
from snapstore.errors import InvalidInput

log = logging.getLogger("snapstore")


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


def check_count(value: object, what: str, least: int, most: int | None = None) -> None:
    """A string or a fraction would be a puzzle only further down."""
    if not isinstance(value, int) or value < least or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"{least} to {most}"
        raise InvalidInput(f"{what} is {bounds}, not {value!r}")


def check_seconds(value: object, what: str) -> None:
    if not isinstance(value, int | float):
        raise InvalidInput(f"{what} is seconds, such as 5 or 0.5, not {value!r}")


def check_apps(apps: str | None) -> None:
    """The folder of the apps; one that is missing may still be made. Blocks. InvalidInput."""
    if apps is None or os.path.isdir(apps):
        return
    if os.path.lexists(apps):
        raise InvalidInput(f"apps={apps!r} is no folder: give the one in which the applications live")
    log.warning("the folder of the applications, %s, is not there (yet)", apps)


def strings(values: Iterable[str], what: str) -> Collection[str]:
    """A string is a collection of strings to Python, and never what is meant here."""
    if isinstance(values, str):
        raise InvalidInput(f"{what} takes several strings: write [{values!r}]")
    found = () if isinstance(values, Mapping) else tuple(values)
    if isinstance(values, Mapping) or not all(isinstance(value, str) for value in found):
        raise InvalidInput(f"{what} takes strings, such as 'owner:42', not {values!r}")
    return found
