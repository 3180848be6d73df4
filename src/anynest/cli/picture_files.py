"""Which picture files a command line means: files, folders, and paths on standard input."""

import os
from collections.abc import Iterable, Iterator

from ..data import DataError
from ..data.readers.folder import EXTENSIONS, image_files

STDIN = "-"


def find_pictures(named: Iterable[str], lines: Iterable[str]) -> Iterator[str | DataError]:
    """The files in the order named, one by one as they are asked for.

    A folder stands for the picture files below it, by their suffix and sorted by path; ``-`` for
    the paths in ``lines``, one a line, which may be folders too. A folder without pictures gives
    the error that says so; files are not looked at here.
    """
    for name in named:
        if name == STDIN:
            for line in lines:
                path = line.rstrip("\r\n")
                if path.strip():
                    yield from _below(path)
        else:
            yield from _below(name)


def _below(path: str) -> Iterator[str | DataError]:
    if not os.path.isdir(path):
        yield path
        return
    found = image_files(path)
    if not found:
        kinds = ", ".join(sorted(EXTENSIONS))
        yield DataError(f"a folder must hold pictures ({kinds}), {path} has none")
    yield from found
