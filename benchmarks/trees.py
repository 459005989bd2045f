"""Makes folders to measure on, each the same from the same seed on every machine.

Text is made of phrases that recur as unevenly as words do in source code, so that it compresses about as well; times
have fractions of a second, as those of real files do, and are the same every time.
"""

import math
import os
import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

_PIECE = 1 << 20
_PHRASES = 24_000
_VISITS = 20_000
_FIRST_TIME = 1_700_000_000_000_000_000
_SYMBOLS = "    \n\n():=.,[]{}\"'#_+-*/<>"


class Text:
    """A source of text that looks like code to a compressor."""

    def __init__(self, chance: random.Random) -> None:
        letters = "etaoinshrdlucmfwypvbgkqjxz"
        words = ["".join(chance.choices(letters, k=chance.randrange(2, 11))) for _ in range(6_000)]
        self._phrases = [self._phrase(chance, words) for _ in range(_PHRASES)]
        self._weights = list(accumulate(1 / (rank + 40) for rank in range(_PHRASES)))
        self._chance = chance

    @staticmethod
    def _phrase(chance: random.Random, words: list[str]) -> bytes:
        parts = (chance.choice(words) + chance.choice(_SYMBOLS) for _ in range(chance.randrange(1, 5)))
        return "".join(parts).encode()

    def of(self, size: int) -> bytes:
        made = b""
        while len(made) < size:
            wanted = (size - len(made)) // 16 + 1
            made += b"".join(self._chance.choices(self._phrases, cum_weights=self._weights, k=wanted))
        return made[:size]


def source_files(folder: Path, count: int, *, seed: int = 1, mean: int = 16_000) -> None:
    """Files of a few KiB of text, some much larger, in a tree of folders as a checkout with its dependencies has."""
    chance = random.Random(seed)
    text = Text(chance)
    spread = 1.4
    middle = mean / 2.66  # exp(spread ** 2 / 2), without asking the platform's exp()
    endings = (".py", ".js", ".ts", ".json", ".md", ".css", ".html", ".go")
    for number in range(count):
        place = folder / f"package-{number // 400:03d}" / f"module-{number // 25 % 16:02d}"
        size = int(min(middle * _bell(chance, spread), 2 << 20))
        write(place / f"file-{number:06d}{chance.choice(endings)}", text.of(size), number)


def web_application(folder: Path, count: int, *, seed: int = 1) -> None:
    """Code (``count`` files), uploads that do not compress, a database file, and logs."""
    chance = random.Random(seed)
    source_files(folder / "code", count, seed=seed, mean=12_000)
    for number in range(count // 12):
        size = chance.randrange(20_000, 500_000)
        write(folder / "uploads" / f"{number % 50:02d}" / f"image-{number:05d}.jpg", chance.randbytes(size), number)
    text = Text(chance)
    pages = b"".join(_page(chance, text) for _ in range(count * 3))
    write(folder / "data" / "application.db", pages, 1)
    log = Log(chance)
    for number in range(8):
        write(folder / "logs" / f"access.log.{number}", log.of(count * 120), number)


def _page(chance: random.Random, text: Text) -> bytes:
    """A page of 4 KiB as of a database: a header, free space, rows of text with numbers between them."""
    rows = b"".join(chance.randbytes(12) + text.of(120) for _ in range(chance.randrange(8, 30)))
    return (chance.randbytes(16) + bytes(4080 - len(rows)) + rows)[:4096]


class Log:
    """A source of lines as of a web server's log."""

    def __init__(self, chance: random.Random) -> None:
        self._who = [self._visit(chance) for _ in range(_VISITS)]
        self._what = [self._answer(chance) for _ in range(_VISITS)]
        self._chance = chance

    @staticmethod
    def _visit(chance: random.Random) -> bytes:
        at = f"{chance.randrange(24):02d}:{chance.randrange(60):02d}:{chance.randrange(60):02d}"
        address = ".".join(str(chance.randrange(256)) for _ in range(4))
        return f'{address} - - [01/Mar/2026:{at} +0000] "GET '.encode()

    @staticmethod
    def _answer(chance: random.Random) -> bytes:
        path = f"/shop/{chance.randrange(400)}/item/{chance.randrange(9000)}"
        return f'{path} HTTP/1.1" 200 {chance.randrange(90000)} "-"\n'.encode()

    def of(self, size: int) -> bytes:
        lines = size // 60 + 1
        visits = zip(self._chance.choices(self._who, k=lines), self._chance.choices(self._what, k=lines), strict=True)
        return b"".join(part for visit in visits for part in visit)[:size]


def compressible_files(folder: Path, size: int, *, seed: int = 1, files: int = 4) -> None:
    """A few large files of log lines, ``size`` bytes altogether."""
    log = Log(random.Random(seed))
    piece = 4 << 20
    for number in range(files):
        write(folder / f"large-{number}.log", map(log.of, _pieces(size // files, piece)), number)


def random_file(folder: Path, size: int, *, seed: int = 1) -> None:
    """One file of incompressible bytes."""
    chance = random.Random(seed)
    write(folder / "random.bin", (chance.randbytes(piece) for piece in _pieces(size, _PIECE)), 1)


def deep_tree(folder: Path, count: int, *, seed: int = 1) -> None:
    """Folders in folders, ``count`` deep, with ten files in each."""
    chance = random.Random(seed)
    place = folder
    for depth in range(count):
        place /= f"level-{depth:03d}"
        for number in range(10):
            write(place / f"file-{number}.txt", chance.randbytes(200).hex().encode(), depth)


def wide_folder(folder: Path, count: int, *, seed: int = 1) -> None:
    """All files in one folder."""
    chance = random.Random(seed)
    for number in range(count):
        write(folder / f"file-{number:07d}.txt", chance.randbytes(chance.randrange(1, 512)).hex().encode(), number)


def tiny_files(folder: Path, count: int, *, a_folder: int = 100, seed: int = 1) -> None:
    """Many files of up to 1 KiB of text, a hundred a folder."""
    chance = random.Random(seed)
    words = [f"word{number}" for number in range(1000)]
    for number in range(count):
        place = folder / f"part-{number // a_folder // 50:03d}" / f"group-{number // a_folder:05d}"
        text = " ".join(chance.choices(words, k=chance.randrange(0, 128)))
        write(place / f"file-{number:06d}.txt", text.encode(), number)


def write(path: Path, content: "bytes | Iterator[bytes]", number: int) -> None:
    """A file with a time of its own."""
    descriptor = _create(path)
    with open(descriptor, "wb") as file:
        file.writelines([content] if isinstance(content, bytes) else content)
    when = _FIRST_TIME + number * 61_123_456_789 % 10**16
    os.utime(path, ns=(when, when))


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags, 0o644)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o644)


def _pieces(size: int, piece: int) -> Iterator[int]:
    for start in range(0, size, piece):
        yield min(piece, size - start)


def _bell(chance: random.Random, spread: float) -> float:
    """About a log-normal factor. Square roots are exact on every platform, other powers are not."""
    steps = sum(chance.randrange(-1000, 1001) for _ in range(12))
    quarters = int(steps / 2000 * spread * 1.4427 * 4)
    return math.sqrt(math.sqrt(2.0**quarters))
