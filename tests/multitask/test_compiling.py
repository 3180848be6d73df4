"""Compiled networks under one backward pass per loss: they work, and loss i walks its own part."""

import shutil
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import OSGD, WeightedSGD, compile_for_tasks, task_gradients


class Exits(nn.Module):
    """Three blocks, an exit after each; the last one's loss is alone in reading the last block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid())
            for _ in range(3)
        )
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        out = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            out.append(head(x).square().mean())
        return out


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """What a pass of the mean and then one of OSGD leave in ``.grad``, together."""
    network.zero_grad()
    for combiner in (WeightedSGD(), OSGD()):  # the first frees its graph, the second keeps it
        combiner.backward(network(x), network.parameters())
    return [parameter.grad.clone() for parameter in network.parameters()]


def close(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by_blocks", [False, True])
def test_it_agrees_with_the_network_as_it_was(by_blocks: bool) -> None:
    x = torch.randn(5, 4)
    network = Exits()
    names = list(network.state_dict())
    assert (
        compile_for_tasks(network, network.blocks if by_blocks else None, backend="aot_eager")
        is network
    )
    close(gradients(network, x), gradients(Exits(), x))
    assert list(network.state_dict()) == names


def test_blocks_keep_what_a_loss_does_not_touch_absent() -> None:
    x = torch.randn(5, 4)
    plain, parts, whole = Exits(), Exits(), Exits()
    compile_for_tasks(parts, parts.blocks, backend="aot_eager")
    compile_for_tasks(whole, backend="aot_eager")
    sizes = [task_gradients(net(x), list(net.parameters())).sizes for net in (plain, parts, whole)]
    own = 40 + 5  # a block and a head
    assert sizes[0] == (own, 40 + own, 80 + own)
    assert sizes[1] == sizes[0]
    assert sizes[2] == (3 * own,) * 3  # one region: zeros, and a whole backward pass


def test_plain_compilation_is_told_in_one_line() -> None:
    x = torch.randn(5, 4)
    network = Exits()
    network.compile(backend="aot_eager")
    with pytest.raises(ValueError, match=r"compile_for_tasks\(network\)") as caught:
        gradients(network, x)
    assert "\n" not in str(caught.value)


def test_torchs_setting_is_left_as_it_was() -> None:
    import torch._functorch.config as settings

    before = settings.donated_buffer
    network = compile_for_tasks(Exits(), backend="aot_eager")
    gradients(network, torch.randn(5, 4))
    assert settings.donated_buffer == before


def test_one_code_in_many_forms_is_compiled_for_each() -> None:
    """More forms than torch would take by itself before it gives up compiling."""
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        seen.append(graph)
        return graph.forward

    class Block(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.linear = nn.Linear(size, size)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(x))

    blocks = nn.ModuleList(Block(size) for size in range(2, 14))
    compile_for_tasks(blocks, blocks, backend=backend, dynamic=False)
    for size, block in zip(range(2, 14), blocks, strict=True):
        block(torch.ones(1, size))
    assert len(seen) == 12


def test_bad_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="found a Linear that is not"):
        compile_for_tasks(Exits(), [nn.Linear(1, 1)])
    for mode in ("reduce-overhead", "max-autotune"):  # with CUDA graphs
        with pytest.raises(ValueError, match=f"found '{mode}'"):
            compile_for_tasks(Exits(), mode=mode)
    compile_for_tasks(Exits(), mode="max-autotune-no-cudagraphs")
    with pytest.raises(ValueError, match="for 'aot_eager'"):
        compile_for_tasks(Exits(), backend="aot_eager", mode="max-autotune")


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, of its import
def test_inductor_itself() -> None:
    import torch._inductor.config as settings

    x = torch.randn(5, 4)
    network = Exits()
    # one block, in this process, without its headers made ready for further ones: seconds less
    with settings.patch(cpp_cache_precompile_headers=False, compile_threads=1):
        compile_for_tasks(network, network.blocks[:1])
        close(gradients(network, x), gradients(Exits(), x))
