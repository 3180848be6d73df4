"""Run by test_distributed.py in a process of its own: ``rank_runner.py FOLDER CONFIGS``.

CONFIGS is a JSON object of the configs by name. Runs of one and of two processes are made one after
another by forking, each as torchrun would start it. Prints as JSON how each process of each run
ended: [exit status, the last line it said].
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from anynest.data import load
from anynest.store import RunError, files, write_whole
from anynest.training import (
    Interrupted,
    MethodConfig,
    TrainConfig,
    checkpointer,
    step,
    train,
)
from anynest.training.distributed import joined
from anynest.training.output import summary

DATA = load("digits", limit=320)  # once, for all that are forked
Arm = Callable[[int], None]
ends: dict[str, list[tuple[int, str]]] = {}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(
    name: str, config: TrainConfig, folder: Path, ranks: int, arm: Arm | None = None, **more: Any
) -> None:
    """Train in ``ranks`` forked processes, after ``arm`` has prepared each of them."""
    port, children = free_port(), []
    for rank in range(ranks):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            if ranks > 1:
                os.environ.update(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(ranks),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port),
                )
            told, status = "", 1
            faulthandler.dump_traceback_later(
                240, exit=True
            )  # a rank that waits for ever says where
            try:
                if arm is not None:
                    arm(rank)
                result = train(config, folder, data=DATA, **more)
                told, status = json.dumps(result.test_error), 0
            except Interrupted as error:
                told, status = f"Interrupted: {error}", 128 + error.signal_number
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
                if not isinstance(error, RunError | ValueError):
                    told = traceback.format_exc()
            os.write(write, told.encode()[-4000:])
            os._exit(status)
        os.close(write)
        children.append((child, read))
    found = []
    for child, read in children:
        with os.fdopen(read) as pipe:
            told = pipe.read()
        status = os.waitpid(child, 0)[1]
        found.append((os.waitstatus_to_exitcode(status), told))
    ends[name] = found


def at_step(count: int, deed: Callable[[step.TrainStep], None]) -> None:
    """Do something before the count-th step of this process."""
    real = step.TrainStep.__call__
    calls = 0

    def counted(self: step.TrainStep, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            deed(self)
        return real(self, *arguments, **named)

    step.TrainStep.__call__ = counted


def terminate(rank_told: int, count: int) -> Arm:
    """A SIGTERM for one rank alone."""

    def arm(rank: int) -> None:
        if rank == rank_told:
            at_step(count, lambda _: os.kill(os.getpid(), signal.SIGTERM))

    return arm


def poison(rank: int) -> None:
    """Rank 1's own loss of stage 2 becomes NaN; its weights are sound."""

    def ruin(self: step.TrainStep) -> None:
        real = type(self.config.method).criterion
        calls = 0

        def criterion(method: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return real(method, logits, labels) * (float("nan") if calls == 2 else 1.0)

        type(self.config.method).criterion = criterion

    if rank == 1:
        at_step(4, ruin)


def full_disk(rank: int) -> None:
    """Rank 0 cannot write its third file."""
    real, calls = files._write, 0

    def write(file: Any, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        real(file, data)

    files._write = write


def minutes(rank: int) -> None:
    """A clock that runs fast on rank 0 alone: an hour a look."""
    if rank == 0:
        now = 0.0

        def monotonic() -> float:
            nonlocal now
            now += 3600.0
            return now

        checkpointer.time = SimpleNamespace(monotonic=monotonic)


def noisy(rank: int) -> None:
    """The losses depend on each rank's own generator, as dropout makes them."""
    real = MethodConfig.criterion

    def criterion(method: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return real(method, logits, labels) * (0.9 + 0.2 * torch.rand(()))

    MethodConfig.criterion = criterion


def each(*arms: Arm) -> Arm:
    def arm(rank: int) -> None:
        for one in arms:
            one(rank)

    return arm


def unlike(rank: int) -> None:
    """Rank 1 builds other weights than rank 0."""
    module = sys.modules["anynest.training.run"]
    real = module.seed_everything
    module.seed_everything = lambda seed: real(seed + rank)


def other_data(rank: int) -> None:
    global DATA
    if rank == 1:
        DATA = load("digits", limit=300)


def watch_states(folder: Path) -> Arm:
    """Each rank writes down its weights and buffers before step 5."""

    def arm(rank: int) -> None:
        def save(self: step.TrainStep) -> None:
            state = self.phase.network.state_dict()
            torch.save(state, folder / f"state.{rank}")

        at_step(5, save)

    return arm


def main() -> None:
    folder = Path(sys.argv[1])
    configs = {k: TrainConfig.from_json(v) for k, v in json.loads(sys.argv[2]).items()}
    config, greedy, local = configs["tiny"], configs["greedy"], configs["local"]
    run("one", config, folder / "one", 1)
    run("two", config, folder / "two", 2)
    run("used", config, folder / "two", 2)
    run("finished", config, folder / "two", 2, resume=True)
    run("stopped", config, folder / "stopped", 2, terminate(1, 7))
    run("resumed", config, folder / "stopped", 2, resume=True)
    run("fewer-stopped", config, folder / "fewer", 2, terminate(0, 7))
    run("fewer", config, folder / "fewer", 1, resume=True)
    run("more-stopped", config, folder / "more", 1, terminate(0, 7))
    run("more", config, folder / "more", 2, resume=True)
    run("poisoned", config, folder / "poisoned", 2, poison)
    run("full", config, folder / "full", 2, full_disk)
    run("greedy-one", greedy, folder / "greedy-one", 1)
    run("greedy-two", greedy, folder / "greedy-two", 2)
    run("local", local, folder / "local", 2, each(noisy, watch_states(folder)))
    run("local-stopped", local, folder / "local-stopped", 2, each(noisy, terminate(1, 7)))
    run("local-resumed", local, folder / "local-stopped", 2, noisy, resume=True)
    run("unlike", config, folder / "unlike", 2, unlike)
    run("other-data", config, folder / "other-data", 2, other_data)
    run("minutes", configs["minutes"], folder / "minutes", 2, minutes)
    print(json.dumps(ends))


if __name__ == "__main__":
    assert joined  # imported before any fork, as everything else
    summary.plot_run = lambda history, title, path: write_whole(path, b"")
    torch.set_num_threads(1)
    main()
