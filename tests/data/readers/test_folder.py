"""Image folders in ImageNet's layout, and their streaming loader."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from anynest.data import DataError, FolderSplit, load, make_loader, transforms
from anynest.data.loader import Loader
from anynest.data.readers.image_reader import ImageFileReader

Make = Callable[..., Path]
# Python 3.12 warns of forking a process that has threads, which torch's always has.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def fails(place: Path, *parts: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        load(place, **options)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def stream(split: FolderSplit, batch: int = 4, train: bool = True, **options) -> Loader:
    return make_loader(split, batch, train=train, mean=(0.5,) * 3, std=(0.25,) * 3, **options)


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        torch.equal(p, q) for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True)
    )


def test_splits_of_train_and_val(make_folder: Make) -> None:
    place = make_folder(n=10)
    (place / "train" / "cat" / "notes.txt").write_text("no image")
    (place / "train" / ".hidden").mkdir()
    data = load(place)
    assert (data.label, data.classes) == ("pictures", ("cat", "dog"))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [18, 2, 20]
    assert not set(data.train.paths) & set(data.validation.paths)
    assert data.validation.labels.tolist() == [0, 1]
    assert (data.in_channels, data.image_size) == (3, 224)
    for path, label in zip(data.train.paths, data.train.labels.tolist(), strict=True):
        assert Path(path).parent.name == data.classes[label]
    assert load(place, holdout=0).validation.name == "test"


def test_class_folders_without_splits(make_folder: Make) -> None:
    """A fixed stratified fifth is the test split, whatever else changes; the label says so."""
    place = make_folder(n=10) / "train"
    data = load(place, name="pets")
    assert data.label == "pets (tested on a fixed fifth)"
    assert data.classes == ("cat", "dog")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [14, 2, 4]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    parts = [set(split.paths) for split in (data.train, data.validation, data.test)]
    assert len(set.union(*parts)) == 20
    for split in (data.train, data.validation, data.test):
        for path, label in zip(split.paths, split.labels.tolist(), strict=True):
            assert Path(path).parent.name == data.classes[label]
    assert load(place, seed=1).test.paths == data.test.paths
    (place / "dog" / "x.txt").write_text("")
    assert load(place).left_out == (".txt files (1)",)
    fails(place / "cat", "none of the known layouts")


def test_class_folders_that_are_too_small(make_folder: Make) -> None:
    place = make_folder(n=2) / "train"
    fails(place, "must hold at least 5 images", "has 4")


def test_what_is_left_out_is_counted(make_folder: Make) -> None:
    place = make_folder()
    cat = place / "train" / "cat"
    picture = (cat / "0.png").read_bytes()
    for name in (".hidden.png", ".cache/a.png", "__MACOSX/a.png", "@eaDir/a.png", "deep/er/a.png"):
        (cat / name).parent.mkdir(parents=True, exist_ok=True)
        (cat / name).write_bytes(picture)
    for name in ("notes.txt", "README", "film.MP4", "deep/b.txt"):
        (cat / name).write_bytes(b"")
    for name in ("__MACOSX", ".ipynb_checkpoints"):
        (place / "val" / name).mkdir()
    (place / "val" / "loose.png").write_bytes(picture)
    data = load(place, holdout=0)
    assert data.classes == ("cat", "dog")
    assert len(data.train) == 13
    assert str(cat / "deep" / "er" / "a.png") in data.train.paths
    assert str(data).endswith(
        "; left out: .mp4 files (1), .txt files (2), files outside class folders (1), "
        "files without suffix (1), hidden or system files and folders (4)"
    )


def test_symbolic_links_are_followed_once(make_folder: Make, tmp_path: Path) -> None:
    place = make_folder()
    cat, outside = place / "train" / "cat", tmp_path / "outside"
    (cat / "sub").mkdir()
    (cat / "0.png").rename(cat / "sub" / "0.png")
    outside.mkdir()
    (cat / "1.png").rename(outside / "1.png")
    (cat / "2.png").rename(outside / "2.png")
    (cat / "linked").symlink_to(outside)
    (cat / "again").symlink_to(outside)
    (cat / "loop").symlink_to(cat)
    (place / "val" / "dog").rename(tmp_path / "dog")
    (place / "val" / "dog").symlink_to(tmp_path / "dog")
    data = load(place, holdout=0)
    assert [len(data.train), len(data.test)] == [12, 12]
    assert [Path(p).relative_to(cat).as_posix() for p in data.train.paths[:6]] == [
        *("3.png", "4.png", "5.png"),
        *("again/1.png", "again/2.png", "sub/0.png"),
    ]
    assert data.left_out == ("folders linked more than once (2)",)


def test_every_suffix_is_read(make_folder: Make) -> None:
    place = make_folder(n=1)
    kinds = {".gif": "GIF", ".jfif": "JPEG", ".JPEG": "JPEG", ".webp": "WEBP", ".tif": "TIFF"}
    if features.check("avif"):
        kinds[".avif"] = "AVIF"
    for suffix, kind in kinds.items():
        image = Image.new("RGB", (80, 80), (10, 200, 30))
        image.save(place / "train" / "cat" / f"a{suffix}", kind)
    data = load(place, holdout=0, image_size=80)
    assert data.left_out == ()
    ((images, labels),) = stream(data.train, 20, train=False).batches(0)
    assert len(labels) == 2 + len(kinds)
    wanted = torch.tensor([10 / 255, 200 / 255, 30 / 255]).sub(0.5).div(0.25)
    for image in images[1:-1]:
        assert (image.mean((1, 2)) - wanted).abs().max() < 0.06


def test_three_splits_need_no_holdout(make_folder: Make) -> None:
    place = make_folder(("train", "val", "test"))
    data = load(place)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [12, 12, 12]
    assert [s.name for s in (data.train, data.validation, data.test)] == [
        "train",
        "validation",
        "test",
    ]
    assert "test" in Path(data.test.paths[0]).parts
    assert "val" in Path(data.validation.paths[0]).parts
    fails(place, "validation split of its own", holdout=3)


def test_small_alike_images_keep_their_size(make_folder: Make) -> None:
    place = make_folder(shape=(32, 32, 3))
    assert load(place).image_size == 32
    assert load(place, image_size=48).image_size == 48


def test_undecodable_files_do_not_decide_the_size(make_folder: Make) -> None:
    place = make_folder(shape=(32, 32, 3))
    (place / "train" / "cat" / "0.png").write_bytes(b"?")
    assert load(place).image_size == 32
    Image.new("RGB", (32, 31)).save(place / "train" / "cat" / "0.png")
    assert load(place).image_size == 224


def test_imagenet_is_known_by_its_classes(make_folder: Make) -> None:
    place = make_folder(classes=("n00000000",), n=1, shape=(4, 4, 3))
    for split in ("train", "val"):
        for i in range(1, 1000):
            (place / split / f"n{i:08d}").symlink_to(place / split / "n00000000")
    assert load(place, holdout=0).label == "ImageNet"


@pytest.mark.parametrize("train", [True, False])
def test_the_same_batches_for_every_number_of_workers(make_folder: Make, train: bool) -> None:
    split = load(make_folder(), holdout=0, image_size=72).train
    before = torch.get_rng_state()
    whole = list(stream(split, 5, train).batches(1))
    made = stream(split, 5, train)
    assert (len(made), made.num_images) == ((2, 10) if train else (3, 12))
    assert len(whole) == len(made)
    assert whole[0][0].shape == (5, 3, 72, 72)
    assert same(list(stream(split, 5, train, workers=2).batches(1)), whole)
    assert same(list(stream(split, 5, train, workers=1).batches(1, start=1)), whole[1:])
    assert torch.equal(torch.get_rng_state(), before)


def test_shards_join_to_the_batches_of_one_process(make_folder: Make) -> None:
    split = load(make_folder(), holdout=0, image_size=72).train
    whole = list(stream(split, 5, drop_last=False).batches(0))
    shards = [list(stream(split, 5, drop_last=False, rank=r, world=3).batches(0)) for r in range(3)]
    joined = [
        tuple(torch.cat(parts) for parts in zip(*step, strict=True))
        for step in zip(*shards, strict=True)
    ]
    assert same(joined, whole)


def test_epochs_differ(make_folder: Make) -> None:
    split = load(make_folder(), holdout=0, image_size=72).train
    made = stream(split, 12)
    (a, y), (b, z) = next(made.batches(0)), next(made.batches(1))
    assert y.tolist() != z.tolist()
    assert not torch.equal(a.sum((1, 2, 3)).sort()[0], b.sum((1, 2, 3)).sort()[0])


def test_evaluation_resizes_and_cuts_the_centre(make_folder: Make) -> None:
    place = make_folder(n=1, shape=(100, 160, 3))
    data = load(place, image_size=112)
    images, _ = next(stream(data.test, 2, train=False).batches(0))
    with Image.open(data.test.paths[0]) as picture:
        resized = picture.resize((205, 128), Image.Resampling.BILINEAR)
    cut = np.asarray(resized)[8:120, 46:158].astype(np.float32)
    wanted = (torch.from_numpy(cut).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(images[0], wanted, rtol=1e-4, atol=1e-5)


def test_small_images_are_evaluated_as_they_are(make_folder: Make) -> None:
    data = load(make_folder(shape=(32, 32, 3), n=1))
    images, _ = next(stream(data.test, 2, train=False).batches(0))
    with Image.open(data.test.paths[0]) as picture:
        wanted = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(images[0], wanted, rtol=1e-4, atol=1e-5)


def test_random_resized_crops_are_as_published() -> None:
    generator = np.random.default_rng(0)
    width, height = 400, 300
    boxes = np.array(
        [
            transforms.crop_box(width, height, generator.random(transforms.DRAWS))
            for _ in range(3000)
        ]
    )
    left, top, wide, high = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + wide <= width).all()
    assert (top + high <= height).all()
    # the definition: uniform area and log-aspect, whatever does not fit drawn again
    areas = generator.uniform(0.08, 1, 100_000)
    ratios = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3), 100_000))
    wanted_wide = np.sqrt(areas * width * height * ratios)
    wanted_high = np.sqrt(areas * width * height / ratios)
    fits = (wanted_wide <= width) & (wanted_high <= height)
    for q in (0.01, 0.25, 0.5, 0.75, 0.99):
        assert np.quantile(wide, q) == pytest.approx(np.quantile(wanted_wide[fits], q), rel=0.06)
        assert np.quantile(high, q) == pytest.approx(np.quantile(wanted_high[fits], q), rel=0.06)
        ratio = np.quantile((wanted_wide / wanted_high)[fits], q)
        assert np.quantile(wide / high, q) == pytest.approx(ratio, rel=0.03)
    for first, extent, whole in ((left, wide, width), (top, high, height)):
        small = extent < whole / 2
        spare = first[small] / (whole - extent[small])
        assert spare.mean() == pytest.approx(0.5, abs=0.05)
        assert spare.max() > 0.95


def test_an_odd_shape_falls_back_to_the_centre() -> None:
    draws = np.full(transforms.DRAWS, 0.99)
    assert transforms.crop_box(1000, 10, draws) == (493, 0, 13, 10)
    assert transforms.crop_box(10, 1000, draws) == (0, 493, 10, 13)


def test_shifting_equals_the_batchwise_crop() -> None:
    from anynest.data.augment import crop_and_mirror, crop_padding, draw_crops
    from anynest.data.randomness import units

    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    for i in range(20):
        index = np.array([i])
        crops = torch.from_numpy(draw_crops(7, index, crop_padding(16), False))
        wanted = crop_and_mirror(batch, torch.tensor([0]), crops)[0].permute(1, 2, 0)
        draws = units(7, index, transforms.DRAWS)[0]
        found = transforms.shifted(Image.fromarray(pixels), draws)
        assert np.array_equal(np.asarray(found), wanted.numpy())


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "CMYK", "I;16", "1"])
def test_other_modes_become_rgb(make_folder: Make, mode: str) -> None:
    place = make_folder(n=1)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    made = Image.new("L", (70, 70), 128)
    picture = made.convert("I").point(lambda v: v * 257).convert("I;16") if mode == "I;16" else None
    picture = picture or made.convert(mode)
    options = {"transparency": bytes(256)} if mode == "P" else {}
    picture.save(place / "train" / "cat" / "0.png", kind, **options)
    split = load(place, holdout=0, image_size=66).train
    images, labels = next(stream(split, 2, train=False).batches(0))
    cat = images[labels == 0][0]
    assert cat.shape == (3, 66, 66)
    if mode in ("L", "LA", "RGBA", "P", "I;16"):
        torch.testing.assert_close(cat, torch.full_like(cat, (128 / 255 - 0.5) / 0.25))


def test_layout_errors(make_folder: Make, tmp_path: Path) -> None:
    fails(make_folder(("train",), folder="a"), "needs val/ or test/", "found neither")
    place = make_folder(folder="b")
    for file in (place / "val" / "dog").iterdir():
        file.unlink()
    fails(place, "every class folder must hold an image", str(place / "val" / "dog"))
    place = make_folder(folder="c")
    (place / "val" / "dog").rename(place / "val" / "wolf")
    fails(place, "must be those of train/", "lacks dog and adds wolf")
    (tmp_path / "d").mkdir()
    fails(tmp_path / "d", "none of the known layouts", "looked for")


def _spoil(place: Path) -> list[Path]:
    bad = [place / "train" / "cat" / "1.png", place / "train" / "dog" / "4.png"]
    bad[0].write_bytes(bad[0].read_bytes()[:900])
    bad[1].write_bytes(b"")
    return bad


@pytest.mark.parametrize("workers", [0, 2])
def test_an_undecodable_file_is_named(make_folder: Make, workers: int) -> None:
    place = make_folder()
    bad = _spoil(place)
    split = load(place, holdout=0, image_size=70).train
    with pytest.raises(DataError, match="cannot decode") as caught:
        list(stream(split, workers=workers, train=False).batches(0))
    assert str(bad[0]) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_in_evaluation_leaves_out_and_counts(
    make_folder: Make, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    place = make_folder()
    bad = _spoil(place)
    split = load(place, holdout=0, image_size=70, on_corrupt="skip").train
    made = stream(split, 3, train=False, workers=workers)
    with caplog.at_level(logging.WARNING, "anynest.data"):
        sizes = [len(y) for _, y in made.batches(0)]
        assert [len(y) for _, y in made.batches(1)] == sizes
    assert sizes == [2, 3, 3, 2]
    assert len(made.skipped_images) == 2
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("2 undecodable images left out of the train split")
    assert str(bad[0]) in caplog.messages[0]


def test_skipping_in_training_keeps_the_batch_size(make_folder: Make) -> None:
    place = make_folder()
    _spoil(place)
    split = load(place, holdout=0, image_size=70, on_corrupt="skip").train
    made = stream(split, 4)
    batches = list(made.batches(0))
    assert [len(y) for _, y in batches] == [4, 4, 4]
    assert len(made.skipped_images) == 2
    labels = torch.cat([y for _, y in batches])
    assert torch.bincount(labels).tolist() == [6, 6]  # the next file of the class stood in


def test_a_stand_in_has_its_own_label(make_folder: Make) -> None:
    place = make_folder()
    for name, grey in (("cat", 30), ("dog", 220)):  # the colour tells the class
        for file in (place / "train" / name).iterdir():
            Image.new("RGB", (80, 96), (grey,) * 3).save(file)
    (place / "train" / "cat" / "5.png").write_bytes(b"")  # the next file is a dog
    split = load(place, holdout=0, image_size=70, on_corrupt="skip").train
    ((images, labels),) = stream(split, 12).batches(0)
    assert labels.tolist() == (images.mean((1, 2, 3)) > 0).long().tolist()
    assert torch.bincount(labels).tolist() == [5, 7]


def test_nothing_decodable(make_folder: Make) -> None:
    place = make_folder(n=2)
    for file in (place / "train").rglob("*.png"):
        file.write_bytes(b"?")
    split = load(place, holdout=0, image_size=70, on_corrupt="skip").train
    images, labels = next(stream(split, 4, train=False).batches(0))
    assert images.shape == (0, 3, 70, 70)
    assert len(labels) == 0
    with pytest.raises(DataError, match="100 files in a row cannot be decoded"):
        next(stream(split, 4).batches(0))


def test_a_picture_of_too_many_pixels(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load(make_folder(), holdout=0).train
    for limit in (7000, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=f"at most {limit} pixels, found more in .*png"):
            next(stream(split).batches(0))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", ["elongated", "float", "pipe", "broken link", "32 bits"])
def test_files_that_prediction_refuses_too(make_folder: Make, train: bool, kind: str) -> None:
    """Named in one line, or skipped and counted: in training, in evaluation, by the file reader."""
    place = make_folder()
    file = place / "train" / "cat" / "2.png"
    file.unlink()
    message = {
        "elongated": "so elongated, found 200000x1 pixels",
        "float": "convertible to RGB, found F",
        "pipe": "not a regular file",
        "broken link": "No such file",
        "32 bits": r"in 0\.\.65535, found -5\.\.",
    }[kind]
    if kind == "elongated":
        Image.new("RGB", (200_000, 1)).save(file)
    elif kind == "float":
        Image.fromarray(np.ones((80, 80), np.float32)).save(file, "TIFF")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "broken link":
        file.symlink_to(place / "nowhere.png")
    else:
        Image.fromarray(np.arange(-5, 6395, dtype=np.int32).reshape(80, 80)).save(file, "TIFF")
    data = load(place, holdout=0, image_size=72)
    reader = ImageFileReader(72, data.mean, data.std)
    with pytest.raises(DataError, match=message):
        reader(str(file))
    with pytest.raises(DataError, match=message) as caught:
        list(stream(data.train, 12, train).batches(0))
    assert str(file) in str(caught.value)
    assert "--on-corrupt skip" in str(caught.value)
    made = stream(load(place, holdout=0, image_size=72, on_corrupt="skip").train, 12, train)
    ((_, labels),) = made.batches(0)
    assert (len(labels), made.skipped_images) == (12 if train else 11, {2})


def test_a_file_that_has_gone(make_folder: Make) -> None:
    place = make_folder()
    split = load(place, holdout=0).train
    (place / "train" / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"cannot read .*cat/0\.png.*: No such file"):
        next(stream(split, train=False).batches(0))


def test_fewer_images_than_a_batch(make_folder: Make) -> None:
    split = load(make_folder(), holdout=0).train
    with pytest.raises(DataError, match="found 12 images for batches of 13"):
        stream(split, 13)
