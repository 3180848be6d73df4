"""Draws are pure functions, spread evenly, and frozen."""

import numpy as np

from anynest.data import randomness


def test_frozen_values() -> None:
    """A change here would change every run that is resumed after an upgrade."""
    assert randomness.key(0, 1, 2) == 17650578182555822980
    assert randomness.hashes(randomness.key(3), np.arange(2)).tolist() == [
        7477902460609577917,
        8658879133121755785,
    ]
    assert randomness.permutation(randomness.key(7), 8).tolist() == [6, 7, 3, 0, 5, 2, 1, 4]


def test_key_depends_on_every_part_and_their_order() -> None:
    keys = [randomness.key(*parts) for parts in ((), (0,), (1,), (0, 1), (1, 0), (0, 0), (-1,))]
    assert len(set(keys)) == len(keys)


def test_draws_do_not_depend_on_their_company() -> None:
    many = randomness.units(5, np.arange(100), 3)
    assert np.array_equal(randomness.units(5, np.array([17, 4]), 3), many[[17, 4]])


def test_draws_are_even_and_independent() -> None:
    draws = randomness.units(randomness.key(1, 2), np.arange(20_000), 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        counts, _ = np.histogram(column, 10, (0, 1))
        assert abs(counts - 2000).max() < 200
    off_diagonal = np.corrcoef(draws.T) - np.eye(4)
    assert abs(off_diagonal).max() < 0.03


def test_permutation_is_one() -> None:
    order = randomness.permutation(9, 1000)
    assert sorted(order) == list(range(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
