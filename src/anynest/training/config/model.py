"""Which network a run trains."""

from dataclasses import dataclass, field
from typing import Any

from ...nets import AnytimeNetwork, create_model, list_models
from ..errors import ConfigError

Growth = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ModelConfig:
    """The arguments of ``create_model``; classes and channels come from the data."""

    name: str = field(
        default="width_nested_resnet10",
        metadata={"flag": "--model", "help": "network's name (see `anynest models`)"},
    )
    growth: Growth | None = field(
        default=None,
        metadata={
            "flag": "--growth",
            "help": "width x depth of each stage, such as 1x1,2x1,4x1",
            "form": "width x depth of each stage, such as 1x1,2x1",
        },
    )
    base_width: int | None = field(
        default=None,
        metadata={"flag": "--base-width", "help": "channels of stage 1 in the first group"},
    )
    stem: str | None = field(
        default=None, metadata={"flag": "--stem", "help": "first layers: cifar or imagenet"}
    )
    independent: int | None = field(
        default=None,
        metadata={
            "flag": "--independent",
            "help": "train the plain, un-nested network of this stage's size (stages from 1)",
        },
    )
    options: dict[str, int | float | bool | str] = field(
        default_factory=dict,
        metadata={"flag": "--model-option", "help": "further argument KEY=VALUE; may be repeated"},
    )

    def __post_init__(self) -> None:
        taken = {"num_classes", "in_channels", "growth", "base_width", "stem", "independent"}
        if wrong := sorted(taken & set(self.options)):
            raise ConfigError(
                f"model.options must not hold {wrong[0]!r}: it has a key of its own, "
                "or comes from the data"
            )

    def build(self, num_classes: int, in_channels: int) -> AnytimeNetwork:
        """A fresh network, initialised from torch's generator as it stands."""
        given: dict[str, Any] = {
            "growth": self.growth,
            "base_width": self.base_width,
            "stem": self.stem,
            "independent": self.independent,
        }
        given = {key: value for key, value in given.items() if value is not None} | self.options
        try:
            return create_model(
                self.name, num_classes=num_classes, in_channels=in_channels, **given
            )
        except ValueError as error:
            if self.name in list_models():
                raise
            raise ConfigError(f"{error} (one of your own: --import MODULE)") from error
        except TypeError as error:
            raise ConfigError(f"model {self.name}: {error}") from error
