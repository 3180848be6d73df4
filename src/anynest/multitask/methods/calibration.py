r"""The constant C of equation 2, given or calibrated.

The paper sets C "using calibration experiments" (section 4.2) and reports C = 1/2. Taken literally,
C = 1/2 gives a million weights a gradient of norm 500, whatever the loss. ``C="calibrated"`` runs
the experiment during training: after t steps, :math:`C = \sum_t \|g^{SGD}_t\| / \sum_t \|g^1_t\|`
with the updates of SGD and of the normalizing method at C = 1; after ``steps`` steps C is constant.
"""

from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from ..checks import whole_number

ConstantC = float | Literal["calibrated"]


class Constant:
    """C as a number, or calibrated over the first ``steps`` steps."""

    def __init__(self, C: ConstantC = 0.5, steps: int = 100) -> None:
        if C != "calibrated" and (
            isinstance(C, bool) or not isinstance(C, Real) or not 0 < C < float("inf")
        ):
            raise ValueError(f"C must be a positive number or 'calibrated', found {C!r}: try 0.5")
        self.C: ConstantC = "calibrated" if C == "calibrated" else float(C)
        self.steps = whole_number("calibration_steps", steps, 1, "try 100")
        self.done = 0
        self._sgd: float | Tensor = 0.0
        self._unit: float | Tensor = 0.0

    @property
    def is_calibrated(self) -> bool:
        return self.C == "calibrated"

    @property
    def wants_norms(self) -> bool:
        """Whether the next step contributes to the calibration."""
        return self.is_calibrated and self.done < self.steps

    def observe(self, sgd_norm: Tensor, unit_norm: Tensor) -> None:
        """Count one step, with the norms of SGD's update and of the normalized one at C = 1.

        A step whose norms are not finite counts towards ``steps`` and contributes 0.
        """
        good = torch.isfinite(sgd_norm) & torch.isfinite(unit_norm)
        zero = torch.zeros_like(sgd_norm)
        self._sgd = torch.where(good, sgd_norm, zero) + self._sgd
        self._unit = torch.where(good, unit_norm, zero) + self._unit
        self.done += 1

    def value(self) -> float | Tensor:
        """The current C; 0 while every gradient has been zero."""
        if self.C != "calibrated":
            return self.C
        if isinstance(self._unit, Tensor):
            none = self._unit == 0
            return torch.where(none, 0.0, self._sgd / torch.where(none, 1.0, self._unit))
        assert not isinstance(self._sgd, Tensor)
        return self._sgd / self._unit if self._unit else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The sums so far; empty unless C is calibrated."""
        if not self.is_calibrated:
            return {}
        return {"done": self.done, "sgd": float(self._sgd), "unit": float(self._unit)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        expected = set(self.state_dict())
        if set(state) != expected:
            raise ValueError(
                f"state of C must hold {sorted(expected)}, found {sorted(state)}: load the state of"
                " the same method with the same C"
            )
        if expected:
            self.done = int(state["done"])
            self._sgd, self._unit = float(state["sgd"]), float(state["unit"])
