"""Estimates the duration of a sweep from finished cells, or else from a few measured steps."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from ...data import Dataset
from ...training import TrainConfig
from ...training.environment import computing
from ...training.step import TrainStep
from ...training.training_phases import count_phases, make_phase
from ..catalog.cell import Cell, Settings
from ..results.records import Record

SAMPLE = 32  # images of a measured step on a CPU, scaled up to the batch
STEPS = 3


def estimate(
    cells: Sequence[Cell],
    records: Sequence[Record],
    data: Dataset,
    machine: dict[str, object],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Seconds of training of each cell, by key.

    A cell takes the median of the finished cells that differ from it in the seed alone. Without
    any, it is measured once per design, variant and size: a warm-up step and ``STEPS`` more per
    training phase, on random images.

    Args:
        cells: The cells to estimate.
        records: Records of finished cells.
        data: The images.
        machine: Settings of the config's section ``run``.
        report: Called with the number of cells that are estimated and of all, after each one.
    """
    seconds: dict[tuple[str, str, int | None], float] = {}
    result = {}
    for number, cell in enumerate(cells, 1):
        run = (cell.design, cell.variant, cell.independent)
        if run not in seconds:
            finished = [
                record["seconds"]
                for record in records
                if "seconds" in record
                and with_seed_0(record["settings"]) == with_seed_0(cell.settings)
            ]
            seconds[run] = (
                statistics.median(finished) if finished else measured_seconds(cell, data, machine)
            )
        result[cell.key] = seconds[run]
        report(number, len(cells))
    return result


def with_seed_0(settings: Settings) -> Settings:
    """Settings without the difference of the seed."""
    return {**settings, "run": {**settings["run"], "seed": 0}}


def measured_seconds(cell: Cell, data: Dataset, machine: dict[str, object]) -> float:
    """Seconds of training, from a few steps of each training phase."""
    config = cell.config("digits", dict(machine))
    with computing(config.run) as device:
        model = config.model.build(data.num_classes, data.in_channels).to(device)
        total = 0.0
        for index in range(count_phases(config, model)):
            phase = make_phase(config, model, index)
            step = TrainStep(config, phase, device)
            phase.train_mode()
            total += seconds_per_step(config, step, device, data)
    batches = len(data.train) // config.data.batch_size
    return total * batches * config.schedule.epochs


def seconds_per_step(
    config: TrainConfig, step: TrainStep, device: torch.device, data: Dataset
) -> float:
    """The fastest of a few steps, scaled to the config's batch."""
    sample = config.data.batch_size if device.type != "cpu" else SAMPLE
    size = (data.in_channels, data.image_size, data.image_size)
    inputs = torch.randn(sample, *size, device=device)
    labels = torch.randint(data.num_classes, (sample,), device=device)
    best = float("inf")
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        step(inputs, labels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best * config.data.batch_size / sample
