"""Trained weights that come with the package: small, whole, refused where they do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import anynest
from anynest.cli import main
from anynest.nets import pretrained
from anynest.nets.pretrained import MAX_BYTES, MAX_FILES, list_pretrained, read_card
from anynest.store import RunFolderError, load, read_info

NAME = "cifar10-jpeg75-16px"


def test_what_comes_with_the_package_is_small_and_has_its_card() -> None:
    assert NAME in list_pretrained() == anynest.list_pretrained()
    assert len(list_pretrained()) <= MAX_FILES
    for name in list_pretrained():
        assert pretrained.pretrained_file(name).stat().st_size <= MAX_BYTES
        card, info = read_card(name), read_info(name)
        assert (card["name"], card["model"], card["data"]) == (name, info.model, info.data)
        assert card["arguments"] == info.arguments
        model = load(name)
        costs = model.cost(info.image_size)
        assert card["parameters"] == [cost.parameters for cost in costs]
        for key in ("error", "held_out_error", "multiply_adds"):
            assert len(card[key]) == model.num_stages
        assert 0 < card["error"][-1] < card["error"][0] < 0.9 - 0.9 / card["test_images"] ** 0.5
        for key in ("method", "lr", "epochs", "test_images", "limits"):
            assert card[key]


def test_the_weights_are_trained_ones() -> None:
    """A network that has just been made is as sure of nothing; running statistics tell a trained
    one."""
    model = load(NAME)
    means = [b for key, b in model.state_dict().items() if key.endswith("running_mean")]
    assert all(bool(mean.abs().max() > 0) for mean in means)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


def test_create_model_and_load_give_the_same_network() -> None:
    loaded = anynest.load(NAME)
    made = anynest.create_model("width_nested_resnet10", pretrained=NAME)
    assert made.training
    assert not loaded.training
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(made.eval()(x), loaded(x), strict=True):
        assert torch.equal(ours, theirs)
    random = anynest.create_model("width_nested_resnet10").eval()
    assert not torch.allclose(random(x)[-1], loaded(x)[-1])
    small = anynest.create_model("width_nested_resnet10", pretrained=NAME, subnetwork=2).eval()
    torch.testing.assert_close(small(x)[-1], loaded(x)[1])
    assert made.arguments == anynest.create_model("width_nested_resnet10").arguments


@pytest.mark.parametrize("name", ["cifar10-jpeg75-16", "../cifar10-jpeg75-16px", "", "x"])
def test_a_wrong_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=f"must be one of .*{NAME}.*, found {name!r}") as caught:
        anynest.create_model("width_nested_resnet10", pretrained=name)
    assert "\n" not in str(caught.value)
    assert ("did you mean" in str(caught.value)) == (len(name) > 5)
    if name:
        with pytest.raises(RunFolderError, match=f"does not exist: .*{NAME}"):
            load(name)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("even_width_resnet10", {}),
        ("width_nested_resnet10", {"num_classes": 7}),
        ("width_nested_resnet10", {"in_channels": 1}),
        ("width_nested_resnet10", {"independent": 2}),
        ("width_nested_resnet10", {"growth": [[1, 1], [2, 1]]}),
        ("cascade_sparse_resnet26", {}),
    ],
)
def test_a_network_that_they_do_not_fit_is_refused_in_one_line(
    model: str, options: dict[str, object]
) -> None:
    with pytest.raises(
        ValueError, match=r"must fit the network, found .* in the weights"
    ) as caught:
        anynest.create_model(model, pretrained=NAME, **options)
    assert "\n" not in str(caught.value)
    assert "are of create_model('width_nested_resnet10'" in str(caught.value)


def test_the_predictor_opens_them_by_name() -> None:
    with anynest.AnytimePredictor(NAME) as predictor:
        prediction = predictor.predict(torch.zeros(3, 16, 16), deadline=5.0, on_timeout="wait")
    assert prediction.label in range(10)
    assert prediction.names == (read_card(NAME)["classes"][prediction.label],)


def test_a_refused_network_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = anynest.create_model("width_nested_resnet10", num_classes=7)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="must fit"):
        pretrained.load_into(model, NAME)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_file_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(pretrained.pretrained_file(NAME), tmp_path / "w")
    Path(NAME).write_bytes(b"no weights")
    with pytest.raises(RunFolderError, match="no whole safetensors file"):
        load(NAME)


def test_reading_executes_nothing() -> None:
    """Tensors and strings alone: a header of JSON and the tensors' bytes."""
    for name in list_pretrained():
        with safe_open(pretrained.pretrained_file(name), framework="np") as opened:
            assert {str(opened.get_tensor(key).dtype) for key in opened.keys()} <= {  # noqa: SIM118
                "float32",
                "int64",
            }
    files = {path.suffix for path in pretrained.FOLDER.iterdir() if path.is_file()}
    assert files == {".py", ".json", ".safetensors"}


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert f'anynest.load("{NAME}")' in capsys.readouterr().out
    assert main(["models", "width_nested_resnet10"]) == 0
    assert NAME in capsys.readouterr().out
    assert main(["models", "even_width_resnet10"]) == 0
    assert NAME not in capsys.readouterr().out
    assert main(["models", "width_nested_resnet10", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["pretrained"] == [NAME]


def test_the_wheel_has_them() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "nets/pretrained/*.safetensors" in text
    assert "nets/pretrained/*.json" in text
