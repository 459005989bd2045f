"""The README's table: what `report` has found, between two marks."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.processes import Failed

README = Path(__file__).parent.parent / "README.md"
_BEGIN, _END = "<!-- report -->", "<!-- /report -->"


def update(sources: Sequence[Path], file: Path = README) -> None:
    """Put the judged table there, in place of an earlier one."""
    before, begin, rest = file.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise Failed(f"{file} has no {_BEGIN} … {_END}")
    file.write_text(f"{before}{_BEGIN}\n{report.judged_table(sources)}\n{_END}{after}")
