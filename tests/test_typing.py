"""The public types, as type checkers see them: right calls are taken by mypy and by pyright, wrong ones by neither."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CALLS = ROOT / "tests" / "typing"
FILES = (CALLS / "right.py", CALLS / "wrong.py")

Complaints = dict[str, dict[int, str]]
"""By file, and by line from 1."""


def mypy(folder: Path) -> Complaints:
    command = ["-m", "mypy", "--strict", "--no-error-summary", "--config-file=", *map(str, FILES)]
    found = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stderr == ""
    complaints: Complaints = {}
    for path, line, message in re.findall(r"^(.*?):(\d+): error: (.*)$", found.stdout, re.MULTILINE):
        complaints.setdefault(Path(path).name, {})[int(line)] = message
    return complaints


def pyright(folder: Path) -> Complaints:
    """In a project of its own, since only a configuration can say `strict`, and knows no files outside of it."""
    for file in FILES:
        shutil.copy(file, folder)
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}))
    command = ["-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(folder)]
    found = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    report = json.loads(found.stdout)
    assert report["summary"]["filesAnalyzed"] == len(FILES)
    complaints: Complaints = {}
    for entry in report["generalDiagnostics"]:
        if entry["severity"] == "error":
            complaints.setdefault(Path(entry["file"]).name, {})[entry["range"]["start"]["line"] + 1] = entry["message"]
    return complaints


@pytest.mark.parametrize("check", [mypy, pyright])
def test_right_calls_are_taken_and_wrong_ones_are_errors(check: Callable[[Path], Complaints], tmp_path: Path) -> None:
    lines = (CALLS / "wrong.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    complaints = check(tmp_path)
    assert "right.py" not in complaints
    assert wrong - complaints["wrong.py"].keys() == set(), "taken, and wrong"
    assert complaints["wrong.py"].keys() - wrong == set(), "right, and not taken"
