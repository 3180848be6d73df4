"""Random networks and changes of their modules, through training, prediction and export.

    python benchmarks/fuzz_networks.py --minutes 60 --seed 0
    python benchmarks/fuzz_networks.py --trial 1234      # one trial again, with its traceback

Every trial builds a random architecture (or a small registered one), changes some of its modules
(subclasses, wrappers, hooks, pruning, parametrizations, other norms, frozen parts), and compares

- training steps with ``model(x)``, dense kernels included, with steps of an equal network that is
  evaluated by ``model.stages``, one plain module after the other, in float64;
- ``AnytimePredictor`` with ``model.stages``, in float32;
- the exported folder with ``model.stages``, or the one-line error that refuses to export it.

Either both sides of a comparison give the same numbers, or both raise the same type of error. The
number of every outcome is printed at the end; the exit status is 1 if a trial failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import random
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from anynest import AnytimePredictor, create_model, list_models, make_combiner
from anynest.engines.folding import FoldError
from anynest.engines.onnx.export.export import export
from anynest.nets import AnytimeNetwork, Architecture
from anynest.nets.nested.node import NestedNode
from anynest.nets.registry import is_nested
from anynest.predict import NetworkError

SMALL = [
    name for name in filter(is_nested, list_models()) if not name.endswith(("42", "50", "66", "98"))
]
METHODS = ("sgd-mean", "sgd-sum", "normsgd", "osgd", "osgd-norm")


class Doubled(nn.Conv2d):
    """A subclass whose call is not its base class's."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Rounded(nn.Conv2d):
    """Rounds its weight, as modules for quantisation-aware training do."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.fake_quantize_per_tensor_affine(self.weight.float(), 0.05, 0, -8, 7)
        return self._conv_forward(x, weight.to(self.weight.dtype), self.bias)


class Wrapped(nn.Module):
    """A module around another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        found = self.inner(*args)
        return found.tanh() if isinstance(found, Tensor) else (1.5 * found[0], found[1])


class Checkpointed(nn.Module):
    """A node that is evaluated again in the backward pass; its statistics are left out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        for norm in inner.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.0

    def forward(self, *args: Any) -> Any:
        return checkpoint(self.inner, *args, use_reentrant=False)


def random_growth(rng: random.Random, *, depth: bool, width: bool) -> tuple[tuple[int, int], ...]:
    stages = [(rng.randint(1, 2), rng.randint(1, 2) if depth else 1)]
    for _ in range(rng.randint(0, 3)):
        wider = rng.randint(0, 2) if width else 0
        deeper = depth and rng.random() < 0.6 and stages[-1][1] <= 2
        stage = stages[-1][0] + wider, stages[-1][1] * (rng.choice([2, 2, 3]) if deeper else 1)
        if stage != stages[-1]:
            stages.append(stage)
    return tuple(stages)


def random_network(rng: random.Random) -> AnytimeNetwork:
    """A small registered network, or one of a random architecture."""
    shared = {key: rng.choice(["separate", "shared"]) for key in ("head", "norm")}
    classes, channels = rng.randint(1, 12), rng.randint(1, 4)
    if rng.random() < 0.3:
        name = rng.choice(SMALL)
        options: dict[str, Any] = {} if name.startswith("ensemble") else shared
        return create_model(name, num_classes=classes, in_channels=channels, **options)
    kind = rng.choice(["interlaced", "interlaced", "prefix", "residual", "residual", "ensemble"])
    isolated = kind == "ensemble"
    sharing: dict[str, Any] = {} if isolated else shared
    exit_ = "conv" if sharing.get("head") == "shared" else rng.choice(["conv", "linear"])
    return AnytimeNetwork(
        Architecture(
            blocks=tuple(rng.randint(1, 2) for _ in range(rng.randint(1, 3))),
            growth=random_growth(  # type: ignore[arg-type]
                rng, depth=kind != "residual", width=kind != "prefix" or rng.random() < 0.5
            ),
            base_width=rng.randint(1, 6),
            block=rng.choice(["basic", "bottleneck"]),
            skips="residual" if kind == "residual" else "sparse",
            order="prefix" if kind == "prefix" else "interlaced",
            stem=rng.choice(["cifar", "imagenet"]),
            exit=exit_,
            isolated=isolated,
            average=isolated and rng.random() < 0.5,
            num_classes=classes,
            in_channels=channels,
            **sharing,
        )
    )


# -- changes of a network's modules --------------------------------------------------------------


def replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def names_of(network: nn.Module, *types: type[nn.Module]) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, types)]


def subclass(network: AnytimeNetwork, rng: random.Random) -> None:
    kind = rng.choice([Doubled, Rounded])
    for name in rng.sample(convs := names_of(network, nn.Conv2d), rng.randint(1, len(convs))):
        module = network.get_submodule(name)
        if type(module) is nn.Conv2d:
            module.__class__ = kind


def wrap(network: AnytimeNetwork, rng: random.Random) -> None:
    names = names_of(network, nn.Conv2d, nn.BatchNorm2d, nn.Linear, NestedNode)
    name = rng.choice(names)
    replace(network, name, Wrapped(network.get_submodule(name)))


def wrap_in_checkpoint(network: AnytimeNetwork, rng: random.Random) -> None:
    name = rng.choice(names_of(network, NestedNode))
    if network.plan.norms():
        return  # statistics of a shared norm would be updated by all its uses
    replace(network, name, Checkpointed(network.get_submodule(name)))


def halve(_module: nn.Module, grads: Any, _outputs: Any) -> Any:
    return tuple(None if grad is None else grad / 2 for grad in grads)


def add_hook(network: AnytimeNetwork, rng: random.Random) -> None:
    module = network.get_submodule(
        rng.choice(names_of(network, nn.Conv2d, nn.BatchNorm2d, nn.Linear))
    )
    if rng.random() < 0.5:
        module.register_forward_hook(lambda _m, _i, out: 1.5 * out)
    else:
        module.register_full_backward_hook(halve)


def prune_some(network: AnytimeNetwork, rng: random.Random) -> None:
    convs = names_of(network, nn.Conv2d, nn.Linear)
    for name in rng.sample(convs, rng.randint(1, len(convs))):
        prune.random_unstructured(network.get_submodule(name), "weight", 0.5)
        if rng.random() < 0.3:
            prune.remove(network.get_submodule(name), "weight")


def parametrize_one(network: AnytimeNetwork, rng: random.Random) -> None:
    module = network.get_submodule(rng.choice(names_of(network, nn.Conv2d, nn.Linear)))
    if rng.random() < 0.5:
        parametrizations.weight_norm(module)
    else:
        parametrize.register_parametrization(module, "weight", Wrapped(nn.Identity()))


def change_norm(network: AnytimeNetwork, rng: random.Random) -> None:
    name = rng.choice(names_of(network, nn.BatchNorm2d))
    norm = network.get_submodule(name)
    assert isinstance(norm, nn.BatchNorm2d)
    what = rng.randrange(6)
    if what == 0:
        replace(network, name, nn.GroupNorm(1, norm.num_features))
    elif what == 1:
        replace(network, name, nn.Identity())
    elif what == 2:
        norm.eps = 0.1
    elif what == 3:
        norm.momentum = rng.choice([None, 0.5])
    elif what == 4:
        replace(network, name, nn.BatchNorm2d(norm.num_features, affine=False))
    else:
        replace(network, name, nn.BatchNorm2d(norm.num_features, track_running_stats=False))


def change_convolution(network: AnytimeNetwork, rng: random.Random) -> None:
    conv = network.get_submodule(rng.choice(names_of(network, nn.Conv2d)))
    assert isinstance(conv, nn.Conv2d)
    if rng.random() < 0.5:
        conv.bias = nn.Parameter(torch.randn(conv.out_channels, dtype=conv.weight.dtype))
    elif conv.kernel_size == (3, 3) and conv.stride == (1, 1):
        conv.padding, conv.dilation = (2, 2), (2, 2)


def freeze(network: AnytimeNetwork, rng: random.Random) -> None:
    stage = rng.choice(network.plan.births())
    for module in network.stage_modules(stage):
        if rng.random() < 0.5:
            module.eval()
        if rng.random() < 0.5:
            module.requires_grad_(False)


def replace_forward(network: AnytimeNetwork, rng: random.Random) -> None:
    module = network.get_submodule(rng.choice(names_of(network, nn.Conv2d)))
    forward = module.forward
    module.forward = lambda x: 0.5 * forward(x)  # type: ignore[method-assign]


CHANGES: tuple[Callable[[AnytimeNetwork, random.Random], None], ...] = (
    subclass,
    wrap,
    wrap_in_checkpoint,
    add_hook,
    prune_some,
    parametrize_one,
    change_norm,
    change_convolution,
    freeze,
    replace_forward,
)


def build(seed: int) -> tuple[AnytimeNetwork, list[str]]:
    """The network of a trial, in training mode; equal for equal seeds."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    network = random_network(rng).train()
    if rng.random() < 0.2:
        network = network.subnetwork(rng.randint(1, network.num_stages))
    changes = [rng.choice(CHANGES) for _ in range(rng.choice([0, 0, 1, 1, 2, 3]))]
    applied = []
    for change in changes:
        # a second change may find nothing that it fits any more
        with contextlib.suppress(IndexError, ValueError, AttributeError, TypeError):
            change(network, rng)
            applied.append(change.__name__)
    return network, applied


# -- comparisons ---------------------------------------------------------------------------------

Outcome = list[Tensor] | Exception


def attempt(call: Callable[[], list[Tensor]]) -> Outcome:
    try:
        return call()
    except NetworkError as error:  # the network's own error is its cause
        return error.__cause__ if isinstance(error.__cause__, Exception) else error
    except (RuntimeError, ValueError, TypeError) as error:
        return error


def compare(mine: Outcome, reference: Outcome, what: str, tolerance: float) -> str:
    """How two outcomes agree; AssertionError if they do not."""
    if isinstance(mine, Exception) or isinstance(reference, Exception):
        if type(mine) is not type(reference):
            raise AssertionError(f"{what}: {mine!r}, by plain modules {reference!r}"[:500])
        return f"both refuse, {type(mine).__name__}: {str(mine)[:40].splitlines()[0]}"
    for number, (a, b) in enumerate(zip(mine, reference, strict=True)):
        torch.testing.assert_close(
            a,
            b,
            rtol=tolerance,
            atol=tolerance * (1 + float(b.abs().max()) if b.numel() else 1),
            equal_nan=True,
            msg=lambda text, number=number: f"{what}, tensor {number}: {text}",
        )
    return "equal"


def train(seed: int, images: list[Tensor], *, staged: bool) -> list[Tensor]:
    """Outputs, gradients and state after some steps; ``staged``: by plain modules, in order."""
    rng = random.Random(seed + 1)
    network, _ = build(seed)
    network = network.double()
    if rng.random() < 0.2:
        network = network.to(memory_format=torch.channels_last)
    combiner = make_combiner(rng.choice(METHODS))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    found: list[Tensor] = []
    for x in images:
        optimizer.zero_grad()
        outputs = [logits for _, logits in network.stages(x)] if staged else network(x)
        found += [logits.detach().clone() for logits in outputs]
        used = [p for p in network.parameters() if p.requires_grad]
        if not used:
            break
        losses = [logits.square().sum() / 8 for logits in outputs]
        if all(loss.requires_grad for loss in losses):
            combiner.backward(losses, used)
        optimizer.step()
    found += [p.grad.clone() for p in network.parameters() if p.grad is not None]
    # a checkpointed norm counts its recomputations as batches, too
    state = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    return found + [tensor.clone() for tensor in state]


def trial(seed: int, counts: collections.Counter[str]) -> None:
    rng = random.Random(seed + 2)
    network, changes = build(seed)
    for change in changes or ["no change"]:
        counts[f"change: {change}"] += 1
    size = rng.choice([4, 7, 8, 12, 16, 33])
    shape = (network.in_channels, size, rng.choice([size, size, size + 3]))
    images = [torch.randn(rng.choice([0, 1, 2, 2, 3, 3, 5, 5]), *shape).double() for _ in range(3)]
    mine = attempt(lambda: train(seed, images, staged=False))
    reference = attempt(lambda: train(seed, images, staged=True))
    counts[f"train: {compare(mine, reference, 'training', 1e-7)}"] += 1

    network = network.eval()
    x = torch.randn(rng.randint(1, 3), *shape)

    def by_stages() -> list[Tensor]:
        with torch.no_grad():
            return [logits for _, logits in network.stages(x)]

    reference = attempt(by_stages)
    for what, path in (("predict", None), ("export", "folder")):
        with tempfile.TemporaryDirectory() as folder:

            def predict(path: str | None = path, folder: str = folder) -> list[Tensor]:
                source: Any = network
                if path is not None:
                    source = Path(folder) / path
                    export(network, source, image_size=shape[1:])
                with AnytimePredictor(source) as predictor:
                    return [prediction.logits for prediction in predictor.stream(x)]

            try:
                found = attempt(predict)
                if isinstance(found, FoldError) and what == "export":
                    assert "\n" not in str(found), found
                    counts["export: refused"] += 1
                    continue
                counts[f"{what}: {compare(found, reference, what, 2e-4)}"] += 1
            except AssertionError:
                if not isinstance(reference, Exception) and unsound(reference):
                    counts[f"{what}: not finite"] += 1
                    continue
                raise


def unsound(outputs: list[Tensor]) -> bool:
    return not all(bool(logits.isfinite().all()) for logits in outputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--trial", type=int, help="run this trial alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    failed: list[int] = []
    end = time.monotonic() + 60 * args.minutes
    seed = args.seed if args.trial is None else args.trial
    with quiet():
        while time.monotonic() < end:
            counts["trials"] += 1
            try:
                trial(seed, counts)
            except Exception as error:  # any error is a finding
                failed.append(seed)
                lines = traceback.format_exc() if args.trial is not None else str(error)[:600]
                print(f"trial {seed} {build(seed)[1]}: {type(error).__name__}: {lines}", flush=True)
            if args.trial is not None:
                break
            seed += 1
    for name, count in sorted(counts.items()):
        print(f"{count:7d}  {name}")
    print(f"{len(failed):7d}  failed {failed[:20] or ''}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
