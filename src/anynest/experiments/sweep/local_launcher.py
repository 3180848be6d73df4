"""Several worker processes on this machine, one thread each."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .job import Job
from .launcher import RETRIES, Event

STOP_SECONDS = 120.0  # for a worker to save what it is training


@dataclass
class Worker:
    """A worker process and the job that it has."""

    number: int
    process: subprocess.Popen[str]
    job: Job | None = None

    def give(self, job: Job) -> None:
        """Hand over a job."""
        assert self.process.stdin is not None
        self.job = job
        self.process.stdin.write(job.dumps() + "\n")
        self.process.stdin.flush()


class LocalLauncher:
    """``jobs`` workers at once. Each is a process of its own, so none can harm another."""

    def __init__(self, jobs: int, command: Sequence[str] | None = None) -> None:
        self.count = jobs
        # -P: modules of the current folder, such as a json.py there, are not imported
        default = [sys.executable, "-P", "-m", "anynest.experiments.sweep.worker"]
        self.command = list(command or default)
        self.heard: queue.Queue[tuple[Worker, dict[str, Any] | None]] = queue.Queue()
        self.workers: dict[int, Worker] = {}
        self.started = 0

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """See ``Launcher``."""
        waiting = deque(jobs)
        deaths: dict[str, int] = {}
        try:
            while waiting or any(worker.job for worker in self.workers.values()):
                while waiting and (worker := self.idle()) is not None:
                    job = waiting.popleft()
                    yield Event("begun", job)
                    self.hand(worker, job)
                worker, message = self.heard.get()
                if message is None:
                    yield from self.buried(worker, waiting, deaths)
                elif worker.job is not None:
                    yield from told(worker, message)
        finally:
            self.stop()

    def idle(self) -> Worker | None:
        """A worker without a job, a new one where there may be more."""
        for worker in self.workers.values():
            if worker.job is None:
                return worker
        return self.start() if len(self.workers) < self.count else None

    def start(self) -> Worker:
        """A new worker, and the thread that listens to it."""
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # a terminal's Ctrl-C is the sweep's to pass on, once
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        worker = Worker(self.started, process)
        self.started += 1
        self.workers[worker.number] = worker
        threading.Thread(target=self.listen, args=(worker,), daemon=True).start()
        return worker

    def listen(self, worker: Worker) -> None:
        """Pass on what a worker says, then its end."""
        assert worker.process.stdout is not None
        for text in worker.process.stdout:
            try:
                message = json.loads(text)
            except ValueError:  # a line cut short by a kill
                continue
            self.heard.put((worker, message))
        worker.process.wait()
        self.heard.put((worker, None))

    def hand(self, worker: Worker, job: Job) -> None:
        """Give a job; where the worker has died meanwhile, its end is heard soon."""
        with contextlib.suppress(BrokenPipeError):
            worker.give(job)

    def buried(
        self, worker: Worker, waiting: deque[Job], deaths: dict[str, int]
    ) -> Iterator[Event]:
        """A worker has ended; what it had is run again, but not for ever."""
        del self.workers[worker.number]
        close_pipes(worker)
        job, worker.job = worker.job, None
        if job is None:
            return
        status = worker.process.returncode
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        deaths[job.cell.key] = deaths.get(job.cell.key, 0) + 1
        if deaths[job.cell.key] > RETRIES:
            yield Event("failed", job, text=f"its worker ended {RETRIES + 1} times ({how})")
        else:
            waiting.appendleft(job)
            yield Event("again", job, text=how)

    def stop(self) -> None:
        """Ask every worker to save and leave, and wait until it has."""
        for worker in self.workers.values():
            if worker.job is not None:
                worker.process.terminate()
            elif worker.process.stdin is not None:
                worker.process.stdin.close()
        for worker in self.workers.values():
            try:
                worker.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()  # its last checkpoint is whole
                worker.process.wait()
            close_pipes(worker)
        self.workers.clear()


def told(worker: Worker, message: dict[str, Any]) -> Iterator[Event]:
    """What a worker's message means for its job."""
    job = worker.job
    assert job is not None
    match message["event"]:
        case "epoch":
            yield Event("epoch", job, epoch=message["epoch"], epochs=message["epochs"])
        case "done":
            worker.job = None
            yield Event("done", job, line=message["line"])
        case "failed":
            worker.job = None
            yield Event("failed", job, text=message["error"])


def close_pipes(worker: Worker) -> None:
    """Give back the files of a worker that is no more."""
    for pipe in (worker.process.stdin, worker.process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
