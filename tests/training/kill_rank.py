"""Started by torchrun for test_distributed.py: ``kill_rank.py LOG BATCH COMMAND...``.

The command ``anynest COMMAND...``, in whose first life rank 1 SIGKILLs itself before batch number
BATCH of its process. LOG gets a line for each start of a rank: how many batches were done then.
"""

import os
import signal
import sys
from typing import Any

from anynest.cli import main
from anynest.training.trainer import Trainer

log, last = sys.argv[1], int(sys.argv[2])
life, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
train_epoch, check_in = Trainer.train_epoch, Trainer.check_in
batches = 0


def watched(self: Trainer) -> None:
    if batches == 0:
        with open(log, "a") as file:
            file.write(f"life {life} rank {rank} from {self.position.step}\n")
    train_epoch(self)


def deadly(self: Trainer, *arguments: Any) -> None:
    global batches
    batches += 1
    if life == "0" and rank == "1" and self.position.step + 1 == last:
        os.kill(os.getpid(), signal.SIGKILL)
    check_in(self, *arguments)


Trainer.train_epoch, Trainer.check_in = watched, deadly
sys.exit(main(sys.argv[3:]))
