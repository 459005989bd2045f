"""The command line: a thin skin over `SnapStore`, installed with the extra ``cli``."""

import os
import sys


def main() -> None:
    """The entry point ``snapstore``."""
    _open_streams()
    try:
        from snapstore.cli.commands import app

        app(prog_name="snapstore")
    except KeyboardInterrupt:
        sys.exit(130)  # before a command had begun, or after it had ended
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        sys.exit(f"snapstore's command line needs {error.name}: pip install 'snapstore[cli]'")


def _open_streams() -> None:
    """Whoever starts us without stdin, stdout or stderr (``>&-``) does not want them; no file of ours may take their
    numbers, lest a message be written into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the least free number, so this one
            setattr(sys, name, open(nowhere, "w" if number else "r", closefd=False))  # noqa: SIM115
