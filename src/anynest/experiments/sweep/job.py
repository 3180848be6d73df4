"""One cell, brought to its end in this process: from its folder, however far it is, to its line."""

import json
import subprocess
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...data import Dataset
from ...nets import create_model
from ...store import RunFolderError, write_whole
from ...training import DataConfig, TrainConfig, train
from ...training.config.train_config import read_config, read_object
from ...training.output.reporting import Reporter
from ...training.output.run_folder import RunFolder
from ..results.checks import check_line
from ..results.records import CELL, Line, require_result
from .cell import Cell

RESULT = "result.json"  # in the run folder: the cell's line
EPOCHS_TOLD = 20  # of which the line keeps the cosines
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
        """Back from JSON."""
        given = json.loads(text)
        cell = Cell(**given.pop("cell"))
        return cls(cell, Path(given.pop("out")), **given)


def run_job(job: Job, reporter: Reporter | None = None) -> Line:
    """The cell's line: read where the cell is finished, else trained to its end first.

    Errors: as ``training.train`` raises them; RunFolderError where the folder holds another run.
    """
    folder = RunFolder(job.cell.folder(job.out))
    config = job.cell.config(job.source, job.machine)
    if folder.started:
        config = same_run(folder, config)
    result = folder.path / RESULT
    if not result.is_file():
        wait_for_lock(folder)
        data = load_once(config.data)
        train(
            None if folder.started else config,
            folder.path,
            resume=folder.started,
            reporter=reporter,
            data=data,
        )
        line = describe(job.cell, folder, data)
        write_whole(result, (json.dumps(line, allow_nan=False) + "\n").encode())
    finished = finished_line(job.cell, job.out)
    assert finished is not None
    return finished


def finished_line(cell: Cell, out: Path) -> Line | None:
    """The line of a cell that is finished in its folder.

    Errors: RunFolderError, one line, where the file holds no result, or another's.
    """
    path = cell.folder(out) / RESULT
    if not path.is_file():
        return None
    line = require_result(read_object(path), str(path))
    check_line(line, str(path))
    if (line["kind"], line["key"]) != (CELL, cell.key):
        raise RunFolderError(
            f"{path} must be the result of {CELL} {cell.key}, found {line['kind']} {line['key']}; "
            "remove it, and anynest reproduce makes it anew"
        )
    return line


def same_run(folder: RunFolder, config: TrainConfig) -> TrainConfig:
    """The stored config, if it is the cell's but for the place of the images and the machine."""
    stored = read_config(folder.config)
    if _essence(stored) != _essence(config):
        raise RunFolderError(
            f"{folder.path} holds another run than this cell: choose another --out"
        )
    return stored


def _essence(config: TrainConfig) -> dict[str, Any]:
    """A config without the machine; the images' place is left out, for folders move."""
    sections = config.to_json()
    for key in ("device", "threads", "save_minutes", "save_batches"):
        del sections["run"][key]
    for key in ("source", "workers", "evaluation_batch_size"):
        del sections["data"][key]
    return sections


def wait_for_lock(folder: RunFolder, seconds: float = 60.0) -> None:
    """A worker whose sweep was killed saves and leaves within seconds: wait for it."""
    if not folder.path.is_dir():
        return
    until = time.monotonic() + seconds
    while True:
        try:
            with folder.locked():
                return
        except RunFolderError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def load_once(config: DataConfig) -> Dataset:
    """The images, which one process reads once for all its cells."""
    if config not in _loaded:
        _loaded.clear()  # one set at a time
        _loaded[config] = config.load()
    return _loaded[config]


def describe(cell: Cell, folder: RunFolder, data: Dataset) -> Line:
    """The line of a cell whose run has just come to its end."""
    summary = read_object(folder.summary)
    history, stored = folder.read_history(), read_config(folder.config).to_json()
    model = create_model(summary["model"], **summary["arguments"])
    costs = model.cost(data.image_size)
    test = summary["test"]
    return {
        "kind": CELL,
        "key": cell.key,
        "protocol": cell.protocol,
        "data": summary["data"],
        "design": cell.design,
        "independent": cell.independent,
        "variant": cell.variant,
        "seed": cell.seed,
        "error": test["error"],
        **({"top5_error": test["top5_error"]} if "top5_error" in test else {}),
        "loss": test["loss"],
        **held_out(summary, data),
        "test_images": test["images"],
        "train_images": len(data.train),
        "train_error": summary["train"]["error"],
        "parameters": [cost.parameters for cost in costs],
        "multiply_adds": [cost.multiply_adds for cost in costs],
        "cosines": thinned_cosines(history),
        "epochs": summary["epochs"],
        "seconds": round(summary["training_seconds"], 3),
        "settings": cell.settings,
        "machine": {key: value for key, value in stored["run"].items() if key != "seed"},
        "revision": revision(),
        "anynest": summary["anynest"],
        "environment": summary["environment"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def held_out(summary: dict[str, Any], data: Dataset) -> dict[str, list[float]]:
    """The error on the images held out, by which settings are chosen; nothing where there are
    none, and the test split stands in for them."""
    if data.validation_is_test:
        return {}
    return {"validation_error": summary["validation"]["error"]}


def thinned_cosines(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most ``EPOCHS_TOLD`` epochs: the cosine between the gradients of every two losses, as
    the rows of the lower triangle."""
    measured = [line for line in history if line["cosines"]]
    step = max(1, -(-len(measured) // EPOCHS_TOLD))
    return [
        {
            "epoch": line["epoch"],
            "cosines": [
                [round(value, 4) for value in row[:i]] for i, row in enumerate(line["cosines"]) if i
            ],
        }
        for line in measured[step - 1 :: step]
    ]


def revision() -> str:
    """The git commit of the code that runs, with ``-dirty`` where the code differs from it; the
    version where it is no checkout."""
    place = Path(__file__).parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(place), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", "__init__.py")
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return f"anynest {__version__}"
    return commit + ("-dirty" if changed or not tracked else "")
