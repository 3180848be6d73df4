"""The base optimizer: any of ``torch.optim`` by name; the methods only fill ``.grad``."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError, near_matches

UNUSABLE = {
    "lbfgs": "needs a closure",
    "muon": "takes matrices alone, and networks have kernels and biases too",
    "sparseadam": "needs sparse gradients",
}
# What the paper's recipe takes; other optimizers keep torch's own defaults
SGD_DEFAULTS: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
}


def optimizers() -> dict[str, type[Optimizer]]:
    """The usable optimizers of ``torch.optim`` by lower-case name."""
    found = {name.lower(): getattr(torch.optim, name) for name in dir(torch.optim)}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
        if name not in UNUSABLE
    }


@dataclass(frozen=True)
class OptimizerConfig:
    """A ``torch.optim`` optimizer. ``None`` takes the paper's value for SGD, else torch's own."""

    name: str = field(
        default="sgd",
        metadata={"flag": "--optimizer", "help": "any of torch.optim: sgd, adamw, ..."},
    )
    lr: float | None = field(
        default=None, metadata={"flag": "--lr", "help": "base learning rate (sgd: 0.1)"}
    )
    weight_decay: float | None = field(
        default=None, metadata={"flag": "--weight-decay", "help": "weight decay (sgd: 5e-4)"}
    )
    options: dict[str, int | float | bool | str | tuple[float, ...] | None] = field(
        default_factory=dict,
        metadata={
            "flag": "--optimizer-option",
            "help": "further argument KEY=VALUE, such as momentum=0.9; may be repeated",
        },
    )
    clip: float | None = field(
        default=None,
        metadata={"flag": "--clip", "help": "largest norm of the combined gradient"},
    )

    def __post_init__(self) -> None:
        for key, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if value is not None and value < 0:
                raise ConfigError(f"optimizer.{key} must not be negative, found {value}")
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"optimizer.clip must be positive, found {self.clip}")
        try:
            self.build([nn.Parameter(torch.zeros(1, 1))])
        except ConfigError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"optimizer {self.name} refuses its options: {error}") from error

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer over ``parameters``; ConfigError names an unknown name or option."""
        known = optimizers()
        if self.name.lower() not in known:
            why = UNUSABLE.get(self.name.lower())
            raise ConfigError(
                f"optimizer.name must be a usable one of torch.optim's, found {self.name!r}"
                + (f", which {why}" if why else "")
                + near_matches(self.name.lower(), known)
            )
        kind = known[self.name.lower()]
        defaults = inspect.signature(kind).parameters
        taken = set(defaults) - {"self", "params"}
        for key in self.options:
            if key not in taken:
                raise ConfigError(
                    f"optimizer {self.name} has no option {key!r}{near_matches(key, taken)}"
                )
            _check_option(key, self.options[key], defaults[key].default)
        arguments = dict(SGD_DEFAULTS) if self.name.lower() == "sgd" else {}
        arguments.update(self.options)
        if arguments.get("momentum") == 0 and "nesterov" not in self.options:
            arguments["nesterov"] = False
        if self.lr is not None:
            arguments["lr"] = self.lr
        if "weight_decay" in taken and self.weight_decay is not None:
            arguments["weight_decay"] = self.weight_decay
        elif self.weight_decay:
            raise ConfigError(
                f"optimizer {self.name} has no weight decay, found optimizer.weight_decay "
                f"{self.weight_decay}: leave it out, or take another optimizer"
            )
        return kind(parameters, **arguments)


def _check_option(key: str, value: Any, default: Any) -> None:
    """ConfigError where the optimizer's own default shows that ``value`` is of a wrong type."""
    number = type(default) in (int, float)
    if number and type(value) not in (int, float):
        wanted = "a number"
    elif type(default) is bool and type(value) is not bool:
        wanted = "true or false"
    else:
        return
    raise ConfigError(f"optimizer.options.{key} must be {wanted}, found {value!r}")
