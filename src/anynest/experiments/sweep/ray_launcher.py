"""Cells on many machines through Ray: an extra.

Every cell is a Ray task. One whose worker or machine is lost is submitted again; where ``--out``
lies on a disk that all machines share, it goes on from its last checkpoint.
"""

import contextlib
import json
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from ...store import RunError
from ...training import ConfigError
from ..results.records import Line
from .job import Job, run_job
from .launcher import RETRIES, Event


def import_ray() -> Any:
    """Ray; ConfigError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--launcher ray needs the extra: pip install 'anynest[ray]'") from error
    return ray


def run_text(text: str) -> Line:
    """A job in a Ray worker; what goes wrong is an answer too, so that only a lost worker is an
    error of Ray's."""
    try:
        return run_job(Job.loads(text))
    except (RunError, ValueError, OSError) as error:
        return {"failed": " ".join(str(error).split()) or type(error).__name__}


class RayLauncher:
    """``jobs`` cells at once over the whole cluster (None: as many as it has CPUs, or one a GPU).

    address: a running cluster's; None starts one on this machine, for as long as the sweep runs.
    """

    def __init__(self, jobs: int | None = None, address: str | None = None) -> None:
        self.ray = import_ray()
        self.jobs, self.address = jobs, address

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """See ``Launcher``."""
        ray = self.ray
        started = not ray.is_initialized()
        if started:
            ray.init(
                address=self.address,
                num_cpus=None if self.address else self.jobs,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
        try:
            yield from self.submit_all(jobs)
        finally:
            if started:
                ray.shutdown()

    def submit_all(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """Every job to its end; those under way are cancelled when the caller leaves."""
        ray = self.ray
        accelerated = bool(jobs) and str(jobs[0].machine.get("device")).startswith("cuda")
        task = ray.remote(max_retries=0, num_cpus=1, num_gpus=1 if accelerated else 0)(run_text)
        limit = self.jobs or int(ray.cluster_resources().get("GPU" if accelerated else "CPU", 1))
        waiting, running, deaths = deque(jobs), dict[Any, Job](), dict[str, int]()
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    job = waiting.popleft()
                    yield Event("begun", job)
                    running[task.remote(job.dumps())] = job
                ready, _ = ray.wait(list(running), num_returns=1)
                job = running.pop(ready[0])
                yield self.judge(ready[0], job, waiting, deaths)
        finally:
            for reference in running:
                with contextlib.suppress(Exception):
                    ray.cancel(reference)

    def judge(self, reference: Any, job: Job, waiting: deque[Job], deaths: dict[str, int]) -> Event:
        """What became of a task."""
        try:
            line: Line = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            how = type(error).__name__
            deaths[job.cell.key] = deaths.get(job.cell.key, 0) + 1
            if deaths[job.cell.key] > RETRIES:
                return Event("failed", job, text=f"lost {RETRIES + 1} times ({how})")
            waiting.appendleft(job)
            return Event("again", job, text=how)
        if "failed" in line:
            return Event("failed", job, text=line["failed"])
        return Event("done", job, line=json.loads(json.dumps(line)))
