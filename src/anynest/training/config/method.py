"""How the stages' losses become one update: section 4 of the paper, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...multitask.registry import list_methods, make_combiner
from ..errors import ConfigError, near_matches
from .config_io import Section, option

if TYPE_CHECKING:
    from torch import Tensor

    from ...multitask.combiner import Combiner

GREEDY = "greedy"
# fields that are arguments of `make_combiner`
ARGUMENTS = ("priority", "weights", "C", "refresh")


@dataclass(frozen=True)
class MethodConfig(Section):
    """``greedy`` (Algorithm 1) or a method of ``anynest.multitask.make_combiner``."""

    SECTION = "method"

    name: str = option(
        "osgd",
        "--method",
        "sgd-mean, sgd-sum, sgd-participants, normsgd, osgd, osgd-norm, osgd-mean, greedy",
    )
    priority: tuple[int, ...] | None = option(
        None,
        "--priority",
        "osgd: loss indices from 0, highest first, such as 1,0,2 (default: 0,1,...)",
    )
    weights: tuple[float, ...] | None = option(
        None, "--loss-weights", "sgd: the k_i of equation 1 (default: all 1)"
    )
    C: float | str | None = option(
        None,
        "--norm-c",
        "normalising methods: C of equation 2, a number or calibrated (default: 0.5, as the paper "
        "prints it; anynest reproduce takes calibrated)",
    )
    refresh: int | None = option(
        None,
        "--refresh",
        "osgd: compute the losses' weights at every k-th step and take one backward pass in the "
        "others (default: 1)",
    )
    on_nonfinite: Literal["raise", "skip", "ignore"] = option(
        "raise",
        "--on-nonfinite",
        "a loss that is not finite stops the run (raise), is left out (skip), or is not looked at "
        "(ignore): the run stops where it saves or validates",
    )
    label_smoothing: float = option(
        0.0, "--label-smoothing", "of the cross entropy, 0 to below 1", at_least=0
    )
    distill: float = option(
        0.0,
        "--distill",
        "weight W, 0 to 1, of self-distillation: the loss of each stage before the last is (1 - W) "
        "times the cross entropy plus W times the KL divergence from the last stage's detached "
        "probabilities",
        at_least=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing >= 1:
            raise ConfigError(
                f"method.label_smoothing must be from 0 to below 1, found {self.label_smoothing}"
            )
        known = [*list_methods(), "sgd", GREEDY]
        if self.name not in known:
            raise ConfigError(
                f"method.name must be one of {', '.join(known)}, found {self.name!r}"
                f"{near_matches(self.name, known)}"
            )
        if self.name == GREEDY and (given := self.arguments()):
            raise ConfigError(
                f"method.{next(iter(given))} has no meaning for greedy, which has one loss at a "
                "time: leave it out"
            )
        if self.name == GREEDY and self.distill:
            raise ConfigError(
                "method.distill (--distill) has no meaning for greedy, which trains the last stage "
                f"after the others, found {self.distill}: leave it out"
            )

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``make_combiner`` that were given."""
        found = {key: getattr(self, key) for key in ARGUMENTS}
        return {key: value for key, value in found.items() if value is not None}

    def check(self) -> None:
        """ConfigError for options that the method refuses (imports torch)."""
        if self.name == GREEDY:
            return
        try:
            combiner = self.build()
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error
        if self.C is not None and getattr(combiner, "normalize", True) is False:
            raise ConfigError(
                f"method.C (--norm-c) has no meaning for {self.name}, which does not normalize: "
                "leave it out, or take osgd-norm or normsgd"
            )

    def build(self, group: Any = None) -> Combiner:
        """The combiner. Greedy's stages have one loss each, for which every method is SGD."""
        name = "sgd-sum" if self.name == GREEDY else self.name
        return make_combiner(name, on_nonfinite=self.on_nonfinite, group=group, **self.arguments())

    def losses(self, logits: Sequence[Tensor], labels_B: Tensor) -> list[Tensor]:
        """One loss per stage, from the logits ``[B, K]`` of each.

        The last stage's probabilities, from which earlier stages learn under ``distill``, are
        detached: each loss trains its own stage's part of the network alone.
        """
        losses = [self.criterion(out, labels_B) for out in logits]
        if not self.distill:
            return losses
        from torch.nn.functional import kl_div, log_softmax

        teacher_BK = log_softmax(logits[-1].detach().float(), dim=1)
        for index, out in enumerate(logits[:-1]):
            student_BK = log_softmax(out.float(), dim=1)
            divergence = kl_div(student_BK, teacher_BK, reduction="batchmean", log_target=True)
            losses[index] = (1 - self.distill) * losses[index] + self.distill * divergence
        return losses

    def criterion(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """Cross entropy of one stage in float32, in whatever precision the logits are."""
        from torch.nn.functional import cross_entropy

        loss: Tensor = cross_entropy(
            logits_BK.float(), labels_B, label_smoothing=self.label_smoothing
        )
        return loss
