"""``anynest`` with a protocol and a table for tests, in a process of its own.

While the file named by ``ANYNEST_TEST_HOLD`` exists, a worker stops after its second epoch until a
signal arrives, so that no test depends on how fast it trains.
"""

import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from anynest.cli import main
from anynest.experiments.catalog import protocols
from anynest.experiments.catalog.experiment import Experiment, grid
from anynest.experiments.catalog.experiments import EXPERIMENTS
from anynest.experiments.catalog.protocols import Protocol
from anynest.experiments.sweep import local_launcher, worker

SLOW = {
    "data": {"batch_size": 20, "limit": 200, "holdout": 20},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"epochs": 5, "shape": "constant"},
}
SMALL = {"name": "even_width_resnet10", "growth": [[1, 1], [2, 1]], "base_width": 1}


class HeldReporter(worker.PipeReporter):
    """Waits for a signal after the second epoch."""

    epochs = 0

    def epoch(self, line: dict[str, Any]) -> None:
        super().epoch(line)
        self.epochs += 1
        hold = Path(os.environ["ANYNEST_TEST_HOLD"])
        while self.epochs >= 2 and hold.exists():
            if select.select([SIGNALS], [], [], 0.05)[0]:
                return


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        SIGNALS, arrived = os.pipe()
        os.set_blocking(arrived, False)
        signal.set_wakeup_fd(arrived)
        worker.PipeReporter = HeldReporter  # type: ignore[misc]
        sys.exit(worker.main())
    local_launcher.COMMAND = (sys.executable, "-P", __file__, "worker")  # type: ignore[misc]
    protocols.PROTOCOLS["slow"] = Protocol(
        "slow", "for tests", {"cifar": SLOW}, models={"even": SMALL}
    )
    EXPERIMENTS["few"] = Experiment(
        "few", "a few", "Table 0", "cifar", lambda _: grid(["even"], ["sgd-mean", "osgd"])
    )
    sys.exit(main(sys.argv[1:]))
