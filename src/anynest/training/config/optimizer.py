"""The base optimizer: any of ``torch.optim`` by name; the methods only fill ``.grad``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, near_matches
from .config_io import Section, about, option

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

UNUSABLE = {
    "lbfgs": "needs a closure",
    "muon": "takes matrices alone, and networks have kernels and biases too",
    "sparseadam": "needs sparse gradients",
}
# the paper's recipe; other optimizers keep torch's own defaults
SGD_DEFAULTS: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
}


def optimizers() -> dict[str, type[Optimizer]]:
    """The usable optimizers of ``torch.optim`` by lower-case name."""
    import torch

    found = {name.lower(): getattr(torch.optim, name) for name in dir(torch.optim)}
    base = torch.optim.Optimizer
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
        if name not in UNUSABLE
    }


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """A ``torch.optim`` optimizer. ``None`` takes the paper's value for SGD, else torch's own."""

    SECTION = "optimizer"

    name: str = option("sgd", "--optimizer", "any of torch.optim: sgd, adamw, ...")
    lr: float | None = option(
        None, "--lr", "base learning rate (default: 0.1 for sgd, otherwise torch's)", at_least=0
    )
    weight_decay: float | None = option(
        None,
        "--weight-decay",
        "weight decay (default: 5e-4 for sgd, otherwise torch's)",
        at_least=0,
    )
    options: dict[str, int | float | bool | str | tuple[float, ...] | None] = field(
        default_factory=dict,
        metadata=about(
            "--optimizer-option",
            "further argument KEY=VALUE, such as momentum=0.9; may be repeated",
        ),
    )
    clip: float | None = option(
        None, "--clip", "largest norm of the combined gradient (default: no limit)", above=0
    )
    decay_norms: bool = option(
        True,
        "--decay-norms",
        "weight decay on norms' scales and on biases too (parameters of fewer than two dimensions)",
    )
    ema: float | None = option(
        None,
        "--ema",
        "evaluate and save an exponential moving average of the weights with this decay, such as "
        "0.999 (default: the weights themselves)",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema is not None and self.ema >= 1:
            raise ConfigError(
                f"optimizer.ema (--ema) must be above 0 and below 1, found {self.ema}"
            )
        for name in ("lr", "weight_decay"):
            if name in self.options:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"optimizer.options must not hold {name}, found {self.options[name]}: give it "
                    f"as optimizer.{name} ({flag})"
                )

    def check(self) -> None:
        """ConfigError for a name that is unknown or options that it refuses (imports torch)."""
        from torch import nn, zeros

        try:
            self.build([nn.Parameter(zeros(1, 1))])
        except ConfigError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"optimizer {self.name} refuses its options: {error}") from error

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer over ``parameters``; ConfigError names an unknown name or option."""
        known, name = optimizers(), self.name.lower()
        if name not in known:
            why = f", which {UNUSABLE[name]}" if name in UNUSABLE else ""
            raise ConfigError(
                f"optimizer.name must be a usable one of torch.optim's, found {self.name!r}{why}"
                f"{near_matches(name, known)}"
            )
        kind = known[name]
        defaults = inspect.signature(kind).parameters
        taken = set(defaults) - {"self", "params"}
        for key in self.options:
            if key not in taken:
                raise ConfigError(
                    f"optimizer {self.name} has no option {key!r}{near_matches(key, taken)}"
                )
            _check_option(key, self.options[key], defaults[key].default)
        arguments = dict(SGD_DEFAULTS) if name == "sgd" else {}
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
        if self.decay_norms:
            return kind(parameters, **arguments)
        if "weight_decay" not in taken:
            raise ConfigError(
                f"optimizer {self.name} has no weight decay, found optimizer.decay_norms false "
                "(--no-decay-norms): leave it out, or take another optimizer"
            )
        return kind(_groups(parameters), **arguments)


def _groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups: those of two or more dimensions, and the others without weight decay."""
    every = list(parameters)
    matrices = [p for p in every if p.dim() >= 2]
    vectors = [p for p in every if p.dim() < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


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
