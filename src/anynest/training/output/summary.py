"""The results of a finished run: weights, curves, and a summary with the hardware."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from ..._version import __version__
from ...data import AnySplit, Dataset, FolderSplit
from ...nets.registry import ModelOrigin, name_of, origin_of
from ...store import RunFolderError, WeightsInfo, save_weights, write_whole
from ...store.hardware import describe_environment
from ..config.train_config import read_object
from ..evaluation import Evaluation, evaluate
from ..trainer import Trainer
from .curves import plot_run
from .reporting import percent
from .run_folder import RunFolder


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its folder and the errors of every stage."""

    folder: Path
    summary: dict[str, Any]

    @property
    def test_error(self) -> list[float]:
        """Per stage, from stage 1, on the test split."""
        return list(self.summary["test"]["error"])


def weights_info(model: nn.Module, data: Dataset) -> WeightsInfo:
    """The weights file's metadata about the network and its images."""
    origin = origin_of(model) or ModelOrigin("", {})
    return WeightsInfo(
        model=origin.name,
        arguments=origin.arguments,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        image_size=data.image_size,
        data=data.label,
        anynest=__version__,
        fit="crop" if isinstance(data.test, FolderSplit) else "whole",
        module=origin.module,
    )


def finish(trainer: Trainer) -> TrainResult:
    """Evaluate every stage on the validation and test splits and write the run's last files.

    The summary is written last: a run with a summary is finished. Of several ranks each evaluates
    its part, and rank 0 writes.
    """
    config, folder, data, model = trainer.config, trainer.folder, trainer.data, trainer.model
    world, history = trainer.world, trainer.logger.history
    # training images, and all images that were loaded into memory
    skipped = history[-1].get("skipped", 0)

    def measure(split: AnySplit) -> Evaluation:
        nonlocal skipped
        loader = config.data.evaluation_loader(split, data, trainer.device, **world.part())
        result = evaluate(model, loader, split=split.name, check=trainer.check_in, world=world)
        skipped += sum(map(int, world.gather(str(len(loader.skipped_images)).encode())))
        return result

    test = measure(data.test)
    validation = test if data.validation_is_test else measure(data.validation)
    summary = {
        "model": name_of(model),
        "arguments": origin.arguments if (origin := origin_of(model)) else {},
        "method": config.method.name,
        "data": data.label,
        "seed": config.run.seed,
        "epochs": len(history),
        "steps": history[-1]["step"],
        "train": _last_values(history, "train"),
        "validation": validation.to_json(),
        "test": test.to_json(),
        "skipped": skipped,  # undecodable images of all splits
        "ranks": world.size,
        "training_seconds": sum(line["seconds"] for line in history),
        "anynest": __version__,
        "environment": describe_environment(trainer.device),
    }

    def write() -> bytes:
        save_weights(folder.weights, model, weights_info(model, data))
        title = f"{name_of(model)}, {config.method.name}, {data.label}, seed {config.run.seed}"
        plot_run(history, title, folder.curves)
        text = (json.dumps(summary, indent=2) + "\n").encode()
        write_whole(folder.summary, text)
        return text

    told = world.run_on_rank_zero(write)
    assert told is not None
    return TrainResult(folder.path, json.loads(told))


def _last_values(history: list[dict[str, Any]], part: str) -> dict[str, list[Any]]:
    """Per stage, the value of the last epoch that trained it."""
    result: dict[str, list[Any]] = {}
    for line in history:
        for name, values in line[part].items():
            before = result.get(name, [None] * len(values))
            pairs = zip(before, values, strict=True)
            result[name] = [old if new is None else new for old, new in pairs]
    return result


def read_result(folder: RunFolder) -> TrainResult:
    """The result of a run that is finished; RunFolderError where its summary is damaged."""
    summary = read_object(folder.summary)
    try:
        summary_table(summary)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{folder.summary} must be a finished run's, found none that can be shown "
            f"({type(error).__name__}: {error}); remove it, and `{folder.resume_command()}` "
            "writes it anew"
        ) from error
    return TrainResult(folder.path, summary)


def summary_table(summary: dict[str, Any]) -> Table:
    """A table of loss and error per stage, of the weights after the last epoch."""
    title = f"{summary['model']}, {summary['method']}, {summary['data']}"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("stage", justify="right")
    parts = {"train": "train"}
    for role in ("validation", "test"):
        parts.setdefault(role, summary[role]["split"])
    if parts["validation"] == parts["test"]:
        del parts["validation"]
    for role, name in parts.items():
        table.add_column(f"{name}\nloss", justify="right")
        table.add_column(f"{name}\nerror %", justify="right")
        if "top5_error" in summary[role]:
            table.add_column(f"{name}\ntop-5 %", justify="right")
    for index in range(len(summary["test"]["error"])):
        row = [str(index + 1)]
        for role in parts:
            loss = summary[role]["loss"][index]
            row += ["-" if loss is None else f"{loss:.4f}", percent(summary[role]["error"][index])]
            if "top5_error" in summary[role]:
                row.append(percent(summary[role]["top5_error"][index]))
        table.add_row(*row)
    return table
