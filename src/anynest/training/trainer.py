"""The training loop: from a config and a run folder to trained weights.

A resumed run equals an uninterrupted one, bit for bit on the CPU: batches are a pure function of
(seed, epoch, batch); a checkpoint holds everything else that the next batch depends on, the epoch's
running metrics and the lines of ``metrics.jsonl`` so far; and saving changes nothing that is
computed.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import Dataset
from ..nets.registry import name_of
from .checkpointer import FORMAT, Checkpointer, require_fit
from .config.train_config import TrainConfig
from .distributed import Poll, World
from .errors import ConfigError, DivergedError, Interrupted, RunError
from .evaluation import Evaluation, evaluate
from .metrics import RunningMetrics, is_sampled
from .metrics_logger import MetricsLogger, epoch_line
from .output.reporting import Reporter, counted
from .output.run_folder import RunFolder
from .output.settings_text import data_text, optimizer_text
from .randomness import random_state, restore_random_state
from .signals import StopRequest
from .step import StepOutput, TrainStep, set_rate
from .training_phases import count_phases, make_phase

if TYPE_CHECKING:
    from ..nets.staged import StagedModule


@dataclass
class Position:
    """How much of a run is done."""

    phase: int = 0
    epoch: int = 0  # within the phase
    batch: int = 0  # within the epoch
    step: int = 0  # batches in all


class Trainer:
    """A run in progress; :meth:`run` trains until it is finished or raises."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        data: Dataset,
        model: StagedModule,
        device: torch.device,
        reporter: Reporter,
        stop: StopRequest,
        world: World | None = None,
    ) -> None:
        self.config, self.folder, self.data = config, folder, data
        self.model, self.device, self.reporter, self.stop = model, device, reporter, stop
        self.world = world or World()
        self.poll = Poll(self.world)
        self.checkpointer = Checkpointer(config.run, folder, self.world, reporter.say)
        self.logger = MetricsLogger(folder, reporter, self.world, config.run.tensorboard)
        more = {"channels_last": config.run.channels_last, **self.world.part()}
        self.train_loader = config.data.train_loader(data, config.run.seed, device, **more)
        self.validation_loader = config.data.evaluation_loader(
            data.validation, data, device, **more
        )
        self.batches = len(self.train_loader)
        self.epochs = config.schedule.epochs
        self.phases = count_phases(config, model)
        self.position = Position()
        self.seconds = 0.0  # of training in the current epoch
        self.step: TrainStep
        self.metrics: RunningMetrics

    def run(self) -> None:
        """Train what is left, from the newest checkpoint on."""
        saved = self.checkpointer.newest()
        if saved is not None:
            require_fit(saved, self.folder, self.model, self.data)
            self.position = Position(**saved["position"])
        self.world.run_on_rank_zero(lambda: self.folder.keep_config(self.config))
        self.logger.start([] if saved is None else json.loads(saved["history"]))
        self.announce(resumed=saved is not None)
        self.reporter.begin(self.phases * self.epochs * self.batches, self.position.step)
        try:
            for index in range(self.position.phase, self.phases):
                self.start_phase(index)
                if saved is not None:
                    self.load_state_dict(saved)
                    saved = None
                while self.position.epoch < self.epochs:
                    self.train_epoch()
                    self.end_epoch()
                self.step.finish()
        finally:
            self.reporter.end()
            self.logger.close()

    def start_phase(self, index: int) -> None:
        """Make a new optimizer; ``load_state_dict`` follows where a phase is resumed."""
        if index != self.position.phase:
            self.position.phase, self.position.epoch = index, 0
        phase = make_phase(self.config, self.model, index)
        self.step = TrainStep(self.config, phase, self.device, self.world)
        if self.step.remark:
            self.reporter.say(self.step.remark)
        self.metrics = RunningMetrics(len(phase.stages), self.device)

    def train_epoch(self) -> None:
        """Train on the batches from ``position.batch`` to the end of the epoch."""
        position, epoch = self.position, len(self.logger.history)  # of the whole run, from 0
        label = f"epoch {epoch + 1}/{self.phases * self.epochs}"
        self.step.phase.train_mode()
        clock = time.monotonic()
        for images, labels in self.train_loader.batches(epoch, start=position.batch):
            self.check_in()
            done = position.epoch * self.batches + position.batch
            set_rate(self.step.optimizer, self.config.schedule.rate(done, self.batches))
            sampled = is_sampled(position.batch, self.batches)
            unknown = sampled and self.config.run.gradient_stats and self.step.kind()
            output = self.take_step(images, labels, measure=unknown)
            self.metrics.add(output.losses_S, output.logits, labels)
            if sampled and self.world.leads:  # cosines are the same on all ranks
                self.metrics.add_cosines(output.cosines)
            position.batch += 1
            position.step += 1
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            self.reporter.batch(label, self.config.data.batch_size)
            if self.checkpointer.is_due(position.step):
                self.save()

    def take_step(self, images: Tensor, labels: Tensor, measure: bool) -> StepOutput:
        """Take a step; an error says where it occurred and what to do."""
        try:
            return self.step(images, labels, measure=measure)
        except RunError as error:
            kind = DivergedError if isinstance(error, DivergedError) else RunError
            raise kind(f"{error} {self.where()}; {self.checkpointer.advice()}") from error
        except ValueError as error:
            if "value per channel" not in str(error):  # of torch's batch norm
                raise
            raise ConfigError(
                f"data.batch_size (--batch-size) must be above {len(images)} for images of "
                f"{images.shape[-1]} pixels a side, found {self.config.data.batch_size}: a batch "
                "norm has one value a channel and no variance; take larger batches or images"
            ) from error

    def end_epoch(self) -> None:
        """Validate, add the epoch's line, and save."""
        self.check_in()
        validation = self.validate()
        self.logger.history.append(self.line(validation))
        self.position.epoch += 1
        self.position.batch = 0
        self.metrics = RunningMetrics(len(self.step.phase.stages), self.device)
        self.seconds = 0.0
        self.save()
        self.logger.write()  # after the checkpoint: a line without one could not be resumed from

    def validate(self) -> Evaluation:
        """Evaluate the phase's stages; DivergedError where a loss is not finite."""
        result = evaluate(
            self.step.evaluated,
            self.validation_loader,
            split=self.data.validation.name,
            autocast=self.step.autocast(),
            check=self.check_in,
            world=self.world,
        )
        for stage, loss in zip(self.step.phase.stages, result.loss, strict=True):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the {result.split} loss of stage {stage} is {loss} {self.where()}; "
                    f"{self.checkpointer.advice()}"
                )
        return result

    def line(self, validation: Evaluation) -> dict[str, Any]:
        """The epoch's line of ``metrics.jsonl``."""
        images = self.train_loader.num_images
        line = {
            "epoch": len(self.logger.history) + 1,
            "epochs": self.phases * self.epochs,
            "stage": self.step.phase.stages[0] if self.config.greedy else None,
            "step": self.position.step,
            "lr": float(self.step.optimizer.param_groups[0]["lr"]),  # of the last batch
            **epoch_line(
                self.metrics.over(self.world),
                validation,
                self.step.phase.stages,
                self.model.num_stages,
            ),
            "images_per_second": images / self.seconds if self.seconds else 0.0,
            "seconds": self.seconds,
        }
        return line | ({"skipped": self.skipped()} if self.config.data.on_corrupt == "skip" else {})

    def skipped(self) -> int:
        """How many training images were skipped as undecodable so far, also before a resume."""
        history = self.logger.history
        before = history[-1].get("skipped", 0) if history else self.data.skipped
        mine = json.dumps(sorted(self.train_loader.skipped_images)).encode()
        met = {image for told in self.world.gather(mine) for image in json.loads(told)}
        return int(max(before, self.data.skipped + len(met)))

    def check_in(self) -> None:
        """Called between batches: where a signal asked for it, save and stop all ranks together."""
        due = self.world.leads and self.checkpointer.minutes_are_up()
        number, requested = self.poll.exchange(self.stop.signal_number or 0, int(due))
        if requested:
            self.checkpointer.requested = True
        if number:
            where = self.where()
            self.save()
            raise Interrupted(
                f"stopped {where} and saved; go on with: {self.folder.resume_command()}", number
            )

    def save(self) -> None:
        """Save a checkpoint; DivergedError where the weights are no longer finite."""
        state = self.state_dict()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state["model"].values()):
            raise DivergedError(
                f"the weights are not finite {self.where()}; {self.checkpointer.advice()}"
            )
        own = {"random": random_state(), "metrics": self.metrics.tensors}
        self.checkpointer.save(state, own, self.position.step)

    def state_dict(self) -> dict[str, Any]:
        """The state that all ranks share; what differs between them is added by ``save``."""
        return {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "step": self.step.state_dict(),
            "data": json.dumps(self.data.describe()),
            "position": asdict(self.position),
            "seconds": self.seconds,
            "history": json.dumps(self.logger.history, allow_nan=False),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a checkpoint, except for the position and the history, which ``run`` restores.

        A rank restores its own random state and metrics. Where there are more ranks than before,
        the new ones keep their initial state; metrics of ranks that no longer exist go to rank 0.
        """
        self.model.load_state_dict(saved["model"])
        self.step.load_state_dict(saved["step"])
        self.seconds = saved["seconds"]
        ranks = saved["ranks"]
        if self.world.rank < len(ranks):
            self.metrics.load(ranks[self.world.rank]["metrics"])
            restore_random_state(ranks[self.world.rank]["random"])
        if self.world.leads:
            for gone in ranks[self.world.size :]:
                self.metrics.merge(gone["metrics"])

    def announce(self, resumed: bool) -> None:
        """Say what is trained on what."""
        ranks = f", {self.world.size} ranks" if self.world.size > 1 else ""
        self.reporter.say(str(self.data))
        self.reporter.say(
            f"{name_of(self.model)}, {self.config.method.name}, {self.data.label}: "
            f"{counted(self.phases * self.epochs, 'epoch')} of {self.batches} batches "
            f"on {self.device}{ranks}"
        )
        self.reporter.say(data_text(self.config, self.data))
        self.reporter.say(optimizer_text(self.config))
        if resumed:
            self.reporter.say(f"going on {self.where()}")

    def where(self) -> str:
        """The position in words, counting from 1."""
        position = self.position
        if position.epoch == self.epochs:
            return "after the last epoch"
        stage = f"stage {position.phase + 1} (greedy), " if self.config.greedy else ""
        batch = min(position.batch + 1, self.batches)
        return f"at {stage}epoch {position.epoch + 1}, batch {batch} of {self.batches}"
