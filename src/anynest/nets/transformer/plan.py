"""A nested vision transformer as data: what each stage adds, and what its layers read.

Stage s adds a stripe: a residual stream of ``widths[s]`` channels with layers of its own. The L
layers of the full network are numbered from 0; stage s has every m-th of them (0, m, 2m, ...; m = L
/ its own number). In layer l it reads the stripes of the earlier stages, each at its last layer not
after l: layer l itself, where that stage has it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from ..nested.architecture import MAX_BLOCKS, check_stage
from ..nested.growth import Growth, Stage, parse_growth, positive_integer

NUMBERS = (
    *("base_width", "layers", "head_size", "patch_size", "image_size"),
    *("mlp_ratio", "num_classes", "in_channels"),
)


@dataclass(frozen=True)
class TransformerPlan:
    """The data from which a nested vision transformer is built.

    Attributes:
        growth: (width, depth) of each stage: multiples of ``base_width`` and of ``layers``. Each
            stage must be wider than the one before.
        base_width: channels at width 1.
        layers: layers at depth 1.
        head_size: channels of an attention head; it divides the channels that each stage adds.
        patch_size: pixels of a patch's side.
        image_size: pixels of an image's side, a multiple of ``patch_size``. It sets the number of
            positional embeddings; for images of other sizes these are interpolated.
        mlp_ratio: hidden channels of the MLP, as a multiple of the layer's.
        num_classes: logits of each output.
        in_channels: channels of the images.

    Raises:
        ValueError: a field out of range.
    """

    growth: Growth
    base_width: int
    layers: int
    head_size: int
    patch_size: int
    image_size: int
    mlp_ratio: int = 4
    num_classes: int = 10
    in_channels: int = 3

    def __post_init__(self) -> None:
        set_field = partial(object.__setattr__, self)  # the dataclass is frozen
        set_field("growth", parse_growth(self.growth))
        for field in NUMBERS:
            set_field(field, positive_integer(field, getattr(self, field)))
        if min(self.widths) < 1:
            raise ValueError(
                "growth: each stage of a nested transformer must be wider than the one before, as "
                f"it adds channels of its own, found {[tuple(stage) for stage in self.growth]}; "
                "widen it"
            )
        for width in self.widths:
            if width % self.head_size:
                raise ValueError(
                    f"head_size must divide the channels that each stage adds, found {width} "
                    f"channels and head_size={self.head_size}; change head_size or base_width"
                )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size must divide image_size, found patch_size={self.patch_size} and "
                f"image_size={self.image_size}; change either"
            )
        if self.depth > MAX_BLOCKS:
            raise ValueError(
                f"layers times the largest depth must be at most {MAX_BLOCKS}, found {self.depth}"
            )

    @property
    def num_stages(self) -> int:
        return len(self.growth)

    @property
    def depth(self) -> int:
        """Layers of the full network."""
        return self.layers * self.growth[-1].depth

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels that each stage adds."""
        totals = [0, *(stage.width * self.base_width for stage in self.growth)]
        return tuple(b - a for a, b in itertools.pairwise(totals))

    def total_width(self, stage: int) -> int:
        """The channels of stages 1 to ``stage``, which that stage reads."""
        return self.growth[stage - 1].width * self.base_width

    def layers_of(self, stage: int) -> range:
        """The full network's numbers of the layers that a stage has."""
        return range(0, self.depth, self._step(stage))

    def reads(self, stage: int, layer: int) -> tuple[int, ...]:
        """Per earlier stage, which of its layers (0, 1, ...) stage ``stage`` reads in a layer."""
        return tuple(layer // self._step(earlier) for earlier in range(1, stage))

    def _step(self, stage: int) -> int:
        return self.growth[-1].depth // self.growth[stage - 1].depth

    def plain(self, stage: int) -> TransformerPlan:
        """The un-nested transformer of one stage's size."""
        size = self.growth[check_stage(stage, self.num_stages) - 1]
        return replace(self, growth=(Stage(*size),))

    def configure(
        self, options: Mapping[str, Any], independent: int | None = None
    ) -> TransformerPlan:
        """The plan with other values of some fields; None keeps a field.

        Raises:
            TypeError: an unknown field.
            ValueError: a value out of range.
        """
        known = [field.name for field in fields(self)]
        for key in options:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"options are {', '.join(known)}"
                raise TypeError(f"a nested transformer has no option {key!r}; {hint}")
        changes = {key: value for key, value in options.items() if value is not None}
        plan = replace(self, **changes)
        return plan if independent is None else plan.plain(independent)
