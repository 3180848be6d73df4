"""A run from its config to its results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..data import DataError, Dataset
from ..nets import AnytimeNetwork, require_staged, sync_batch_norm
from .config.train_config import TrainConfig
from .cuda_graph import require_capturable
from .distributed import World, is_lost, joined, restarted
from .environment import computing
from .errors import ConfigError, RunError
from .evaluation import eval_mode
from .metrics_logger import writer_class
from .output.reporting import NullReporter, Reporter
from .output.run_folder import RunFolder
from .output.summary import TrainResult, finish, read_result
from .randomness import seed_everything
from .signals import StopRequest
from .trainer import Trainer
from .training_phases import require_stages

if TYPE_CHECKING:
    from ..nets.staged import StagedModule

RANK_SEEDS = 1_000_003  # the difference of two neighbouring ranks' seeds


def train(
    config: TrainConfig | None,
    folder: str | Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    data: Dataset | None = None,
    model: nn.Module | None = None,
) -> TrainResult:
    """Train as ``config`` says, into ``folder``.

    Under torchrun, or within a process group, the ranks share the work (see ``distributed``);
    folder, config and reporter are rank 0's, and all ranks return its result.

    Args:
        config: the run's config. Of a resumed run it may be None (the folder's is used), and must
            otherwise be the same, except for where the data lies.
        folder: the run folder, empty or new.
        resume: continue the run in ``folder``.
        reporter: receives the progress.
        data: used instead of loading ``config.data``; a resumed run must be given the same.
        model: used instead of building ``config.model``: any module with ``num_stages``, and a
            ``forward`` that returns a list of as many logits [B, K]; a resumed run must be given
            the same.

    Raises:
        ConfigError, RunFolderError: nothing was trained.
        RunError: the run failed; its last checkpoint stands.
        Interrupted: a signal stopped the run after it saved.

    Example:
        >>> import tempfile
        >>> config = TrainConfig.from_json(
        ...     {"model": {"base_width": 2}, "schedule": {"epochs": 1}, "run": {"threads": 1}}
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(train(config, folder).test_error)  # one error a stage
        3
    """
    run_folder = RunFolder(folder)
    with joined() as world, explained_loss(world, run_folder), contextlib.ExitStack() as stack:
        if reporter is None or not world.leads:
            reporter = NullReporter()
        told = world.run_on_rank_zero(lambda: open_run(run_folder, config, resume))
        assert told is not None
        found = json.loads(told)
        config, resume = TrainConfig.from_json(found["config"]), found["resume"]
        if found["summary"] is not None:
            reporter.say(f"{folder} is finished: nothing is left to train")
            return TrainResult(run_folder.path, found["summary"])
        if config.run.tensorboard:
            writer_class()  # refuse before anything is written
        device = stack.enter_context(computing(config.run, world.local_rank))
        require_capturable(config, device, world)
        if model is None:
            config.model.check()  # refuse a wrong name or option before reading any data
        if data is None:
            try:
                data = config.data.load()
            except DataError as error:
                hint = "; if the data has moved, give its new place (--data)" if resume else ""
                raise type(error)(f"{error}{hint}") from error
        require_same(data, world)
        seed_everything(config.run.seed)
        network = build_network(config, data, model, device)
        synchronize(config, network, world)
        stop = StopRequest(patient=world.size > 1)
        trainer = Trainer(config, run_folder, data, network, device, reporter, stop, world)

        def begin() -> None:
            stack.enter_context(run_folder.locked())
            if resume:
                run_folder.prepare()
            else:
                run_folder.start(config)

        world.run_on_rank_zero(begin)
        stack.enter_context(stop)
        trainer.run()
        if config.greedy:
            network.requires_grad_(True)
        result = finish(trainer)
        trainer.poll.finish()
        return result


@contextlib.contextmanager
def explained_loss(world: World, folder: RunFolder) -> Iterator[None]:
    """One line where another rank is gone; that rank's own error says why."""
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or isinstance(error, RunError) or not is_lost(error):
            raise
        raise RunError(
            f"rank {world.rank} has lost another rank, which failed or was ended; go on with: "
            f"{folder.resume_command()}"
        ) from error


def open_run(folder: RunFolder, config: TrainConfig | None, resume: bool) -> bytes:
    """The start of a run as JSON: its config, whether it is resumed, the summary if finished.

    A process that torchrun has restarted continues the run that it finds.
    """
    resume = resume or (restarted() and folder.started)
    if resume:
        config = folder.reopen(config)
    elif config is None:
        raise ConfigError("a new run needs a config: give one, or resume=True")
    else:
        folder.require_unused()
    summary = read_result(folder).summary if resume and folder.finished else None
    begun = {"config": config.to_json(), "resume": resume, "summary": summary}
    return json.dumps(begun).encode()


def require_same(data: Dataset, world: World) -> None:
    """ConfigError, on every rank, where ranks have read other data."""
    if world.size == 1:
        return
    prints = world.gather(data.fingerprint.encode())
    if len(set(prints)) > 1:
        found = [told.decode() for told in world.gather(str(data).encode())]
        other = next(rank for rank, told in enumerate(prints) if told != prints[0])
        raise ConfigError(
            f"all ranks must read the same data, found {found[0]} on rank 0 and {found[other]} on "
            f"rank {other}: put the same files on every machine"
        )


def synchronize(config: TrainConfig, model: nn.Module, world: World) -> None:
    """Give every rank rank 0's network, with synchronized batch norms where configured."""
    if world.size == 1:
        return
    world.equalize(model)
    if config.run.sync_batch_norm:
        sync_batch_norm(model, world.group)
    # a network's own random numbers, such as dropout's, must differ between ranks
    seed_everything(config.run.seed + RANK_SEEDS * world.rank)


def build_network(
    config: TrainConfig, data: Dataset, given: nn.Module | None, device: torch.device
) -> StagedModule:
    """The network on its device; ConfigError where the method does not fit its stages."""
    if given is None:
        model = config.model.build(data.num_classes, data.in_channels, data.image_size)
    else:
        model = require_staged(given, "training", ("num_stages", "forward"))
    if config.greedy:
        require_stages(model)
    method = config.method
    if method.priority is not None and len(method.priority) != model.num_stages:
        raise ConfigError(
            f"method.priority must be a permutation of 0 to {model.num_stages - 1}, one index for "
            f"each of the network's stages, found {list(method.priority)}"
        )
    if method.weights is not None and len(method.weights) != model.num_stages:
        raise ConfigError(
            f"method.weights must have one weight for each of the network's {model.num_stages} "
            f"stages, found {len(method.weights)}"
        )
    model = model.to(device)
    if given is not None or not isinstance(model, AnytimeNetwork):
        check_network(model, data, device)
    if config.run.channels_last:
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def check_network(model: StagedModule, data: Dataset, device: torch.device) -> None:
    """Check that the network can be trained on the data, by one image; changes nothing.

    Raises:
        ConfigError: nothing to train, state that cannot be saved, or other outputs than
            ``num_stages`` logits [B, K].
    """
    name = type(model).__name__
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"{name} must have parameters that require a gradient, found none")
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"the state of {name} must be tensors, found {key} of type {type(value).__name__}: "
                "make it a buffer, or an argument of the network's factory"
            )
    x = torch.zeros(2, data.in_channels, data.image_size, data.image_size, device=device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), eval_mode(model):
        try:
            outputs = model(x)
        except Exception as error:
            found = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"{name} must take images {list(x.shape)} of {data.label}, found "
                f"{type(error).__name__}: {found}"
            ) from error
    wanted = f"a list of num_stages = {model.num_stages} logits [{len(x)}, {data.num_classes}]"
    if not isinstance(outputs, list | tuple):
        raise ConfigError(f"forward of {name} must return {wanted}, found {type(outputs).__name__}")
    shapes = [list(out.shape) if isinstance(out, Tensor) else type(out) for out in outputs]
    if shapes != [[len(x), data.num_classes]] * model.num_stages:
        raise ConfigError(f"forward of {name} must return {wanted}, found {shapes}")
