"""The command line: a thin skin over `SnapStore`, installed with the extra ``cli``."""

import sys


def main() -> None:
    """The entry point ``snapstore``."""
    try:
        from snapstore.cli.commands import app

        app(prog_name="snapstore")
    except KeyboardInterrupt:
        sys.exit(130)  # before a command had begun, or after it had ended
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        sys.exit(f"snapstore's command line needs {error.name}: pip install 'snapstore[cli]'")
