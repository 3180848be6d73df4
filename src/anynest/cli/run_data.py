"""The data of a trained network: those of its run, or others with the same classes."""

from dataclasses import replace
from pathlib import Path

from ..data import Dataset
from ..store import RunFolderError, WeightsInfo, weights_file
from ..training import ConfigError, DataConfig, read_config


def open_data(
    weights: str, info: WeightsInfo, source: str | None, batch_size: int, workers: int
) -> tuple[DataConfig, Dataset]:
    """Load the data and prepare them as the network's training data were.

    Args:
        weights: a run folder or a weights file.
        info: read from ``weights``.
        source: another data source; None for the run's own.
        batch_size: images per batch of an evaluation.
        workers: processes that decode the images of a folder.

    Raises:
        ConfigError: no source is given, and ``weights`` does not lie in a run folder.
        RunFolderError: the network was trained for other classes or channels.
    """
    config = find_config(Path(weights), info, source)
    config = replace(
        config, image_size=info.image_size, evaluation_batch_size=batch_size, workers=workers
    )
    data = config.load()
    require_fit(info, data)
    return config, replace(data, mean=info.mean, std=info.std)


def find_config(path: Path, info: WeightsInfo, source: str | None) -> DataConfig:
    """The run's data config, with ``source`` in place of its own."""
    own = (path if path.is_dir() else path.parent) / "config.json"
    if own.is_file() and weights_file(own.parent) == weights_file(path):
        config = read_config(own).data
        return config if source in (None, config.source) else replace(config, source=source)
    if source is None:
        raise ConfigError(f"{path} does not name the place of its data ({info.data}): give --data")
    return DataConfig(source=source)


def require_fit(info: WeightsInfo, data: Dataset) -> None:
    """Raise RunFolderError if the network was trained for other classes or channels."""
    if data.classes != info.classes:
        raise RunFolderError(
            f"the data must have the network's {len(info.classes)} classes "
            f"({', '.join(info.classes[:3])}, ...), found {len(data.classes)} "
            f"({', '.join(data.classes[:3])}, ...): give the data it was trained on"
        )
    if data.in_channels != len(info.mean):
        raise RunFolderError(
            f"the images must have {len(info.mean)} channels, found {data.in_channels}: "
            "give the data the network was trained on"
        )
