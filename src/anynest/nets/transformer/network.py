"""A vision transformer with S outputs that computes nothing twice (docs/transformers.md)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..nested.architecture import check_stage
from ..nested.cost import StageCost
from .cost import grid_of, stage_costs
from .plan import TransformerPlan
from .stripe import LayerState, Stripe, StripeState, join

TENSORS_PER_LAYER = len(LayerState._fields)


class NestedTransformer(nn.Module):
    """A vision transformer with S outputs, each of which contains the ones before it.

    ``model(x)`` returns the list of S logits ``[B, K]``; ``model.stages(x)`` yields
    ``(1, logits)``, ``(2, logits)``, ... on demand and computes everything once. The modules of
    stage s are ``model.stage<s>`` and ``model.head<s>``.

    Args:
        plan: the network to build.

    Attributes:
        outputs: the stages that have an output; all of them, or one in a subnetwork.
    """

    input_names = ("images",)

    def __init__(self, plan: TransformerPlan) -> None:
        super().__init__()
        self.plan = plan
        self.outputs = tuple(range(1, plan.num_stages + 1))
        for stage in self.outputs:
            self.add_module(f"stage{stage}", Stripe(plan, stage))
            head = nn.Linear(plan.total_width(stage), plan.num_classes)
            self.add_module(f"head{stage}", head)
        self.apply(_initialize)

    # -- structure --------------------------------------------------------------------------------
    @property
    def num_stages(self) -> int:
        """S, the number of outputs."""
        return len(self.outputs)

    @property
    def num_classes(self) -> int:
        return self.plan.num_classes

    @property
    def in_channels(self) -> int:
        return self.plan.in_channels

    @property
    def example_inputs(self) -> tuple[Tensor, ...]:
        """Images of the plan's size."""
        side = self.plan.image_size
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(2, self.in_channels, side, side, generator=generator),)

    def subnetwork(self, stage: int) -> NestedTransformer:
        """Stage ``stage`` alone (N3): a network with one output that shares this one's parameters.

        Its ``state_dict`` is the part of this one's that the output depends on, under the same
        names.

        Raises:
            ValueError: there is no such stage.
        """
        check_stage(stage, self.num_stages)
        part = copy.copy(self)
        nn.Module.__init__(part)
        part.outputs = (self.outputs[stage - 1],)
        for own in range(1, part.outputs[0] + 1):
            part.add_module(f"stage{own}", self.get_submodule(f"stage{own}"))
        head = f"head{part.outputs[0]}"
        part.add_module(head, self.get_submodule(head))
        part.training = self.training
        origin: Any = getattr(self, "_anynest_origin", None)
        if origin is not None and self.num_stages > 1:
            arguments = {**origin.arguments, "subnetwork": stage}
            part._anynest_origin = replace(origin, arguments=arguments)
        return part

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """The modules that output ``stage`` needs and the output before it does not."""
        check_stage(stage, self.num_stages)
        added = self._added(stage)
        return [*self._stripes(added), self.get_submodule(f"head{added[-1]}")]

    def called_nodes(self) -> list[nn.Module]:
        """The modules that ``forward`` calls one by one, each of one stage."""
        return self._stripes(range(1, self.outputs[-1] + 1))

    def _added(self, number: int) -> range:
        """The stages that output ``number`` adds to those of the output before."""
        before = self.outputs[number - 2] if number > 1 else 0
        return range(before + 1, self.outputs[number - 1] + 1)

    def _stripes(self, stages: Sequence[int]) -> list[nn.Module]:
        return [self.get_submodule(f"stage{stage}") for stage in stages]

    def cost(
        self, image_size: int | tuple[int, int] | Tensor | None = None
    ) -> tuple[StageCost, ...]:
        """Parameters and multiply-adds per output, for one image.

        Args:
            image_size: pixels a side, (height, width), or images ``[B, C, H, W]``; default: the
                plan's.
        """
        if isinstance(image_size, Tensor):
            image_size = (image_size.shape[-2], image_size.shape[-1])
        size = self.plan.image_size if image_size is None else image_size
        rows = stage_costs(self.plan, size if isinstance(size, tuple) else (size, size))
        if len(self.outputs) == len(rows):
            return rows
        (stage,) = self.outputs  # without the heads of the earlier stages
        heads = [self.plan.total_width(s) * self.plan.num_classes for s in range(1, stage)]
        biases = len(heads) * self.plan.num_classes
        parameters = rows[stage - 1].parameters - sum(heads) - biases
        work = rows[stage - 1].multiply_adds - sum(heads)
        return (StageCost(stage, parameters, parameters, work, work),)

    # -- evaluation -------------------------------------------------------------------------------
    def forward(self, images: Tensor) -> list[Tensor]:
        """All S logits ``[B, K]`` of images ``[B, C, H, W]``."""
        return [logits for _, logits in self.stages(images)]

    def stages(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (1, logits), (2, logits), ...; each is computed when asked for (N2, N4)."""
        self._check(images)
        state: list[StripeState] = []
        for number, stage in enumerate(self.outputs, 1):
            for stripe in self._stripes(self._added(number)):
                state.append(stripe(images, state))
            head = self.get_submodule(f"head{stage}")
            yield number, head(join([stripe.features for stripe in state]))

    def segments(self) -> list[Segment]:
        """One module per output: ``segment(*state) -> (output, *state)``."""
        made = []
        for number, stage in enumerate(self.outputs, 1):
            stripes = self._stripes(self._added(number))
            layers = [len(self.plan.layers_of(s)) for s in range(1, self._added(number)[0])]
            head = self.get_submodule(f"head{stage}")
            made.append(Segment(stripes, head, layers, is_last=number == self.num_stages))
        return made

    def _check(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images must be [batch, {self.in_channels}, height, width], found "
                f"{list(images.shape)}; create the model with in_channels= for other images"
            )
        if not images.is_floating_point():
            raise ValueError(
                f"images must be floating point, found {images.dtype}; scale and normalise them"
            )
        grid_of(self.plan, (images.shape[2], images.shape[3]))

    def extra_repr(self) -> str:
        return f"widths={self.plan.widths}, outputs={list(self.outputs)}"


class Segment(nn.Module):
    """What one output adds: ``segment(images, *state) -> (logits, images, *state)``.

    The state is, per stage so far and per layer of it, z, o, u ``[B, N, d]`` and a ``[B, N, r d]``,
    then the stage's normed class token ``[B, d]``. It is passed on uncopied: the tensors of each
    stage stay tensors of their own. The last segment gives ``(logits,)``.

    Args:
        stripes: the stages that the output adds.
        head: its linear layer.
        layers: the number of layers of each earlier stage.
        is_last: whether no output follows.
    """

    def __init__(
        self, stripes: Sequence[nn.Module], head: nn.Module, layers: Sequence[int], is_last: bool
    ) -> None:
        super().__init__()
        self.stripes = nn.ModuleList(stripes)
        self.head = head
        self.counts = tuple(layers)
        self.is_last = is_last

    def forward(self, images: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        stripes = _grouped(state, self.counts)
        for stripe in self.stripes:
            stripes.append(stripe(images, stripes))
        logits = self.head(join([stripe.features for stripe in stripes]))
        if self.is_last:
            return (logits,)
        new = [tensor for stripe in stripes[len(self.counts) :] for tensor in _flat(stripe)]
        return (logits, images, *state, *new)


def _flat(stripe: StripeState) -> list[Tensor]:
    return [*(tensor for layer in stripe.layers for tensor in layer), stripe.features]


def _grouped(state: Sequence[Tensor], counts: Sequence[int]) -> list[StripeState]:
    """The inverse of ``_flat`` for several stages of ``counts`` layers."""
    tensors = iter(state)
    return [
        StripeState(
            tuple(
                LayerState(*(next(tensors) for _ in range(TENSORS_PER_LAYER))) for _ in range(count)
            ),
            next(tensors),
        )
        for count in counts
    ]


def _initialize(module: nn.Module) -> None:
    """Truncated normal weights of deviation 1 / sqrt(inputs), biases 0 (LeCun et al. 1998).

    By fan-in, so that the columns for earlier stages have the deviation of the stage's own. With
    the deviation of 0.02 that is usual for wide transformers, the narrow first stages learn slowly.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Stripe):
        nn.init.trunc_normal_(module.class_token, std=0.02)
        nn.init.trunc_normal_(module.positions, std=0.02)
        nn.init.zeros_(module.embed.bias)  # type: ignore[arg-type]


def create(
    plan: TransformerPlan,
    *,
    independent: int | None = None,
    subnetwork: int | None = None,
    **options: Any,
) -> NestedTransformer:
    """Build a nested transformer.

    Args:
        plan: its registered sizes.
        independent: s: the plain, un-nested transformer of stage s's size.
        subnetwork: s: stage s of the nested transformer alone.
        options: other values of the plan's fields, such as ``num_classes``.

    Raises:
        TypeError: an unknown option.
        ValueError: a value out of range.
    """
    model = NestedTransformer(plan.configure(options, independent))
    return model if subnetwork is None else model.subnetwork(subnetwork)
