"""``open_session``: the engine that is chosen for a source, and its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anynest.engines.model_source import resolve
from anynest.engines.onnx.export.export import export
from anynest.engines.onnx.session import OnnxSession
from anynest.engines.open import choose_backend, open_session
from anynest.engines.session import Session, stages
from anynest.engines.torch_engine import TorchSession
from anynest.nets import AnytimeNetwork, create_model
from anynest.store import RunFolderError, WeightsInfo, save_weights

NAME = "width_nested_resnet10"
NUMBERS = (0.5, 0.5, 0.5)
INFO = WeightsInfo(
    NAME, {"num_classes": 10}, tuple("0123456789"), NUMBERS, NUMBERS, 8, "none", "0.1.0"
)


@pytest.fixture(scope="module")
def network() -> AnytimeNetwork:
    torch.manual_seed(0)
    return create_model(NAME).eval()


def answers(session: Session) -> list[Tensor]:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return [logits for _, logits in stages(session.begin(x))]


def test_every_source_has_the_same_logits(network: AnytimeNetwork, tmp_path: Path) -> None:
    """A CPU's engine is ONNX Runtime, whatever the source; the torch engine agrees with it."""
    save_weights(tmp_path / "weights.safetensors", network, INFO)
    export(network, tmp_path / "graphs", info=INFO)
    wanted = answers(open_session(network, backend="torch"))
    weights = tmp_path / "weights.safetensors"
    for source in (
        network,
        tmp_path,
        weights,
        str(tmp_path),
        tmp_path / "graphs",
        resolve(weights),
    ):
        session = open_session(source)
        assert isinstance(session, OnnxSession)
        for mine, theirs in zip(answers(session), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert isinstance(open_session(tmp_path, backend="torch"), TorchSession)
    assert resolve(tmp_path).info == resolve(weights).info == INFO
    with pytest.raises(ValueError, match="use backend='onnxruntime'"):
        open_session(tmp_path / "graphs", backend="torch")


def test_the_engine_of_each_device(network: AnytimeNetwork, monkeypatch: Any) -> None:
    source = resolve(network)
    graphs = resolve(network).__class__(export=Path("graphs"))
    assert choose_backend(source, None, "cpu") == ("onnxruntime", "cpu")
    assert choose_backend(source, "torch", torch.device("cpu")) == ("torch", "cpu")
    with pytest.raises(ValueError, match="'cuda' is not available here"):
        choose_backend(source, None, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_backend(source, None, "auto") == ("torch", "cuda")
    assert choose_backend(source, None, "cpu") == ("onnxruntime", "cpu")
    assert choose_backend(source, "onnxruntime", "auto") == ("onnxruntime", "cpu")
    assert choose_backend(graphs, None, "auto") == ("onnxruntime", "cpu")
    for found, backend in ((source, "onnxruntime"), (graphs, None)):
        with pytest.raises(ValueError, match="computes on the cpu, found device 'cuda:0'"):
            choose_backend(found, backend, "cuda:0")


def test_arguments_that_do_not_fit(network: AnytimeNetwork, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backend must be one of onnxruntime, torch, found 'tvm'"):
        open_session(network, backend="tvm")
    for wrong in (0, -1, 1.5, True, "2", 10**30, 1025):
        with pytest.raises(ValueError, match="threads must be"):
            open_session(network, threads=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"needs a network with num_stages.*found Linear"):
        open_session(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(RunFolderError, match="does not exist"):
        open_session(tmp_path / "none")


def test_threads_may_be_a_numpy_number(network: AnytimeNetwork) -> None:
    session = open_session(network, backend="torch", threads=np.int64(2))  # type: ignore[arg-type]
    assert isinstance(session, TorchSession)
    assert type(session.threads) is int


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_the_callers_modes_have_no_effect(network: AnytimeNetwork, backend: str) -> None:
    wanted = answers(open_session(network, backend=backend))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            session = open_session(network, backend=backend)
    finally:
        torch.set_default_dtype(before)
    for (_, mine), theirs in zip(stages(session.begin(x)), wanted, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
