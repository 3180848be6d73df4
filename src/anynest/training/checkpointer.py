"""When a run saves, and how a checkpoint reaches and leaves every rank."""

import json
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from ..data import Dataset
from ..nets.registry import name_of
from .config.run_config import RunConfig
from .distributed import World
from .errors import RunFolderError
from .output.checkpoint import pack, unpack
from .output.run_folder import RunFolder

FORMAT = 2


class Checkpointer:
    """Saves and finds the checkpoints of a run; rank 0 alone reads and writes files."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, world: World, say: Callable[[str], None]
    ) -> None:
        self.config, self.folder, self.world, self.say = config, folder, world, say
        self.requested = False  # save after the current batch
        self.saved_at = time.monotonic()

    def newest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, on every rank; None where the run has none.

        Raises:
            RunFolderError: every checkpoint is damaged, or epochs were logged and none is left.
        """
        found: dict[str, Any] | None = None

        def read() -> bytes | None:
            nonlocal found
            found = self.folder.checkpoints.load_newest(self.say)
            if found is None:
                self.folder.require_no_history()
            return None if found is None or self.world.size == 1 else pack(found)

        told = self.world.run_on_rank_zero(read)
        return unpack(told) if told is not None and found is None else found

    def is_due(self, step: int) -> bool:
        """Whether to save after batch ``step`` (of the whole run, from 1)."""
        every = self.config.save_batches
        return self.requested or bool(every and step % every == 0)

    def minutes_are_up(self) -> bool:
        """Whether ``save_minutes`` have passed since the last save, or since this was last true."""
        minutes, now = self.config.save_minutes, time.monotonic()
        if not minutes or now - self.saved_at < 60 * minutes:
            return False
        self.saved_at = now
        return True

    def save(self, state: dict[str, Any], own: dict[str, Any], step: int) -> None:
        """Write a checkpoint of ``state``, which all ranks share, and each rank's ``own``."""
        ranks = [own]
        if self.world.size > 1:
            ranks += [unpack(told) for told in self.world.gather(pack(own))[1:]]
        state = {**state, "ranks": ranks}

        def write() -> None:
            self.folder.checkpoints.save(state, step)

        self.world.run_on_rank_zero(write)
        self.requested, self.saved_at = False, time.monotonic()

    def advice(self) -> str:
        """What to do where the weights diverged."""
        newest = self.folder.checkpoints.paths()[-1:]
        kept = f"the last good checkpoint stands ({newest[0]})" if newest else "nothing was saved"
        return f"{kept}; try a lower --lr, --warmup-epochs or --clip in a new run"


def require_fit(saved: dict[str, Any], folder: RunFolder, model: nn.Module, data: Dataset) -> None:
    """RunFolderError for a checkpoint of another version, network or data set."""
    if saved.get("format") != FORMAT:
        raise RunFolderError(
            f"the checkpoints in {folder.path} must have format {FORMAT}, found "
            f"{saved.get('format')!r}: resume with the version of anynest that wrote them"
        )
    ours, theirs = (
        {name: str(list(tensor.shape)) for name, tensor in tensors.items()}
        for tensors in (model.state_dict(), saved["model"])
    )
    for name in {**ours, **theirs}:
        wanted, found = ours.get(name, "not there"), theirs.get(name, "not there")
        if wanted != found:
            raise RunFolderError(
                f"the checkpoints in {folder.path} must fit {name_of(model)} as the config has it: "
                f"{name} must be {wanted}, found {found}; resume with the config that they were "
                "made with"
            )
    require_data(json.loads(saved["data"]), data, folder)


def require_data(expected: dict[str, Any], data: Dataset, folder: RunFolder) -> None:
    """RunFolderError, naming the change, where the data is not that of the checkpoint.

    Args:
        expected: ``Dataset.describe()`` of the checkpoint's data.
        data: the data found now; where it lies does not matter.
        folder: the run's folder.
    """
    found: dict[str, Any] = data.describe()
    if found["fingerprint"] == expected["fingerprint"]:
        return
    parts = {
        "train": "training images have",
        "validation": "validation images have",
        "test": "test images have",
        "classes": "classes have",
        "in_channels": "number of channels has",
        "image_size": "image size has",
    }
    key = next((key for key in parts if found[key] != expected[key]), None)
    counts = "" if key is None else f": {found[key]} found, {expected[key]} expected"
    raise RunFolderError(
        f"the {parts.get(key or '', 'content of the images has')} changed since the checkpoint in "
        f"{folder.path}{counts}; restore the data to resume, or train in another folder"
    )
