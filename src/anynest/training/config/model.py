"""Which network a run trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .config_io import Section, about, option

if TYPE_CHECKING:
    from ...nets.staged import StagedModule


@dataclass(frozen=True)
class ModelConfig(Section):
    """The arguments of ``create_model``; classes, channels and image size come from the data."""

    SECTION = "model"

    name: str = option("width_nested_resnet10", "--model", "network's name (see `anynest models`)")
    growth: tuple[tuple[int, int], ...] | None = option(
        None,
        "--growth",
        "width x depth of each stage, such as 1x1,2x1,4x1 (default: the model's)",
        form="width x depth of each stage, such as 1x1,2x1",
    )
    base_width: int | None = option(
        None, "--base-width", "channels of stage 1 in the first group (default: the model's)"
    )
    stem: str | None = option(
        None, "--stem", "first layers: cifar or imagenet (default: the model's)"
    )
    independent: int | None = option(
        None,
        "--independent",
        "train the plain, un-nested network of this stage's size, from 1 (default: the nested "
        "network)",
    )
    options: dict[str, int | float | bool | str] = field(
        default_factory=dict,
        metadata=about("--model-option", "further argument KEY=VALUE; may be repeated"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        taken = {"num_classes", "in_channels", "growth", "base_width", "stem", "independent"}
        if wrong := sorted(taken & set(self.options)):
            raise ConfigError(
                f"model.options must not hold {wrong[0]!r}: it has a key of its own, "
                "or comes from the data"
            )

    def check(self) -> None:
        """Check the name and the options before any data is read.

        Raises:
            ConfigError: an option that the network does not have.
            ValueError: an unknown name, or a value out of range.
        """
        from ...nets.registry import check_options, is_nested

        if is_nested(self.name):
            import torch

            with torch.device("meta"):
                self.build(num_classes=2, in_channels=1)
            return
        with self.explained():
            check_options(self.name, {"num_classes": 2, "in_channels": 1, **self.given()})

    def build(
        self, num_classes: int, in_channels: int, image_size: int | None = None
    ) -> StagedModule:
        """A new network, initialised from torch's generator in its present state."""
        from ...nets.registry import create_for_data

        with self.explained():
            model: StagedModule = create_for_data(
                self.name,
                num_classes=num_classes,
                in_channels=in_channels,
                data_size=image_size,
                **self.given(),
            )
        return model

    def given(self) -> dict[str, Any]:
        """The options that are set."""
        own: dict[str, Any] = {
            "growth": self.growth,
            "base_width": self.base_width,
            "stem": self.stem,
            "independent": self.independent,
        }
        return {key: value for key, value in own.items() if value is not None} | self.options

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """ConfigError where the network refuses an option."""
        try:
            yield
        except TypeError as error:
            raise ConfigError(f"model {self.name}: {error}") from error
