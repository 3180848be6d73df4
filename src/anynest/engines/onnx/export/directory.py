"""Write the folder of an export atomically: it has all files, or does not appear."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ....store import RunError, RunFolderError, write_whole
from ....store.files import explain, sync_folder
from ..manifest import FILE, read_manifest

BESIDE = {"profile.json", "policy.json"}  # written beside the export's own files


def require_place(folder: Path, overwrite: bool) -> None:
    """RunFolderError unless ``folder`` is new, empty, or an export that may be overwritten."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunFolderError(f"{folder} must be a folder, found a file: choose another place")
    found = {path.name for path in folder.iterdir()}
    if not found:
        return
    if not overwrite:
        raise RunFolderError(
            f"{folder} must be empty or new: choose another, or overwrite it (--force)"
        )
    ours = {FILE}
    if FILE in found:
        ours |= BESIDE | {entry.file for entry in read_manifest(folder).files}
    if not found <= ours:
        raise RunFolderError(
            f"{folder} holds more than an export ({min(found - ours)}) and is not overwritten: "
            "choose another"
        )


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files to ``folder``, replacing an export.

    They are written to a temporary folder beside it, synced, and renamed into place.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    folder = folder.absolute()
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        for name, content in contents.items():
            write_whole(beside / name, content)
        try:
            if folder.exists():
                os.replace(folder, old)
            os.replace(beside, folder)
        except BaseException:  # also Ctrl-C
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            raise
        sync_folder(folder.parent)
    except OSError as error:
        raise RunError(explain(error, folder, started=False)) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
