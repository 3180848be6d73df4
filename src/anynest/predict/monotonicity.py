"""Answers that grow surer: what later stages may do to the probabilities of earlier ones.

M. Jazbec, J. U. Allingham, D. Zhang, E. Nalisnick, "Towards Anytime Classification in Early-Exit
Architectures by Enforcing Conditional Monotonicity", NeurIPS 2023. A network's average error falls from
stage to stage, and yet for a single image a later answer may be worse. They change the answers after
training, without touching the network. With z_s the logits of stage s, and y a class:

``product`` (their "product anytime"): a product of experts through rectified logits,

    p_s(y)  =  prod_{i <= s} max(z_i(y), 0)  /  (the sum of the same over all classes).

``support`` (the step function that the former relaxes): a class stays possible while no stage has
a logit of it at or below 0, and the possible classes are equally likely,

    p_s(y)  =  prod_{i <= s} [z_i(y) > 0]  /  (the sum of the same over all classes).

``caching`` (their baseline): the softmax of the most confident stage so far.

What holds, for every image and from each stage s to the next, is proven in the tests:

- ``support``: each class that is still possible at s+1 is at least as likely as at s. So a later
  answer is never less sure of the truth, unless it has ruled the truth out.
- ``product``: p_{s+1}(y) >= p_s(y) exactly where max(z_{s+1}(y), 0) is at least the mean of these
  over p_s; in particular for the class that stage s+1 finds likeliest.
- ``caching``: the confidence never falls.

No rule can promise more without knowing the truth: probabilities sum to 1, and where no class may lose
none can gain.

Where every class is ruled out, the product is nothing; the answer is then the stage's own softmax, as in
the authors' code, and the promises above begin anew only for another image. Deviation: the product is
normalised at every stage, which changes no value and keeps it from overflowing.

Legend: b images under way, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rule = Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor]]


def softmax(state: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each stage on its own, as networks are trained."""
    probabilities = logits.softmax(dim=1)
    return probabilities, probabilities


def product(state: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    """A product of experts through rectified logits."""
    return _product(state, logits, logits.clamp(min=0))


def support(state: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Equally likely: the classes that no stage has ruled out."""
    return _product(state, logits, (logits > 0).to(logits.dtype))


def _product(state: Tensor | None, logits: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    weights = factors if state is None else state * factors
    # by the largest first: the sum of large factors is finite then
    weights = weights / weights.amax(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    total = weights.sum(dim=1, keepdim=True)
    nothing = total == 0
    product = weights / torch.where(nothing, torch.ones_like(total), total)
    return product, torch.where(nothing, logits.softmax(dim=1), product)


def caching(state: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of the most confident stage so far; the later one where they are equal."""
    now = logits.softmax(dim=1)
    if state is None:
        return now, now
    better = now.amax(dim=1, keepdim=True) >= state.amax(dim=1, keepdim=True)
    best = torch.where(better, now, state)
    return best, best


RULES: dict[str, Rule] = {"product": product, "support": support, "caching": caching}


def find_rule(name: str | None) -> Rule:
    """The rule of that name; each stage's own softmax for None.

    A rule maps (its state, logits ``[b, K]``) to (the state after, probabilities ``[b, K]``). The
    state is None before stage 1, and a tensor with one row an image after it.

    Raises:
        ValueError: no such rule.
    """
    if name is None:
        return softmax
    if name not in RULES:
        raise ValueError(f"monotone must be one of {', '.join(RULES)} or None, got {name!r}")
    return RULES[name]
