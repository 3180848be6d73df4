"""The protocol of every anytime network, nested or not.

It is structural: a module that has these members satisfies it, without a base class. Stages are
numbered from 1, and a later stage contains the earlier ones.

Optional members, each used where it is there:

- ``segments() -> Sequence[nn.Module]``: ``segment(*state) -> (output, *state)``. The first
  segment's state is the inputs, the next one's exactly what the one before gave, and the last gives
  ``(output,)``. Dimension 0 of every state tensor is the batch.
- ``accepts(*inputs) -> bool``: whether ``segments`` stand for inputs of these sizes, whatever the
  batch; default: for all.
- ``cost(*example) -> tuple[StageCost, ...]``: parameters and multiply-adds; default: counted.
- ``input_names: tuple[str, ...]``; default: the parameters of ``forward``.
- ``example_inputs: tuple[Tensor, ...]``: one batch of inputs in that order, for exports and warm-up.
- ``num_classes`` (K, where the outputs are logits ``[B, K]``) and ``in_channels`` (where the input
  is images ``[B, C, H, W]``); None or absent: other outputs or inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


@runtime_checkable
class Staged(Protocol):
    """A network with S outputs, which can be evaluated at once or stage after stage.

    Both evaluations give the same outputs. Parameters that a stage adds change no earlier output
    (N1), and ``stages`` computes nothing twice (N2) and nothing before its stage is asked for (N4).

    Example:
        >>> from anynest import create_model
        >>> isinstance(create_model("width_nested_resnet10"), Staged)
        True
    """

    @property
    def num_stages(self) -> int:
        """S, the number of outputs."""
        ...

    def forward(self, *inputs: Any, **named: Any) -> list[Tensor]:
        """All S outputs in one pass, such as logits ``[B, K]``; training calls this."""
        ...

    def stages(self, *inputs: Any, **named: Any) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(1, output)``, ``(2, output)``, ...; each is computed when it is asked for."""
        ...


if TYPE_CHECKING:

    class StagedModule(nn.Module):
        """A module that satisfies :class:`Staged`, for annotations alone."""

        num_stages: int

        def forward(self, *inputs: Any, **named: Any) -> list[Tensor]: ...
        def stages(self, *inputs: Any, **named: Any) -> Iterator[tuple[int, Tensor]]: ...


MEMBERS = {
    "num_stages": "the number of its outputs",
    "forward": "forward(*inputs) -> list of all outputs",
    "stages": "stages(*inputs), which yields (1, output), (2, output), ...",
}


def require_staged(
    module: object, purpose: str, members: Sequence[str] = tuple(MEMBERS)
) -> StagedModule:
    """The module itself, if it satisfies :class:`Staged`.

    Args:
        module: a network.
        purpose: what needs the protocol, the subject of the message, such as ``"a predictor"``.
        members: what it needs of the protocol.

    Raises:
        TypeError: no ``torch.nn.Module``, or one that lacks a member; the message names it.
        ValueError: ``num_stages`` is no positive number.
    """
    from torch import nn

    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        raise TypeError(f"{purpose} needs a torch.nn.Module, found {kind}")
    for name in members:
        found = getattr(module, name, None)
        if name == "forward":
            is_missing = getattr(found, "__func__", found) is nn.Module.forward
        else:  # other libraries' networks have a submodule named stages
            is_missing = found is None or (name == "stages" and isinstance(found, nn.Module))
        if is_missing:
            raise TypeError(
                f"{purpose} needs a network with {name} ({MEMBERS[name]}), found {kind} without: "
                "add exits by anynest.add_exits, or implement anynest.nets.Staged"
            )
    stages = module.num_stages
    if not isinstance(stages, int) or stages < 1:
        raise ValueError(f"num_stages of {kind} must be an int of at least 1, found {stages!r}")
    return module  # type: ignore[return-value]
