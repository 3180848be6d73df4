"""Checkpoint files: written atomically, verified when read, and read without executing code.

A file is a ``torch.save`` archive and a trailer of 48 bytes: the archive's SHA-256, its length
(8 bytes, little endian) and a mark. The archive is read with ``weights_only=True``.
"""

import hashlib
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...store import RunFolderError
from ...store.files import remove_leftovers, write_whole

MARK = b"anynest1"
TRAILER = 32 + 8 + len(MARK)
KEEP = 2
PATTERN = re.compile(r"step-(\d{9,})\.ckpt")


class CorruptCheckpoint(ValueError):
    """A file that is not a whole checkpoint; the message says why."""


def pack(state: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    return body + hashlib.sha256(body).digest() + len(body).to_bytes(8, "little") + MARK


def unpack(data: bytes) -> dict[str, Any]:
    """The state in the bytes of a checkpoint file, on the CPU.

    Raises:
        CorruptCheckpoint: the file is truncated, damaged or not a checkpoint.
    """
    body, trailer = data[:-TRAILER], data[-TRAILER:]
    if not trailer.endswith(MARK):
        raise CorruptCheckpoint("it is truncated, or no checkpoint: the mark at its end is missing")
    if len(body) != int.from_bytes(trailer[32:40], "little"):
        raise CorruptCheckpoint(f"it is truncated: {len(body)} bytes are left")
    if hashlib.sha256(body).digest() != trailer[:32]:
        raise CorruptCheckpoint("it is damaged: its checksum does not match")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptCheckpoint(f"it cannot be read safely: {reason}") from error
    if not isinstance(state, dict):
        raise CorruptCheckpoint("it holds no state")
    return state


class Checkpoints:
    """The folder of a run's last ``keep`` checkpoints, named by the number of steps."""

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = [(PATTERN.fullmatch(path.name), path) for path in self.folder.glob("step-*.ckpt")]
        return [path for _, path in sorted((int(m[1]), path) for m, path in found if m)]

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write a checkpoint, then delete the oldest; RunError where it cannot be written."""
        path = self.folder / f"step-{step:09d}.ckpt"
        write_whole(path, pack(state))
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def load_newest(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest whole checkpoint; None where the folder has no checkpoint.

        Damaged ones that are newer are named (``say``) and renamed.

        Raises:
            RunFolderError: every checkpoint is damaged; they stay as they are.
        """
        remove_leftovers(self.folder)
        damaged: list[tuple[Path, CorruptCheckpoint]] = []
        for path in reversed(self.paths()):
            try:
                state = unpack(path.read_bytes())
            except CorruptCheckpoint as error:
                damaged.append((path, error))
                continue
            for bad, reason in damaged:
                aside = bad.with_name(bad.name + ".corrupt")
                bad.replace(aside)
                say(f"set aside {bad}: {reason}; it is now {aside.name}, using {path.name}")
            return state
        if damaged:
            path, reason = damaged[0]
            raise RunFolderError(
                f"no whole checkpoint is left in {self.folder}, the newest is {path.name}: "
                f"{reason}; put a whole one back, or train in another folder"
            )
        return None
