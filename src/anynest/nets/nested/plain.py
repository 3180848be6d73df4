"""Which modules a fast path may replace.

The dense kernels of ``fused.py`` read the weights of modules and do not call them. That gives the
values of the modules only while calling one does nothing but its class's arithmetic. Subclasses,
parametrizations, quantisation-aware modules, hooks (which pruning and ``weight_norm`` use), a
replaced ``forward`` and tensor subclasses all need the call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

_TENSORS = {nn.Parameter, Tensor, type(None)}


def has_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` runs hooks of its own."""
    state = module.__dict__  # every module of a network is checked at every step
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    )


def is_plain(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether a call of ``module`` is the ``forward`` of one of ``types`` and nothing else."""
    if type(module) not in types or "forward" in module.__dict__ or has_hooks(module):
        return False
    return _TENSORS.issuperset(map(type, module.__dict__["_parameters"].values()))


def is_transformed(tensor: Tensor | None) -> bool:
    """Whether a batched backward pass or another transform wraps the tensor."""
    functorch = torch._C._functorch
    return tensor is not None and (
        functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)
    )


def must_call_modules(x: Tensor) -> bool:
    """Whether no module may be replaced, whatever it is, to evaluate ``x``.

    So under ``torch.compile``, hooks of all modules, ``torch.func`` and forward-mode autograd, and
    on the meta device.
    """
    return (
        torch.compiler.is_compiling()
        or x.is_meta
        or _has_any_global_hook()  # type: ignore[no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
