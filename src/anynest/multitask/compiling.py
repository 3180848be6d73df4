"""``torch.compile`` for networks whose losses have a backward pass each.

Two things stand in the way of plain ``torch.compile`` there. Its backward pass by default reuses the
saved activations' memory ("donated buffers"), so a graph can be walked once only. And a compiled
region is one node of autograd: a loss that reaches any of it walks all of it, and gets zeros where it
would have had no gradient at all. So the regions should be the network's blocks.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

# Code that many blocks share is compiled once for every form of them; torch gives up after 8.
MOST_FORMS = 64


def compile_for_tasks(
    network: M,
    blocks: Iterable[nn.Module] | None = None,
    *,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    dynamic: bool | None = None,
) -> M:
    """Compile in place, so that one backward pass per loss works; parameters keep their names.

    Args:
        network: what is trained; returned as it came.
        blocks: its modules to compile, each by itself; None for all of it as one region. Take blocks
            that no loss reaches in part, e.g. those between two exits: then a loss walks only the
            blocks that it is computed from, and parameters of others have no gradient from it, just
            as without compiling. With one region every loss costs a whole backward pass.
        backend, mode, dynamic: as in ``torch.compile``. A mode is inductor's; "reduce-overhead" is
            refused, since its graphs overwrite what the next loss's pass reads.

    Raises ValueError for a block that is no part of the network, or a mode that cannot be had.

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
    if mode is not None and (backend != "inductor" or mode == "reduce-overhead"):
        raise ValueError(
            f"mode must be one of inductor's without CUDA graphs, found {mode!r} for"
            f" {backend!r}: leave it out, or capture the step as a whole"
        )
    options: dict[str, Any] = {"backend": _Keeping(backend, mode), "dynamic": dynamic}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = MOST_FORMS
    for block in chosen:
        block.compile(**options)
    return network


class _Keeping:
    """A backend under which the backward pass leaves what it reads as it was.

    That is torch's setting ``donated_buffer`` while it compiles. At run time torch asks the setting
    again and wants to see that nothing is donated, for which it takes an empty list and not None.
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
