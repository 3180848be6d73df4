"""An architecture as data: everything in which the paper's networks differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

from .growth import Growth, Stage, as_integer, parse_growth, positive_integer

MAX_BLOCKS = 10_000  # of the deepest stage
MAX_LAYERS = 20_000  # of all stages: a plan takes seconds

CHOICES: dict[str, tuple[str, ...]] = {
    "block": ("basic", "bottleneck"),
    "skips": ("residual", "sparse"),
    "order": ("interlaced", "prefix"),
    "stem": ("cifar", "imagenet"),
    "exit": ("conv", "linear"),
    "head": ("separate", "shared"),
    "norm": ("separate", "shared"),
}


@dataclass(frozen=True)
class Architecture:
    """The data from which a network is built.

    Attributes:
        blocks: blocks of each group (resolution) at depth 1.
        growth: (width, depth) of each stage.
        base_width: channels of the first group at width 1; each further group doubles them.
        block: ``basic`` (two 3x3) or ``bottleneck`` (1x1, 3x3, 1x1; four times as wide outside).
        skips: ``residual`` (x + F(x), He et al. 2016) or ``sparse`` (the sum of the layers 1, 2, 4,
            8, ... back, Zhu et al. 2018), the rule that depth nesting needs (section 3.3.1).
        order: the place of a deeper stage's layers: ``interlaced`` between the earlier ones
            (Figure 3), or after them, as in a cascade (``prefix``, Figure 2).
        stem: ``cifar`` (3x3) or ``imagenet`` (7x7, stride 2, max pooling).
        exit: how an output reads features of an early group (cascades only): ``conv`` brings them
            to the last group's width and resolution first, ``linear`` reads them as they are.
        head: ``separate``: one linear layer per stage; ``shared``: one for all stages, each reading
            the leading columns, those of its own features, and the one bias.
        norm: the batch norm of a group's transition, which has one version for each sum that it
            reads: ``separate``, one per version, or ``shared``, one for all, with the same affine
            parameters and running statistics. In training each version is normalised by its own
            batch statistics, and updates the running ones in the order of the stages.
        isolated: no stage reads another's nodes (the ensemble, Figure 1).
        average: output s is the mean of the logits 1..s (ensembles only), not the logits s alone.
        num_classes: logits of each output.
        in_channels: channels of the images.

    Raises:
        ValueError: a field out of range, or a growth that the skip rule does not admit.
    """

    blocks: tuple[int, ...]
    growth: Growth
    base_width: int
    block: str = "basic"
    skips: str = "residual"
    order: str = "interlaced"
    stem: str = "cifar"
    exit: str = "conv"
    head: str = "separate"
    norm: str = "separate"
    isolated: bool = False
    average: bool = False
    num_classes: int = 10
    in_channels: int = 3

    def __post_init__(self) -> None:
        set_field = partial(object.__setattr__, self)  # the dataclass is frozen
        set_field("growth", parse_growth(self.growth))
        for field, allowed in CHOICES.items():
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, found {value!r}")
        for field in ("base_width", "num_classes", "in_channels"):
            set_field(field, positive_integer(field, getattr(self, field)))
        if not isinstance(self.blocks, (tuple, list)) or not self.blocks:
            raise ValueError(
                f"blocks must list the blocks of each group, such as [2, 2, 2], found "
                f"{self.blocks!r}"
            )
        set_field("blocks", tuple(positive_integer("blocks", count) for count in self.blocks))
        layers = sum(self.blocks) * self.max_depth
        if layers > MAX_BLOCKS:
            raise ValueError(
                f"blocks times the largest depth must be at most {MAX_BLOCKS}, found {layers}"
            )
        if layers * len(self.growth) > MAX_LAYERS:
            raise ValueError(
                f"blocks times the largest depth times the stages must be at most {MAX_LAYERS}, "
                f"found {layers * len(self.growth)}"
            )
        for field in ("isolated", "average"):
            value = getattr(self, field)
            if type(value) is not bool:
                raise ValueError(f"{field} must be true or false, found {value!r}")
        if self.average and not self.isolated:
            raise ValueError(
                "average=True is for ensembles; nested stages contain the earlier ones"
            )
        for field in ("head", "norm"):
            if self.isolated and getattr(self, field) == "shared":
                raise ValueError(
                    f"{field}='shared' is for nested stages; an ensemble's members share nothing, "
                    f"found isolated=True; use {field}='separate'"
                )
        deepens = self.growth[0].depth != self.growth[-1].depth
        interlaced_residual = (self.skips, self.order) == ("residual", "interlaced")
        if deepens and interlaced_residual and not self.isolated:
            raise ValueError(
                "depth nesting needs skips to the layers 1, 2, 4, ... back (section 3.3.1), found "
                f"growth {[tuple(stage) for stage in self.growth]} with plain residual skips; use "
                "a sparse_resnet model, or grow in width alone"
            )
        if self.head == "shared" and deepens and (self.order, self.exit) == ("prefix", "linear"):
            raise ValueError(
                "head='shared' needs outputs that read the same channels, found exits at different "
                "groups with exit='linear'; use exit='conv'"
            )

    @property
    def num_stages(self) -> int:
        """S, the number of outputs."""
        return len(self.growth)

    @cached_property
    def max_depth(self) -> int:
        """The relative depth of the last stage."""
        return self.growth[-1].depth

    @property
    def expansion(self) -> int:
        """Channels outside a block, as a multiple of those within."""
        return 4 if self.block == "bottleneck" else 1

    def plain(self, stage: int) -> Architecture:
        """The un-nested network of one stage's size (the Oracle's member, section 5.3)."""
        size = self.growth[check_stage(stage, self.num_stages) - 1]
        return replace(
            self,
            growth=(Stage(*size),),
            head="separate",
            norm="separate",
            isolated=False,
            average=False,
        )


def check_stage(stage: int, count: int) -> int:
    """Check the number of a stage; ValueError unless it is from 1 to ``count``."""
    number = as_integer(stage)
    if number is None or not 1 <= number <= count:
        raise ValueError(f"stages are numbered 1 to {count}, found {stage!r}")
    return number
