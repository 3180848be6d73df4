"""The paper's numbers were typed in once: here they are checked against what its text says of them."""

import pytest

from anynest.experiments.catalog.designs import CIFAR, DESIGNS, IMAGENET
from anynest.experiments.catalog.paper import ERRORS, METHODS, TOP5_ERRORS, printed_error


def test_every_cell_of_the_tables_is_there() -> None:
    wanted = {
        (design, method, stage)
        for design in CIFAR
        for method in METHODS
        for stage in range(1, len(DESIGNS[design].growth) + 1)
    }
    imagenet = {
        (design, method, stage)
        for design in IMAGENET
        for method in ("sgd-mean", "osgd")
        for stage in (1, 2, 3)
    }
    assert set(ERRORS) == wanted | imagenet
    assert set(TOP5_ERRORS) == imagenet
    assert all(ERRORS[key].deviation is not None for key in wanted)
    assert all(ERRORS[key].mean > TOP5_ERRORS[key].mean for key in imagenet)


def test_the_last_stages_that_section_5_2_names() -> None:
    designs = ("depth", "width", "alternating", "simultaneous")
    stages = [len(DESIGNS[design].growth) for design in designs]
    pairs = list(zip(designs, stages, strict=True))
    assert [ERRORS[d, "sgd-mean", s].mean for d, s in pairs] == [7.2, 9.8, 8.8, 8.5]
    assert [ERRORS[d, "osgd", s].mean for d, s in pairs] == [6.6, 7.3, 6.8, 6.8]


def test_what_the_text_says_holds_of_the_numbers() -> None:
    for design in CIFAR:
        count = len(DESIGNS[design].growth)
        for stage in (count - 1, count):
            better, worse = (ERRORS[design, m, stage].mean for m in ("osgd", "sgd-mean"))
            assert better < worse, (design, stage)
        first = [ERRORS[design, m, 1].mean for m in METHODS]
        assert min(first) == first[0]  # greedy


def test_sums() -> None:
    """Added up from the paper's text, apart from the code, so that a slip of one digit shows."""
    sums = {
        design: round(sum(p.mean for (d, _, _), p in ERRORS.items() if d == design), 1)
        for design in DESIGNS
    }
    assert sums == {
        "depth": 171.0,
        "width": 152.1,
        "alternating": 390.4,
        "simultaneous": 238.4,
        "eann": 192.0,
        "even": 208.8,
        "imagenet-width": 194.1,
        "imagenet-depth": 176.9,
    }
    assert round(sum(p.mean for p in TOP5_ERRORS.values()), 1) == 134.2
    deviations = [p.deviation for p in ERRORS.values() if p.deviation]
    assert len(deviations) == 115
    assert sum(deviations) == pytest.approx(25.57, abs=0.005)


def test_nothing_is_printed_for_controls_and_oracles() -> None:
    assert printed_error("width", "sgd-sum", 1) is None
    assert printed_error("width", "sgd-mean", 1, independent=1) is None
    found = printed_error("even", "osgd-norm", 3)
    assert found is not None
    assert (found.mean, found.deviation, found.source) == (8.3, 0.01, "Table 2")
    assert printed_error("imagenet-depth", "osgd", 3).mean == 27.1  # type: ignore[union-attr]
