"""Every stage's predictions for labelled images, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..data import Loader
from ..engines.model_source import Source
from ..predict.early_stopping.calibration import HeldOut
from ..predict.predictor import AnytimePredictor
from ..training.output.reporting import ProgressBar
from .backend import find_backend
from .console import Console


def collect(
    path: str,
    source: Source,
    loader: Loader,
    console: Console,
    *,
    backend: str | None = None,
    threads: int = 1,
    device: str | torch.device = "cpu",
) -> HeldOut:
    """Predict the images of a loader.

    Args:
        path: a run folder, a weights file or an exported folder.
        source: what it is.
        loader: of images in main memory.
        console: where the progress is shown.
        backend: as in ``find_backend``.
        threads: within one kernel.
        device: of torch.
    """
    backend, place = find_backend(source, backend, device)
    predictor = AnytimePredictor(path, backend, threads=threads, device=place, info=source.info)
    with predictor, ProgressBar(console, "answers of every stage") as bar:
        return HeldOut.collect(predictor, _batches(loader, bar))


def _batches(loader: Loader, bar: ProgressBar) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches, which the bar counts; those whose images were all skipped are left out."""
    for done, (images, labels) in enumerate(loader.batches(0)):
        bar.report(done, len(loader))
        if len(labels):
            yield images, labels
