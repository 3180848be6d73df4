"""Atomic writes (temporary file, fsync, rename), file locks, and one-line errors for both."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import RunError

CHUNK = 1 << 20


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: a reader sees the old file or the new one.

    A process that is killed here leaves a hidden ``.tmp`` file at worst (``remove_leftovers``
    deletes it); an error leaves no file.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            _write(file, data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise RunError(explain(error, path)) from error
        raise


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    for start in range(0, len(view), CHUNK):
        file.write(view[start : start + CHUNK])


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (such as a rename) to disk, where the system supports it."""
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


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on ``path``; the system releases it when the process ends.

    Without POSIX locks there is no exclusion, and the lock always counts as held.

    Args:
        path: the lock file; created where it is missing.
        wait: whether to wait for a process that holds the lock.

    Yields:
        Whether the lock is held; False only where another process holds it and ``wait`` is False.

    Raises:
        OSError: the lock file cannot be opened.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        held = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(handle)


def explain(error: OSError, path: Path, started: bool = True) -> str:
    """One line for a failed write: the path, the system's reason, and the remedy.

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
