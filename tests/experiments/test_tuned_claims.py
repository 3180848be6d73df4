"""Verdicts at each method's own rate, and the report's answer: on results made up for it."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from anynest.cli import main
from anynest.experiments.catalog.experiment import Run
from anynest.experiments.catalog.protocols import MICRO, MINI, Protocol
from anynest.experiments.catalog.tuned import METHODS, RATES, TUNED_DESIGNS, rate_variant
from anynest.experiments.claims.claim import Verdict
from anynest.experiments.claims.claim_list import judge_all
from anynest.experiments.report import make_report
from anynest.experiments.report.blocks.answer import answer, waiting
from anynest.experiments.report.blocks.missing import progress_of
from anynest.experiments.report.blocks.verdicts import reason
from anynest.experiments.report.render import drawing
from anynest.experiments.report.render.document import Heading, Text
from anynest.experiments.report.render.pages import render_markdown
from anynest.experiments.report.section import Section, split
from anynest.experiments.results.evidence import Evidence
from anynest.experiments.results.gains import gains_of, pooled

Line = dict[str, Any]
DATA = "made up"
BEST = {"sgd-mean": 0.4, "sgd-sum": 0.2, "osgd": 0.1}
NOISE = (0.0, 0.4, -0.3, 0.1, 0.2)  # points by seed, the same for every method but OSGD


@pytest.fixture(autouse=True)
def _quick_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "svg_of", lambda figure: '<svg viewBox="0 0 1 1"></svg>')


def line(run: Run, seed: int, errors: list[float], protocol: Protocol = MINI) -> Line:
    cell = run.cell(protocol, seed)
    growth = protocol.growth(run.design)
    return {
        "kind": "cell",
        "key": cell.key,
        "protocol": protocol.name,
        "data": DATA,
        "design": run.design,
        "independent": None,
        "variant": run.variant,
        "seed": seed,
        "error": [e / 100 for e in errors],
        "validation_error": [e / 100 for e in errors],
        "multiply_adds": [1000 * w * w * d for w, d in growth],
        "settings": cell.settings,
        "seconds": 1.0,
        "cosines": [],
        "environment": {},
    }


def errors_of(method: str, rate: float, seed: int, own: dict[str, float]) -> list[float]:
    """At its best rate a method's last error is ``own``; it grows with the distance from it."""
    last = own[method] + 10 * abs(rate - BEST[method]) + NOISE[seed]
    last += 0.05 * seed * (method == "osgd")
    return [last + 12, last + 6, last]


def tuned_lines(own: dict[str, float], seeds: int = 5) -> list[Line]:
    """All of ``tuned``: a seed at each rate, more at the best."""
    return [
        line(
            Run("width", rate_variant(method, rate, MINI)),
            seed,
            errors_of(method, rate, seed, own),
        )
        for method in METHODS
        for rate in (*RATES, 0.8)
        for seed in range(seeds if rate == BEST[method] else 1)
        if rate != 0.8 or method == "sgd-mean"
    ]


def verdicts(lines: list[Line], protocol: Protocol = MINI) -> dict[str, Verdict]:
    return judge_all(Evidence.of(lines, protocol, DATA))


def section(lines: list[Line]) -> Section:
    (found,), _ = split(lines, 3)
    return found


def words(lines: list[Line]) -> str:
    sections, _ = split(lines, 3)
    return " ".join(block.text for block in answer(sections) if isinstance(block, Text))


HELPS = {"sgd-mean": 30.0, "sgd-sum": 29.0, "osgd": 28.0}
STEP_ALONE = {"sgd-mean": 30.0, "sgd-sum": 27.0, "osgd": 28.0}


def test_the_verdict_compares_each_method_at_its_best_rate() -> None:
    found = verdicts(tuned_lines(HELPS))
    assert found["osgd-tuned"].outcome == "holds"
    assert found["osgd-tuned"].n == 4
    # -2 and seed by seed 0.05 more: at the common rate 0.1 it would be -5
    assert found["osgd-tuned"].difference == pytest.approx(-2 + 0.05 * 2.5)
    low, high = found["osgd-tuned"].interval or (0.0, 0.0)
    assert low < -2 + 0.05 * 2.5 < high < 0
    assert "OSGD against SGD, rate 0.4" in found["osgd-tuned"].test
    assert found["osgd-tuned-against-sum"].outcome == "holds"
    assert verdicts(tuned_lines(STEP_ALONE))["osgd-tuned"].outcome == "holds"
    against = verdicts(tuned_lines(STEP_ALONE))["osgd-tuned-against-sum"]
    assert against.outcome == "fails"
    assert against.difference == pytest.approx(1 + 0.05 * 2.5)


def test_the_verdict_is_open_with_a_reason_while_cells_are_missing() -> None:
    lines = tuned_lines(HELPS)
    gone = [ln for ln in lines if ln["variant"] != "osgd+lr=0.4"]
    assert verdicts(gone)["osgd-tuned"].outcome == "undecided"
    assert reason(verdicts(gone)["osgd-tuned"]) == (
        "the best rate is not known yet of OSGD (3 of 4 rates)"
    )
    assert reason(verdicts(lines[:1])["osgd-tuned-against-sum"]) == (
        "the best rate is not known yet of OSGD (0 of 4 rates); SGD, sum of losses (0 of 4 rates)"
    )
    one = verdicts(tuned_lines(HELPS, seeds=1))["osgd-tuned"]
    assert one.outcome == "undecided"
    assert reason(one) == "fewer than two pairs of runs for width"
    common = [line(Run("width", m), s, [30, 25, 20], MICRO) for m in METHODS for s in range(3)]
    assert reason(verdicts(common, MICRO)["osgd-tuned"]) == (
        "protocol micro holds out too few images to choose a rate"
    )


def on_designs(shift: float) -> list[Line]:
    """The other designs at the width-nested network's rates; OSGD is ``shift`` above the sum."""
    own = {"sgd-mean": 40.0, "sgd-sum": 35.0, "osgd": 35.0 + shift}
    return [
        line(
            Run(design, rate_variant(method, BEST[method], MINI)),
            seed,
            [own[method] + NOISE[seed] + 0.02 * seed * (method == "osgd")] * stages,
        )
        for design, stages in (("depth", 3), ("alternating", 5))
        for method in METHODS
        for seed in range(3)
    ]


def test_other_designs_are_trained_at_the_same_rates_once_these_are_known() -> None:
    assert TUNED_DESIGNS.wanted(MINI, []) == []
    assert TUNED_DESIGNS.wanted(MINI, tuned_lines(HELPS)[:-1]) == []  # a rate is missing
    assert TUNED_DESIGNS.wanted(MINI, tuned_lines(HELPS, seeds=1)) != []
    runs = TUNED_DESIGNS.wanted(MINI, tuned_lines(HELPS))
    assert [(run.design, run.variant) for run in runs[:3]] == [
        ("depth", "sgd-mean+lr=0.4"),
        ("depth", "sgd-sum+lr=0.2"),
        ("depth", "osgd"),
    ]
    assert {run.seeds for run in runs} == {3}
    assert len(runs) == 6
    alone = verdicts(tuned_lines(HELPS))["osgd-tuned-designs-against-sum"]
    assert reason(alone) == "fewer than two pairs of runs for depth, alternating"
    better = verdicts([*tuned_lines(HELPS), *on_designs(-1.0)])
    assert better["osgd-tuned-designs-against-sum"].outcome == "holds"
    assert better["osgd-tuned-designs-against-sum"].n == 4 + 3 + 3
    worse = verdicts([*tuned_lines(HELPS), *on_designs(1.0)])
    assert worse["osgd-tuned-designs-against-sum"].outcome == "fails"
    assert worse["osgd-tuned-against-sum"].outcome == "holds"


def test_the_experiment_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "tuned-designs", "--protocol", "mini", "--data", "digits"]
    assert main([*command, "--out", "nowhere", "--dry-run"]) == 2
    assert "anynest reproduce tuned tuned-designs" in capsys.readouterr().err
    assert progress_of(section(tuned_lines(HELPS)[:3]), TUNED_DESIGNS).cells == 0


@pytest.mark.parametrize(
    ("own", "projection"),
    [
        (HELPS, "its projection lowers the error at the last stage"),
        (STEP_ALONE, "its projection raises the error at the last stage"),
        ({**HELPS, "sgd-sum": 28.07}, "its projection makes no difference that can be told"),
    ],
)
def test_the_answer_says_what_the_intervals_allow(own: dict[str, float], projection: str) -> None:
    text = words(tuned_lines(own))
    assert "With its own best learning rate for each method (protocol mini; width)" in text
    assert "OSGD has a lower error than the paper's SGD at the last stage" in text
    assert projection in text
    first = render_markdown(make_report(tuned_lines(own), [], []).document())
    headings = re.findall(r"^## (.*)", first, re.MULTILINE)
    assert headings[0] == "Does Orthogonalized SGD work?"
    assert first.index(projection) < first.index("report-figures/answer-last.svg")
    assert first.index("report-figures/answer-last.svg") < first.index("Of the paper's 13 claims")


def test_the_seed_that_chose_the_rates_is_not_compared() -> None:
    """What it was chosen by says too much for it."""
    lines = tuned_lines(HELPS)
    shifted = [{**ln, "error": [e + 0.1 * (ln["seed"] == 0) for e in ln["error"]]} for ln in lines]
    osgd = [
        new if new["variant"] == "osgd" else old for new, old in zip(shifted, lines, strict=True)
    ]
    assert verdicts(osgd)["osgd-tuned"] == verdicts(lines)["osgd-tuned"]
    assert words(osgd) == words(lines)


def test_rates_that_were_tuned_on_another_design_are_told_so() -> None:
    text = words([*tuned_lines(HELPS), *on_designs(-1.0)])
    carried = "best on the width-nested network (protocol mini; depth, alternating)"
    assert "With its own best learning rate for each method (protocol mini; width)" in text
    assert f"With the learning rate that is each method's {carried}" in text


def test_protocols_and_data_are_not_pooled() -> None:
    one, other = micro("depth", float), micro("alternating", float)
    text = words([*one, *({**ln, "data": "other images"} for ln in other)])
    assert "(protocol micro, made up; depth)" in text
    assert "(protocol micro, other images; alternating)" in text
    both = words([*tuned_lines(HELPS), *one])
    assert "(protocol micro; depth)" in both


def test_a_sweep_that_is_not_finished_gives_a_preliminary_answer() -> None:
    text = words(tuned_lines(HELPS, seeds=3))
    assert "With its own best learning rate for each method (protocol mini; width)" in text
    assert "(protocol mini) the answer is preliminary: 19 of 25 cells." in text
    assert "there is no answer yet" not in text


def test_without_any_difference_nothing_is_claimed() -> None:
    text = words(tuned_lines({"sgd-mean": 28.07, "sgd-sum": 28.07, "osgd": 28.0}))
    assert "OSGD cannot be told from the paper's SGD" in text


def micro(design: str, shifts: Callable[[int], float]) -> list[Line]:
    stages = len(MICRO.growth(design))
    own = {"sgd-mean": 60.0, "sgd-sum": 55.0, "osgd": 55.0}
    return [
        line(
            Run(design, m),
            seed,
            [own[m] + NOISE[seed] + shifts(seed) * (m == "osgd") + 2 * (stages - s) for s in
             range(1, stages + 1)],
            MICRO,
        )
        for m in METHODS
        for seed in range(3)
    ]  # fmt: skip


def test_each_design_is_shown_from_the_strongest_protocol_that_has_it() -> None:
    small = [*micro("width", lambda seed: 0.1 * seed), *micro("depth", lambda seed: 0.1 * seed)]
    lines = [*tuned_lines(HELPS), *small]
    sections, _ = split(lines, 3)
    found = {gain.design: gain for gain in gains_of([s.evidence for s in sections])}
    assert found["width"].evidence.protocol is MINI
    assert found["width"].rates == "own"
    assert found["depth"].evidence.protocol is MICRO
    assert found["depth"].rates == "one"
    assert found["width"].seeds == [1, 2, 3, 4]
    assert found["width"].variants["sgd-mean"] == "sgd-mean+lr=0.4"
    assert pooled([found["depth"]], "osgd", "sgd-sum", "last") == pytest.approx([0, 0.1, 0.2])
    assert pooled([found["depth"]], "sgd-sum", "sgd-mean", "mean") == pytest.approx([-5] * 3)
    means = [36.4, 35.7, 36.1, 36.2]  # of a last error of 30 and its stages 6 and 12 above it
    assert found["width"].values("sgd-mean", "mean") == pytest.approx(means)
    text = words(lines)
    assert text.index("protocol mini; width") < text.index("protocol micro; depth")
    # with one seed at the best rates the smaller protocol still is what there is
    begun, _ = split([*tuned_lines(HELPS, seeds=1), *small], 3)
    gains = {gain.design: gain for gain in gains_of([s.evidence for s in begun])}
    assert gains["width"].evidence.protocol is MICRO


def test_what_is_still_to_be_trained_is_counted() -> None:
    lines = tuned_lines(HELPS)
    assert waiting(section(lines)) == ""
    more = [ln for ln in lines if ln["seed"] == 3]  # of methods whose rates are not known
    assert "0 of at least 24 cells" in waiting(section(more))
    begun = [ln for ln in lines if ln["seed"] == 0 and ln["variant"] == ln["variant"].split("+")[0]]
    assert "3 of at least 24 cells" in waiting(section(begun))
    but_one = [ln for ln in lines if ln is not more[0]]
    assert "24 of 25 cells" in waiting(section(but_one))  # 12 rates, one beyond, 12 seeds
    assert waiting(section(micro("width", float))) == ""
    assert answer([]) == []
    (heading, *_) = answer([section(begun)])
    assert isinstance(heading, Heading)
