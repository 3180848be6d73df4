"""One line of metrics an epoch: in ``metrics.jsonl``, as TensorBoard events, on the screen."""

from pathlib import Path
from typing import Any

from .distributed import World
from .errors import ConfigError
from .evaluation import Evaluation
from .metrics import RunningMetrics
from .output.reporting import Reporter
from .output.run_folder import RunFolder


class MetricsLogger:
    """Holds the lines so far (``history``) and publishes each new one."""

    def __init__(
        self, folder: RunFolder, reporter: Reporter, world: World, tensorboard: bool = False
    ) -> None:
        self.folder, self.reporter, self.world = folder, reporter, world
        self.tensorboard = tensorboard and world.leads
        self.history: list[dict[str, Any]] = []
        self.events: TensorBoardWriter | None = None

    def start(self, history: list[dict[str, Any]]) -> None:
        """Continue after ``history``: later lines of a killed run are dropped from the files."""
        self.history = history
        self._write_file()
        if self.tensorboard:
            self.events = TensorBoardWriter(self.folder.events, first_epoch=len(history) + 1)

    def write(self) -> None:
        """Publish the last line of ``history``."""
        self._write_file()
        self.reporter.epoch(self.history[-1])
        if self.events is not None:
            self.events.epoch(self.history[-1])

    def _write_file(self) -> None:
        self.world.run_on_rank_zero(lambda: self.folder.write_history(self.history))

    def close(self) -> None:
        """Flush the events."""
        if self.events is not None:
            self.events.close()


def epoch_line(
    metrics: RunningMetrics, validation: Evaluation, stages: tuple[int, ...], num_stages: int
) -> dict[str, Any]:
    """The measured part of an epoch's line.

    Args:
        metrics: of the epoch's batches, over all ranks.
        validation: of the same stages.
        stages: the trained stages, from 1.
        num_stages: S, of the whole network: lists have S values, null for a stage not trained.
    """

    def spread(values: list[Any]) -> list[Any]:
        result: list[Any] = [None] * num_stages
        for stage, value in zip(stages, values, strict=True):
            result[stage - 1] = value
        return result

    return {
        "train": {name: spread(values) for name, values in metrics.means().items()},
        "validation": {
            name: spread(value) if isinstance(value, list) else value
            for name, value in validation.to_json().items()
        },
        "cosines": metrics.cosines(),
        "cosine_batches": metrics.cosine_batches(),
    }


def writer_class() -> Any:
    """TensorBoard's writer; ConfigError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs the extra: pip install 'anynest[tensorboard]'"
        ) from error
    return SummaryWriter


class TensorBoardWriter:
    """Writes the epochs' numbers as TensorBoard events."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self.writer: Any = writer_class()(str(folder), purge_step=first_epoch)

    def epoch(self, line: dict[str, Any]) -> None:
        """Add one line of ``metrics.jsonl``."""
        epoch = line["epoch"]
        for part in ("train", "validation"):
            for measure in ("loss", "error"):
                for number, value in enumerate(line[part][measure], start=1):
                    if value is not None:
                        self.writer.add_scalar(f"{measure}/{part}/stage{number}", value, epoch)
        self.writer.add_scalar("lr", line["lr"], epoch)
        self.writer.add_scalar("images_per_second", line["images_per_second"], epoch)
        for row, values in enumerate(line["cosines"] or []):
            for column in range(row):
                name = f"cosine/stage{column + 1}-stage{row + 1}"
                self.writer.add_scalar(name, values[column], epoch)

    def close(self) -> None:
        """Flush."""
        self.writer.close()
