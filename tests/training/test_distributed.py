"""Runs of two ranks beside runs of one process, and a rank that is killed under torchrun."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from anynest.training import TrainConfig
from anynest.training.distributed import World
from anynest.training.environment import find_device
from anynest.training.errors import ConfigError
from anynest.training.metrics import RunningMetrics
from anynest.training.randomness import seed_everything
from anynest.training.rendezvous import new_prefix

RUNNER = Path(__file__).with_name("rank_runner.py")
KILLED = Path(__file__).with_name("kill_rank.py")
TIMES = ("seconds", "images_per_second")
Tiny = Callable[..., TrainConfig]

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available() and hasattr(os, "fork")),
    reason="needs gloo and fork",
)


def finished(command: list[Any], timeout: float, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; what it has started ends with it, in time or not."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **more,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


# What float32 rounds differently grows step by step, in one process as much: at a rate of 0.1 a
# change of 4e-8 in these weights becomes one of 4e-4 within five steps. At 0.002 it stays small.
SLOW = {"lr": 0.002}


@pytest.fixture(scope="module")
def runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Their folder, and how each of their processes ended: [status, what it told]."""
    folder = tmp_path_factory.mktemp("runs")
    data = {"batch_size": 63}  # parts of 31 and 32
    configs = {
        "tiny": tiny(data=data, optimizer=SLOW),
        "greedy": tiny(
            data=data, optimizer=SLOW, method={"name": "greedy"}, schedule={"epochs": 1}
        ),
        "local": tiny(data=data, run={"sync_batch_norm": False}),
        "minutes": tiny(data=data, schedule={"epochs": 1}, run={"save_minutes": 5.0}),
    }
    texts = json.dumps({name: config.to_json() for name, config in configs.items()})
    done = finished([RUNNER, folder, texts], 900)
    assert done.returncode == 0, done.stderr
    ends: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return folder, ends


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "weights.safetensors")
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    """The epochs' lines without their times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def close(a: Any, b: Any, limit: float) -> bool:
    """Numbers in lists and objects, each within ``limit``."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k], limit) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(close(x, y, limit) for x, y in zip(a, b, strict=True))
    return a == b if not isinstance(a, float) else abs(a - b) <= limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "beside"),
    [("two", "one"), ("fewer", "one"), ("more", "one"), ("greedy-two", "greedy-one")],
)
def test_two_ranks_train_as_one_process(
    runs: tuple[Path, dict[str, Any]], tiny: Tiny, name: str, beside: str
) -> None:
    """Also where a run of two is resumed by one, and the other way round."""
    folder, ends = runs
    assert all(status == 0 for status, _ in ends[name] + ends[beside])
    ours, true = weights(folder / name), weights(folder / beside)
    seed_everything(0)
    start = tiny().model.build(10, 1).state_dict()
    learned = [key for key in true if "norm" not in key or key.endswith(("weight", "bias"))]
    moved = torch.cat([(true[key] - start[key]).flatten() for key in learned]).norm()
    apart = torch.cat([(true[key] - ours[key]).flatten() for key in learned]).norm()
    assert apart < 5e-4 * moved
    for key in true.keys() - set(learned):  # running statistics, which move all the way
        error = (ours[key].double() - true[key]).norm()
        assert error <= 1e-3 * true[key].double().norm() + 1e-6, key
    assert close(lines(folder / name), lines(folder / beside), 2e-3)


def test_every_rank_is_told_the_result(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, ends = runs
    summary = json.loads((folder / "two" / "summary.json").read_text())
    assert summary["ranks"] == 2
    assert summary["test"]["images"] == 360
    assert summary["validation"]["images"] == 144
    assert [json.loads(told) for _, told in ends["two"]] == [summary["test"]["error"]] * 2
    assert ends["finished"] == ends["two"]


@pytest.mark.parametrize(
    ("stopped", "resumed", "beside"),
    [("stopped", "resumed", "two"), ("local-stopped", "local-resumed", "local")],
)
def test_a_signal_for_one_rank_stops_all_and_costs_no_bit(
    runs: tuple[Path, dict[str, Any]], stopped: str, resumed: str, beside: str
) -> None:
    folder, ends = runs
    assert [status for status, _ in ends[stopped]] == [128 + signal.SIGTERM] * 2
    said = {told for _, told in ends[stopped]}
    assert len(said) == 1
    # it comes during batch 7, is told before batch 8 and heard before batch 9, the epoch's fourth
    assert "stopped at epoch 2, batch 4 of 5 and saved" in said.pop()
    assert [status for status, _ in ends[resumed]] == [0, 0]
    assert (folder / stopped / "weights.safetensors").read_bytes() == (
        folder / beside / "weights.safetensors"
    ).read_bytes()
    assert lines(folder / stopped) == lines(folder / beside)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("used", "RunFolderError: run folder .*two must be empty or new"),
        ("poisoned", "DivergedError: loss 1 is not finite on rank 1 at epoch 1, batch 4 of 5"),
        ("full", "RunError: cannot write .*No space left on device"),
        (
            "other-data",
            "ConfigError: all ranks must read the same data, found .* 320 train.* 300 train",
        ),
    ],
)
def test_ranks_fail_together_with_the_same_words(
    runs: tuple[Path, dict[str, Any]], name: str, words: str
) -> None:
    (status, told), other = runs[1][name]
    assert status == 1
    assert other == [status, told]
    assert re.match(words, told)


def test_ranks_hold_one_state_without_joined_norms(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = runs
    one, other = (torch.load(folder / f"state.{rank}", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any("running_mean" in key for key in one)


def test_averages_are_over_the_ranks() -> None:
    class Two:
        """The other rank holds three times what this one does."""

        def all_reduce(self, numbers: torch.Tensor) -> torch.Tensor:
            return 4 * numbers

    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]], dtype=torch.float64)]
    World(0, 2, link=Two()).average(tensors)  # type: ignore[arg-type]
    assert [tensor.tolist() for tensor in tensors] == [[2.0, 4.0], [[6.0]]]


def test_all_ranks_begin_with_the_first_ones_weights(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = runs
    files = [folder / name / "weights.safetensors" for name in ("unlike", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_leaders_clock_saves_for_all(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, ends = runs
    assert [status for status, _ in ends["minutes"]] == [0, 0]
    names = sorted(path.name for path in (folder / "minutes" / "checkpoints").iterdir())
    assert names == ["step-000000004.ckpt", "step-000000005.ckpt"]


@pytest.mark.slow
def test_a_killed_rank_is_restarted_by_torchrun_to_the_same_bits(
    runs: tuple[Path, dict[str, Any]], tiny: Tiny, tmp_path: Path
) -> None:
    """Rank 1 is gone before the eighth of ten batches; checkpoints stand after 3, 5 and 6."""
    config = tiny(data={"batch_size": 63}, optimizer=SLOW, run={"save_batches": 3})
    (tmp_path / "config.json").write_text(config.dumps())
    log = tmp_path / "log"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    command = ["train", "--config", tmp_path / "config.json", "--out", tmp_path / "run"]
    done = finished([*torchrun, "--max-restarts", 1, KILLED, log, 8, *command], 600)
    assert done.returncode == 0, done.stderr
    # who began with which batch in which life: both from the start, then both after the sixth
    begun = sorted(log.read_text().splitlines())
    assert begun == [
        f"life {life} rank {rank} from {6 * life}" for life in (0, 1) for rank in (0, 1)
    ]
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (
        runs[0] / "two" / "weights.safetensors"
    ).read_bytes()
    assert lines(tmp_path / "run") == lines(runs[0] / "two")
    assert done.stdout.count("epoch 2/2") == 1  # one rank speaks
    assert done.stdout.count("weights.safetensors") == 1


def test_ranks_of_a_new_life_do_not_meet_those_of_an_old_one() -> None:
    """The store keeps all that an earlier life, in which rank 2 came late, has written."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=60))
    for rank in (1, 2):
        store.set(f"anynest/greeting/{rank}", f"old{rank}")
    store.set("anynest/answer/old1", "old word")
    store.set("anynest/known/old word/1", b"")
    words = []
    for late in (0, 2, 1):
        with ThreadPoolExecutor() as pool:

            def join(rank: int, late: int = late) -> str:
                time.sleep(0.05 * (rank == late))
                return new_prefix(store, rank, 3)

            found = set(pool.map(join, range(3)))
        assert len(found) == 1
        words += found
    assert len({*words, "old word"}) == 4


def test_one_process_is_a_world_without_a_word(tmp_path: Path) -> None:
    world = World()
    tensor = torch.ones(3)
    assert world.run_on_rank_zero(lambda: b"told") == b"told"
    assert world.gather(b"own") == [b"own"]
    assert world.total([tensor])[0] is tensor
    assert world.leads


def test_a_rank_takes_the_device_of_its_number() -> None:
    assert find_device("cpu", 1) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"cuda:0' is not available|auto, cpu or cuda under"):
        find_device("cuda:0", 1)
    assert RunningMetrics(2, torch.device("cpu")).over(World()).tensors["loss"].tolist() == [
        0.0,
        0.0,
    ]
