"""Many callers: open evaluations are bounded, and other callers wait within their deadlines."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from anynest import create_model
from anynest.predict.prediction import DeadlineError, Prediction
from anynest.predict.predictor import AnytimePredictor
from anynest.predict.scheduler import MAX_EVALUATIONS
from anynest.store import WeightsInfo

from .conftest import PATIENCE, settle

MakeImage = Callable[[float], Tensor]


def test_open_evaluations_are_bounded(make_session: Any, make_image: MakeImage) -> None:
    most = 0

    def on_step(stage: int, node: int) -> None:
        nonlocal most
        most = max(most, len(session.open))

    session = make_session(on_step=on_step)

    async def main() -> list[Prediction]:
        calls = [predictor.apredict(make_image(float(n)), 60.0) for n in range(300)]
        return await asyncio.gather(*calls)

    with AnytimePredictor(session) as predictor:
        for number, prediction in enumerate(asyncio.run(main())):
            assert prediction.logits.tolist() == [3.0 * number, 0, 0, 0]
        settle(lambda: not session.open)
    assert most == MAX_EVALUATIONS


def test_callers_beyond_the_bound_wait_within_their_deadline(
    make_session: Any, make_image: MakeImage, gates: Any
) -> None:
    gate = gates(2)
    session = make_session(on_step=gate)
    with AnytimePredictor(session) as predictor, ThreadPoolExecutor(MAX_EVALUATIONS) as pool:
        first = [
            pool.submit(predictor.predict, make_image(1.0), None) for _ in range(MAX_EVALUATIONS)
        ]
        assert gate.reached.wait(PATIENCE)
        start = time.monotonic()
        with pytest.raises(DeadlineError):
            predictor.predict(make_image(2.0), 0.05)
        assert time.monotonic() - start >= 0.05
        gate.opened.set()
        assert all(future.result(PATIENCE).stage == 3 for future in first)
        assert predictor.predict(make_image(3.0), None).stage == 3
        settle(lambda: not session.open)
    assert {image for image, _, _ in session.log} == {(1.0,), (3.0,)}


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts handles in /proc")
def test_300_callers_and_few_handles(tmp_path: Path) -> None:
    """One handle per caller would exceed the limit; none is left open afterwards."""
    torch.manual_seed(0)
    network = create_model("width_nested_resnet10", in_channels=1, base_width=2).eval()
    info = WeightsInfo("m", {}, tuple("abcdefghij"), (0.4,), (0.3,), 8, "d", "0")
    path = tmp_path / "a.png"
    Image.effect_noise((8, 8), 90).save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> list[Prediction]:
        inputs = [path if n % 3 == 0 else torch.randn(1, 8, 8) for n in range(300)]
        return await asyncio.gather(*[predictor.apredict(x, 60.0) for x in inputs])

    with AnytimePredictor(network, info=info) as predictor:
        asyncio.run(main())  # opens what stays open
        before = handles(), threading.active_count()
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] + 60, hard))
        try:
            predictions = asyncio.run(main())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [p.stage for p in predictions] == [3] * 300
        assert (handles(), threading.active_count()) == before
