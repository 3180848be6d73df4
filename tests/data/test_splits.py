"""The holdout, the statistics, the digits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from anynest.data import DataError, Split, load
from anynest.data.assemble import RawDataset, assemble, holdout_count, statistics, stratified


def raw(n: int = 200, **changes) -> RawDataset:
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 4, 4).contiguous()
    labels = (torch.arange(n) % 7) % 4
    train = Split(images, labels, "train")
    test = Split(images[:9], labels[:9].clone(), "test")
    return replace(RawDataset("made", ("a", "b", "c", "d"), train, test), **changes)


def numbers(split) -> set[int]:
    return set(split.images[:, 0, 0, 0].tolist())


def test_default_holdout_is_a_tenth_disjoint_and_complete() -> None:
    data = assemble(raw(), None, None)
    train, validation = numbers(data.train), numbers(data.validation)
    assert len(validation) == 20 == len(data.validation)
    assert train | validation == set(range(200))
    assert not train & validation
    assert (data.train.name, data.validation.name, data.test.name) == (
        "train",
        "validation",
        "test",
    )
    for split in (data.train, data.validation):
        origin = split.images[:, 0, 0, 0].long()
        assert torch.equal(split.labels, (origin % 7) % 4)


def test_holdout_is_fixed_and_stratified() -> None:
    labels = (torch.arange(700) % 7) % 4
    mask = stratified(labels, 70, 1)
    assert torch.equal(mask, stratified(labels, 70, 1))
    assert not torch.equal(mask, stratified(labels, 70, 2))
    assert int(mask.sum()) == 70
    held, all_of = (np.bincount(x.numpy(), minlength=4) for x in (labels[mask], labels))
    assert abs(held - all_of / 10).max() <= 1
    places = mask.nonzero()[:, 0].double() / 700
    assert 0.3 < float(places.mean()) < 0.7


def test_holdout_zero_is_the_papers_protocol() -> None:
    data = assemble(raw(), 0, None)
    assert len(data.train) == 200
    assert data.validation is data.test
    assert data.validation.name == "test"
    assert data.describe()["validation_is_test"] is True
    assert "validation = test" in str(data)


def test_holdout_zero_puts_the_test_split_in_the_place_of_an_own_validation_split() -> None:
    own = Split(raw().test.images[:5], raw().test.labels[:5], "validation")
    assert len(assemble(raw(validation=own), None, None).validation) == 5
    data = assemble(raw(validation=own), 0, None)
    assert data.validation is data.test
    assert len(data.train) == 200


def test_holdout_as_number_and_fraction() -> None:
    assert len(assemble(raw(), 31, None).validation) == 31
    assert len(assemble(raw(), 0.25, None).validation) == 50
    assert holdout_count(0.1, 50_000) == 5000


@pytest.mark.parametrize("holdout", [200, 300, -1, -0.5, 1.5])
def test_bad_holdout(holdout: float) -> None:
    with pytest.raises(DataError, match=f"below the 200 training images, found {holdout}"):
        assemble(raw(), holdout, None)


def test_limit_is_fixed_stratified_nested_and_said() -> None:
    data = assemble(raw(), 0, None, limit=80)
    kept = numbers(data.train)
    assert len(data.train) == 80 == len(kept)
    assert data.label == "made (80 training images)"
    all_labels, labels = (torch.bincount(s.labels, minlength=4) for s in (raw().train, data.train))
    assert (labels - all_labels * 80 / 200).abs().max() <= 1
    assert len(data.test) == 9  # whole
    assert kept == numbers(assemble(raw(), 0, None, limit=80).train)
    assert data.mean == statistics(data.train.images)[0]
    fewer = numbers(assemble(raw(), 0, None, limit=40).train)
    assert fewer < kept
    held, whole = assemble(raw(), 20, None, limit=80), assemble(raw(), 20, None)
    assert (len(held.train), len(held.validation)) == (80, 20)
    assert numbers(held.validation) == numbers(whole.validation)
    assert numbers(held.train) < numbers(whole.train)


@pytest.mark.parametrize("limit", [0, -1, 201])
def test_bad_limit(limit: int) -> None:
    with pytest.raises(
        DataError,
        match=f"limit must be an integer from 1 to 200 .the training images., found {limit}",
    ):
        assemble(raw(), 0, None, limit=limit)


def test_load_passes_the_limit_on(make_folder) -> None:
    digits = load("digits", holdout=0, limit=100)
    assert (len(digits.train), digits.label) == (100, "digits (100 training images)")
    folder = make_folder()
    whole, part = load(folder, holdout=0), load(folder, holdout=0, limit=2)
    assert len(part.train) == 2
    assert set(part.train.paths) < set(whole.train.paths)
    assert part.label == whole.label + " (2 training images)"
    assert len(part.test) == len(whole.test)


def test_a_validation_split_of_its_own_is_kept() -> None:
    images = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    own = Split(images, torch.zeros(5, dtype=torch.int64), "validation")
    data = assemble(raw(validation=own), None, None)
    assert (len(data.train), len(data.validation)) == (200, 5)
    with pytest.raises(DataError, match="validation split of its own"):
        assemble(raw(validation=own), 10, None)


def test_statistics_are_exact() -> None:
    images = torch.randint(0, 256, (40, 3, 9, 9), dtype=torch.uint8)
    mean, std = statistics(images)
    scaled = images.double() / 255
    wanted = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(mean).double(), wanted[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(std).double(), wanted[1], rtol=1e-6, atol=0)
    assert statistics(torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)) == ((1.0,), (1.0,))


def test_statistics_come_from_the_training_split_alone() -> None:
    data = assemble(raw(), 0.5, None)
    assert data.mean == statistics(data.train.images)[0]
    assert data.mean != statistics(raw().train.images)[0]


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_out_of_range(label: int) -> None:
    made = raw()
    made.test.labels[3] = label
    with pytest.raises(DataError, match=rf"0\.\.3, found {label} in the test split of made"):
        assemble(made, None, None)


def test_empty_split_and_wrong_channels() -> None:
    made = raw()
    with pytest.raises(DataError, match="test split of made holds no images"):
        assemble(raw(test=made.test.take(torch.arange(0), "test")), None, None)
    with pytest.raises(DataError, match=r"same channels, found \{'train': 1, 'test': 3\}"):
        assemble(
            raw(test=replace(made.test, images=made.test.images.repeat(1, 3, 1, 1))), None, None
        )


def test_other_sizes_need_image_size() -> None:
    made = raw()
    wide = replace(made.test, images=made.test.images.repeat(1, 1, 1, 2))
    with pytest.raises(DataError, match="give image_size"):
        assemble(raw(test=wide), None, None)
    data = assemble(raw(test=wide), None, 6)
    assert data.image_size == 6 == data.test.image_size
    assert data.label == "made (resized to 6)"
    assert numbers(data.test) == set(range(9))


def test_digits_are_fixed() -> None:
    data = load("digits")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [1293, 144, 360]
    assert (data.in_channels, data.image_size, data.num_classes) == (1, 8, 10)
    assert data.train.images.dtype == torch.uint8
    assert int(data.train.images.max()) == 255
    assert not data.train.mirror
    for split in (data.validation, data.test):
        counts = torch.bincount(split.labels, minlength=10)
        assert int(counts.max() - counts.min()) <= 2
    images = [s.images.flatten(1) for s in (data.train, data.validation, data.test)]
    rows = {bytes(row.tolist()) for part in images for row in part}
    assert len(rows) == sum(len({bytes(row.tolist()) for row in part}) for part in images)
    again = load("digits", seed=0)
    assert torch.equal(again.validation.images, data.validation.images)
    other = load("digits", seed=1)
    assert torch.equal(other.test.images, data.test.images)
    assert not torch.equal(other.validation.images, data.validation.images)
    assert int((data.test.labels * torch.arange(360)).sum()) == 295876  # frozen


def test_describe_is_plain() -> None:
    described = json.loads(json.dumps(load("digits").describe()))
    assert described["label"] == "digits"
    assert described["train"] == 1293
    assert described["classes"] == list("0123456789")
