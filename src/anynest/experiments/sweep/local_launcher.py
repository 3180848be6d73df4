"""Runs jobs in worker processes on this machine, one thread each."""

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
from .launcher import Deaths, Event

STOP_SECONDS = 120.0  # for a worker to save a checkpoint
# -P: modules in the current folder must not replace those of the standard library
COMMAND = (sys.executable, "-P", "-m", "anynest.experiments.sweep.worker")


@dataclass
class WorkerProcess:
    """A worker process and its current job."""

    number: int
    process: subprocess.Popen[str]
    job: Job | None = None

    def give(self, job: Job) -> None:
        """Sends a job. If the worker has died, its end is reported by its listener."""
        assert self.process.stdin is not None
        self.job = job
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(job.dumps() + "\n")
            self.process.stdin.flush()

    def close_pipes(self) -> None:
        """Closes the pipes of an ended process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class LocalLauncher:
    """``jobs`` worker processes at once."""

    def __init__(self, jobs: int, command: Sequence[str] | None = None) -> None:
        self.count = jobs
        self.command = list(command or COMMAND)
        self.messages: queue.Queue[tuple[WorkerProcess, dict[str, Any] | None]] = queue.Queue()
        self.workers: dict[int, WorkerProcess] = {}
        self.started = 0

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """See ``Launcher``."""
        waiting = deque(jobs)
        deaths = Deaths()
        try:
            while waiting or any(worker.job for worker in self.workers.values()):
                while waiting and (worker := self.idle()) is not None:
                    job = waiting.popleft()
                    yield Event("begun", job)
                    worker.give(job)
                worker, message = self.messages.get()
                if message is None:
                    job_left = self.remove(worker)
                    if job_left is not None:
                        status = worker.process.returncode
                        how = f"signal {-status}" if status < 0 else f"exit status {status}"
                        event = deaths.event(job_left, how, "its worker ended")
                        if event.kind == "again":
                            waiting.appendleft(job_left)
                        yield event
                elif worker.job is not None:
                    yield from events_of(worker, message)
        finally:
            self.stop()

    def idle(self) -> WorkerProcess | None:
        """A worker without a job, started if there are fewer than allowed."""
        for worker in self.workers.values():
            if worker.job is None:
                return worker
        return self.start() if len(self.workers) < self.count else None

    def start(self) -> WorkerProcess:
        """Starts a worker and the thread that reads its messages."""
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C reaches the sweep alone, which stops its workers
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        worker = WorkerProcess(self.started, process)
        self.started += 1
        self.workers[worker.number] = worker
        threading.Thread(target=self.listen, args=(worker,), daemon=True).start()
        return worker

    def listen(self, worker: WorkerProcess) -> None:
        """Queues a worker's messages, then None when it has ended."""
        assert worker.process.stdout is not None
        for text in worker.process.stdout:
            try:
                message = json.loads(text)
            except ValueError:  # a line cut short by a kill
                continue
            self.messages.put((worker, message))
        worker.process.wait()
        self.messages.put((worker, None))

    def remove(self, worker: WorkerProcess) -> Job | None:
        """Forgets an ended worker; returns its unfinished job."""
        del self.workers[worker.number]
        worker.close_pipes()
        job, worker.job = worker.job, None
        return job

    def stop(self) -> None:
        """Stops all workers, which save a checkpoint first, and waits for them."""
        for worker in self.workers.values():
            if worker.job is not None:
                worker.process.terminate()
            elif worker.process.stdin is not None:
                worker.process.stdin.close()
        for worker in self.workers.values():
            try:
                worker.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()  # checkpoints are written atomically
                worker.process.wait()
            worker.close_pipes()
        self.workers.clear()


def events_of(worker: WorkerProcess, message: dict[str, Any]) -> Iterator[Event]:
    """The event that a worker's message reports, if any."""
    job = worker.job
    assert job is not None
    match message["event"]:
        case "epoch":
            yield Event("epoch", job, epoch=message["epoch"], epochs=message["epochs"])
        case "done":
            worker.job = None
            yield Event("done", job, record=message["record"])
        case "failed":
            worker.job = None
            yield Event("failed", job, text=message["error"])
