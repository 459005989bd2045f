"""The command line: a thin skin over `SnapStore`, installed with the extra ``cli``."""

import sys


def main() -> None:
    """The entry point ``snapstore``."""
    try:
        from snapstore.cli.commands import app
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        sys.exit(f"snapstore's command line needs {error.name}: pip install 'snapstore[cli]'")
    app(prog_name="snapstore")
