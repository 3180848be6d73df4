"""``torch.compile`` for networks with one backward pass per loss.

Plain ``torch.compile`` has two obstacles. By default its backward pass reuses the memory of saved
activations ("donated buffers"), so that it can run only once. And a compiled region is one node of
autograd: a loss that reaches any of it walks all of it, and gets zeros where it would have no
gradient. The regions should therefore be the network's blocks.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

# Code shared by several blocks is compiled once per block shape; torch's limit is 8 times.
MAX_RECOMPILES = 64


def compile_for_tasks(
    network: M,
    blocks: Iterable[nn.Module] | None = None,
    *,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    dynamic: bool | None = None,
) -> M:
    """Compile in place for one backward pass per loss; parameters keep their names.

    Args:
        network: the network to train.
        blocks: its modules to compile, each by itself; None for one region. Pass blocks that no
            loss reaches in part, e.g. those between two exits: then a loss walks only the blocks
            that it is computed from, and has no gradient in the parameters of others, as without
            compiling. With one region every loss costs a whole backward pass.
        backend: as in ``torch.compile``.
        mode: as in ``torch.compile``, for inductor; "reduce-overhead" is refused, since its CUDA
            graphs overwrite what the next loss's pass reads.
        dynamic: as in ``torch.compile``.

    Returns:
        The network.

    Raises:
        ValueError: for a block that is not part of the network, or for an unsupported mode.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> net = compile_for_tasks(net, list(net), backend="eager")
    >>> net(torch.ones(1, 2)).shape
    torch.Size([1, 2])
    """
    chosen = [network] if blocks is None else list(blocks)
    known = set(network.modules())
    for block in chosen:
        if block not in known:
            raise ValueError(
                f"blocks must be modules of the network, found a {type(block).__name__} that is not:"
                " pass e.g. list(network.children())"
            )
    if mode is not None and (backend != "inductor" or _has_cuda_graphs(mode)):
        raise ValueError(
            f"mode must be one of inductor's without CUDA graphs, found {mode!r} for"
            f" {backend!r}: leave it out, or capture the step as a whole"
        )
    options: dict[str, Any] = {"backend": _WithoutDonation(backend, mode), "dynamic": dynamic}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = MAX_RECOMPILES
    for block in chosen:
        block.compile(**options)
    return network


def _has_cuda_graphs(mode: str) -> bool:
    """Whether a mode of inductor captures CUDA graphs; torch refuses unknown modes."""
    return bool(torch._inductor.list_mode_options(mode).get("triton.cudagraphs"))


class _WithoutDonation:
    """A backend whose backward pass does not overwrite saved activations.

    Compiles with torch's setting ``donated_buffer`` off. At run time torch checks the setting again
    against the list of donated buffers, which must then be empty and not None.
    """

    def __init__(self, backend: str | Callable[..., Any], mode: str | None) -> None:
        self.backend, self.mode = backend, mode

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        import torch._functorch.config as settings
        from torch._dynamo.backends.registry import lookup_backend

        found = lookup_backend(self.backend) if isinstance(self.backend, str) else self.backend
        extra = {}
        if self.mode is not None:
            extra["config_patches"] = torch._inductor.list_mode_options(self.mode)
        with settings.patch(donated_buffer=False):
            compiled = found(graph, inputs, **extra)
        context = torch._guards.TracingContext.try_get()
        metadata = None if context is None else context.fw_metadata
        if metadata is not None and metadata.bw_donated_idxs is None:
            metadata.bw_donated_idxs = []
        return compiled
