"""A run from its config to its results."""

from pathlib import Path

import torch

from ..data import Dataset
from ..nets import AnytimeNetwork
from .config import TrainConfig
from .environment import computing, seed_everything
from .errors import ConfigError
from .loop import Loop
from .progress import Reporter, Silent
from .run_folder import RunFolder
from .stopping import StopRequest
from .summary import TrainResult, finish, read_result
from .tensorboard import writer_class


def train(
    config: TrainConfig | None,
    folder: str | Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    data: Dataset | None = None,
    model: AnytimeNetwork | None = None,
) -> TrainResult:
    """Train as ``config`` says, into ``folder``; ``resume`` goes on with the run that is there.

    On a resume ``config`` may be None (the folder's own is taken) and must otherwise be the same.
    ``data`` and ``model`` take the place of what the config would load and build; a resumed run
    must be given the same ones.

    Errors:
        ConfigError, RunFolderError: nothing was trained. RunError: the run failed, its last
        checkpoint stands; Interrupted where a signal stopped it.

    Example:
        >>> import tempfile
        >>> config = TrainConfig.from_json(
        ...     {"model": {"base_width": 2}, "schedule": {"epochs": 1}, "run": {"threads": 1}}
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(train(config, folder).test_error)  # one error a stage
        3
    """
    reporter = reporter or Silent()
    run_folder = RunFolder(folder)
    if resume:
        config = run_folder.reopen(config)
        if run_folder.finished:
            reporter.say(f"{folder} is finished: nothing is left to train")
            return read_result(run_folder)
    elif config is None:
        raise ConfigError("a new run needs a config: give one, or resume=True")
    else:
        run_folder.require_unused()
    if config.run.tensorboard:
        writer_class()  # whether it is installed is found before anything is written
    with computing(config.run) as device:
        if model is None:
            with torch.device("meta"):  # a wrong name or option is found before any data is read
                config.model.build(num_classes=2, in_channels=1)
        data = config.data.load() if data is None else data
        seed_everything(config.run.seed)
        model = prepare(config, data, model, device)
        stop = StopRequest()
        loop = Loop(config, run_folder, data, model, device, reporter, stop)
        with run_folder.locked(), stop:
            if resume:
                run_folder.prepare()
            else:
                run_folder.start(config)
            loop.run()
            model.requires_grad_(True)
            return finish(config, run_folder, data, model, device, loop.history, loop.check_in)


def prepare(
    config: TrainConfig, data: Dataset, model: AnytimeNetwork | None, device: torch.device
) -> AnytimeNetwork:
    """The network on its device, fit for the method."""
    if model is None:
        model = config.model.build(data.num_classes, data.in_channels)
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
    if config.run.channels_last:
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
