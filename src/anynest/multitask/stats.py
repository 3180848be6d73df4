"""What one combination measured: norms, cosines, projection coefficients, loss weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Combination:
    """A rule's result for s tasks: the step's gradient is ``sum_i loss_weights[i] * g_i``.

    Attributes:
        loss_weights: [s] as in ``Stats``, over these tasks; likewise the others. [T, s] for
            gradients that are ``tensorwise``: for each of the T tensors that some task touches.
        coefficients: [s, s] or None.
        gram: [s, s] or None.
        importances: [s] k for an average over participants, None for a sum. Entries that not every
            task touches are then multiplied by the sum of k over that of the tasks that do.
        refreshed: as in ``Stats``.
        drift: as in ``Stats``.
    """

    loss_weights: Tensor
    coefficients: Tensor | None = None
    gram: Tensor | None = None
    importances: Sequence[float] | None = None
    refreshed: bool = True
    drift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TaskStats:
    """One task's measurements, as 0-d tensors on the device.

    Attributes:
        name: of the task; the number of its loss if the losses have no names.
        loss: the loss's value.
        loss_weight: its equivalent loss weight, see ``Stats.loss_weights``.
        norm: the norm of its gradient; None if not computed.
        cosines: with the gradients of the other tasks, by name; empty if not computed.
        skipped: whether the loss was left out, since it was not finite.
    """

    name: str
    loss: Tensor
    loss_weight: Tensor
    norm: Tensor | None
    cosines: dict[str, Tensor]
    skipped: bool


@dataclass(frozen=True, eq=False, repr=False)
class Stats:
    r"""Measurements of one step, as tensors on the device: reading one waits for the device.

    ``stats["depth"]`` (or ``stats[0]``) has one task's, ``print(stats)`` prints a table, and
    ``log_dict`` is for loggers.

    Attributes:
        losses: [S] the losses' values.
        loss_weights: [S] the equivalent loss weights w: the step's gradient is that of
            :math:`\sum_i w_i L_i`. Where a method averages over participants, this holds for the
            entries that every task touches. 0 for a skipped loss or a remainder that was rounding.
        coefficients: [S, S] L of :math:`g_i = \sum_j L_{ij} u_j` with the orthogonal components u;
            unit lower-triangular in priority order. For plain OSGD :math:`L^T w = 1`, with
            normalizing :math:`L^T w = s`, where s_i is the factor that normalizes g_i (either
            divided by S under reduction "mean"). None without a projection.
        gram: [S, S] dot products of the tasks' gradients over common entries; None if not computed,
            as in the single pass of ``WeightedSGD``. NaN for a skipped loss. Those of ``metric``, if
            OSGD has one, and so are norms and cosines.
        skipped: indices of the losses left out, in every micro-batch, since they were not finite.
        refreshed: False for a step of ``OSGD(refresh=k)`` that reused the loss weights of an
            earlier step; coefficients and gram are then None.
        drift: the relative error that the kept loss weights would have caused in this step's update
            (``methods.refresh.drift``); None where none were kept.
        sent_bytes: bytes sent by this rank's collectives in the step; 0 without a group.
        names: the losses' names; None if they were passed as a list.

    >>> from anynest import OSGD
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> print(OSGD().backward({"depth": w[0], "seg": w[1] - w[0]}))
    task       loss    weight  cosines
    depth         1         2   1.000  -0.707
    seg           1         1  -0.707   1.000
    """

    losses: Tensor
    loss_weights: Tensor
    coefficients: Tensor | None = None
    gram: Tensor | None = None
    skipped: tuple[int, ...] = ()
    refreshed: bool = True
    drift: Tensor | None = None
    sent_bytes: int = 0
    names: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        found: Combination,
        values_S: Tensor,
        tasks: Sequence[int],
        sent_bytes: int = 0,
        names: tuple[str, ...] | None = None,
    ) -> "Stats":
        """The measurements of ``tasks``, extended to all S losses."""
        count = len(values_S)
        is_whole = len(tasks) == count

        def extended(part: Tensor | None) -> Tensor | None:
            if part is None or is_whole:
                return part
            index = torch.tensor(tasks, device=part.device)
            out = part.new_full((*part.shape[:-2], count, count), torch.nan)
            out[..., index[:, None], index] = part
            return out

        weights = found.loss_weights
        if not is_whole:
            weights = weights.new_zeros(*weights.shape[:-1], count)
            weights[..., torch.tensor(tasks, dtype=torch.long, device=weights.device)] = (
                found.loss_weights
            )
        return cls(
            values_S,
            weights,
            extended(found.coefficients),
            extended(found.gram),
            skipped=tuple(i for i in range(count) if i not in tasks),
            refreshed=found.refreshed,
            drift=found.drift,
            sent_bytes=sent_bytes,
            names=names,
        )

    def __getitem__(self, task: str | int) -> TaskStats:
        """The measurements of a task, by name or by the number of its loss."""
        labels = self._labels()
        if isinstance(task, str):
            if self.names is None or task not in self.names:
                known = "numbers" if self.names is None else ", ".join(map(repr, self.names))
                raise KeyError(f"task must be one of {known}, found {task!r}")
            task = self.names.index(task)
        if not 0 <= task < len(labels):
            raise IndexError(f"task must be from 0 to {len(labels) - 1}, found {task}")
        norms, cosines = self.norms, self.cosines
        others = {} if cosines is None else dict(zip(labels, cosines[task], strict=True))
        others.pop(labels[task], None)
        return TaskStats(
            labels[task],
            self.losses[task],
            self._one_weight_each()[task],
            None if norms is None else norms[task],
            others,
            task in self.skipped,
        )

    def _labels(self) -> tuple[str, ...]:
        return self.names or tuple(map(str, range(len(self.losses))))

    def _one_weight_each(self) -> Tensor:
        """[S] the loss weights, averaged over tensors for a method with a projection in each."""
        weights = self.loss_weights
        return weights if weights.dim() == 1 else weights.mean(0)

    def log_dict(self, prefix: str = "") -> dict[str, Tensor]:
        r"""A flat dict of 0-d tensors on the device, for TensorBoard, Lightning and W&B loggers.

        The keys are ``loss/NAME``, ``loss_weight/NAME``, ``norm/NAME`` and ``cosine/NAME/OTHER``,
        each pair of tasks once; and ``drift``. What was not computed has no key. Nothing waits for
        the device here; most loggers do when they write.

        Args:
            prefix: put before each key, such as "train/".

        >>> from anynest import OSGD
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> logged = OSGD().backward({"depth": w[0], "seg": w[1]}).log_dict("train/")
        >>> print(*logged, sep="\n")
        train/loss/depth
        train/loss/seg
        train/loss_weight/depth
        train/loss_weight/seg
        train/norm/depth
        train/norm/seg
        train/cosine/depth/seg
        >>> logged["train/loss/seg"].item()
        2.0
        """
        labels, cosines = self._labels(), self.cosines
        vectors = {"loss": self.losses, "loss_weight": self._one_weight_each(), "norm": self.norms}
        found = {
            f"{kind}/{name}": value
            for kind, values in vectors.items()
            if values is not None
            for name, value in zip(labels, values.unbind(), strict=True)
        }
        if cosines is not None:
            for i, name in enumerate(labels):
                for j in range(i + 1, len(labels)):
                    found[f"cosine/{name}/{labels[j]}"] = cosines[i, j]
        if self.drift is not None:
            found["drift"] = self.drift
        return {prefix + key: value for key, value in found.items()}

    def __repr__(self) -> str:
        """A table of losses, weights and cosines; reads them, and so waits for the device."""
        labels = self._labels()
        if self.losses.is_meta:
            return f"Stats({', '.join(labels)}: without values, on the meta device)"
        width = max(len(label) for label in ("task", *labels))
        cosines = None if self.cosines is None else self.cosines.tolist()
        lines = [f"{'task':<{width}}  {'loss':>8}  {'weight':>8}"]
        lines[0] += "  cosines" if cosines else ""
        rows = zip(self.losses.tolist(), self._one_weight_each().tolist(), strict=True)
        for i, (loss, weight) in enumerate(rows):
            line = f"{labels[i]:<{width}}  {loss:>8.4g}  {weight:>8.4g}"
            line += "".join(f"  {cosine:>6.3f}" for cosine in cosines[i]) if cosines else ""
            lines.append(line + ("  skipped: not finite" if i in self.skipped else ""))
        return "\n".join(lines)

    @property
    def norms(self) -> Tensor | None:
        """[S] the norm of each task's gradient, in units of loss per unit of parameter."""
        return None if self.gram is None else self.gram.diagonal().sqrt()

    @property
    def cosines(self) -> Tensor | None:
        """[S, S] cosines between the tasks' gradients; 0 with a zero gradient."""
        if self.gram is None:
            return None
        norms = self.gram.diagonal().sqrt()
        scale = torch.where(norms == 0, torch.ones_like(norms), norms)
        return (self.gram / scale[:, None] / scale).clamp(-1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Lists of plain numbers for JSON; non-finite numbers become None."""

        def plain(value: Any) -> Any:
            if isinstance(value, list):
                return [plain(v) for v in value]
            return value if math.isfinite(value) else None

        names = ("losses", "loss_weights", "norms", "cosines", "coefficients", "drift")
        tensors = {name: getattr(self, name) for name in names}
        return {
            **{name: None if t is None else plain(t.tolist()) for name, t in tensors.items()},
            "skipped": list(self.skipped),
            "refreshed": self.refreshed,
        }
