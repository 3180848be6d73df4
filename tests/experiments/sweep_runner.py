"""``anynest`` with a protocol and a table for tests, in a process of its own."""

import sys

from anynest.cli import main
from anynest.experiments.catalog import protocols
from anynest.experiments.catalog.experiment import Experiment, grid
from anynest.experiments.catalog.experiments import EXPERIMENTS
from anynest.experiments.catalog.protocols import Protocol

SLOW = {
    "data": {"batch_size": 20, "limit": 200, "holdout": 20},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"epochs": 12, "shape": "constant"},
}
SMALL = {"name": "even_width_resnet10", "growth": [[1, 1], [2, 1]], "base_width": 1}

if __name__ == "__main__":
    protocols.PROTOCOLS["slow"] = Protocol(
        "slow", "for tests", {"cifar": SLOW}, models={"even": SMALL}
    )
    EXPERIMENTS["few"] = Experiment(
        "few", "a few", "Table 0", "cifar", lambda _: grid(["even"], ["sgd-mean", "osgd"])
    )
    sys.exit(main(sys.argv[1:]))
