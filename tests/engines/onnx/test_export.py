"""Export: atomic folders, comparison with PyTorch, and reading of untrusted files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from anynest import AnytimePredictor, store
from anynest.engines.model_source import resolve
from anynest.engines.onnx import reader
from anynest.engines.onnx.export import directory as export_folder
from anynest.engines.onnx.export import verify
from anynest.engines.onnx.export.export import export
from anynest.engines.onnx.manifest import FILE, read_manifest
from anynest.engines.onnx.reader import read_export
from anynest.engines.open import open_session
from anynest.engines.session import stages
from anynest.nets import AnytimeNetwork, Architecture, create_model
from anynest.store import RunError, RunFolderError, WeightsInfo

INFO = WeightsInfo(
    model="width_nested_resnet10",
    arguments={"num_classes": 4},
    classes=("a", "b", "c", "d"),
    mean=(0.1, 0.2, 0.3),
    std=(0.5, 0.6, 0.7),
    image_size=8,
    data="pictures",
    anynest="0",
    fit="whole",
)


@pytest.fixture(scope="module")
def network() -> AnytimeNetwork:
    torch.manual_seed(0)
    return create_model("width_nested_resnet10", num_classes=4)


@pytest.fixture(scope="module")
def exports(network: AnytimeNetwork, tmp_path_factory: Any) -> dict[bool, Path]:
    """By ``single_file``."""
    folder = Path(tmp_path_factory.mktemp("export"))
    for single in (False, True):
        export(network, folder / str(single), info=INFO, single_file=single)
    return {single: folder / str(single) for single in (False, True)}


@pytest.fixture(params=[False, True], ids=["stages", "single"])
def exported(request: pytest.FixtureRequest, exports: dict[bool, Path]) -> Path:
    return exports[request.param]


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copied"))


@pytest.fixture
def staged(exports: dict[bool, Path], tmp_path: Path) -> Path:
    """A copy with a file per stage, for what does not depend on that."""
    return Path(shutil.copytree(exports[False], tmp_path / "copied"))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / FILE).read_text())
    edit(data)
    (folder / FILE).write_text(json.dumps(data))


def reseal(folder: Path) -> None:
    """Make the manifest agree with files that were changed."""

    def seal(data: dict[str, Any]) -> None:
        for entry in data["files"]:
            content = (folder / entry["file"]).read_bytes()
            entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    change(folder, seal)


# -- what is written ------------------------------------------------------------------------------
def test_the_manifest_is_complete(exported: Path, network: AnytimeNetwork) -> None:
    manifest = read_manifest(exported)
    single = manifest.single_file
    files = ["model.onnx"] if single else ["stage1.onnx", "stage2.onnx", "stage3.onnx"]
    assert sorted(os.listdir(exported)) == sorted([FILE, *files])
    assert [entry.file for entry in manifest.files] == files
    for entry in manifest.files:
        content = (exported / entry.file).read_bytes()
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (manifest.num_stages, manifest.num_classes, manifest.in_channels) == (3, 4, 3)
    assert manifest.image_size == (8, 8)
    assert manifest.info is not None
    assert manifest.info.classes == INFO.classes
    assert (manifest.info.mean, manifest.info.std, manifest.info.fit) == (
        INFO.mean, INFO.std, "whole"
    )  # fmt: skip
    assert resolve(exported).info == manifest.info
    assert manifest.checked["batches"] == [1, 2, 5]
    assert 0 <= manifest.checked["max_error"] <= 1e-4
    assert manifest.shapes["image"] == (3, 8, 8)
    assert manifest.shapes["stem.stage1"] == (4, 8, 8)
    assert manifest.shapes["group2.layer1.stage2"] == (8, 4, 4)
    assert manifest.shapes["group3.layer1.stage1.features"] == (16,)
    rebuilt = create_model(manifest.model, **manifest.arguments)
    assert rebuilt.plan == network.plan


def test_the_first_format_is_read(copied: Path) -> None:
    """Exports of version 0.1 lack "inputs" and "sizes"; all else is the same."""
    x = torch.randn(2, 3, 8, 8)
    with closing(open_session(copied)) as session:
        wanted = [logits for _, logits in stages(session.begin(x))]

    def older(data: dict[str, Any]) -> None:
        data["format"] = "anynest-export-1"
        del data["inputs"], data["sizes"]

    change(copied, older)
    with closing(open_session(copied)) as session:
        for found, logits in zip(stages(session.begin(x)), wanted, strict=True):
            torch.testing.assert_close(found[1], logits, rtol=0, atol=0)


def test_the_network_is_not_changed(network: AnytimeNetwork, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert network.training
    export(network, tmp_path / "out", image_size=8)
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_any_runtime_runs_the_files(exported: Path, network: AnytimeNetwork) -> None:
    """With the manifest only, as docs/export.md describes it."""
    manifest = json.loads((exported / FILE).read_text())
    sessions = [ort.InferenceSession(exported / entry["file"]) for entry in manifest["files"]]
    for batch in (1, 4):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            wanted = [logits.numpy() for _, logits in network.eval().stages(x)]
        known = {"image": x.numpy()}
        for number, stage in enumerate(manifest["stages"], 1):
            if manifest["single_file"]:
                feed = {**known, "stages": np.array(number)}
                (logits,) = sessions[0].run(["logits"], feed)
            else:
                names = [stage["logits"], *stage["gives"]]
                feed = {name: known[name] for name in [*stage["inputs"], *stage["reads"]]}
                logits, *state = sessions[number - 1].run(names, feed)
                known.update(zip(stage["gives"], state, strict=True))
                for name, array in zip(stage["gives"], state, strict=True):
                    assert list(array.shape) == [batch, *manifest["shapes"][name]]
            np.testing.assert_allclose(logits, wanted[number - 1], atol=1e-5)
    network.train()


@pytest.mark.parametrize(
    "build",
    [
        lambda: create_model("width_nested_resnet10").subnetwork(2),
        lambda: create_model("width_nested_resnet10", independent=3),
        lambda: create_model("ensemble_resnet10", average=True),
        lambda: create_model("ensemble_resnet10", average=True).subnetwork(3),
        lambda: create_model("width_nested_resnet14", in_channels=1),
        lambda: AnytimeNetwork(Architecture((1, 2), ((1, 1), (2, 2)), 3, skips="sparse")),
    ],
    ids=["subnetwork", "plain", "average", "average-subnetwork", "bottleneck", "own"],
)
@pytest.mark.parametrize("single", [False, True])
def test_round_trips(build: Callable[[], AnytimeNetwork], single: bool, tmp_path: Path) -> None:
    network = build().eval()
    export(network, tmp_path / "out", image_size=(16, 24), single_file=single)
    session = open_session(tmp_path / "out", backend="onnxruntime", threads=1)
    x = torch.randn(2, network.in_channels, 16, 24)
    with torch.no_grad():
        wanted = list(network.stages(x))
    for (stage, ours), (number, theirs) in zip(stages(session.begin(x)), wanted, strict=True):
        assert stage == number
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_sizes_of_images(network: AnytimeNetwork, tmp_path: Path) -> None:
    assert export(network, tmp_path / "a").image_size == (32, 32)
    assert export(network, tmp_path / "b", info=INFO).image_size == (8, 8)
    assert export(network, tmp_path / "c", info=INFO, image_size=9).image_size == (9, 9)
    for wrong in (0, (8, -1), (1, 2.0)):
        with pytest.raises(ValueError, match="image_size must be"):
            export(network, tmp_path / "d", image_size=wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


# -- whole or not at all --------------------------------------------------------------------------
def test_graphs_that_are_wrong_are_not_written(
    network: AnytimeNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", 0.0)
    with pytest.raises(RunError, match="must give PyTorch's logits within 0, found stage 1 off by"):
        export(network, tmp_path / "out", image_size=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_the_check_sees_every_stage(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an error in a single head."""
    from anynest.engines.folding import FoldedNetwork
    from anynest.engines.onnx.export import export as _  # noqa: F401

    network = create_model("width_nested_resnet10").eval()
    real = FoldedNetwork.of

    def altered(net: AnytimeNetwork) -> FoldedNetwork:
        folded = real(net)
        weight, bias = folded.heads[3]
        folded.heads[3] = weight, bias + np.float32(value)
        return folded

    monkeypatch.setattr(FoldedNetwork, "of", staticmethod(altered))
    with pytest.raises(RunError, match="found stage 3 off by"):
        export(network, tmp_path / "out", image_size=8)
    assert not list(tmp_path.iterdir())


def test_places_that_are_taken(network: AnytimeNetwork, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    export(network, taken, image_size=8)  # empty: fine
    with pytest.raises(RunFolderError, match="must be empty or new"):
        export(network, taken, image_size=8)
    export(network, taken, image_size=8, single_file=True, overwrite=True)
    assert sorted(os.listdir(taken)) == [FILE, "model.onnx"]
    (taken / "profile.json").write_text("of the older export")
    export(network, taken, image_size=8, overwrite=True)
    assert "profile.json" not in os.listdir(taken)
    (taken / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"holds more than an export \(thesis.tex\)"):
        export(network, taken, image_size=8, overwrite=True)
    assert (taken / "thesis.tex").read_text() == "years of work"
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunFolderError, match="found a file"):
        export(network, file, overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "stage1.onnx").write_text("not ours: there is no manifest")
    with pytest.raises(RunFolderError, match="holds more than an export"):
        export(network, other, overwrite=True)


def test_a_failure_keeps_what_was_there(
    network: AnytimeNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(network, out, image_size=8)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    real = os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target) == out and "old" not in Path(source).name:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(RunError, match="No space left on device; free some space"):
        export(network, out, image_size=9, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_within_leaves_nothing(
    network: AnytimeNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, content: bytes) -> None:
        if path.name == "stage3.onnx":
            raise RunError("the disk is full")
        store.write_whole(path, content)

    monkeypatch.setattr(export_folder, "write_whole", failing)
    with pytest.raises(RunError, match="the disk is full"):
        export(network, tmp_path / "out", image_size=8)
    assert not list(tmp_path.iterdir())


# -- reading --------------------------------------------------------------------------------------
def fails(folder: Path, words: str) -> None:
    with pytest.raises(RunFolderError, match=words) as caught:
        read_export(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunFolderError):
        open_session(folder, backend="onnxruntime")


def first_file(folder: Path) -> Path:
    return folder / json.loads((folder / FILE).read_text())["files"][0]["file"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "missing", "empty"])
def test_damaged_graphs(copied: Path, damage: str) -> None:
    path = first_file(copied)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    damaged = {
        "cut": content[:-1],
        "flipped": bytes(flipped),
        "longer": content + b"x",
        "empty": b"",
    }
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    fails(copied, "cannot read" if damage == "missing" else "damaged or was changed")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not a valid manifest"),
        (b"[]", "format must be anynest-export-2 or anynest-export-1, found 'list'"),
        (b"{}", "found None"),
        (b'{"format": "anynest-export-3"}', "found 'anynest-export-3'"),
        (b'{"format": "anynest-export-1"}', "it lacks 'stages'"),
        (b"\xff\xfe", "not a valid manifest"),
        (b"[" * 100_000, "not a valid manifest"),
        (b" " * (17 << 20), "larger than 16 MiB"),
    ],
)
def test_damaged_manifests(staged: Path, text: bytes, words: str) -> None:
    (staged / FILE).write_bytes(text)
    fails(staged, words)


def edits() -> list[tuple[Callable[[dict[str, Any]], object], str]]:
    def put(path: str, value: object) -> Callable[[dict[str, Any]], object]:
        *parents, last = path.split(".")

        def edit(data: Any) -> None:
            for key in parents:
                data = data[int(key) if key.isdigit() else key]
            data[int(last) if last.isdigit() else last] = value

        return edit

    return [
        (put("files.0.file", "../stage1.onnx"), "plain names"),
        (put("files.0.file", "/etc/passwd"), "plain names"),
        (put("files.0.file", "a/b.onnx"), "plain names"),
        (put("files.0.file", "..onnx"), "plain names"),
        (put("files.0.file", "stage1.onnx\x00"), "plain names"),
        (put("files.0.size", 1 << 40), "smaller than 2 GiB"),
        (put("files.0.size", True), "positive integer"),
        (put("files.0.sha256", "0" * 63), "64 hexadecimal digits"),
        (put("files", []), "cannot be in 0 files"),
        (put("files", {}), "files must be a list"),
        (put("stages", []), "0 stages"),
        (put("stages.0.logits", 5), "logits must be a str"),
        (put("stages.0.logits", "elsewhere"), "of stage 1 are not those in"),
        (put("stages.1.reads", []), "of stage 2 are not those in"),
        (put("num_classes", 5), "classes must be 5 names"),
        (put("num_classes", "4"), "num_classes must be a positive integer"),
        (put("in_channels", 1), "must be images of 1 channels"),
        (put("image_size", [8]), "image_size must be"),
        (put("image_size", [8, 10**9]), "image_size must be"),
        (put("images.mean", [0, 0, float("nan")]), "mean must be 3 numbers"),
        (put("images.mean", [0, 0, 10**400]), "mean must be 3 numbers"),
        (put("images.std", [1, 1, 0]), "std must be above 0"),
        (put("images.image_size", 10**9), "image_size must be from 1 to 65536"),
        (put("images.fit", "stretch"), "fit must be one of crop, whole"),
        (put("images.classes", [1, 2, 3, 4]), "classes must be a str"),
        (put("shapes.image", [0]), "positive integer"),
        (put("architecture.base_width", 8), "weight must be float32"),
        (put("architecture.base_width", "4"), "base_width must be a positive integer"),
        (put("architecture.growth", [[1, 1], [2, 1]]), "stages, channels or classes"),
        (put("architecture.evil", 1), "architecture has no field 'evil'"),
        (put("architecture", {}), "it lacks 'blocks'"),
        (put("arguments.subnetwork", 7), "there is no stage 7"),
        (put("arguments.subnetwork", 2), "stages, channels or classes"),
        (put("quantised", 8), "quantised must be a dict"),
    ]


@pytest.mark.parametrize(("edit", "words"), edits())
def test_false_manifests(
    staged: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    change(staged, edit)
    fails(staged, words)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blocks", [10**9]),
        ("growth", [[1, 10**9]]),
        ("growth", [[n + 1, 1] for n in range(10**5)]),
        ("blocks", [-1, 1]),
    ],
)
def test_giant_architectures_are_not_built(
    staged: Path, field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(staged, lambda data: data["architecture"].update({field: value}))
    monkeypatch.setattr(reader, "build_plan", lambda _: pytest.fail("it was built"))
    fails(staged, "not that of the graphs")


def test_links_out_of_the_folder(copied: Path, tmp_path: Path) -> None:
    path = first_file(copied)
    shutil.move(path, tmp_path / "outside.onnx")
    path.symlink_to(tmp_path / "outside.onnx")
    fails(copied, "must be in the exported folder")


def rewrite(folder: Path, edit: Callable[[Any], object]) -> None:
    path = first_file(folder)
    model = onnx.load(path)
    edit(model)
    path.write_bytes(model.SerializeToString())
    reseal(folder)


def test_weights_in_other_files(copied: Path) -> None:
    def external(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")

    rewrite(copied, external)
    fails(copied, "weights must be inside the graphs")


def test_operations_of_other_domains(copied: Path) -> None:
    rewrite(copied, lambda model: setattr(model.graph.node[0], "domain", "evil.example"))
    fails(copied, "operations must be of ONNX's own domains, found 'evil.example'")


def test_graphs_with_functions(copied: Path) -> None:
    rewrite(copied, lambda model: model.functions.add(name="f", domain="evil"))
    fails(copied, "must not define functions")


def test_state_that_no_stage_computes(staged: Path) -> None:
    path = staged / "stage2.onnx"
    model = onnx.load(path)
    name = "stem.stage1"
    for node in model.graph.node:
        node.input[:] = ["nowhere" if i == name else i for i in node.input]
    for value in model.graph.input:
        value.name = "nowhere" if value.name == name else value.name
    path.write_bytes(model.SerializeToString())
    reseal(staged)

    def tell(data: dict[str, Any]) -> None:
        reads = data["stages"][1]["reads"]
        reads[reads.index(name)] = "nowhere"

    change(staged, tell)
    fails(staged, "stage 2 reads 'nowhere', which no earlier stage computes")


def test_files_that_are_not_graphs(copied: Path) -> None:
    first_file(copied).write_bytes(b"\xff" * 100)
    reseal(copied)
    fails(copied, "cannot be decoded")


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupted_overwrite_leaves_the_old_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    export_folder.write_folder(tmp_path / "out", {"a": b"old"})
    replace, calls = os.replace, 0

    def interrupted(source: Any, target: Any) -> None:
        nonlocal calls
        if Path(target).name == "out" or Path(source).name == "out":
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_folder.write_folder(tmp_path / "out", {"a": b"new"})
    assert (tmp_path / "out" / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_architecture_out_of_bounds_is_refused(copied: Path) -> None:
    """That of a quantised export, whose network is not built."""
    manifest = json.loads((copied / FILE).read_text())
    for change in ({"blocks": [10_000], "growth": [[n, 1] for n in range(1, 99)]}, {"unknown": 1}):
        changed = {**manifest, "quantised": {"bits": 8, "images": 1}}
        changed["architecture"] = {**manifest["architecture"], **change}
        (copied / FILE).write_text(json.dumps(changed))
        with pytest.raises(RunFolderError, match="export the network again"):
            AnytimePredictor(copied)


def test_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot read"):
        read_export(tmp_path)
