"""Threads, handles and memory of a predictor over many predictions."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import torch

from anynest import AnytimePredictor, create_model

LOOKS = 20


def live(predictions: int) -> dict[str, Any]:
    """Make ``predictions`` of every kind with a tiny network, and record what the process holds."""
    torch.manual_seed(0)
    network = create_model("width_nested_resnet10", in_channels=1, base_width=2).eval()
    x = torch.randn(1, 8, 8)
    looks = []
    start = time.monotonic()
    with AnytimePredictor(network, threads=1) as predictor:
        for number in range(predictions):
            if number % max(1, predictions // LOOKS) == 0:
                looks.append(look(number))
            one(predictor, x, number)
        looks.append(look(predictions))
    gc.collect()
    after = look(predictions)
    settled = looks[len(looks) // 4]  # allocators are warm by then
    result = {
        "predictions": predictions,
        "seconds": time.monotonic() - start,
        "looks": looks,
        "closed": after,
        "growth": {key: looks[-1][key] - settled[key] for key in ("threads", "handles", "bytes")},
    }
    print(
        f"{predictions} predictions in {result['seconds']:.1f} s; from "
        f"{settled['predictions']} on {result['growth']['threads']:+d} threads, "
        f"{result['growth']['handles']:+d} handles, {result['growth']['bytes'] / 2**20:+.2f} MiB; "
        f"closed: {after['threads']} threads, {after['handles']} handles",
        flush=True,
    )
    return result


def one(predictor: AnytimePredictor, x: torch.Tensor, number: int) -> None:
    """One prediction: full, cut, late, a batch, an abandoned stream or an error, in turn."""
    kind = number % 8
    if kind < 3:
        predictor.predict(x, None)
    elif kind == 3:
        predictor.predict(x, 0.0002, on_timeout="guess")
    elif kind == 4:
        predictor.predict(x, 0.0, on_timeout="wait")
    elif kind == 5:
        predictor.predict(x.expand(3, 1, 8, 8), None)
    elif kind == 6:
        next(predictor.stream(x))
    else:
        try:
            predictor.predict(torch.zeros(1, 0, 8), None)
        except ValueError:
            return
        raise AssertionError("an empty image was accepted")


def look(number: int) -> dict[str, int]:
    """Threads, handles and resident memory of this process."""
    held = {"predictions": number, "threads": 0, "handles": 0, "bytes": 0}
    folder = Path("/proc/self")
    held["threads"] = len(os.listdir(folder / "task"))
    held["handles"] = len(os.listdir(folder / "fd"))
    held["bytes"] = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return held
