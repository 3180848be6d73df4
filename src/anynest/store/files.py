"""Files that are whole or absent: written beside their place, synced, then renamed into it."""

import contextlib
import errno
import os
from pathlib import Path
from typing import BinaryIO

from .errors import RunError

CHUNK = 1 << 20


def write_whole(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` so that any reader at any moment sees all of it or none.

    A process killed within leaves a hidden ``.tmp`` file at worst (see ``remove_leftovers``);
    an error leaves nothing.

    Errors: RunError, one line, where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            _write(file, data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(explain(error, path)) from error
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    for start in range(0, len(view), CHUNK):
        file.write(view[start : start + CHUNK])


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (a rename) last through a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed process left in ``folder``."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def explain(error: OSError, path: Path, started: bool = True) -> str:
    """One line for a failed write: what, where, why, and what to do.

    ``started``: there is a run to resume.
    """
    then = ", then resume" if started else ""
    remedies = {
        errno.ENOSPC: f"free some space{then}",
        errno.EDQUOT: f"free some space{then}",
        errno.EACCES: "choose a folder that you may write to",
        errno.EPERM: "choose a folder that you may write to",
        errno.EROFS: "choose a folder that you may write to",
        errno.ENOTDIR: "choose a folder whose parents are folders",
        errno.EEXIST: "a file stands where a folder should: move it or choose another folder",
    }
    remedy = remedies.get(
        error.errno or 0, "see to it, then resume" if started else "choose another folder"
    )
    return f"cannot write {path}: {error.strerror or error}; {remedy}"
