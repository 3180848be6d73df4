"""Networks whose stages share a head and norms, exported and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from anynest.engines.onnx.export.export import export
from anynest.engines.onnx.manifest import read_manifest
from anynest.engines.open import open_session
from anynest.engines.session import Session, stages
from anynest.nets import AnytimeNetwork, create_model

NETWORKS = {
    "width": ("width_nested_resnet10", {"head": "shared"}),
    "both": ("simultaneous_nested_sparse_resnet26", {"head": "shared", "norm": "shared"}),
    "versions": ("alternating_nested_sparse_resnet14", {"head": "shared", "norm": "shared"}),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> AnytimeNetwork:
    """Trained for three steps, so that norms differ from the identity and from one another."""
    torch.manual_seed(0)
    name, options = NETWORKS[request.param]
    model = create_model(name, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack([y.square().mean() for y in model(torch.randn(8, 3, 8, 8))]).sum().backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def agree(session: Session, network: AnytimeNetwork, batch: int) -> None:
    x = torch.randn(batch, 3, 8, 8)
    wanted: list[Tensor] = [logits for _, logits in network.stages(x)]
    evaluation = session.begin(x)
    found = [logits for _, logits in stages(evaluation)]
    evaluation.close()
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("single_file", [False, True], ids=["stages", "single"])
def test_an_exported_folder(network: AnytimeNetwork, tmp_path: Path, single_file: bool) -> None:
    export(network, tmp_path / "out", image_size=8, single_file=single_file)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.architecture["head"] == "shared"
    assert create_model(manifest.model, **manifest.arguments).plan == network.plan
    session = open_session(tmp_path / "out", backend="onnxruntime", threads=1)
    for batch in (1, 3):
        agree(session, network, batch)
