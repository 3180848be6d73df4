"""``anynest calibrate``: thresholds for early stopping, saved beside the network."""

import argparse
from pathlib import Path

import torch
from rich.table import Table

from ...data import AnySplit
from ...engines.model_source import resolve
from ...predict.early_stopping.calibration import CalibrationReport, HeldOut, calibrate
from ...predict.early_stopping.policies import Confidence
from ...predict.early_stopping.saved_policy import SavedPolicy, policy_file
from ...store import is_own, local_source
from ...training import ConfigError
from ...training.output.reporting import percent
from ..console import Console, make_table, print_json
from ..held_out import collect
from ..run_data import open_data
from ..usage.calibrate import MAX_DROP


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, save and print."""
    if not is_own(arguments.source) and not arguments.out:
        raise ConfigError(f"{arguments.source} lies in no folder of yours: give --out FILE")
    arguments.source = str(local_source(arguments.source))
    out = Path(arguments.out or policy_file(arguments.source))
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out} must lie in a folder that exists: make {out.parent} first")
    source = resolve(arguments.source)
    if source.info is None:
        raise ConfigError(f"{arguments.source} must hold the classes of pictures, found none")
    require_split(arguments)
    config, data = open_data(
        arguments.source, source.info, arguments.data, arguments.batch_size, arguments.workers
    )
    split: AnySplit = getattr(data, arguments.split or "validation")
    console = Console(stderr=arguments.json)
    loader = config.evaluation_loader(split, data, torch.device("cpu"))
    held_out = collect(
        arguments.source, source, loader, console,
        backend=arguments.backend, threads=arguments.threads, device=arguments.device,
    )  # fmt: skip
    with console.status("choosing thresholds"):
        policy, report = calibrate(Confidence(), held_out, **goal(arguments, held_out))
    saved = SavedPolicy.of(
        policy, report, source=arguments.source, model=source.info.model, data=data.label,
        split=split.name,
    )  # fmt: skip
    saved.save(out)
    if arguments.json:
        print_json({"file": str(out), **saved.to_json()})
    else:
        show(console, saved, report, out)
    return 0


def require_split(arguments: argparse.Namespace) -> None:
    """ConfigError where nothing says which images the network was not trained on."""
    path = Path(arguments.source)
    folder = path if path.is_dir() else path.parent
    if arguments.split is None and not (folder / "config.json").is_file():
        raise ConfigError(
            f"{path} does not tell which images it was trained on, and thresholds need others: "
            "give --data and --split, or calibrate the run's folder"
        )


def goal(arguments: argparse.Namespace, held_out: HeldOut) -> dict[str, float]:
    """The goal of ``calibrate``."""
    if arguments.budget is not None:
        value, is_share = arguments.budget
        return {"budget": value * held_out.costs[-1] if is_share else value}
    if arguments.target_accuracy is not None:
        return {"target_accuracy": arguments.target_accuracy}
    last = float(held_out.correct[-1].double().mean())
    most = MAX_DROP if arguments.max_drop is None else arguments.max_drop
    if last <= most:
        raise ConfigError(
            f"--max-drop must be below the last stage's accuracy, {last:.4f}, found {most}"
        )
    return {"target_accuracy": last - most}


def show(console: Console, saved: SavedPolicy, report: CalibrationReport, out: Path) -> None:
    """Print a row per stage, the policy's accuracy and cost, and the path."""
    console.print(stage_table(saved, report))
    console.print(describe(report))
    console.print(report.note)
    console.print(str(out))


def stage_table(saved: SavedPolicy, report: CalibrationReport) -> Table:
    """Where images exit, and what every image would have got there."""
    thresholds = [threshold_text(value) for value in saved.thresholds] + ["-"]
    rows = [
        [str(stage), threshold, percent(exits), percent(accuracy), f"{cost / 1e6:.3f}"]
        for stage, (threshold, exits, accuracy, cost) in enumerate(
            zip(
                thresholds, report.exit_rates, report.stage_accuracy, report.stage_cost, strict=True
            ),
            start=1,
        )
    ]
    columns = ["stage", "confidence\nto stop", "images %", "all stopped here:\naccuracy %"]
    columns.append("million\nmultiply-adds")
    title = f"{saved.model}, {saved.data}\n{saved.split} split, {report.images} images"
    return make_table(title, columns, rows)


def threshold_text(value: float) -> str:
    """
    >>> threshold_text(0.93217), threshold_text(2.0), threshold_text(0.0)
    ('0.932', 'never', 'always')
    """
    return "never" if value > 1 else "always" if value == 0 else f"{value:.3f}"


def describe(report: CalibrationReport) -> str:
    """Accuracy and cost of the policy, beside the last stage's."""
    expected = ""
    if report.expected_accuracy is not None:
        expected = f" ({percent(report.expected_accuracy)} % expected on other images)"
    share = report.cost / report.stage_cost[-1]
    return (
        f"with the policy: accuracy {percent(report.accuracy)} %{expected}, "
        f"{percent(share)} % of the last stage's multiply-adds"
    )
