"""How the stages' losses become one update: section 4 of the paper, by name."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from ...multitask import Combiner, list_methods, make_combiner
from ..errors import ConfigError, near_matches

GREEDY = "greedy"


@dataclass(frozen=True)
class MethodConfig:
    """``greedy`` (Algorithm 1) or a method of ``anynest.multitask.make_combiner``."""

    name: str = field(
        default="osgd",
        metadata={
            "flag": "--method",
            "help": "sgd-mean, sgd-sum, sgd-participants, normsgd, osgd, osgd-norm, osgd-mean, "
            "greedy",
        },
    )
    priority: tuple[int, ...] | None = field(
        default=None,
        metadata={
            "flag": "--priority",
            "help": "osgd: loss indices from 0, highest first, such as 1,0,2 (default: 0,1,...)",
        },
    )
    weights: tuple[float, ...] | None = field(
        default=None,
        metadata={"flag": "--loss-weights", "help": "sgd: the k_i of equation 1 (default: all 1)"},
    )
    C: float | str | None = field(
        default=None,
        metadata={
            "flag": "--norm-c",
            "help": "normalising methods: C of equation 2, a number or calibrated (default: 0.5, as the "
            "paper prints it; anynest reproduce takes calibrated)",
        },
    )
    refresh: int | str | None = field(
        default=None,
        metadata={
            "flag": "--refresh",
            "help": "osgd: find the losses' weights at every k-th step and take one backward pass "
            "between, or auto (default: at every step)",
        },
    )
    projection: Literal["orthogonal", "raw"] | None = field(
        default=None,
        metadata={
            "flag": "--projection",
            "help": "osgd: onto what is left of earlier gradients (orthogonal, the default), or "
            "onto these as they came (raw)",
        },
    )
    scope: Literal["all", "tensor"] | None = field(
        default=None,
        metadata={
            "flag": "--scope",
            "help": "osgd: project over all weights at once (all, the default) or tensor by tensor",
        },
    )
    on_nonfinite: Literal["raise", "skip", "ignore"] = field(
        default="raise",
        metadata={
            "flag": "--on-nonfinite",
            "help": "a loss that is not finite stops the run (raise), is left out (skip), or is "
            "not looked at (ignore): the run stops where it saves or validates",
        },
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={"flag": "--label-smoothing", "help": "of the cross entropy, 0 to below 1"},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"method.label_smoothing must be from 0 to below 1, found {self.label_smoothing}"
            )
        known = [*list_methods(), "sgd", GREEDY]
        if self.name not in known:
            raise ConfigError(
                f"method.name must be one of {', '.join(known)}, found {self.name!r}"
                f"{near_matches(self.name, known)}"
            )
        if self.name == GREEDY:
            for key in ("priority", "weights", "C", "refresh", "projection", "scope"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"method.{key} has no meaning for greedy, which has one loss at a time: "
                        "leave it out"
                    )
        else:
            combiner = self.build()  # an unknown one is found before any data is read
            if self.C is not None and getattr(combiner, "normalize", True) is False:
                raise ConfigError(
                    f"method.C (--norm-c) has no meaning for {self.name}, which does not "
                    "normalize: leave it out, or take osgd-norm or normsgd"
                )

    def build(self, group: Any = None) -> Combiner:
        """The combiner. Greedy's stages have one loss each, for which every method is SGD."""
        if self.name == GREEDY:
            return make_combiner("sgd-sum", on_nonfinite=self.on_nonfinite, group=group)
        named = {
            "priority": self.priority,
            "weights": self.weights,
            "C": self.C,
            "refresh": self.refresh,
            "projection": self.projection,
            "scope": self.scope,
        }
        given = {key: value for key, value in named.items() if value is not None}
        return make_combiner(self.name, on_nonfinite=self.on_nonfinite, group=group, **given)

    def criterion(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """Cross entropy of one stage in float32, whatever precision made the logits."""
        loss: Tensor = nn.functional.cross_entropy(
            logits_BK.float(), labels_B, label_smoothing=self.label_smoothing
        )
        return loss
