"""The tables and figures as data: what they consist of, and what they share."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anynest.experiments.catalog import fig8
from anynest.experiments.catalog.cell import Cell
from anynest.experiments.catalog.designs import CIFAR, DESIGNS, IMAGENET
from anynest.experiments.catalog.experiment import Run, cells_of
from anynest.experiments.catalog.experiments import EXPERIMENTS, find_experiments
from anynest.experiments.catalog.fig10 import measurements
from anynest.experiments.catalog.protocols import FAST, MICRO, MINI, PAPER, PROTOCOLS, find_protocol
from anynest.experiments.catalog.variants import settings_of, title_of
from anynest.experiments.sweep.job import Job
from anynest.training import RECIPES, ConfigError


def keys(name: str, protocol=PAPER, seeds: int = 3) -> set[str]:
    return {cell.key for cell in cells_of(EXPERIMENTS[name].runs(protocol), protocol, seeds)}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("design", DESIGNS)
def test_every_config_builds_the_network_that_its_growth_says(design: str, protocol) -> None:
    for variant in ("greedy", "sgd-sum", "normsgd"):
        cell = Run(design, variant).cell(protocol, 1)
        config = cell.config("digits", {"device": "cpu", "threads": 1})
        assert config.run.seed == 1
        assert config.method.name == variant
    with torch.device("meta"):
        model = config.model.build(10, 3)
    assert tuple(map(tuple, model.architecture.growth)) == protocol.growth(design)
    assert len(DESIGNS[design].subscripts(protocol.growth(design))) == model.num_stages


def planned_runs(name: str, protocol) -> list[Run]:
    """Of one that waits for another, those that follow when all of the other's cells are there."""
    experiment = EXPERIMENTS[name]
    if not experiment.waits_for:
        return experiment.runs(protocol)
    before = cells_of(EXPERIMENTS[experiment.waits_for].runs(protocol), protocol, 1)
    errors = [0.5 if "lr=" in cell.variant else 0.4 for cell in before]
    records = [
        {"key": cell.key, "validation_error": [error]}
        for cell, error in zip(before, errors, strict=True)
    ]
    return experiment.next_runs(protocol, records)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_has_a_config_and_a_folder_of_its_own(name: str) -> None:
    planned = {p.name: cells_of(planned_runs(name, p), p, 2) for p in PROTOCOLS.values()}
    assert any(planned.values())
    for cells in planned.values():
        assert len({cell.folder(Path("out")) for cell in cells}) == len(cells)
        assert len({cell.name for cell in cells}) == len(cells)
        assert {DESIGNS[cell.design].family for cell in cells} <= {EXPERIMENTS[name].family}


def test_the_micro_set() -> None:
    """All six designs, six methods, three seeds."""
    cells = [
        c for n in ("table1", "table2") for c in cells_of(EXPERIMENTS[n].runs(MICRO), MICRO, 3)
    ]
    assert len(cells) == 108
    methods = {"greedy", "sgd-mean", "sgd-sum", "osgd", "normsgd", "osgd-norm"}
    assert {(c.design, c.variant, c.seed) for c in cells} == {
        (design, method, seed) for design in CIFAR for method in methods for seed in range(3)
    }
    assert cells[0].seed == cells[23].seed == 0  # a whole seed before the next
    assert cells[24].seed == 1


def test_figures_share_the_tables_cells() -> None:
    tables = keys("table1") | keys("table2")
    # Figure 9 adds the Oracle alone: 3 + 4 + 5 sizes, and NormSGD for the largest of two, 3 seeds
    assert len(keys("fig9") - tables) == 14 * 3
    assert len(keys("fig9") & tables) == 6 * 3
    assert keys("fig10") == keys("fig9")
    assert len(keys("fig8") - tables) == 3 * 3
    assert len(keys("fig8") & tables) == 2 * 3
    assert not keys("table3") & tables
    both = [*EXPERIMENTS["table1"].runs(PAPER), *EXPERIMENTS["fig9"].runs(PAPER)]
    assert len(cells_of(both, PAPER, 1)) == 24 + 2 + 14


def test_protocols_share_no_cell() -> None:
    for name in EXPERIMENTS:
        assert not keys(name, PAPER) & keys(name, FAST)
        assert not keys(name, PAPER) & keys(name, MICRO)
        if EXPERIMENTS[name].family == "cifar":
            assert not keys(name, MINI) & (keys(name, PAPER) | keys(name, MICRO))


def test_a_key_knows_the_run_and_not_its_place() -> None:
    cell = Run("width", "osgd").cell(PAPER, 0)
    assert cell.key == Run("width", "osgd").cell(PAPER, 0).key
    others = [
        Run("width", "osgd").cell(PAPER, 1),
        Run("width", "osgd").cell(FAST, 0),
        Run("width", "osgd", 3).cell(PAPER, 0),
        Run("even", "osgd").cell(PAPER, 0),
        Run("width", "osgd+priority=1,0,2").cell(PAPER, 0),
        Run("width", "osgd-mean").cell(PAPER, 0),
    ]
    assert len({c.key for c in [cell, *others]}) == 7
    assert "source" not in cell.settings["data"]
    assert not {"device", "threads"} & set(cell.settings["run"])
    again = Cell(**json.loads(json.dumps(cell.__dict__)))
    assert again.key == cell.key  # as JSON gives it back: tuples or lists alike
    assert Job.loads(Job(cell, Path("a"), "digits", {"threads": 1}).dumps()).cell == cell


def test_keys_stand_still() -> None:
    """A key that changes makes every result of it a stranger: only a changed run may do that."""
    assert Run("width", "osgd").cell(MICRO, 0).key == "38a49a20160d4d4a"
    assert Run("alternating", "normsgd", 5).cell(PAPER, 2).key == "75581586fe6f69e6"
    assert Run("width", "osgd+lr=0.2").cell(MINI, 0).key == "e993ced1b4aedde9"
    assert measurements(MICRO, 1)[0].key == "244eb9f1bd5ddb3e"


def test_the_papers_recipe() -> None:
    config = Run("depth", "sgd-mean").cell(PAPER, 0).config("digits", {})
    assert (config.schedule.epochs, config.data.batch_size, config.data.holdout) == (200, 128, 0)
    assert config.schedule.rate(391 * 199, 391) * 0.1 == pytest.approx(0.0008)
    assert PAPER.families["imagenet"] == RECIPES["paper-imagenet"]
    fast = Run("depth", "sgd-mean").cell(FAST, 0).config("digits", {})
    assert (fast.schedule.epochs, fast.model) == (30, config.model)
    assert [DESIGNS[d].family for d in IMAGENET] == ["imagenet"] * 2


def test_mini_is_the_papers_recipe_made_short() -> None:
    config = Run("width", "osgd").cell(MINI, 0).config("digits", {})
    paper = Run("width", "osgd").cell(PAPER, 0).config("digits", {})
    assert config.optimizer == paper.optimizer
    assert replace(config.schedule, epochs=200) == paper.schedule
    changed = {"holdout": 5000, "image_size": 16}
    assert replace(paper.data, **changed) == config.data
    assert MINI.models == MICRO.models


def test_priorities() -> None:
    for stages in (3, 4, 5):
        found = fig8.orders(stages)
        assert len(set(found)) == 4
        assert all(sorted(order) == list(range(stages)) for order in found)
        assert found[0] == tuple(range(stages))
        assert all(0 < order[0] < stages - 1 for order in found[2:])  # intermediate outputs first
    variants = [run.variant for run in fig8.runs(PAPER)]
    assert variants[0] == "osgd"
    assert variants[-1] == "sgd-mean"
    assert settings_of(variants[1]) == {"method": {"name": "osgd", "priority": [4, 3, 2, 1, 0]}}


def test_variants_change_what_they_say() -> None:
    base, raw = (Run("width", v).cell(PAPER, 0).settings for v in ("osgd", "osgd+raw"))
    assert {k: v for k, v in raw.items() if k != "method"} == {
        k: v for k, v in base.items() if k != "method"
    }
    assert raw["method"] == {"name": "osgd", "projection": "raw"}
    assert settings_of("osgd-norm+C=0.5")["method"]["C"] == 0.5
    assert Run("width", "osgd-norm").cell(PAPER, 0).settings["method"]["C"] == "calibrated"
    printed = Run("width", "osgd-norm+C=0.5").cell(PAPER, 0).settings["method"]["C"]
    assert printed == 0.5
    assert title_of("osgd+raw") == "OSGD, raw projection"
    shared = settings_of("osgd+shared-head+shared-norm")
    assert shared["model"] == {"options": {"head": "shared", "norm": "shared"}}
    assert title_of("sgd-mean+shared-head") == "SGD, shared head"
    faster = Run("width", "osgd+lr=0.2").cell(PAPER, 0).settings
    assert faster["optimizer"] == {**base["optimizer"], "lr": 0.2}
    assert {**faster, "optimizer": base["optimizer"]} == base
    assert Run("width", "osgd+lr=0.10").cell(PAPER, 0).settings == base
    assert title_of("sgd-sum+lr=0.05") == "SGD, sum of losses, rate 0.05"
    for wrong in ("osgdd", "osgd+rw", "+raw", "osgd+lr=", "osgd+lr=x", "osgd+lr=-1", "osgd+lr=inf"):
        with pytest.raises(ConfigError, match="found"):
            settings_of(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_ablations_that_share_have_something_to_share(protocol) -> None:
    """Every cell of them builds a network with fewer weights than the one that shares nothing."""
    runs = [run for run in EXPERIMENTS["ablations"].runs(protocol) if "shared" in run.variant]
    assert len(runs) == 2 * (3 + 2)
    for run in runs:
        sizes = []
        for variant in (run.variant, run.variant.split("+")[0]):
            config = Run(run.design, variant).cell(protocol, 0).config("digits", {})
            with torch.device("meta"):
                model = config.model.build(10, 3)
            sizes.append(model.cost()[-1].parameters)
            assert tuple(map(tuple, model.architecture.growth)) == protocol.growth(run.design)
        assert sizes[0] < sizes[1], run


def test_unknown_names_list_near_ones() -> None:
    with pytest.raises(ConfigError, match="near matches: table1"):
        find_experiments("tabel1")
    with pytest.raises(ConfigError, match="near matches: paper"):
        find_protocol("papr")
    assert find_experiments("all") == list(EXPERIMENTS.values())
