"""Runs one cell in this process: starts or resumes its run folder and returns its record."""

import json
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...data import Dataset
from ...nets import create_model
from ...store import RunFolderError, write_whole
from ...store.hardware import describe_environment
from ...training import DataConfig, DivergedError, TrainConfig, train
from ...training.config.train_config import read_config, read_object
from ...training.environment import find_device
from ...training.output.reporting import Reporter
from ...training.output.run_folder import RunFolder
from ..catalog.cell import Cell
from ..results.checks import check_record
from ..results.records import CELL, Record, require_record

RESULT = "result.json"  # the cell's record, in its run folder
COSINE_EPOCHS = 20  # whose cosines a record keeps, at most
LOCK_SECONDS = 60.0
_loaded: dict[DataConfig, Dataset] = {}


@dataclass(frozen=True)
class Job:
    """A cell and where it is computed. machine: settings of the config's section ``run``."""

    cell: Cell
    out: Path
    source: str
    machine: dict[str, Any]

    def dumps(self) -> str:
        """As one line of JSON."""
        return json.dumps({**asdict(self), "out": str(self.out)})

    @classmethod
    def loads(cls, text: str) -> "Job":
        """From JSON."""
        given = json.loads(text)
        cell = Cell(**given.pop("cell"))
        return cls(cell, Path(given.pop("out")), **given)


def run_job(job: Job, reporter: Reporter | None = None) -> Record:
    """The cell's record; trains the cell first unless it is finished.

    Raises:
        RunFolderError: If the folder holds another run.
        RunError, ConfigError, Interrupted: As ``training.train``; a variant with a learning rate of
            its own that diverges has a record instead.
    """
    folder = RunFolder(job.cell.folder(job.out))
    config = job.cell.config(job.source, job.machine)
    if folder.started:
        config = same_run(folder, config)
    result = folder.path / RESULT
    if not result.is_file():
        wait_for_lock(folder)
        data = load_once(replace(config.data, source=job.source))
        try:
            train(
                None if folder.started else config,
                folder.path,
                resume=folder.started,
                reporter=reporter,
                data=data,
            )
            record = describe(job.cell, folder, data)
        except DivergedError as error:
            if "+lr=" not in job.cell.variant:
                raise
            record = describe_diverged(job.cell, config, data, str(error))
        write_whole(result, (json.dumps(record, allow_nan=False) + "\n").encode())
    finished = finished_record(job.cell, job.out)
    assert finished is not None
    return finished


def finished_record(cell: Cell, out: Path) -> Record | None:
    """The record in a cell's run folder; None if the cell is not finished.

    Raises:
        RunFolderError: If the file holds no record, or another cell's.
    """
    path = cell.folder(out) / RESULT
    if not path.is_file():
        return None
    record = require_record(read_object(path), str(path))
    check_record(record, str(path))
    if (record["kind"], record["key"]) != (CELL, cell.key):
        raise RunFolderError(
            f"{path} must be the result of {CELL} {cell.key}, found {record['kind']} "
            f"{record['key']}; remove it, and anynest reproduce makes it anew"
        )
    return record


def same_run(folder: RunFolder, config: TrainConfig) -> TrainConfig:
    """The stored config, if it equals the cell's apart from machine and image location.

    Raises:
        RunFolderError: If it does not.
    """
    stored = read_config(folder.config)
    if _without_machine(stored) != _without_machine(config):
        raise RunFolderError(
            f"{folder.path} holds another run than this cell: choose another --out"
        )
    return stored


def _without_machine(config: TrainConfig) -> dict[str, Any]:
    sections = config.to_json()
    for key in ("device", "threads", "save_minutes", "save_batches"):
        del sections["run"][key]
    for key in ("source", "workers", "evaluation_batch_size"):
        del sections["data"][key]
    return sections


def wait_for_lock(folder: RunFolder) -> None:
    """Waits for the worker of a killed sweep, which saves and exits within seconds.

    Raises:
        RunFolderError: If the folder stays locked.
    """
    if not folder.path.is_dir():
        return
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            with folder.locked():
                return
        except RunFolderError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def load_once(config: DataConfig) -> Dataset:
    """The images; the last set is kept for the process's next cells."""
    if config not in _loaded:
        _loaded.clear()
        _loaded[config] = config.load()
    return _loaded[config]


def named(cell: Cell) -> Record:
    """What a record says of its cell, the code that made it, and when."""
    return {
        "kind": CELL,
        "key": cell.key,
        "protocol": cell.protocol,
        "design": cell.design,
        "independent": cell.independent,
        "variant": cell.variant,
        "seed": cell.seed,
        "settings": cell.settings,
        "revision": revision(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(cell: Cell, folder: RunFolder, data: Dataset) -> Record:
    """The record of a cell whose run has finished."""
    summary = read_object(folder.summary)
    history, stored = folder.read_history(), read_config(folder.config).to_json()
    model = create_model(summary["model"], **summary["arguments"])
    costs = model.cost(data.image_size)
    test = summary["test"]
    top5 = {"top5_error": test["top5_error"]} if "top5_error" in test else {}
    # without held-out images the test split takes their place, which must choose no settings
    held_out = (
        {} if data.validation_is_test else {"validation_error": summary["validation"]["error"]}
    )
    return {
        **named(cell),
        "data": summary["data"],
        "error": test["error"],
        **top5,
        "loss": test["loss"],
        **held_out,
        "test_images": test["images"],
        "train_images": len(data.train),
        "train_error": summary["train"]["error"],
        "parameters": [cost.parameters for cost in costs],
        "multiply_adds": [cost.multiply_adds for cost in costs],
        "cosines": thinned_cosines(history),
        "epochs": summary["epochs"],
        "seconds": round(summary["training_seconds"], 3),
        "machine": {key: value for key, value in stored["run"].items() if key != "seed"},
        "anynest": summary["anynest"],
        "environment": summary["environment"],
    }


def describe_diverged(cell: Cell, config: TrainConfig, data: Dataset, why: str) -> Record:
    """The record of a learning rate at which the loss is not finite: all answers count as wrong, so
    that no choice among rates falls on it or waits for it."""
    model: Any = config.model.build(data.num_classes, data.in_channels, data.image_size)
    costs = model.cost(data.image_size)
    wrong = [1.0] * len(costs)
    return {
        **named(cell),
        "data": data.label,
        "diverged": why,
        "error": wrong,
        **({} if data.validation_is_test else {"validation_error": wrong}),
        "test_images": len(data.test),
        "train_images": len(data.train),
        "parameters": [cost.parameters for cost in costs],
        "multiply_adds": [cost.multiply_adds for cost in costs],
        "cosines": [],
        "machine": {key: value for key, value in asdict(config.run).items() if key != "seed"},
        "anynest": __version__,
        "environment": describe_environment(find_device(config.run.device)),
    }


def thinned_cosines(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cosines between the losses' gradients of at most ``COSINE_EPOCHS`` epochs, as the rows of
    the lower triangle."""
    measured = [epoch for epoch in history if epoch["cosines"]]
    step = max(1, -(-len(measured) // COSINE_EPOCHS))
    return [
        {
            "epoch": epoch["epoch"],
            "batches": epoch.get("cosine_batches"),  # absent in runs begun by an older version
            "cosines": [
                [round(value, 4) for value in row[:i]]
                for i, row in enumerate(epoch["cosines"])
                if i
            ],
        }
        for epoch in measured[step - 1 :: step]
    ]


def revision() -> str:
    """The git commit of the running code, with ``-dirty`` if the code was changed since; the
    version if the code is not in a checkout."""
    package = Path(__file__).parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", "__init__.py")
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return f"anynest {__version__}"
    return commit + ("-dirty" if changed or not tracked else "")
