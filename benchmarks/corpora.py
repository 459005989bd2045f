"""Folders to measure on, made from a seed and never downloaded."""

import os
import random
from pathlib import Path

_PIECE = 1 << 20


def random_file(folder: Path, size: int, *, seed: int = 1) -> None:
    """One file of incompressible bytes."""
    source = random.Random(seed)
    with (folder / "random.bin").open("wb") as file:
        for _ in range(0, size, _PIECE):
            file.write(source.randbytes(min(_PIECE, size - file.tell())))


def tiny_files(folder: Path, count: int, *, a_folder: int = 100, seed: int = 1) -> None:
    """Many files of up to 1 KiB of text, a hundred a folder."""
    source = random.Random(seed)
    words = [f"word{number}" for number in range(1000)]
    for number in range(count):
        place = folder / f"part-{number // a_folder // 50:03d}" / f"group-{number // a_folder:05d}"
        if number % a_folder == 0:
            place.mkdir(parents=True)
        text = " ".join(source.choices(words, k=source.randrange(0, 128)))
        descriptor = os.open(place / f"file-{number:06d}.txt", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, text.encode())
        os.close(descriptor)
