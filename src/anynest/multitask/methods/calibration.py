"""The constant C of equation 2, given or calibrated.

The paper sets C "using calibration experiments" (section 4.2) and reports C = 1/2. Read literally,
C = 1/2 gives a million weights a gradient of norm 500, whatever the loss. ``C="calibrated"`` runs
the experiment on the way: over the first steps C is the ratio of the norms that SGD's update and
the normalized one have had in sum so far; then it stands still.
"""

from typing import Any, Literal

import torch
from torch import Tensor

ConstantC = float | Literal["calibrated"]


class Constant:
    """C as a number, or found over the first ``steps`` steps."""

    def __init__(self, C: ConstantC = 0.5, steps: int = 100) -> None:
        if C != "calibrated" and (
            isinstance(C, bool) or not isinstance(C, int | float) or not 0 < C < float("inf")
        ):
            raise ValueError(f"C must be a positive number or 'calibrated', found {C!r}: try 0.5")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"calibration_steps must be at least 1, found {steps!r}: try 100")
        self.C = C
        self.steps = steps
        self.done = 0
        self._sgd: float | Tensor = 0.0
        self._unit: float | Tensor = 0.0

    @property
    def is_calibrated(self) -> bool:
        return self.C == "calibrated"

    @property
    def wants_norms(self) -> bool:
        """Whether the next step still counts towards the calibration."""
        return self.is_calibrated and self.done < self.steps

    def observe(self, sgd_norm: Tensor, unit_norm: Tensor) -> None:
        """Count one step: the norm of SGD's update, and of the normalized one at C = 1.

        A step whose norms are not finite counts towards ``steps`` and adds nothing.
        """
        good = torch.isfinite(sgd_norm) & torch.isfinite(unit_norm)
        zero = torch.zeros_like(sgd_norm)
        self._sgd = torch.where(good, sgd_norm, zero) + self._sgd
        self._unit = torch.where(good, unit_norm, zero) + self._unit
        self.done += 1

    def value(self) -> float | Tensor:
        """C now; 0 as long as every gradient has been zero."""
        if self.C != "calibrated":
            return self.C
        if isinstance(self._unit, Tensor):
            none = self._unit == 0
            return torch.where(none, 0.0, self._sgd / torch.where(none, 1.0, self._unit))
        assert not isinstance(self._sgd, Tensor)
        return self._sgd / self._unit if self._unit else 0.0

    def state_dict(self) -> dict[str, Any]:
        if not self.is_calibrated:
            return {}
        return {"done": self.done, "sgd": float(self._sgd), "unit": float(self._unit)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        expected = set(self.state_dict())
        if set(state) != expected:
            raise ValueError(
                f"state of C must hold {sorted(expected)}, found {sorted(state)}: load the state of"
                " the same method with the same C"
            )
        if expected:
            self.done = int(state["done"])
            self._sgd, self._unit = float(state["sgd"]), float(state["unit"])
