"""The training loop: from a config and a folder to trained weights, through any interruption.

What makes a resumed run equal an uninterrupted one, bit for bit on the CPU: batches are a pure
function of (seed, epoch, batch); a checkpoint holds everything else that the next batch depends
on, the epoch's running sums and the lines of ``metrics.jsonl`` so far; and nothing that happens
at a checkpoint changes what is computed.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..data import Dataset
from ..nets import AnytimeNetwork
from .config.train_config import TrainConfig
from .distributed import Poll, World
from .errors import Interrupted, RunError, RunFolderError
from .evaluation import Evaluation, evaluate
from .metrics import RunningMetrics
from .output.checkpoint import pack, unpack
from .output.reporting import Reporter, counted
from .output.run_folder import RunFolder
from .output.tensorboard import Events
from .randomness import random_state, restore_random_state
from .signals import StopRequest
from .step import TrainStep
from .training_phases import count_phases, make_phase

FORMAT = 1


@dataclass
class Position:
    """Where a run stands: what is behind it."""

    phase: int = 0
    epoch: int = 0  # within the phase
    batch: int = 0  # within the epoch
    step: int = 0  # batches in all


class Trainer:
    """One run in progress. ``run()`` brings it to its end or to an error."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        data: Dataset,
        model: AnytimeNetwork,
        device: torch.device,
        reporter: Reporter,
        stop: StopRequest,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        self.poll = Poll(self.world)
        self.is_due = False
        self.config, self.folder, self.data = config, folder, data
        self.model, self.device, self.reporter, self.stop = model, device, reporter, stop
        layout = config.run.channels_last
        place = self.world.rank, self.world.size
        self.train_loader = config.data.train_loader(data, config.run.seed, device, layout, *place)
        self.validation_loader = config.data.evaluation_loader(
            data.validation, data, device, layout, *place
        )
        self.batches = len(self.train_loader)
        self.epochs = config.schedule.epochs
        self.phases = count_phases(config, model)
        self.position = Position()
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0  # of the epoch so far
        self.stepper: TrainStep
        self.sums: RunningMetrics
        self.saved_at = time.monotonic()

    def run(self) -> None:
        """Train what is left, from the newest whole checkpoint on."""
        state = self.newest()
        if state is not None:
            self.require_format(state)
            self.require_network(state)
            self.position = Position(**state["position"])
            self.history = json.loads(state["history"])
        self.write_history()
        wanted = self.config.run.tensorboard and self.world.leads
        events = Events(self.folder.events, wanted, first_epoch=len(self.history) + 1)
        total = self.phases * self.epochs * self.batches
        self.reporter.say(str(self.data))
        self.reporter.say(
            f"{self.model.name}, {self.config.method.name}, {self.data.label}: "
            f"{counted(self.phases * self.epochs, 'epoch')} of {self.batches} batches "
            f"on {self.device}" + (f", {self.world.size} ranks" if self.world.size > 1 else "")
        )
        if state is not None:
            self.reporter.say(f"going on {self.where()}")
        self.reporter.begin(total, self.position.step)
        try:
            for index in range(self.position.phase, self.phases):
                self.start_phase(index)
                if state is not None:
                    self.restore(state)
                    state = None
                while self.position.epoch < self.epochs:
                    self.run_epoch(events)
        finally:
            self.reporter.end()
            events.close()

    def newest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, as rank 0 reads it."""

        def read() -> bytes | None:
            state = self.folder.checkpoints.load_newest(self.reporter.say)
            if state is None:
                self.folder.require_no_history()
            found.append(state)
            return None if state is None or self.world.size == 1 else pack(state)

        found: list[dict[str, Any] | None] = []
        told = self.world.run_on_rank_zero(read)
        if found:
            return found[0]
        return None if told is None else unpack(told)

    def write_history(self) -> None:
        """``metrics.jsonl`` as it stands."""
        self.world.run_on_rank_zero(lambda: self.folder.write_history(self.history))

    def require_format(self, state: dict[str, Any]) -> None:
        """RunFolderError for the checkpoint of another version."""
        if state.get("format") != FORMAT:
            raise RunFolderError(
                f"the checkpoints in {self.folder.path} must have format {FORMAT}, found "
                f"{state.get('format')!r}: resume with the version of anynest that wrote them"
            )

    def require_network(self, state: dict[str, Any]) -> None:
        """RunFolderError for the checkpoint of another network."""
        ours, theirs = (
            {name: str(list(tensor.shape)) for name, tensor in tensors.items()}
            for tensors in (self.model.state_dict(), state["model"])
        )
        for name in {**ours, **theirs}:
            wanted, found = ours.get(name, "not there"), theirs.get(name, "not there")
            if wanted != found:
                raise RunFolderError(
                    f"the checkpoints in {self.folder.path} must fit {self.model.name} as the "
                    f"config has it: {name} must be {wanted}, found {found}; resume with the config "
                    "that they were made with"
                )

    def start_phase(self, index: int) -> None:
        """Fresh optimizer and schedule, unless ``restore`` follows."""
        if index != self.position.phase:
            self.position.phase, self.position.epoch = index, 0
        phase = make_phase(self.config, self.model, index)
        self.stepper = TrainStep(self.config, phase, self.device, self.world)
        if self.stepper.remark:
            self.reporter.say(self.stepper.remark)
        self.sums = RunningMetrics(len(phase.stages), self.device)

    def run_epoch(self, events: Events) -> None:
        """The rest of an epoch, its line, its checkpoint."""
        self.train_rest_of_epoch()
        self.check_in()
        validation = self.validate()
        self.require_finite(validation)
        line = self.line(validation)
        self.history.append(line)
        self.position.epoch += 1
        self.position.batch = 0
        self.sums = RunningMetrics(len(self.stepper.phase.stages), self.device)
        self.seconds = 0.0
        self.save()
        self.write_history()
        self.reporter.epoch(line)
        events.epoch(line)

    def train_rest_of_epoch(self) -> None:
        """Batches from ``position.batch`` to the epoch's end."""
        position = self.position
        epoch = len(self.history)  # of the whole run, from 0
        label = f"epoch {epoch + 1}/{self.phases * self.epochs}"
        measured = self.config.run.gradient_stats and self.config.method.name.startswith("sgd")
        self.stepper.phase.train_mode()
        clock = time.monotonic()
        for images, labels in self.train_loader.batches(epoch, start=position.batch):
            self.check_in()
            self.set_rate()
            try:
                self.stepper.step(images, labels, self.sums, measured and position.batch == 0)
            except RunError as error:
                raise RunError(f"{error} {self.where()}; {self.advice()}") from error
            position.batch += 1
            position.step += 1
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            self.reporter.batch(label, self.config.data.batch_size)
            self.save_if_due()

    def set_rate(self) -> None:
        """The learning rate of the batch that comes next."""
        batch = self.position.epoch * self.batches + self.position.batch
        self.stepper.set_rate(self.config.schedule.rate(batch, self.batches))

    def check_in(self) -> None:
        """Between batches: where a signal asked for it, save and stop, all ranks together."""
        number = self.stop.signal_number or 0
        if self.world.size > 1:
            said = number
            number, due = self.poll.heard() or (0, 0)
            self.is_due = bool(due)
            self.poll.say(said, not due and self.world.leads and self.minutes_are_up())
        if number:
            where = self.where()
            self.save()
            raise Interrupted(
                f"stopped {where} and saved; go on with: {self.folder.resume_command()}", number
            )

    def validate(self) -> Evaluation:
        """The phase's stages on the validation split."""
        return evaluate(
            self.stepper.forward,
            self.validation_loader,
            split=self.data.validation.name,
            autocast=self.stepper.autocast(),
            check=self.check_in,
            world=self.world,
        )

    def line(self, validation: Evaluation) -> dict[str, Any]:
        """The epoch's line of ``metrics.jsonl``: lists are per stage, null for one not trained."""
        phase = self.stepper.phase
        held = validation.to_json()
        left_out = {"skipped": self.skipped()} if self.config.data.on_corrupt == "skip" else {}
        images = self.train_loader.num_images
        sums = self.sums.over(self.world)
        return {
            "epoch": len(self.history) + 1,
            "epochs": self.phases * self.epochs,
            "stage": phase.stages[0] if self.config.greedy else None,
            "step": self.position.step,
            "lr": float(self.stepper.optimizer.param_groups[0]["lr"]),  # of the last batch
            "train": {name: self.spread(values) for name, values in sums.means().items()},
            "validation": {
                name: self.spread(value) if isinstance(value, list) else value
                for name, value in held.items()
            },
            "cosines": sums.cosines(),
            "images_per_second": images / self.seconds if self.seconds else 0.0,
            "seconds": self.seconds,
            **left_out,
        }

    def skipped(self) -> int:
        """Different training images left out as undecodable so far, also before a resume."""
        before = self.history[-1].get("skipped", 0) if self.history else self.data.skipped
        mine = json.dumps(sorted(self.train_loader.skipped_images)).encode()
        met = {image for told in self.world.gather(mine) for image in json.loads(told)}
        return int(max(before, self.data.skipped + len(met)))

    def spread(self, values: list[Any]) -> list[Any]:
        """Values of the phase's stages at their places among all stages."""
        result: list[Any] = [None] * self.model.num_stages
        for stage, value in zip(self.stepper.phase.stages, values, strict=True):
            result[stage - 1] = value
        return result

    def require_finite(self, validation: Evaluation) -> None:
        """RunError where the network's loss on the validation split is not finite."""
        for stage, loss in zip(self.stepper.phase.stages, validation.loss, strict=True):
            if not math.isfinite(loss):
                raise RunError(
                    f"the {validation.split} loss of stage {stage} is {loss} {self.where()}; "
                    f"{self.advice()}"
                )

    def where(self) -> str:
        """The position in words, counting from 1."""
        if self.position.epoch == self.epochs:
            return "after the last epoch"
        position = self.position
        stage = f"stage {position.phase + 1} (greedy), " if self.config.greedy else ""
        batch = min(position.batch + 1, self.batches)
        return f"at {stage}epoch {position.epoch + 1}, batch {batch} of {self.batches}"

    def advice(self) -> str:
        """What to do about weights that ran away."""
        newest = self.folder.checkpoints.paths()[-1:]
        kept = f"the last good checkpoint stands ({newest[0]})" if newest else "nothing was saved"
        return f"{kept}; try a lower --lr, --warmup-epochs or --clip in a new run"

    def save_if_due(self) -> None:
        """A checkpoint within the epoch."""
        every = self.config.run.save_batches
        batches_due = every and self.position.step % every == 0
        minutes_due = self.minutes_are_up() if self.world.size == 1 else self.is_due
        if batches_due or minutes_due:
            self.save()

    def minutes_are_up(self) -> bool:
        """Whether the last checkpoint is older than a run is to lose."""
        minutes = self.config.run.save_minutes
        return minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    def save(self) -> None:
        """A checkpoint of this moment; RunError where the weights are no longer finite."""
        model_state = self.model.state_dict()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in model_state.values()):
            raise RunError(f"the weights are not finite {self.where()}; {self.advice()}")
        state = {
            "format": FORMAT,
            "model": model_state,
            "stepper": self.stepper.state_dict(),
            "random": random_state(),
            "position": asdict(self.position),
            "sums": self.sums.tensors,
            "seconds": self.seconds,
            "history": json.dumps(self.history, allow_nan=False),
        }
        if self.world.size > 1:  # what else is each rank's own
            mine = pack({"random": state["random"], "sums": state["sums"]})
            state["others"] = [unpack(told) for told in self.world.gather(mine)[1:]]
        self.world.run_on_rank_zero(lambda: self.write(state))
        self.saved_at = time.monotonic()

    def write(self, state: dict[str, Any]) -> None:
        """One checkpoint file."""
        self.folder.checkpoints.save(state, self.position.step)

    def restore(self, state: dict[str, Any]) -> None:
        """Everything of a checkpoint but the position and the history, which ``run`` took.

        A rank takes up its own random state and sums. Where there are more ranks than before, the
        new ones keep what they began with; the sums of ranks that are no more go to rank 0.
        """
        self.model.load_state_dict(state["model"])
        self.stepper.load_state_dict(state["stepper"])
        self.seconds = state["seconds"]
        ranks = [{"random": state["random"], "sums": state["sums"]}, *state.get("others", [])]
        if self.world.rank < len(ranks):
            self.sums.load(ranks[self.world.rank]["sums"])
            restore_random_state(ranks[self.world.rank]["random"])
        if self.world.leads:
            for gone in ranks[self.world.size :]:
                self.sums.add_sums(gone["sums"])
