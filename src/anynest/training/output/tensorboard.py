"""The epochs' numbers as TensorBoard events: an extra."""

from pathlib import Path
from typing import Any

from ..errors import ConfigError


def writer_class() -> Any:
    """TensorBoard's writer; ConfigError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs the extra: pip install 'anynest[tensorboard]'"
        ) from error
    return SummaryWriter


class Events:
    """Writes events into a folder; does nothing where not wanted."""

    def __init__(self, folder: Path, wanted: bool, first_epoch: int) -> None:
        self.writer: Any = None
        if wanted:
            # epochs from here on are told again: what a killed run wrote of them is dropped
            self.writer = writer_class()(str(folder), purge_step=first_epoch)

    def epoch(self, line: dict[str, Any]) -> None:
        """One line of ``metrics.jsonl``."""
        if self.writer is None:
            return
        epoch = line["epoch"]
        for part in ("train", "validation"):
            for measure in ("loss", "error"):
                for number, value in enumerate(line[part][measure], start=1):
                    if value is not None:
                        self.writer.add_scalar(f"{measure}/{part}/stage{number}", value, epoch)
        self.writer.add_scalar("lr", line["lr"], epoch)
        self.writer.add_scalar("images_per_second", line["images_per_second"], epoch)
        cosines = line["cosines"] or []
        for row, values in enumerate(cosines):
            for column in range(row):
                name = f"cosine/stage{column + 1}-stage{row + 1}"
                self.writer.add_scalar(name, values[column], epoch)

    def close(self) -> None:
        """Flush."""
        if self.writer is not None:
            self.writer.close()
