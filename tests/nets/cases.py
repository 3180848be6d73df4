"""The networks of the structural tests: each registered model, random growths, shared parts.

Large members are thin (``base_width``) and read small images; their structure is complete.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from anynest.nets import AnytimeNetwork, Architecture, Growth, Stage, create_model, list_models
from anynest.nets.registry import is_nested

BATCH = 3


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], AnytimeNetwork]
    image_size: int
    modes: tuple[bool, ...] = (False, True)  # of training: large and random networks run in one

    def network(self, *, train: bool = False) -> AnytimeNetwork:
        """The network in float64, with batch-norm statistics that are not the identity's."""
        torch.manual_seed(0)
        model = self.build().double()
        generator = torch.Generator().manual_seed(1)
        for key, buffer in model.named_buffers():
            if buffer.is_floating_point():
                low = 0.5 if key.endswith("var") else -0.1
                buffer.copy_(
                    torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype) * 0.2 + low
                )
        return model.train(train)

    def images(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(2)
        shape = (BATCH, 3, self.image_size, self.image_size)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def __str__(self) -> str:
        return self.name


def _registered(name: str) -> Case:
    large = any(size in name for size in ("42", "98", "50", "66"))
    imagenet = create_model(name).architecture.stem == "imagenet"

    def build() -> AnytimeNetwork:
        return create_model(name, base_width=2) if large else create_model(name)

    # norms over three values magnify rounding: a deep network needs more than a pixel at its end
    size = (64 if large else 32) if imagenet else 8
    return Case(name, build, size, (True,) if large else (False, True))


def _random_growth(rng: random.Random, *, depth: bool, width: bool) -> Growth:
    stages = [Stage(rng.randint(1, 2), rng.randint(1, 2) if depth else 1)]
    for _ in range(rng.randint(1, 3)):
        wider = width and (rng.random() < 0.6 or not depth)
        deeper = depth and (rng.random() < 0.6 or not wider)
        last = stages[-1]
        grown = last.depth * rng.choice([2, 2, 3]) if deeper and last.depth <= 2 else last.depth
        stage = Stage(last.width + rng.randint(1, 2) * wider, grown)
        if stage != last:
            stages.append(stage)
    return tuple(stages)


def _shared(name: str, **options: str) -> Case:
    label = "-".join(["shared", *options])
    return Case(f"{name}-{label}", lambda: create_model(name, **options), 8)


def _random(seed: int, *, shared: bool = False) -> Case:
    rng = random.Random(seed)
    kind = ("interlaced", "prefix", "residual", "interlaced", "ensemble")[seed % 5]
    growth = _random_growth(rng, depth=kind != "residual", width=kind != "prefix" or seed % 2 == 0)
    architecture = Architecture(
        blocks=tuple(rng.randint(1, 2) for _ in range(rng.randint(1, 3))),
        growth=growth,
        base_width=rng.randint(2, 3),
        block=rng.choice(["basic", "bottleneck"]),
        skips="residual" if kind == "residual" else "sparse",
        order="prefix" if kind == "prefix" else "interlaced",
        stem=rng.choice(["cifar", "imagenet"]),
        exit=rng.choice(["conv", "linear"]),
        isolated=kind == "ensemble",
        average=kind == "ensemble" and rng.random() < 0.5,
    )
    if shared:
        architecture = replace(
            architecture, exit="conv", head="shared", norm="shared", isolated=False, average=False
        )
        kind = f"shared-{kind}"
    label = "-".join(f"{width}x{depth}" for width, depth in growth)
    name, modes = f"{seed}-{kind}-{label}", (seed % 2 == 0,)
    return Case(name, lambda: AnytimeNetwork(architecture), 16, modes)


# parts that stages may share: the head, and the norm of a transition's versions
SHARED = [
    _shared("width_nested_resnet10", head="shared"),
    _shared("cascade_sparse_resnet26", head="shared"),
    _shared("depth_nested_sparse_resnet14", head="shared", norm="shared"),
    _shared("alternating_nested_sparse_resnet14", norm="shared"),
    _shared("simultaneous_nested_sparse_resnet26", head="shared", norm="shared"),
    *(_random(seed, shared=True) for seed in range(20, 25)),
]
CASES = [
    *map(_registered, filter(is_nested, list_models())),
    *map(_random, range(20)),
    *SHARED,
]
MODES = [(case, train) for case in CASES for train in case.modes]


def mode_name(value: object) -> str:
    return ("train" if value else "eval") if isinstance(value, bool) else str(value)
