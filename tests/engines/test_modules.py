"""Networks with changed modules: the change takes effect, or one line says why it cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from anynest.engines import verify
from anynest.engines.folding import FoldedNetwork, FoldError
from anynest.engines.module_engine import ModuleSession, eval_copy
from anynest.engines.onnx.export.export import export
from anynest.engines.onnx.session import OnnxSession
from anynest.engines.open import open_session
from anynest.engines.session import Session, stages
from anynest.nets import AnytimeNetwork, create_model

NODE = "group1.layer1.stage2"


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class DoubledNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Staged(AnytimeNetwork):
    def stages(self, x: Tensor):  # type: ignore[no-untyped-def]
        for stage, logits in super().stages(x):
            yield stage, 2 * logits


def subclass(network: AnytimeNetwork) -> None:
    old = network.get_submodule(f"{NODE}.conv1")
    network.get_submodule(NODE).conv1 = new = Doubled(8, 4, 3, padding=1, bias=False)
    new.weight = old.weight


def own_forward(network: AnytimeNetwork) -> None:
    conv = network.get_submodule(f"{NODE}.conv1")
    conv.forward = lambda x: 2 * nn.Conv2d.forward(conv, x)  # type: ignore[arg-type]


def parametrized(network: AnytimeNetwork) -> None:
    parametrize.register_parametrization(network.get_submodule(f"{NODE}.conv1"), "weight", Halved())


def pruned(network: AnytimeNetwork) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.5)


def hooked(network: AnytimeNetwork) -> None:
    network.get_submodule(f"{NODE}.conv2").register_forward_hook(lambda m, i, out: 2 * out)


def hooked_node(network: AnytimeNetwork) -> None:
    network.get_submodule(NODE).register_forward_hook(lambda m, i, out: (2 * out[0], out[1]))


def hooked_head(network: AnytimeNetwork) -> None:
    network.head3.register_forward_pre_hook(lambda m, inputs: (2 * inputs[0],))  # type: ignore


def norm_subclass(network: AnytimeNetwork) -> None:
    network.get_submodule(NODE).norm1 = DoubledNorm(4)


def other_norm(network: AnytimeNetwork) -> None:
    network.get_submodule(NODE).norm1 = nn.GroupNorm(2, 4)


def no_statistics(network: AnytimeNetwork) -> None:
    network.get_submodule(NODE).norm1 = nn.BatchNorm2d(4, track_running_stats=False)


CHANGES = [
    (subclass, f"{NODE}.conv1 must be a plain Conv2d, found Doubled"),
    (own_forward, f"{NODE}.conv1 must be a plain Conv2d, found Conv2d"),
    (parametrized, f"{NODE}.conv1 must be a plain Conv2d, found ParametrizedConv2d"),
    (pruned, "stem.stage1.conv1 must be a plain Conv2d, found Conv2d with hooks"),
    (hooked, f"{NODE}.conv2 must be a plain Conv2d, found Conv2d with hooks"),
    (hooked_node, f"{NODE} must be a plain NestedNode, found NestedNode with hooks"),
    (hooked_head, "head3 must be a plain Linear, found Linear with hooks"),
    (norm_subclass, f"{NODE}.norm1 must be a plain BatchNorm2d, found DoubledNorm"),
    (other_norm, f"{NODE}.norm1 must be a plain BatchNorm2d, found GroupNorm"),
    (no_statistics, f"{NODE}.norm1 must be a batch norm with running statistics, found none"),
]


def changed(change: Callable[[AnytimeNetwork], None]) -> AnytimeNetwork:
    torch.manual_seed(0)
    network = create_model("width_nested_resnet10")
    change(network)
    return network.eval()


def images() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def answers(session: Session) -> list[Tensor]:
    evaluation = session.begin(images())
    found = [logits for _, logits in stages(evaluation)]
    evaluation.close()
    return found


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=lambda c: getattr(c, "__name__", ""))
def test_a_change_takes_effect_or_is_refused(
    change: Callable[[AnytimeNetwork], None],
    reason: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = changed(change)
    with torch.no_grad():
        wanted = [logits for _, logits in network.stages(images())]
    untouched = answers(open_session(changed(lambda _: None)))
    assert not torch.allclose(untouched[-1], wanted[-1], atol=1e-4)
    for backend in (None, "torch"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            session = open_session(network, backend=backend)
        assert isinstance(session, ModuleSession)
        (record,) = caplog.records
        assert reason in record.message
        assert "\n" not in record.message
        for mine, theirs in zip(answers(session), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for refuse in (
        lambda: open_session(network, backend="onnxruntime"),
        lambda: OnnxSession.open(network),
        lambda: export(network, tmp_path / "out", image_size=8),
    ):
        with pytest.raises(ValueError, match=r"backend='torch', which calls the modules$") as error:
            refuse()
        assert str(error.value).startswith(reason)
    assert not (tmp_path / "out").exists()


def test_a_pruned_network_is_exported_when_that_is_permanent(tmp_path: Path) -> None:
    network = changed(pruned).train()
    network(images())[0].sum().backward()  # weights with a history cannot be copied
    network.eval()
    wanted = answers(open_session(network, backend="torch"))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            prune.remove(module, "weight")
    export(network, tmp_path / "out", image_size=8)
    for mine, theirs in zip(answers(open_session(tmp_path / "out")), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_stages_of_a_subclass_are_called(caplog: pytest.LogCaptureFixture) -> None:
    base = changed(lambda _: None)
    network = Staged(base.architecture).eval()
    network.load_state_dict(base.state_dict())
    found = answers(open_session(network))
    for mine, theirs in zip(found, answers(open_session(base)), strict=True):
        torch.testing.assert_close(mine, 2 * theirs, rtol=1e-4, atol=1e-5)
    assert "must have AnytimeNetwork's stages, found Staged" in caplog.text


def test_a_replaced_container_is_refused(tmp_path: Path) -> None:
    network = changed(lambda _: None)
    network.group1 = nn.Sequential(network.group1)
    for refuse in (lambda: open_session(network), lambda: export(network, tmp_path / "out")):
        with pytest.raises(TypeError, match="group1 must stay a plain container") as error:
            refuse()
        assert "\n" not in str(error.value)


def test_a_convolution_of_another_size_is_not_folded() -> None:
    network = changed(lambda _: None)
    conv = network.get_submodule(f"{NODE}.conv1")
    for name, value in (("dilation", (2, 2)), ("padding_mode", "reflect"), ("stride", (2, 2))):
        before = getattr(conv, name)
        setattr(conv, name, value)
        with pytest.raises(FoldError, match="of the plan's size"):
            FoldedNetwork.of(network)
        setattr(conv, name, before)
    FoldedNetwork.of(network)


def test_wrong_folding_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the reason: a session is compared with the network's stages when it is opened."""
    network = changed(lambda _: None)
    wanted = answers(open_session(network))
    real = FoldedNetwork.of

    def wrong(net: AnytimeNetwork) -> FoldedNetwork:
        folded = real(net)
        folded.heads[3][0][:] *= 1.01
        return folded

    monkeypatch.setattr(FoldedNetwork, "of", staticmethod(wrong))
    session = open_session(network)
    assert isinstance(session, ModuleSession)
    assert "must give the logits of the network's stages within 0.001" in caplog.text
    for mine, theirs in zip(answers(session), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(FoldError, match=r"within 0.001 of the largest, found 9"):
        open_session(network, backend="onnxruntime")


def test_differences() -> None:
    one = torch.tensor([[1.0, -4.0]])
    assert verify.difference([one], [one]) == 0
    assert verify.difference([one, one + 1], [one, one]) == pytest.approx(0.25)
    spoiled = torch.tensor([[torch.nan, -4.0]])
    assert verify.difference([spoiled], [one]) == float("inf")
    assert verify.difference([spoiled], [spoiled]) == 0
    assert verify.difference([spoiled * torch.inf], [spoiled * torch.inf]) == 0


def test_a_network_that_diverged_is_opened() -> None:
    network = changed(lambda _: None)
    with torch.no_grad():
        network.head(3).weight.fill_(torch.nan)
    first, _, last = answers(open_session(network))
    assert first.isfinite().all()
    assert last.isnan().all()


def test_a_network_without_values() -> None:
    with torch.device("meta"):
        network = create_model("width_nested_resnet10")
    for backend in (None, "torch", "onnxruntime"):
        with pytest.raises(ValueError, match="found tensors on the meta device; load them first"):
            open_session(network, backend=backend)


# -- the engine of modules as they are ------------------------------------------------------------
@pytest.fixture
def session() -> ModuleSession:
    return ModuleSession(changed(hooked))


def test_steps_samples_and_closing(session: ModuleSession) -> None:
    wanted = answers(session)
    evaluation = session.begin(images())
    assert torch.equal(evaluation.step(), wanted[0])
    evaluation.compact(torch.tensor([2, 0]))
    assert torch.equal(evaluation.step(), wanted[1][[2, 0]])
    with pytest.raises(ValueError, match="indices must be"):
        evaluation.compact(torch.tensor([2]))
    evaluation.compact(torch.tensor([1]))
    assert torch.equal(evaluation.step(), wanted[2][[0]])
    with pytest.raises(RuntimeError, match="every stage is finished"):
        evaluation.step()
    evaluation.cancel()
    evaluation.close()
    for call in (evaluation.step, lambda: evaluation.compact(torch.tensor([0]))):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    running = session.begin(images())
    session.close()
    with pytest.raises(RuntimeError, match="the session is closed"):
        session.begin(images())
    assert torch.equal(running.step(), wanted[0])


def test_the_copy_is_independent_and_in_eval_mode() -> None:
    network = changed(hooked).double().train()
    session = ModuleSession(network)
    wanted = answers(session)
    assert network.training
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.add_(1)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = answers(session)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert not eval_copy(network).training


def test_an_error_closes_its_evaluation_alone(session: ModuleSession) -> None:
    evaluation = session.begin(images())
    evaluation.step()

    def fail(*_: object) -> None:
        raise MemoryError("no more")

    handle = session.module.get_submodule(f"{NODE}.conv1").register_forward_hook(fail)
    with pytest.raises(MemoryError):
        evaluation.step()
    with pytest.raises(RuntimeError, match="closed"):
        evaluation.step()
    handle.remove()
    assert len(answers(session)) == 3
