"""Loaders of sets in memory: the order, resuming, sharding, uneven ends."""

import pytest
import torch

from anynest.data import DataError, Split, load, make_loader
from anynest.data.loader import Loader

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def numbered(n: int = 50, mirror: bool = True) -> Split:
    """Images that differ, with their own numbers as labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(n), "train", mirror)


def loader(split: Split | None = None, batch: int = 8, train: bool = True, **options) -> Loader:
    return make_loader(split or numbered(), batch, train=train, mean=MEAN, std=STD, **options)


def labels(made: Loader, epoch: int = 0) -> list[int]:
    return torch.cat([y for _, y in made.batches(epoch)]).tolist()


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        torch.equal(p, q) for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True)
    )


def test_training_sees_different_images_in_a_new_order_each_epoch() -> None:
    made = loader()
    first, second = labels(made, 0), labels(made, 1)
    assert len(made) == 6
    assert made.num_images == 48 == len(set(first)) == len(set(second))
    assert first != second
    assert first != sorted(first)
    assert labels(loader(seed=1)) != first
    assert labels(loader()) == first


def test_augmentation_differs_from_epoch_to_epoch_and_is_repeatable() -> None:
    split = numbered(8)
    by_label = []
    for epoch in (0, 1, 0):
        images, numbers = next(loader(split).batches(epoch))
        by_label.append(images[numbers.argsort()])
    assert torch.equal(by_label[0], by_label[2])
    differs = (by_label[0] != by_label[1]).flatten(1).any(1)
    assert differs.sum() >= 6


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("start", [0, 1, 3, 6])
def test_resuming_at_a_batch_gives_the_same_bits(train: bool, start: int) -> None:
    whole = list(loader(train=train).batches(3))
    torch.manual_seed(99)
    assert same(list(loader(train=train).batches(3, start=start)), whole[start:])


def test_no_generator_is_read_or_moved() -> None:
    before = torch.get_rng_state()
    list(loader().batches(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_keeps_all_images_in_order_untouched() -> None:
    split = numbered()
    made = loader(split, train=False)
    batches = list(made.batches(5))
    assert [len(y) for _, y in batches] == [8] * 6 + [2]
    assert len(made) == 7
    assert made.num_images == 50
    assert torch.cat([y for _, y in batches]).tolist() == list(range(50))
    wanted = (split.images.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), wanted)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_joined_shards_are_the_batches_of_one_process(train: bool, world: int) -> None:
    whole = list(loader(train=train, drop_last=False).batches(2))
    shards = [
        list(loader(train=train, drop_last=False, rank=rank, world=world).batches(2))
        for rank in range(world)
    ]
    joined = [
        tuple(torch.cat(parts) for parts in zip(*step, strict=True))
        for step in zip(*shards, strict=True)
    ]
    assert same(joined, whole)
    sizes = [len(shard[0][1]) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_mirror_only_where_the_split_allows_it() -> None:
    ramp = torch.arange(8, dtype=torch.uint8).expand(64, 3, 8, 8).contiguous() * 20

    def mirrored(mirror: bool) -> int:
        split = Split(ramp, torch.zeros(64, dtype=torch.int64), "train", mirror)
        images, _ = next(loader(split, 64).batches(0))
        return int((images[:, 0, 4, 2] > images[:, 0, 4, 5]).sum())

    assert 16 < mirrored(True) < 48
    assert mirrored(False) == 0


def test_augment_none_leaves_training_images_alone() -> None:
    split = numbered()
    images, numbers = next(loader(split, augment="none").batches(0))
    torch.testing.assert_close(images, (split.images[numbers].float() / 255 - 0.5) / 0.25)


def test_channels_last() -> None:
    plain, _ = next(loader().batches(0))
    images, _ = next(loader(channels_last=True).batches(0))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 51}, "at least one full batch, found 50 images for batches of 51"),
        ({"batch": 0}, "batch size must be an integer of at least 1, found 0"),
        ({"batch": 10**30}, "batch size must be an integer of at least 1, found 1000"),
        ({"batch": 8.0}, "batch size must be an integer of at least 1, found 8.0"),
        ({"workers": -1}, "workers must be an integer from 0 to 256, found -1"),
        ({"workers": 100_000}, "workers must be an integer from 0 to 256, found 100000"),
        ({"augment": "mixup"}, "one of cifar, imagenet, none, found 'mixup'"),
        ({"augment": "imagenet"}, "for image folders"),
        ({"rank": 2, "world": 2}, "found rank 2 of 2"),
        ({"batch": 2, "world": 3}, "at least the number of ranks, found 2 for 3"),
    ],
)
def test_bad_arguments_get_one_line(options: dict, message: str) -> None:
    with pytest.raises(DataError) as caught:
        loader(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_channels_of_the_statistics() -> None:
    with pytest.raises(DataError, match=r"each of the 3 channels .* found 1 and 1"):
        make_loader(numbered(), 8, train=True, mean=(0.5,), std=(0.5,))


def test_an_empty_split() -> None:
    with pytest.raises(DataError, match="the train split holds no images"):
        make_loader(numbered(0), 8, train=False, mean=MEAN, std=STD)


def test_start_beyond_the_epoch() -> None:
    with pytest.raises(ValueError, match=r"0\.\.6, found 7"):
        next(loader().batches(0, start=7))


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    data = load("digits")
    made = make_loader(data.train, 1293, train=True, mean=data.mean, std=data.std, augment="none")
    images, _ = next(made.batches(0))
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std()) - 1) < 1e-3
