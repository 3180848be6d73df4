"""Monotone confidence: rules that map the logits of successive stages to probabilities.

M. Jazbec, J. U. Allingham, D. Zhang, E. Nalisnick, "Towards Anytime Classification in Early-Exit
Architectures by Enforcing Conditional Monotonicity", NeurIPS 2023. The average error of a network
falls from stage to stage, but for a single image a later prediction may be worse. These rules
change the predictions after training and leave the network unchanged. With z_s the logits of
stage s, and y a class:

``product`` (the paper's "product anytime"): a product of experts through rectified logits,

    p_s(y)  =  prod_{i <= s} max(z_i(y), 0)  /  (the sum of the same over all classes).

``support`` (the step function that the former relaxes): a class stays possible while no stage has
a logit at or below 0 for it, and the possible classes are equally likely,

    p_s(y)  =  prod_{i <= s} [z_i(y) > 0]  /  (the sum of the same over all classes).

``caching`` (the paper's baseline): the softmax of the most confident stage so far.

Guarantees, for every image and from each stage s to the next (each has a test):

- ``support``: each class that is still possible at s+1 is at least as likely as at s. So the
  probability of the true class never falls, unless the class is ruled out.
- ``product``: p_{s+1}(y) >= p_s(y) exactly where max(z_{s+1}(y), 0) is at least its mean under
  p_s; in particular for the class with the largest logit at stage s+1.
- ``caching``: the confidence never falls.

No rule can guarantee more without the label: probabilities sum to 1, so if no class loses, none
gains.

Where every class is ruled out the product is 0. The result is then the stage's own softmax, as in
the authors' code, and the guarantees end for this image. Deviation: the product is normalised at
every stage, which changes no value and prevents overflow.

Legend: b images still being computed, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rule = Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor]]


def softmax(state: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of each stage, as in training."""
    probabilities = logits.softmax(dim=1)
    return probabilities, probabilities


def product(state: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The product of rectified logits."""
    return _product(state, logits, logits.clamp(min=0))


def support(state: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Equal probabilities for the classes that no stage has ruled out."""
    return _product(state, logits, (logits > 0).to(logits.dtype))


def _product(state: Tensor | None, logits: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    weights = factors if state is None else state * factors
    # divide by the largest first, so that the sum does not overflow
    weights = weights / weights.amax(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    total = weights.sum(dim=1, keepdim=True)
    ruled_out = total == 0  # every class
    product = weights / torch.where(ruled_out, torch.ones_like(total), total)
    return product, torch.where(ruled_out, logits.softmax(dim=1), product)


def caching(state: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of the most confident stage so far; of equal ones, the later."""
    now = logits.softmax(dim=1)
    if state is None:
        return now, now
    better = now.amax(dim=1, keepdim=True) >= state.amax(dim=1, keepdim=True)
    best = torch.where(better, now, state)
    return best, best


RULES: dict[str, Rule] = {"product": product, "support": support, "caching": caching}


def find_rule(name: str | None) -> Rule:
    """The rule of this name; None gives each stage's softmax.

    Returns:
        A function of (state, logits ``[b, K]``) that returns (new state, probabilities
        ``[b, K]``). The state is None before stage 1, then a tensor with one row per image.

    Raises:
        ValueError: an unknown name.
    """
    if name is None:
        return softmax
    if name not in RULES:
        raise ValueError(f"monotone must be one of {', '.join(RULES)} or None, found {name!r}")
    return RULES[name]
