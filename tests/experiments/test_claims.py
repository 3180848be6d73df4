"""Verdicts: what must hold, fail or stay open does, on results made up for it."""

import subprocess
import sys
from collections.abc import Callable
from zlib import crc32

import numpy as np
import pytest
from scipy import stats

from anynest.experiments.catalog import fig8
from anynest.experiments.catalog.experiment import Run
from anynest.experiments.catalog.experiments import EXPERIMENTS
from anynest.experiments.catalog.fig9 import PANELS
from anynest.experiments.catalog.fig10 import measurements
from anynest.experiments.catalog.paper import ERRORS
from anynest.experiments.catalog.protocols import PAPER
from anynest.experiments.claims.claim import Pairs, judge_differences
from anynest.experiments.claims.claim_list import CLAIMS, judge_all
from anynest.experiments.claims.significance import LEVEL, above_zero, below_zero, holm
from anynest.experiments.results.evidence import Evidence
from anynest.experiments.results.tradeoff import Point, curve_differences

DATA = "made up"
Errors = Callable[[Run, int], list[float]]


def lines_of(errors: Errors, seeds: int = 3) -> list[dict[str, object]]:
    """A line for every cell of every experiment; ``errors(run, seed)`` in %, one a stage."""
    lines = []
    for run in {run for e in EXPERIMENTS.values() for run in e.runs(PAPER)}:
        for seed in range(seeds):
            cell = run.cell(PAPER, seed)
            growth = PAPER.growth(run.design)
            if run.independent:
                growth = growth[run.independent - 1 : run.independent]
            lines.append(
                {
                    "kind": "cell",
                    "key": cell.key,
                    "protocol": "paper",
                    "data": DATA,
                    "design": run.design,
                    "independent": run.independent,
                    "variant": run.variant,
                    "seed": seed,
                    "error": [e / 100 for e in errors(run, seed)],
                    "multiply_adds": [w * w * d for w, d in growth],
                    "settings": cell.settings,
                }
            )
    return lines


def evidence(errors: Errors, seeds: int = 3) -> Evidence:
    return Evidence.of(lines_of(errors, seeds), PAPER, DATA)


def papers_own(run: Run, seed: int) -> list[float]:
    """The paper's means with a little noise; what it does not print: the Oracle is as good as the
    best method at each size, sgd-sum as SGD."""
    random = np.random.default_rng(
        [seed, crc32(f"{run.design} {run.variant} {run.independent}".encode())]
    )
    count = len(PAPER.growth(run.design))
    stages = [run.independent] if run.independent else range(1, count + 1)
    method = run.variant.split("+")[0]
    method = method if (run.design, method, 1) in ERRORS else "sgd-mean"
    means = [
        min(ERRORS[run.design, m, s].mean for m in ("sgd-mean", "osgd")) - 0.1
        if run.independent
        else ERRORS[run.design, method, s].mean
        for s in stages
    ]
    if run.variant.startswith("osgd+priority"):
        first = int(run.variant.split("=")[1].split(",")[0])
        means = [m - 1.0 if s == first else m + 0.3 for s, m in enumerate(means)]
    return [m + float(random.normal(0, 0.05)) for m in means]


def test_the_papers_own_numbers_support_its_claims() -> None:
    verdicts = judge_all(evidence(papers_own))
    for name in (
        "osgd-late",
        "osgd-late-against-sum",
        "osgd-early",
        "osgd-norm-late",
        "greedy-first",
        "greedy-late",
        "priority-helps",
        "priority-costs",
        "nested-oracle",
        "imagenet-late",
    ):
        assert verdicts[name].outcome == "holds", (name, verdicts[name])
    assert verdicts["osgd-late"].n == 6 * 3
    assert len(verdicts["osgd-late"].comparisons) == 6 * 2
    assert verdicts["nest-base"].outcome == "undecided"  # nothing was measured
    assert verdicts["nest-base"].n == 0


def test_the_control_can_overthrow_what_sgd_does_not() -> None:
    def as_good_as_osgd(run: Run, seed: int) -> list[float]:
        return papers_own(Run(run.design, "osgd") if run.variant == "sgd-sum" else run, seed)

    def better_than_osgd(run: Run, seed: int) -> list[float]:
        shift = -1.0 - 0.1 * seed if run.variant == "sgd-sum" else 0.0
        return [e + shift for e in as_good_as_osgd(run, seed)]

    assert judge_all(evidence(as_good_as_osgd))["osgd-late-against-sum"].outcome == "undecided"
    verdicts = judge_all(evidence(better_than_osgd))
    assert verdicts["osgd-late-against-sum"].outcome == "fails"
    assert verdicts["osgd-late"].outcome == "holds"


def test_one_design_that_goes_the_other_way_is_enough_to_fail() -> None:
    def but_one(run: Run, seed: int) -> list[float]:
        worse = run.design == "eann" and run.variant == "osgd"
        return [e + (2.0 if worse else 0.0) for e in papers_own(run, seed)]

    assert judge_all(evidence(but_one))["osgd-late"].outcome == "fails"


def test_missing_runs_leave_a_claim_open() -> None:
    def without(run: Run, seed: int) -> list[float]:
        return papers_own(run, seed)

    lines = [line for line in lines_of(without) if line["design"] != "even"]
    verdict = judge_all(Evidence.of(lines, PAPER, DATA))["osgd-late"]
    assert verdict.outcome == "undecided"
    assert verdict.missing == ("even width",)
    alone = judge_all(evidence(papers_own, seeds=1))
    assert {verdict.outcome for verdict in alone.values()} == {"undecided"}

    def worse(run: Run, seed: int) -> list[float]:
        return [e + (5.0 if run.variant == "osgd" else 0.0) for e in papers_own(run, seed)]

    assert judge_all(evidence(worse))["osgd-late"].outcome == "fails"
    # one seed says nothing about another, however many designs agree
    assert judge_all(evidence(worse, seeds=1))["osgd-late"].outcome == "undecided"
    assert judge_all(Evidence.of([], PAPER, DATA)).keys() == {claim.name for claim in CLAIMS}


def test_results_of_other_protocols_data_and_settings_are_passed_over() -> None:
    lines = lines_of(papers_own)
    for change in ({"protocol": "fast"}, {"data": "other"}, {"settings": {"run": {"seed": 9}}}):
        assert Evidence.of([{**line, **change} for line in lines], PAPER, DATA).cells == {}


def test_deadlines_are_judged_panel_by_panel() -> None:
    keys = {(one.panel.name, one.seed): one.key for one in measurements(PAPER, 3)}

    def line(panel: str, seed: int, schemes: dict[str, float]) -> dict[str, object]:
        noise = 0.001 * seed
        errors = {name: [e + noise] * 7 + [0.9] for name, e in schemes.items()}
        return {
            "kind": "deadlines",
            "key": keys[panel, seed],
            "protocol": "paper",
            "data": DATA,
            "panel": panel,
            "seed": seed,
            "error": errors,
        }

    lines = []
    for number, panel in enumerate(PANELS):
        for seed in range(3):
            shift = 0.01 * number + 0.002 * seed
            schemes = {f"nest: {name}": 0.2 for name in panel.nested}
            schemes |= {f"base: {panel.baseline}": 0.3 + shift}
            schemes |= {"oracle-all": 0.25 + shift, "oracle-each": 0.19 - shift}
            lines.append(line(panel.name, seed, schemes))
    verdicts = judge_all(Evidence.of(lines, PAPER, DATA))
    assert [verdicts[n].outcome for n in ("nest-base", "nest-oracle-all", "oracle-each-nest")] == [
        "holds",
        "holds",
        "holds",
    ]
    assert verdicts["nest-base"].n == 2 * 3  # eann is the baseline of two panels: one group
    assert verdicts["nest-base"].comparisons[0].mean == pytest.approx(-10.2)
    # measured on networks that the protocol no longer has
    stale = [{**measured, "key": "0" * 16} for measured in lines]
    assert Evidence.of(stale, PAPER, DATA).deadlines == []
    assert judge_all(Evidence.of(stale, PAPER, DATA))["nest-base"].n == 0


def test_pooling_counts_a_run_once() -> None:
    """Ten stages of the same three runs are no thirty pairs."""
    values = {0: -1.0, 1: 0.2, 2: -0.9}
    many = Pairs("x", {f"stage {s}": values for s in range(10)})
    one = Pairs("x", {"stage 1": values})
    assert judge_differences([many]).p == pytest.approx(judge_differences([one]).p)
    assert judge_differences([many]).n == 3
    uneven = Pairs("x", {"a": {0: 1.0, 1: 2.0}, "b": {1: 4.0, 2: 5.0}})
    assert uneven.pooled() == [3.0]


def test_a_margin_shifts_the_question() -> None:
    pairs = [Pairs("x", {"a": {0: 0.4, 1: 0.5, 2: 0.6}})]
    assert judge_differences(pairs).outcome == "fails"
    assert judge_differences(pairs, margin=1.0).outcome == "holds"
    assert judge_differences(pairs, margin=0.5).outcome == "undecided"


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_tests_agree_with_scipy(margin: float) -> None:
    values = np.random.default_rng(0).normal(-0.2, 1.0, 7)
    wanted = stats.ttest_1samp(values, margin, alternative="less").pvalue
    assert below_zero(values.tolist(), margin) == pytest.approx(wanted)
    assert above_zero(values.tolist(), margin) == pytest.approx(1 - wanted)


def test_differences_that_are_all_the_same_decide_nothing() -> None:
    """Two seeds that agree to an image are no proof, nor where floating point tells them apart."""
    for same in (-0.01, -5.0):
        assert judge_differences([Pairs("x", {"a": {0: same, 1: same}})]).outcome == "undecided"
        assert below_zero([same, same * (1 + 1e-15)]) == 1.0
        assert above_zero([-same, -same, -same]) == 1.0
    spread = [Pairs("x", {"a": {0: -5.0, 1: -5.1, 2: -4.9}})]
    assert judge_differences(spread).outcome == "holds"


@pytest.mark.parametrize(
    ("seeds", "designs", "stages", "image"),
    [(3, 6, 2, 0.0), (3, 6, 2, 0.01), (2, 1, 1, 0.5), (3, 1, 1, 0.5)],
)
def test_where_nothing_differs_few_claims_fail_and_few_hold(
    seeds: int, designs: int, stages: int, image: float
) -> None:
    """Differences about zero, in whole images of that many points (0: as they come)."""
    random, trials = np.random.default_rng(0), 1000
    outcomes = []
    for _ in range(trials):
        drawn = random.normal(0, 0.5, (designs, stages, seeds))
        if image:
            drawn = np.round(drawn / image) * image
        groups = [
            Pairs(str(d), {str(s): dict(enumerate(row.tolist())) for s, row in enumerate(rows)})
            for d, rows in enumerate(drawn)
        ]
        outcomes.append(judge_differences(groups).outcome)
    noise = 2 * (LEVEL * (1 - LEVEL) / trials) ** 0.5
    assert outcomes.count("fails") / trials < LEVEL + noise
    assert outcomes.count("holds") / trials < LEVEL + noise


def test_the_p_against_a_claim_is_adjusted_for_all_that_was_tried() -> None:
    values = {0: 0.4, 1: 0.5, 2: 0.6}
    alone = above_zero(list(values.values()))
    verdict = judge_differences([Pairs(n, {"a": values, "b": values}) for n in "xy"])
    assert verdict.p_against == pytest.approx(2 * above_zero(list(values.values()) * 2))
    # the others go the other way, so that only the single comparison fails the claim
    good = [Pairs(str(n), {"a": {0: -4.0, 1: -5.0, 2: -6.0}}) for n in range(2)]
    verdict = judge_differences([*good, Pairs("x", {"a": values})])
    assert verdict.p_against == pytest.approx(2 * 3 * alone)
    assert verdict.outcome == "fails"


def test_holm_never_lowers_and_keeps_order() -> None:
    p = [0.04, 0.001, 0.5, 0.02]
    adjusted = holm(p)
    assert adjusted == pytest.approx([0.08, 0.004, 0.5, 0.06])
    assert holm([]) == []


def test_curves_are_compared_where_they_overlap() -> None:
    def point(work: float, *errors: float) -> Point:
        return Point("", work, dict(enumerate(errors)))

    low = [point(1, 30.0, 31.0), point(4, 20.0, 21.0), point(16, 10.0, 11.0)]
    high = [point(2, 28.0, 30.0), point(8, 18.0, 20.0)]  # 3 above at both ends, 3 in between
    assert curve_differences(high, low) == pytest.approx({0: 3.0, 1: 4.0})
    assert curve_differences(low, high) == pytest.approx({0: -3.0, 1: -4.0})
    assert curve_differences(low, [point(32, 1.0), point(64, 1.0)]) == {}
    assert curve_differences(low, [point(2, 1.0)]) == {}


def test_every_claim_names_its_source_and_every_order_is_judged() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    assert all(claim.source for claim in CLAIMS)
    verdict = judge_all(evidence(papers_own))["priority-helps"]
    stages = [order[0] + 1 for order in fig8.orders(5)[2:]]
    assert [c.name.rsplit(" ", 1)[1] for c in verdict.comparisons] == [str(s) for s in stages]


def test_scipy_is_loaded_when_a_claim_is_judged_and_not_before() -> None:
    code = """
import sys
import anynest.experiments.report, anynest.experiments.catalog.experiments
from anynest.experiments.claims.significance import below_zero
assert not {"scipy", "torch"} & set(sys.modules)
assert below_zero([-1.0, -2.0, -3.0]) < 0.05
assert "scipy" in sys.modules and "scipy.stats" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
