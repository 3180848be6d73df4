"""A run from its config to its results."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from anynest.training.config import TrainConfig
from anynest.training.environment import computing, seed_everything
from anynest.training.errors import ConfigError
from anynest.training.loop import Loop
from anynest.training.progress import Reporter, Silent
from anynest.training.run_folder import RunFolder
from anynest.training.stopping import StopRequest
from anynest.training.summary import TrainResult, finish, read_result


def anynest_version() -> str:
    """The installed version."""
    try:
        return version("anynest")
    except PackageNotFoundError:
        return "unknown"


def train(
    config: TrainConfig | None,
    folder: str | Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    data: Any = None,
    model: Any = None,
) -> TrainResult:
    """Train as ``config`` says, into ``folder``; ``resume`` goes on with the run that is there.

    On a resume ``config`` may be None (the folder's own is taken) and must otherwise be the same.
    ``data`` and ``model`` take the place of what the config would load and build; a resumed run
    must be given the same ones.

    Errors:
        ConfigError, RunFolderError: nothing was trained. RunError: the run failed, its last
        checkpoint stands; Interrupted where a signal stopped it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> config = TrainConfig(schedule=ScheduleConfig(epochs=1))  # doctest: +SKIP
        >>> train(config, TemporaryDirectory().name).test_error  # doctest: +SKIP
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
    with computing(config.run) as device:
        if model is None:
            with torch.device("meta"):  # a wrong name or option is found before any data is read
                config.model.build(num_classes=2, in_channels=1)
        data = config.data.load() if data is None else data
        seed_everything(config.run.seed)
        model = prepare(config, data, model, device)
        with run_folder.locked(), StopRequest() as stop:
            if resume:
                run_folder.prepare()
            else:
                run_folder.start(config)
            loop = Loop(config, run_folder, data, model, device, reporter, stop)
            loop.run()
            model.requires_grad_(True)
            return finish(config, run_folder, data, model, device, loop.history, anynest_version())


def prepare(config: TrainConfig, data: Any, model: Any, device: torch.device) -> Any:
    """The network on its device, fit for the method."""
    if model is None:
        model = config.model.build(data.num_classes, data.in_channels)
    if config.greedy and model.num_stages > 1 and not hasattr(model, "born"):
        raise ConfigError(f"method greedy needs a nested network, found {type(model).__name__}")
    layout = torch.channels_last if config.run.channels_last else torch.preserve_format
    return model.to(device=device, memory_format=layout)
