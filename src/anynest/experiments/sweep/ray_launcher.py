"""Runs jobs on many machines with Ray (an extra).

Each cell is a Ray task. If its worker or machine is lost, it is submitted again; it resumes from
its last checkpoint if ``--out`` is on a disk that all machines share.
"""

import contextlib
import json
import tempfile
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from ...store import RunError
from ...training import ConfigError
from ..results.records import Record
from .job import Job, run_job
from .launcher import Deaths, Event


def import_ray() -> Any:
    """Ray.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--launcher ray needs the extra: pip install 'anynest[ray]'") from error
    return ray


def run_text(text: str) -> Record:
    """Runs a job in a Ray worker. Errors of the job are returned, so that Ray raises for lost
    workers alone."""
    try:
        return run_job(Job.loads(text))
    except (RunError, ValueError, OSError) as error:
        return {"failed": " ".join(str(error).split()) or type(error).__name__}


class RayLauncher:
    """Runs cells on a Ray cluster.

    Args:
        jobs: Cells at once; None for as many as the cluster has CPUs, or GPUs.
        address: Address of a running cluster; None starts one on this machine for the sweep.
    """

    def __init__(self, jobs: int | None = None, address: str | None = None) -> None:
        self.ray = import_ray()
        self.jobs, self.address = jobs, address

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """See ``Launcher``."""
        with contextlib.ExitStack() as stack:
            if not self.ray.is_initialized():
                stack.callback(self.ray.shutdown)
                self._connect(stack.enter_context(tempfile.TemporaryDirectory()))
            yield from self.submit_all(jobs)

    def _connect(self, folder: str) -> None:
        """Connects from an empty folder: Ray adds the current one to its workers' import path."""
        with contextlib.chdir(folder):
            self.ray.init(
                address=self.address,
                num_cpus=None if self.address else self.jobs,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )

    def submit_all(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """Runs all jobs; cancels those still running when the generator is closed."""
        ray = self.ray
        accelerated = bool(jobs) and str(jobs[0].machine.get("device")).startswith("cuda")
        task = ray.remote(max_retries=0, num_cpus=1, num_gpus=1 if accelerated else 0)(run_text)
        limit = self.jobs or int(ray.cluster_resources().get("GPU" if accelerated else "CPU", 1))
        waiting, running, deaths = deque(jobs), dict[Any, Job](), Deaths()
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    job = waiting.popleft()
                    yield Event("begun", job)
                    running[task.remote(job.dumps())] = job
                ready, _ = ray.wait(list(running), num_returns=1)
                job = running.pop(ready[0])
                event = self.event_of(ready[0], job, deaths)
                if event.kind == "again":
                    waiting.appendleft(job)
                yield event
        finally:
            for reference in running:
                with contextlib.suppress(Exception):
                    ray.cancel(reference)

    def event_of(self, reference: Any, job: Job, deaths: Deaths) -> Event:
        """The outcome of a finished task."""
        try:
            record: Record = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            return deaths.event(job, type(error).__name__, "lost")
        if "failed" in record:
            return Event("failed", job, text=record["failed"])
        return Event("done", job, record=json.loads(json.dumps(record)))
