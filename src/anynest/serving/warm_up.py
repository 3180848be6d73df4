"""Measures every step of a model before it serves: first runs are slow, and plans need times."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from .batches import advance, begin
from .estimates import StepTimes
from .models import ServedModel, as_array
from .protocol.tensors import datatype_of

_log = logging.getLogger(__name__)

RUNS = 5  # at least, of each batch size, after one that is not counted
SECONDS = 0.3  # of each batch size, for more runs than these
MAX_RUNS = 40
PICTURE = 64  # pixels a side of the pictures that are decoded before the first client's
QUANTILE = 0.95

Progress = Callable[[ServedModel, int, int], None]  # model, batch sizes done, and to do


def batch_sizes(largest: int) -> list[int]:
    """
    >>> batch_sizes(12)
    [1, 2, 4, 8, 12]
    """
    return [*(1 << power for power in range(math.ceil(math.log2(largest)))), largest]


def warm_up(
    model: ServedModel,
    max_batch: int,
    *,
    quantile: float = QUANTILE,
    progress: Progress | None = None,
) -> None:
    """Run every stage at batch sizes 1, 2, 4, ... ``max_batch``; set the model's ``times``.

    A model of pictures decodes one of each usual format first: the decoders load on first use,
    which would make the first client's answer late.

    Args:
        model: to be measured, by the calling thread.
        max_batch: rows of the largest batch.
        quantile: of the measured times.
        progress: called after each batch size.
    """
    if model.session.in_channels is not None and "BYTES" in model.datatypes:
        _decode_pictures(model)
    sizes = batch_sizes(max_batch)
    times: list[list[float]] = [[] for _ in range(model.num_stages)]
    for done, size in enumerate(reversed(sizes), 1):  # the largest first: it takes the most memory
        runs: list[list[float]] = []
        began = time.perf_counter()
        while len(runs) < RUNS + 1 or (
            len(runs) < MAX_RUNS and time.perf_counter() - began < SECONDS
        ):
            runs.append(_run(model, size))
        measured = np.quantile(np.array(runs[1:]), quantile, axis=0)  # the first run is slow
        for stage, seconds in enumerate(measured):
            times[stage].insert(0, max(float(seconds), 1e-6))
        _log.info("warm-up of %s %s: batch %d", model.name, model.version, size)
        if progress is not None:
            progress(model, done, len(sizes))
    model.times = StepTimes([_rising(row) for row in times], sizes)


def _decode_pictures(model: ServedModel) -> None:
    """Decode and prepare a picture of each usual format; the last two know no grey pictures."""
    (name,) = model.example
    grey = model.session.in_channels == 1
    Image.init()
    for kind in ("PNG", "JPEG") if grey else ("PNG", "JPEG", "WEBP", "GIF"):
        if kind in Image.SAVE:  # Pillow may have been built without it
            file = io.BytesIO()
            Image.new("L" if grey else "RGB", (PICTURE, PICTURE)).save(file, kind)
            encoded = np.empty(1, dtype=object)
            encoded[0] = file.getvalue()
            model.read({name: encoded}, max_pixels=PICTURE * PICTURE)


def _run(model: ServedModel, size: int) -> list[float]:
    """Seconds of each stage for a batch."""
    seconds = []
    before = time.perf_counter()
    evaluations = begin(model.session, [model.example] * size)
    try:
        for _ in range(model.num_stages):
            output = torch.cat([advance(evaluation) for evaluation in evaluations])
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
    finally:
        for evaluation in evaluations:
            evaluation.close()
    values = as_array(output)
    model.output_shape, model.output_type = values.shape[1:], datatype_of(values)
    return seconds


def _rising(row: list[float]) -> list[float]:
    """A smaller batch never takes more than a larger one: what was measured as more is noise."""
    found: list[float] = np.minimum.accumulate(row[::-1])[::-1].tolist()
    return found
