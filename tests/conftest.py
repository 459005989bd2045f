"""What all tests share: an open store on a folder of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapstore import SnapStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SnapStore]:
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as opened:
        yield opened
