"""A run's folder: its files, and whether a run may start or continue there."""

import contextlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...store.files import explain, file_lock, remove_leftovers, write_whole
from ..config.config_io import differences
from ..config.train_config import TrainConfig, read_config
from ..errors import ConfigError, RunFolderError
from .checkpoint import Checkpoints


class RunFolder:
    """The paths of a run folder, and the rules for starting and resuming a run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.weights = self.path / "weights.safetensors"
        self.curves = self.path / "curves.png"
        self.summary = self.path / "summary.json"
        self.events = self.path / "tensorboard"
        self.checkpoints = Checkpoints(self.path / "checkpoints")

    @property
    def started(self) -> bool:
        """Whether a run was started here."""
        return self.config.is_file()

    @property
    def finished(self) -> bool:
        """Whether the run here is finished: the summary is the last file written."""
        return self.summary.is_file()

    @property
    def has_history(self) -> bool:
        """Whether epochs were logged here."""
        return self.metrics.is_file() and self.metrics.stat().st_size > 0

    def resume_command(self) -> str:
        """The command that resumes the run."""
        return f"anynest train --resume {shlex.quote(str(self.path))}"

    def require_unused(self) -> None:
        """RunFolderError where a new run cannot start here."""
        try:
            found = set()
            if self.path.is_dir():
                found = {
                    entry.name
                    for entry in self.path.iterdir()
                    if not entry.name.endswith((".tmp", ".lock")) and entry.name != "checkpoints"
                }
            bare = found <= {"config.json", "metrics.jsonl"} and self.is_bare()
            # a checkpoint without its config is another run's, and must not be continued
            used = bool(self.checkpoints.paths()) or (bool(found) and not bare)
        except OSError as error:
            raise RunFolderError(explain(error, self.path, self.started)) from error
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"run folder {self.path} must be a folder, found a file")
        if used:
            saved = self.started and (self.finished or bool(self.checkpoints.paths()))
            hint = f"go on with `{self.resume_command()}` or " if saved else ""
            raise RunFolderError(
                f"run folder {self.path} must be empty or new: {hint}choose another"
            )

    def is_bare(self) -> bool:
        """Whether a run was started here that has saved nothing but its config."""
        if self.checkpoints.paths() or self.has_history:
            return False
        try:
            read_config(self.config)
        except (ConfigError, RunFolderError):  # another program's
            return False
        return True

    def start(self, config: TrainConfig) -> None:
        """Write ``config.json``: from then on the run can be resumed."""
        self.require_unused()
        self.prepare()
        write_whole(self.config, config.dumps().encode())

    def prepare(self) -> None:
        """Create the folders, and delete temporary files of a killed process."""
        try:
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(explain(error, self.path, self.started)) from error
        remove_leftovers(self.path)

    def reopen(self, config: TrainConfig | None) -> TrainConfig:
        """The config of the run to continue; a given one must be the same, but for ``data.source``.

        Data may have moved: whether it is the same is known once it is read.

        Raises:
            RunFolderError: no run was started here.
            ConfigError: names the keys that differ.
        """
        if not self.started:
            raise RunFolderError(
                f"{self.path} holds no run to resume (no config.json): start one without --resume"
            )
        stored = read_config(self.config)
        if config is None:
            return stored
        changes = differences(stored.to_json(), config.to_json())
        if changes := [change for change in changes if change[0] != "data.source"]:
            raise ConfigError(
                f"{self.path} was started with another config: {_in_words(changes)}; "
                "leave that out to resume, or start in another folder"
            )
        return config

    def keep_config(self, config: TrainConfig) -> None:
        """Write ``config.json`` where it differs from ``config``, whose data has moved."""
        if read_config(self.config) != config:
            write_whole(self.config, config.dumps().encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock: two processes must not train in one folder."""
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held = stack.enter_context(file_lock(self.path / "run.lock", wait=False))
            except OSError as error:
                raise RunFolderError(explain(error, self.path, self.started)) from error
            if not held:
                raise RunFolderError(
                    f"another process is training in {self.path}: wait for it or stop it"
                )
            yield

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replace ``metrics.jsonl`` by these lines, atomically."""
        lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in history)
        write_whole(self.metrics, lines.encode())

    def require_no_history(self) -> None:
        """RunFolderError where a new start would overwrite the logged epochs of a run."""
        if self.has_history:
            raise RunFolderError(
                f"no checkpoint is left in {self.checkpoints.folder}, and a new start would write "
                f"over {self.metrics}: train in another folder"
            )

    def read_history(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]


def _in_words(changes: list[tuple[str, Any, Any]]) -> str:
    shown = []
    for key, *values in changes[:3]:
        was, now = ("not set" if value is None else json.dumps(value) for value in values)
        shown.append(f"{key} was {was}, now {now}")
    more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
    return ", ".join(shown) + more
