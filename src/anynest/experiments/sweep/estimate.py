"""How long a sweep will take: from cells that are finished, else from a few steps, measured."""

import statistics
import time
from collections.abc import Sequence

import torch

from ...training import TrainConfig
from ...training.environment import computing
from ...training.step import TrainStep
from ...training.training_phases import count_phases, make_phase
from ..results.records import Line
from .cell import Cell

SAMPLE = 32  # images of a measured step: it is scaled up to the batch
STEPS = 3


def estimate(
    cells: Sequence[Cell],
    known: Sequence[Line],
    images: int,
    image_size: int,
    channels: int,
    classes: int,
    machine: dict[str, object],
) -> dict[str, float]:
    """Seconds of training for every cell, by key.

    A cell like finished ones (same design, variant and protocol, another seed) takes their median;
    any other is measured: one warm-up step and ``STEPS`` more a phase, on random images.
    """
    measured: dict[tuple[str, str, int | None], float] = {}
    result = {}
    for cell in cells:
        like = (cell.design, cell.variant, cell.independent)
        if like not in measured:
            alike = [line["seconds"] for line in known if "seconds" in line and kin(line, cell)]
            measured[like] = (
                statistics.median(alike)
                if alike
                else measure(cell, images, image_size, channels, classes, machine)
            )
        result[cell.key] = measured[like]
    return result


def kin(line: Line, cell: Cell) -> bool:
    """Whether a line is the cell's with another seed at most."""
    ours, theirs = cell.settings, line["settings"]
    return {**ours, "run": {**ours["run"], "seed": 0}} == {
        **theirs,
        "run": {**theirs["run"], "seed": 0},
    }


def measure(
    cell: Cell,
    images: int,
    image_size: int,
    channels: int,
    classes: int,
    machine: dict[str, object],
) -> float:
    """Seconds of training, from a few steps of every phase."""
    config = cell.config("digits", dict(machine))
    with computing(config.run) as device:
        model = config.model.build(classes, channels).to(device)
        total = 0.0
        for index in range(count_phases(config, model)):
            phase = make_phase(config, model, index)
            step = TrainStep(config, phase, device)
            phase.train_mode()
            total += seconds_a_step(config, step, device, (channels, image_size), classes)
    batches = images // config.data.batch_size
    return total * batches * config.schedule.epochs


def seconds_a_step(
    config: TrainConfig,
    step: TrainStep,
    device: torch.device,
    shape: tuple[int, int],
    classes: int,
) -> float:
    """The fastest of a few steps, scaled to the config's batch."""
    channels, size = shape
    sample = config.data.batch_size if device.type != "cpu" else SAMPLE
    inputs = torch.randn(sample, channels, size, size, device=device)
    labels = torch.randint(classes, (sample,), device=device)
    best = float("inf")
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        step(inputs, labels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best * config.data.batch_size / sample
