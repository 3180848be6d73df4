"""Plain members against vision transformers written elsewhere: PyTorch's modules and timm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformer.plans import PLANS, images, network

from anynest.nets.transformer.network import NestedTransformer
from anynest.nets.transformer.plan import TransformerPlan
from anynest.nets.transformer.stripe import Stripe

TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def layers_of(model: NestedTransformer, plan: TransformerPlan) -> nn.TransformerEncoder:
    """PyTorch's encoder with the weights of stage 1."""
    width = plan.widths[0]
    layer = nn.TransformerEncoderLayer(
        width,
        width // plan.head_size,
        dim_feedforward=plan.mlp_ratio * width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
        dtype=torch.float64,
    )
    encoder = nn.TransformerEncoder(layer, len(plan.layers_of(1)), enable_nested_tensor=False)
    names = {
        "self_attn.in_proj_": "qkv.",
        "self_attn.out_proj.": "proj.",
        "linear1.": "fc1.",
        "linear2.": "fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            _, number, rest = name.split(".", 2)
            theirs, ours = next(pair for pair in names.items() if rest.startswith(pair[0]))
            key = f"stage1.layers.{number}.{ours}{rest.removeprefix(theirs)}"
            parameter.copy_(model.get_parameter(key))
    return encoder


def by_hand(model: NestedTransformer, plan: TransformerPlan, x: Tensor) -> Tensor:
    stripe = model.get_submodule("stage1")
    assert isinstance(stripe, Stripe)
    patch = plan.patch_size
    patches = nn.functional.unfold(x, patch, stride=patch).transpose(1, 2)
    weight = stripe.embed.weight.flatten(1)
    tokens = torch.cat(
        [stripe.class_token.expand(len(x), -1, -1), patches @ weight.T + stripe.embed.bias], dim=1
    )
    encoded = layers_of(model, plan)(tokens + stripe.positions)
    return model.get_submodule("head1")(stripe.norm(encoded)[:, 0])


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_stage_1_and_plain_members_are_vision_transformers(plan: TransformerPlan) -> None:
    model = network(plan)
    x = images(plan)
    torch.testing.assert_close(model(x)[0], by_hand(model, plan, x), **TIGHT)
    for stage in range(1, plan.num_stages + 1):
        member = plan.plain(stage)
        plain = network(member)
        (logits,) = plain(x)
        torch.testing.assert_close(logits, by_hand(plain, member, x), **TIGHT)


def test_a_second_stage_by_hand() -> None:
    """Every line of the definition, with plain matrices and softmax."""
    plan = PLANS["width and depth"]
    model, x = network(plan), images(plan)
    one, two = (model.get_submodule(f"stage{s}") for s in (1, 2))
    assert isinstance(one, Stripe)
    assert isinstance(two, Stripe)

    def attention(y: Tensor) -> Tensor:
        q, k, v = y.chunk(3, dim=-1)
        found = []
        for start in range(0, q.shape[-1], plan.head_size):
            own = slice(start, start + plan.head_size)
            scores = q[..., own] @ k[..., own].mT / plan.head_size**0.5
            found.append(scores.softmax(-1) @ v[..., own])
        return torch.cat(found, -1)

    def tokens(stripe: Stripe) -> Tensor:
        patches = stripe.embed(x).flatten(2).mT
        first = stripe.class_token.expand(len(x), 1, -1)
        return torch.cat([first, patches], 1) + stripe.positions

    # stage 1 has layer 0 alone, which both layers of stage 2 read
    (first,) = one.layers
    t = tokens(one)
    z1 = first.norm1(t)
    o1 = attention(first.qkv(z1))
    t = t + first.proj(o1)
    u1 = first.norm2(t)
    a1 = nn.functional.gelu(first.fc1(u1))
    f1 = one.norm(t + first.fc2(a1))[:, 0]
    t = tokens(two)
    assert len(two.layers) == 2
    for layer in two.layers:
        z = layer.norm1(t)
        o = attention(layer.qkv(torch.cat([z1, z], -1)))
        t = t + layer.proj(torch.cat([o1, o], -1))
        u = layer.norm2(t)
        a = nn.functional.gelu(layer.fc1(torch.cat([u1, u], -1)))
        t = t + layer.fc2(torch.cat([a1, a], -1))
    logits = model.get_submodule("head2")(torch.cat([f1, two.norm(t)[:, 0]], -1))
    ours = model(x)[1]
    torch.testing.assert_close(ours, logits, **TIGHT)
    leaves = list(model.subnetwork(2).parameters())
    grads = (torch.autograd.grad(found.square().sum(), leaves) for found in (ours, logits))
    for mine, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-9)


def test_positions_of_another_size_are_interpolated() -> None:
    plan = PLANS["plain"]
    model = network(plan)
    x = images(plan, 12)
    stripe = model.get_submodule("stage1")
    assert isinstance(stripe, Stripe)
    grid = stripe.positions[:, 1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, (3, 3), mode="bicubic", align_corners=False)
    larger = NestedTransformer(plan.configure({"image_size": 12})).double()
    state = dict(model.state_dict())
    state["stage1.positions"] = torch.cat(
        [stripe.positions[:, :1], resized.permute(0, 2, 3, 1).reshape(1, 9, -1)], dim=1
    )
    larger.load_state_dict(state)
    torch.testing.assert_close(model(x)[0], larger(x)[0], **TIGHT)
