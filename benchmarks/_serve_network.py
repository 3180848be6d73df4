"""The served network: trained once, its accuracy and its time by stage and batch, and C.

The network must be worth serving: each of its stages takes long enough that a server's own work per
request does not decide, and each is clearly better than the one before.

C is the capacity of one core without any server: the most requests a second that the engine
computes to the last stage, over all batch sizes; ``first`` the same for stage 1 alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anynest.data import load as load_data
from anynest.engines.onnx.export.export import export
from anynest.engines.open import open_session
from anynest.engines.session import Session, stages
from anynest.store import WeightsInfo, load, read_info, save_weights
from anynest.training import TrainConfig, train

BATCHES = (1, 2, 4, 8, 16, 32)
MODEL = {"name": "width_nested_resnet10", "base_width": 32, "growth": [[1, 1], [2, 1], [3, 1]]}
IMAGES = 2000  # of the test set: the requests, and what accuracy is measured on


@dataclass(frozen=True)
class Facts:
    """What is measured before any server runs.

    Attributes:
        model: the network's name and its data.
        images: how many the accuracies are measured on.
        accuracy: of each stage.
        right: ``[S]`` a text of ``1`` and ``0`` for each image.
        confidence: ``[S][images]`` the largest probability.
        batches: sizes.
        seconds: ``[S][k]`` median seconds of each stage at each batch size.
        high: ``[S][k]`` their 95th percentiles.
        digest: of the weights.
    """

    model: str
    images: int
    accuracy: list[float]
    right: list[str]
    confidence: list[list[float]]
    batches: list[int]
    seconds: list[list[float]]
    high: list[list[float]]
    digest: str

    @property
    def capacity(self) -> float:
        """C, requests per second."""
        return self.best_rate(len(self.seconds))

    @property
    def first(self) -> float:
        """Stage 1's capacity."""
        return self.best_rate(1)

    def best_rate(self, stage: int) -> float:
        """Most requests a second to a stage, over the batch sizes."""
        totals = [sum(column) for column in zip(*self.seconds[:stage], strict=True)]
        return max(size / total for size, total in zip(self.batches, totals, strict=True))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"capacity": self.capacity, "first": self.first}


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Run this thread, and processes started meanwhile, on one core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def train_once(folder: Path, data: str, *, epochs: int, limit: int | None, **model: Any) -> None:
    """Train the network, unless the folder holds a finished run."""
    if (folder / "summary.json").exists():
        return
    config = TrainConfig.from_json(
        {
            "model": MODEL | model,
            "data": {"source": data, "limit": limit, "batch_size": 64, "augment": "none"},
            "method": {"name": "osgd", "refresh": 16},
            "optimizer": {"lr": 0.05},
            "schedule": {"epochs": epochs, "shape": "cosine", "warmup_epochs": 0.1 * epochs},
            "run": {
                "device": "cpu",
                "precision": "bf16",
                "channels_last": True,
                "threads": 1,
                "gradient_stats": False,
                "save_minutes": 2,
            },
        }
    )
    train(config, folder, resume=folder.exists() and any(folder.iterdir()))


def test_images(data: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 ``[N, C, H, W]`` and labels of the first images of the test split."""
    split = load_data(data).test
    return split.images[:count].numpy(), split.labels[:count].numpy()


def prepare(images: np.ndarray, info: WeightsInfo) -> torch.Tensor:
    """float32 images as in training."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (info.mean, info.std))
    return (torch.from_numpy(images).float() / 255 - mean) / std


def measure_answers(
    session: Session, x: torch.Tensor, labels: np.ndarray
) -> tuple[list[str], list[list[float]]]:
    """Of each stage and image: whether it is right, and the confidence."""
    right = [""] * session.num_stages
    confidence: list[list[float]] = [[] for _ in right]
    for start in range(0, len(x), 32):
        truth = labels[start : start + 32]
        evaluation = session.begin(x[start : start + 32])
        for stage, logits in stages(evaluation):
            highest, found = logits.softmax(1).max(1)
            right[stage - 1] += "".join(str(int(one)) for one in found.numpy() == truth)
            confidence[stage - 1] += [round(value, 3) for value in highest.tolist()]
        evaluation.close()
    return right, confidence


def measure_times(
    session: Session, x: torch.Tensor, batches: tuple[int, ...], seconds: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Median and 95th percentile of each stage at each batch size; sizes take turns."""
    found: dict[int, list[list[float]]] = {size: [] for size in batches}
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(found[batches[-1]]) < 5:
        for size in batches:
            evaluation = session.begin(x[:size])
            marks = [time.perf_counter()]
            for _ in stages(evaluation):
                marks.append(time.perf_counter())
            evaluation.close()
            found[size].append(np.diff(marks).tolist())
    warm = {size: np.array(runs[1:]) for size, runs in found.items()}
    tables = [
        [np.quantile(warm[size][:, stage], q).item() for size in batches]
        for q in (0.5, 0.95)
        for stage in range(session.num_stages)
    ]
    return tables[: session.num_stages], tables[session.num_stages :]


def facts(run: Path, data: str, core: int | None, *, count: int, seconds: float) -> Facts:
    """Measure a run on one core."""
    images, labels = test_images(data, count)
    x = prepare(images, read_info(run))
    with on_core(core):
        session = open_session(run, threads=1)
        try:
            right, confidence = measure_answers(session, x, labels)
            median, high = measure_times(session, x, BATCHES, seconds)
        finally:
            session.close()
    summary = json.loads((run / "summary.json").read_text())
    name = f"{read_info(run).model}, {summary['data']}"
    accuracy = [bits.count("1") / len(x) for bits in right]
    digest = digest_of(run)
    return Facts(name, len(x), accuracy, right, confidence, list(BATCHES), median, high, digest)


def known_facts(records: Path | None, run: Path) -> Facts | None:
    """What was measured before any of these records: all their loads are multiples of one C.

    Raises:
        SystemExit: the records are of another network.
    """
    if records is None or not records.exists():
        return None
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    for record in (line for line in lines if line["kind"] == "facts"):
        if record["digest"] != digest_of(run):
            raise SystemExit(f"--out must hold records of this network, found others in {records}")
        return Facts(**{field.name: record[field.name] for field in fields(Facts)})
    return None


def digest_of(run: Path) -> str:
    """Of a run's weights."""
    return hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()[:16]


def write_static(run: Path, folder: Path) -> list[Path]:
    """A weights file for each stage alone: the network whose only output is that stage's."""
    network, info = load(run), read_info(run)
    files = []
    for stage in range(1, network.num_stages + 1):
        alone = network.subnetwork(stage)
        files.append(folder / f"static{stage}.safetensors")
        save_weights(files[-1], alone, replace(info, arguments=alone.arguments))
    return files


def write_graphs(run: Path, folder: Path) -> list[Path]:
    """Each stage alone as one ONNX file, the model of every peer."""
    network, info = load(run), read_info(run)
    files = []
    for stage in range(1, network.num_stages + 1):
        place = folder / f"onnx{stage}"
        if not (place / "manifest.json").exists():
            export(network.subnetwork(stage).eval(), place, info=info)
        files.append(place / "stage1.onnx")
    return files


def predicted_labels(run: Path, images: np.ndarray) -> np.ndarray:
    """The last stage's labels, computed here."""
    session = open_session(run, threads=1)
    try:
        evaluation = session.begin(prepare(images, read_info(run)))
        logits = [logits for _, logits in stages(evaluation)][-1]
        evaluation.close()
    finally:
        session.close()
    return logits.argmax(1).numpy()


def idle_times(
    run: Path, images: np.ndarray, core: int | None, count: int, gap: float
) -> list[float]:
    """Seconds of single images through all stages on a core, with pauses: pixels to label."""
    with on_core(core):
        session, info = open_session(run, threads=1), read_info(run)
        found = []
        try:
            for number in range(count):
                start = time.perf_counter()
                evaluation = session.begin(prepare(images[number : number + 1], info))
                logits = [logits for _, logits in stages(evaluation)][-1]
                logits.softmax(1).argmax(1).item()
                found.append(time.perf_counter() - start)
                evaluation.close()
                time.sleep(gap)
        finally:
            session.close()
    return found
