"""``python -m snapstore``: the command line."""

from snapstore.cli import main

main()
