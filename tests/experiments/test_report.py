"""The report: its numbers are the lines', its verdicts the claims', and it loads nothing."""

import json
import re
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from anynest.cli import main
from anynest.experiments.catalog.designs import CIFAR as CIFAR_DESIGNS
from anynest.experiments.catalog.designs import DESIGNS
from anynest.experiments.catalog.experiment import Run, cells_of
from anynest.experiments.catalog.experiments import EXPERIMENTS
from anynest.experiments.catalog.fig10 import measurements
from anynest.experiments.catalog.paper import METHODS, printed_error
from anynest.experiments.catalog.protocols import FAST, MICRO, PAPER, Protocol
from anynest.experiments.claims.claim import Pairs, judge_differences
from anynest.experiments.claims.claim_list import CLAIMS, judge_all
from anynest.experiments.report import make_report
from anynest.experiments.report import write as report_files
from anynest.experiments.report.blocks import cosines
from anynest.experiments.report.blocks.drawings import DRAW
from anynest.experiments.report.blocks.overview import section_in_words
from anynest.experiments.report.blocks.verdicts import reason
from anynest.experiments.report.formatting import range_text
from anynest.experiments.report.render import drawing
from anynest.experiments.report.render.document import (
    Block,
    Code,
    Document,
    Fold,
    Heading,
    Items,
    Picture,
    Pictures,
    RowGroup,
    Table,
    TableCell,
    Text,
    Tile,
    Tiles,
    pictures_of,
)
from anynest.experiments.report.render.pages import render_html, render_markdown
from anynest.experiments.report.section import Section, split
from anynest.experiments.report.sources import order
from anynest.experiments.results.deadline_errors import SHARES
from anynest.experiments.results.evidence import Evidence
from anynest.experiments.results.figures import FIGURES

Line = dict[str, Any]
CIFAR, SMALL = "CIFAR-10", "CIFAR-10 (resized to 12)"
Out = pytest.CaptureFixture[str]


def cell_line(run: Run, protocol: Protocol, seed: int, data: str, **changes: Any) -> Line:
    """Made up, but the same for the same cell: errors that fall from stage to stage."""
    cell = run.cell(protocol, seed)
    growth = protocol.growth(run.design)
    if run.independent:
        growth = growth[run.independent - 1 : run.independent]
    random = np.random.default_rng([seed, crc32(f"{run} {protocol.name}".encode())])
    stages = len(growth)
    return {
        "kind": "cell",
        "key": cell.key,
        "protocol": protocol.name,
        "data": data,
        "design": run.design,
        "independent": run.independent,
        "variant": run.variant,
        "seed": seed,
        "error": [0.3 / (s + 1) + float(random.uniform(0, 0.01)) for s in range(stages)],
        "multiply_adds": [10_000 * w * w * d for w, d in growth],
        "cosines": [
            {
                "epoch": epoch,
                "batches": 5,
                "cosines": [random.uniform(-1, 1, s).tolist() for s in range(1, stages)],
            }
            for epoch in (1, 2, 4)
        ],
        "settings": cell.settings,
        "seconds": 100.0,
        "environment": {"processor": "a processor", "cores": 2, "torch": "2.0"},
        **changes,
    }


def lines_of(protocol: Protocol, data: str, seeds: int, family: str = "cifar") -> list[Line]:
    """A line for every cell and measurement of the family's experiments."""
    runs = dict.fromkeys(
        run for e in EXPERIMENTS.values() if e.family == family for run in e.runs(protocol)
    )
    found = [cell_line(run, protocol, seed, data) for run in runs for seed in range(seeds)]
    for one in measurements(protocol, seeds):
        random = np.random.default_rng([one.seed, ord(one.panel.name)])
        schemes = [*one.anytime, "oracle-all", "oracle-each"]
        found.append(
            {
                "kind": "deadlines",
                "key": one.key,
                "protocol": protocol.name,
                "data": data,
                "panel": one.panel.name,
                "seed": one.seed,
                "error": {s: random.uniform(0, 1, len(SHARES) + 1).tolist() for s in schemes},
                "biggest": "the biggest",
            }
        )
    return found


def document(lines: list[Line], seeds: int = 3) -> Document:
    return make_report(lines, [], ["results"], seeds).document()


def section(lines: list[Line], seeds: int = 3) -> Section:
    (only,), _ = split(lines, seeds)
    return only


class Page(HTMLParser):
    """What a page says: its tables as (caption, rows of cells), its badges, its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[list[str]]]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.badges: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.caption = ""
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag == "figcaption":
            self.caption = ""
        if tag == "table":
            self.tables.append((self.caption, []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append([""])
        if tag == "small" and "tr" in self.open:
            self.tables[-1][1][-1][-1].append("")
        if tag == "summary":
            self.badges.append(("", ""))
        if tag not in ("meta", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "figcaption" in self.open:
            self.caption += data
        elif "td" in self.open or "th" in self.open:
            self.tables[-1][1][-1][-1][-1] += data
        elif "summary" in self.open and "small" not in self.open:
            tone, title = self.badges[-1]
            in_badge = self.open.count("span") == 1 and not tone and not title
            self.badges[-1] = (data, title) if in_badge else (tone, title + data)
        else:
            self.words += data

    def table(self, start: str) -> list[list[list[str]]]:
        """The rows of the table whose caption starts so: a cell is its text and its notes."""
        (rows,) = [rows for caption, rows in self.tables if caption.startswith(start)]
        return rows


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return lines_of(PAPER, CIFAR, 3)


@pytest.fixture(scope="module")
def full(lines: list[Line]) -> Document:
    """With real drawings, made once."""
    return document(sorted(lines, key=order))


@pytest.fixture
def real_drawings() -> None:
    """For tests of the pictures themselves."""


@pytest.fixture(autouse=True)
def _quick_drawings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a report."""
    if "real_drawings" not in request.fixturenames:
        monkeypatch.setattr(drawing, "svg_of", lambda figure: '<svg viewBox="0 0 1 1"></svg>')


def errors_in(lines: list[Line], design: str, variant: str, stage: int) -> list[float]:
    return [
        100 * line["error"][stage - 1]
        for line in lines
        if line["kind"] == "cell"
        and (line["design"], line["variant"], line["independent"]) == (design, variant, None)
    ]


def signed(value: float, digits: int) -> str:
    """With a minus sign, and a zero without any."""
    return re.sub(r"^[+−](0\.0*)$", r"\1", f"{value:+.{digits}f}".replace("-", "−"))


def wanted_row(lines: list[Line], design: str, stage: int, compared: bool) -> list[list[str]]:
    """A row of Table 1, computed with NumPy."""
    row, means = [], []
    for variant in (*METHODS, "sgd-sum"):
        values = errors_in(lines, design, variant, stage)
        mean, deviation = np.mean(values), np.std(values, ddof=1)
        means.append(round(float(mean), 1))
        cell = [f"{mean:.1f} ({deviation:.{2 if deviation < 0.05 else 1}f})"]
        paper = printed_error(design, variant, stage)
        if compared and paper:
            assert paper.deviation is not None
            spread = 2 if paper.deviation < 0.05 else 1
            far = (mean - paper.mean) / np.hypot(deviation, paper.deviation)
            cell += [
                f"paper {paper.mean:.1f} ({paper.deviation:.{spread}f})",
                f"{signed(far, 1)} sd",
            ]
        row.append(cell)
    return row


@pytest.mark.parametrize(("protocol", "data"), [(PAPER, CIFAR), (FAST, CIFAR), (MICRO, SMALL)])
def test_table_1_is_what_the_lines_say(protocol: Protocol, data: str) -> None:
    lines = [
        cell_line(run, protocol, seed, data)
        for run in EXPERIMENTS["table1"].runs(protocol)
        for seed in range(3)
    ]
    compared = protocol is not MICRO
    found = document(lines)
    rows = Page(render_html(found)).table("Table 1: test error")
    text = render_markdown(found)
    for design in ("depth", "width", "alternating", "simultaneous"):
        title = DESIGNS[design].title
        (start,) = [i for i, row in enumerate(rows) if title in " ".join(row[0])]
        assert (rows[start][0][0].strip() == title) == compared  # micro's networks have own names
        for stage in range(1, len(protocol.growth(design)) + 1):
            wanted = wanted_row(lines, design, stage, compared)
            assert rows[start + stage][1:] == wanted
            plain = re.sub(r"\*\*|</?ins>", "", text)
            assert " | ".join("<br>".join(cell) for cell in wanted) in plain
    assert [cell[0] for cell in rows[0]][1:] == [
        "Greedy", "SGD", "OSGD", "SGD Norm", "OSGD Norm", "SGD, sum of losses",
    ]  # fmt: skip


def test_the_best_of_the_papers_methods_is_bold_and_a_better_control_underlined() -> None:
    errors = {"greedy": 0.2, "sgd-mean": 0.10004, "osgd": 0.09996, "normsgd": 0.3, "sgd-sum": 0.05}
    lines = [
        cell_line(Run("width", variant), PAPER, 0, CIFAR, error=[error] * 3)
        for variant, error in errors.items()
    ]
    found = document(lines)
    text, page = render_markdown(found), render_html(found)
    row = next(line for line in text.splitlines() if line.startswith("| 1 w1 | 20.0"))
    assert re.findall(r"\*\*([^*]*)\*\*", row) == ["10.0", "10.0"]  # equal as they are printed
    assert "<ins>5.0</ins>" in row
    assert page.count("<b>10.0</b>") >= 6
    assert '<td class="apart below"><span>5.0</span>' in page
    alone = document([cell_line(Run("width", "osgd"), PAPER, 0, CIFAR)])
    assert "<b>" not in render_html(alone).split("Table 1: ")[1].split("</table>")[0]


@pytest.mark.parametrize(
    ("protocol", "data", "compared"),
    [
        (PAPER, CIFAR, True),
        (PAPER, "CIFAR-10 (JPEG-75)", True),
        (PAPER, "CIFAR-100", False),
        (PAPER, "scikit-learn's digits", False),
        (MICRO, CIFAR, False),
    ],
)
def test_the_papers_numbers_stand_beside_its_networks_on_its_data_alone(
    protocol: Protocol, data: str, compared: bool
) -> None:
    runs = [run for name in ("table1", "table2") for run in EXPERIMENTS[name].runs(protocol)]
    page = Page(render_html(document([cell_line(run, protocol, 0, data) for run in runs])))
    for number in (1, 2):
        cells = [cell for row in page.table(f"Table {number}: test") for cell in row]
        notes = [note for cell in cells for note in cell[1:] if note.startswith("paper")]
        assert bool(notes) == compared
        printed = [c for c, _ in page.tables if c.startswith(f"Table {number} as the paper prints")]
        assert bool(printed) != compared  # by itself, for orientation
    assert ("not to be compared number by number" in page.words) is True  # Table 3's at least


def test_table_3_has_both_errors_and_differences_in_points() -> None:
    lines = [
        cell_line(
            run, PAPER, 0, "ImageNet", test_images=50000, error=[0.4, 0.3, 0.25],
            top5_error=[0.2, 0.1, 0.05],
        )
        for run in EXPERIMENTS["table3"].runs(PAPER)
    ]  # fmt: skip
    rows = Page(render_html(document(lines))).table("Table 3: top-1 and top-5")
    assert [cell[0] for cell in rows[0]][1:5] == [
        "SGD, top-1", "SGD, top-5", "OSGD, top-1", "OSGD, top-5",
    ]  # fmt: skip
    assert rows[4][1:5] == [
        ["25.0", "paper 29.2", "−4.2 points"],
        ["5.0", "paper 10.2", "−5.2 points"],
        ["25.0", "paper 28.3", "−3.3 points"],
        ["5.0", "paper 9.4", "−4.4 points"],
    ]
    small = [{**line, "test_images": 100} for line in lines]
    assert "paper 29.2" not in render_html(document(small))


def test_verdicts_are_the_claims(lines: list[Line], full: Document) -> None:
    wanted = judge_all(Evidence.of(lines, PAPER, CIFAR))
    assert {verdict.outcome for verdict in wanted.values()} == {"holds", "fails", "undecided"}
    (found,) = make_report(lines, [], []).to_json()["sections"]
    assert {**found["claims"], **found["controls"]} == {
        name: verdict.to_json() for name, verdict in wanted.items()
    }
    tuned = ["osgd-tuned", "osgd-tuned-designs"]
    controls = ["osgd-late-against-sum", *tuned, *(f"{name}-against-sum" for name in tuned)]
    assert set(found["controls"]) == {*controls}
    assert len(found["claims"]) == 13
    page = Page(render_html(full))
    compared = [row for name, rows in page.tables if name.startswith("Comparisons") for row in rows]
    for claim in CLAIMS:
        assert (wanted[claim.name].outcome, claim.text.replace("*", "")) in [
            (tone, title.strip()) for tone, title in page.badges
        ]
        for comparison in wanted[claim.name].comparisons:
            mean = signed(comparison.mean, 2) if comparison.n else "-"
            row = [comparison.name, mean, range_text(comparison.interval), str(comparison.n)]
            assert [[c] for c in row] in compared
    control, *_ = [wanted.pop(name).outcome for name in controls]
    outcomes = [verdict.outcome for verdict in wanted.values()]
    counts = [str(outcomes.count(o)) for o in ("holds", "fails", "undecided")]
    head, cells, *rows = [[cell[0] for cell in row] for row in page.table("Cells trained")]
    assert head == ["", "paper"]
    assert cells == ["cells", str(found["cells"])]
    assert [row[1] for row in rows] == [*counts, control, "undecided"]


def test_the_title_and_the_first_paragraph_say_what_ran(lines: list[Line]) -> None:
    table = EXPERIMENTS["table1"].runs(MICRO)
    small = [cell_line(run, MICRO, seed, SMALL) for run in table for seed in range(3)]
    found = document(small)
    assert found.title.endswith("re-run at reduced size")
    text = render_markdown(found)
    assert "What has not run: paper: 0 cells, fast: 0 cells, mini: 0 cells." in text
    assert text.index("Of the paper's 13 claims") < text.index("ICML 2020")
    assert document([*small, *lines]).title.endswith("re-run, in part at reduced size")
    assert document(lines).title.endswith("re-run")


@pytest.mark.parametrize(
    ("osgd", "control", "words"),
    [
        (0.20, 0.25, "So OSGD gains more than a longer step does."),
        (0.20, 0.15, "So OSGD's gain here is that of a longer step"),
        (0.20, 0.20, "Whether OSGD's projection adds"),
    ],
)
def test_the_first_paragraph_says_what_the_control_shows(
    osgd: float, control: float, words: str
) -> None:
    errors = {"sgd-mean": 0.3, "osgd": osgd, "sgd-sum": control}
    noise = np.random.default_rng(0)
    found = [
        cell_line(run, MICRO, seed, SMALL, error=[errors[run.variant] + e for e in noise_of])
        for run in (Run(design, method) for design in CIFAR_DESIGNS for method in errors)
        for seed in range(4)
        for noise_of in [noise.uniform(0, 0.001, len(MICRO.growth(run.design))).tolist()]
    ]
    text = section_in_words(section(found))
    assert "At the last two stages OSGD has an error 10.0 points lower (holds) than" in text
    assert words in text


def test_an_undecided_verdict_says_why() -> None:
    def why(*means: float, margin: float = 0.0) -> str:
        stages = {
            f"stage {n}": {0: mean, 1: mean - 0.5, 2: mean + 0.5} for n, mean in enumerate(means, 1)
        }
        verdict = judge_differences([Pairs("width", stages)], margin)
        assert verdict.outcome == "undecided"
        assert verdict.margin == margin
        return reason(verdict)

    assert why(-9.0, 0.3) == "1 difference of the other sign: width, stage 2, +0.30"
    assert why(-9.0, 0.1, 5.2, -9.0, 5.3, margin=5.0) == (
        "2 differences above the margin: width, stage 3, +5.20; width, stage 5, +5.30"
    )
    assert why(0.0) == "the pooled difference is not significant (p = 0.500)"
    alone = judge_differences([Pairs("even", {"stage 1": {0: 1.0}})])
    assert reason(alone) == "fewer than two pairs of runs for even"


def test_what_is_missing_is_listed(lines: list[Line]) -> None:
    gone = {line["key"] for line in lines[::5]}
    kept = [line for line in lines if line["key"] not in gone]
    report = make_report(kept, [], [])
    (found,) = report.to_json()["sections"]
    page = Page(render_html(report.document()))
    text = render_markdown(report.document())
    for name, experiment in EXPERIMENTS.items():
        cells = cells_of(experiment.runs(PAPER), PAPER, 3)
        absent = experiment.family == "imagenet"
        wanted = {cell.name for cell in cells if absent or cell.key in gone}
        measured = [one for one in measurements(PAPER, 3) if experiment.measured]
        wanted |= {
            f"latencies, panel {one.panel.name}, seed {one.seed}"
            for one in measured
            if one.key in gone
        }
        assert set(found["missing"][name]) == wanted
        total = len(cells) + len(measured)
        (row,) = [row for row in page.table("Finished cells") if row[0] == [name]]
        assert row[2:4] == [[str(total - len(wanted))], [str(total)]]
        for cell in wanted:
            assert f"- {cell}\n" in text
    one_seed = make_report(kept, [], [], seeds=1).to_json()["sections"][0]["missing"]
    assert all("seed 0" in cell for cells in one_seed.values() for cell in cells)


def test_images_of_another_section_are_not_missing_here(lines: list[Line]) -> None:
    tables = [cell_line(run, PAPER, 0, "ImageNet") for run in EXPERIMENTS["table3"].runs(PAPER)]
    here, there = make_report([*lines, *tables], [], []).to_json()["sections"]
    assert "table3" not in here["missing"]
    assert set(there["missing"]) == {"table3"}
    assert len(there["missing"]["table3"]) == 2 * len(tables)


def test_every_experiment_shows_up_in_every_section(full: Document) -> None:
    some = document([cell_line(Run("width", "osgd"), MICRO, 0, SMALL)])
    for found in (full, some, document([])):
        page, text = render_html(found), render_markdown(found)
        for name, experiment in EXPERIMENTS.items():
            assert f">{name}<" in page
            assert f"| {name} | {experiment.source} |" in text
    assert "There are no results yet." in render_html(document([]))


def test_protocol_and_data_are_said_once_in_the_heading_of_their_section(full: Document) -> None:
    headings = [b.text for b in full.blocks if isinstance(b, Heading) and b.level == 2]
    assert headings.count("paper: CIFAR-10") == 1
    for caption, _ in Page(render_html(full)).tables:
        assert "protocol paper" not in caption
        assert "CIFAR-10" not in caption or "as the paper prints it" in caption


def test_tables_and_figures_have_no_internal_codes(full: Document) -> None:
    """Names of `--only` and `--methods` stand in the lists of missing cells alone."""
    codes = re.compile(r"nest: |base: |eann\b|oracle-|\b(sgd|osgd)-|normsgd|\blines?\)|fig\d")
    page = render_html(full)
    shown = [text for caption, rows in Page(page).tables for text in (caption, *strings(rows))]
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert len(drawn) > 100
    names = {*EXPERIMENTS}  # what `anynest reproduce` calls them, where missing cells are counted
    assert not [text for text in (*shown, *drawn) if codes.search(text) and text not in names]


def strings(rows: list[list[list[str]]]) -> list[str]:
    return [text for row in rows for cell in row for text in cell]


def test_the_page_loads_nothing(full: Document) -> None:
    text = render_html(full)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image", "base"} & set(page.tags)
    for _, key, value in page.attributes:
        assert key not in ("src", "srcset", "action", "data")
        assert not key.startswith("on")
        if "href" in key:
            assert value.startswith("#")
            assert ("id", value[1:]) in [(k, v) for _, k, v in page.attributes if k == "id"]
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    names = [value for _, key, value in page.attributes if key == "id"]
    figures = [name for name in names if name.endswith("-figure_1")]
    assert len(figures) == len(set(figures)) == len(list(pictures_of(full.blocks)))


HOSTILE = '"><script>alert(1)</script><img src=x onerror=y> & $x$ | `a` **b** [c](http://d) ../../e'


def test_hostile_words_stay_words() -> None:
    run = Run("width", "osgd")
    lines = [
        cell_line(
            run, PAPER, 0, HOSTILE, revision=HOSTILE, anynest=HOSTILE, finished=HOSTILE,
            environment={"processor": HOSTILE, "torch": HOSTILE}, machine={"precision": HOSTILE},
        ),
        {**lines_of(PAPER, HOSTILE, 1)[-1], "biggest": HOSTILE},
        {"kind": "cell", "key": "k", "protocol": HOSTILE, "data": "D"},
    ]  # fmt: skip
    found = make_report(lines, [], [HOSTILE]).document()
    text, rendered = render_html(found), render_markdown(found)
    page = Page(text)
    assert not {"script", "img"} & set(page.tags)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert text.count("&lt;script&gt;") > 5
    assert HOSTILE in page.words  # the very words
    outside = "\n".join(line for line in rendered.splitlines() if not line.startswith("    "))
    for bad in ("<script", "<img", "[c](", "**b**", " `a`", " | `"):
        assert bad not in outside
    for picture in pictures_of(found.blocks):
        assert re.fullmatch(r"paper-[0-9a-f]{6}-[a-z0-9-]+", picture.name)


BLOCKS: list[Block] = [
    Heading(2, HOSTILE, "a"),
    Text(HOSTILE),
    Items((HOSTILE,)),
    Code(HOSTILE),
    Tiles((Tile("1", HOSTILE),)),
    Tiles((Tile(HOSTILE, "1"),)),
    Table(HOSTILE, ("a",), ()),
    Table("a", (HOSTILE,), ()),
    Table("a", ("a",), (RowGroup(((TableCell(HOSTILE),),)),)),
    Table("a", ("a", "b"), (RowGroup(((TableCell("a"), TableCell("b", (HOSTILE,))),)),)),
    Table("a", ("a",), (RowGroup((), HOSTILE),)),
    Table("a", ("a",), (RowGroup((), "a", HOSTILE),)),
    Pictures(HOSTILE, ()),
    Pictures("a", (Picture("a", HOSTILE, "<svg/>"), Picture("b", "b", "<svg/>"))),
    Fold(HOSTILE, ()),
    Fold("a", (), HOSTILE),
    Fold("a", (Text(HOSTILE),)),
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: type(block).__name__)
def test_every_text_of_every_block_is_escaped(block: Block) -> None:
    found = Document("title", (block,))
    text, rendered = render_html(found), render_markdown(found)
    page = Page(text)
    assert not {"script", "img"} & set(page.tags)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert escape(HOSTILE) in text
    if isinstance(block, Code):
        assert f"    {HOSTILE}" in rendered  # indented code shows what there is
        return
    assert not re.search(r"<(script|img|b>|a )", rendered)
    rows = [line for line in rendered.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1  # no cell is split
    in_summary = isinstance(block, Fold) and HOSTILE in (block.title, block.note)
    assert in_summary or not re.search(r"(?<!\\)\[c|(?<!\\)`a|(?<!\\)\*b", rendered)


def test_the_same_lines_give_the_same_bytes(
    lines: list[Line], full: Document, real_drawings: None
) -> None:
    shuffled = [*lines[100:], *lines[:100]]
    again = document(sorted(shuffled, key=order))
    assert render_html(again) == render_html(full)
    assert render_markdown(again) == render_markdown(full)
    assert [p.svg for p in pictures_of(again.blocks)] == [p.svg for p in pictures_of(full.blocks)]


@pytest.mark.parametrize(
    "keep",
    [
        lambda line: line["kind"] == "deadlines",
        lambda line: line["kind"] == "cell" and line["independent"],
        lambda line: line["kind"] == "cell" and line["variant"] == "greedy" and line["seed"] == 1,
        lambda line: line["kind"] == "deadlines" and line["panel"] == "b" and line["seed"] == 2,
    ],
)
def test_part_of_the_lines_is_enough(lines: list[Line], keep: Callable[[Line], bool]) -> None:
    found = document([line for line in lines if keep(line)])
    assert "No results yet." in render_html(found) + render_markdown(found)


def test_lines_that_no_protocol_has_are_counted_and_left_out() -> None:
    run = Run("width", "osgd")
    good = cell_line(run, MICRO, 0, SMALL)
    strange = [
        {**good, "key": "0" * 16},
        {**good, "settings": {}},
        {**good, "design": "square"},
        {**good, "variant": "osgd+upside-down"},
        {**lines_of(MICRO, SMALL, 1)[-1], "key": "x"},
    ]
    report = make_report([good, *strange, {**good, "protocol": "nano"}], [], [])
    (found,) = report.to_json()["sections"]
    assert (found["cells"], found["passed_over"]) == (1, 5)
    assert report.unknown == {"nano": 1}
    page = render_html(report.document())
    assert "Left out: 5 results of cells that the protocol does not have" in page
    assert "Left out: 1 result of the protocol nano" in page


def test_more_seeds_than_asked_for_all_count() -> None:
    run = Run("width", "osgd")
    lines = [cell_line(run, PAPER, seed, CIFAR) for seed in range(5)]
    rows = Page(render_html(document(lines, seeds=2))).table("Table 1: test error")
    mean = np.mean(errors_in(lines, "width", "osgd", 3))
    assert any(row[3][0].startswith(f"{mean:.1f} (") for row in rows if len(row) > 3)
    missing = make_report(lines, [], [], 2).to_json()["sections"][0]["missing"]["table1"]
    assert not any(cell.startswith("width, osgd,") for cell in missing)
    assert len(missing) == (4 * 6 - 1) * 2


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, instead of their text."""
    made: list[Any] = []
    monkeypatch.setattr(drawing, "svg_of", lambda figure: made.append(figure) or "<svg/>")
    return made


def test_figures_8_and_9_draw_the_series(lines: list[Line], drawn: list[Any]) -> None:
    part = section(lines)
    (eight,) = FIGURES["fig8"](part.evidence)
    DRAW["fig8"](eight, part)
    for figure in FIGURES["fig9"](part.evidence):
        DRAW["fig9"](figure, part)
    for made, figure in zip(drawn, [eight, *FIGURES["fig9"](part.evidence)], strict=True):
        (axes,) = made.axes
        means = {tuple(spot.mean for spot in series.spots) for series in figure.series}
        bars = axes.containers
        assert {tuple(bar.lines[0].get_ydata()) for bar in bars} == means
        assert len(bars) == len(figure.series)
    colors = {"nested: width": "#2f9e5f", "Oracle": "#2f74d0", "baseline: even width": "#d6453d"}
    axes = drawn[1].axes[0]
    assert {bar.get_label(): bar.lines[0].get_color() for bar in axes.containers} == colors
    assert axes.get_xscale() == "log"
    assert axes.containers[0].lines[0].get_xdata().tolist() == [1e4, 4e4, 16e4]


def test_figure_10_draws_the_bars_in_the_papers_order(lines: list[Line], drawn: list[Any]) -> None:
    part = section(lines)
    found = FIGURES["fig10"](part.evidence)
    for figure in found:
        DRAW["fig10"](figure, part)
    names = [[bars.get_label() for bars in made.axes[0].containers] for made in drawn]
    names = [[name for name in row if not name.startswith("_")] for row in names]
    assert names == [
        ["Base: even width", "Nest: width", "Oracle (all)", "Oracle (each)"],
        ["Base: EANN cascade", "Nest: depth", "Oracle (all)", "Oracle (each)"],
        [
            *("Base: EANN cascade", "Nest: alternating", "Nest: simultaneous"),
            *("Oracle (all)", "Oracle (each)"),
        ],
    ]
    first = next(one for one in drawn[0].axes[0].containers if one.get_label() == "Nest: width")
    told = [
        [100 * e for e in line["error"]["nest: width"]]
        for line in lines
        if line["kind"] == "deadlines" and line["panel"] == "a"
    ]
    assert [bar.get_height() for bar in first] == pytest.approx(np.mean(told, 0).tolist())
    assert len(first) == 8
    ticks = [tick.get_text() for tick in drawn[0].axes[0].get_xticklabels()]
    assert ticks == ["0.50", "0.58", "0.67", "0.75", "0.83", "0.92", "1.00", "none"]


def test_cosines_are_means_over_the_seeds(lines: list[Line], drawn: list[Any]) -> None:
    part = section(lines)
    blocks = cosines.cosine_blocks(part)
    mine = [
        line["cosines"]
        for line in lines
        if line["kind"] == "cell" and (line["design"], line["variant"]) == ("width", "osgd")
    ]
    pair = np.mean([[epoch["cosines"][1][0] for epoch in one] for one in mine], 0)  # stages 1 and 3
    axes = drawn[list(cosines.runs_of(part)).index("width")].axes[0]
    thin = [
        line for line in axes.get_lines() if line.get_linewidth() < 1 and len(line.get_xdata()) > 2
    ]
    assert any(np.allclose(line.get_ydata(), pair) for line in thin)
    assert [list(line.get_xdata()) for line in thin] == [[1, 2, 4]] * 6
    shown = Page(render_html(Document("t", tuple(blocks)))).table("Cosines of the last")
    assert [row[2] for row in shown if row[0] == ["stages 1 and 3"]][1] == [signed(pair[-1], 2)]
    assert len(drawn) == 6
    greedy = {**cell_line(Run("width", "greedy"), PAPER, 0, CIFAR), "cosines": []}
    assert cosines.cosine_blocks(section([greedy])) == []


def test_cosines_stand_side_by_side_only_where_they_are_of_the_same_batches() -> None:
    def without_batches(line: Line) -> Line:
        rows = [{"epoch": e["epoch"], "cosines": e["cosines"]} for e in line["cosines"]]
        return {**line, "cosines": rows}

    def words(lines: list[Line]) -> str:
        text = cosines.cosine_blocks(section(lines))[0]
        assert isinstance(text, Text)
        return text.text

    methods = ("sgd-mean", "osgd")
    alike = [cell_line(Run("width", method), PAPER, 0, CIFAR) for method in methods]
    old = [without_batches(line) for line in alike]
    assert {*cosines.runs_of(section(alike))["width"]} == {*methods}
    assert {*cosines.runs_of(section(old))["width"]} == {"osgd"}
    assert "left out" in words(old)
    assert "left out" not in words(alike)
    more = [*old, cell_line(Run("width", "osgd"), PAPER, 1, CIFAR)]  # another seed, measured anew
    (record,) = cosines.runs_of(section(more))["width"]["osgd"]
    assert record["seed"] == 1
    assert cosines.cosine_blocks(section(old[:1])) == []  # SGD's alone


def test_numbers_of_figures_stand_below_them(lines: list[Line], full: Document) -> None:
    page = Page(render_html(full))
    for name, series_of in FIGURES.items():
        for figure in series_of(Evidence.of(lines, PAPER, CIFAR)):
            panel = f" ({figure.name[-1]})" if figure.name[-1] in "abc" else ""
            number = figure.name.removeprefix("fig").rstrip("abc")
            rows = page.table(f"Figure {number}{panel}, ")
            spots = [spot for series in figure.series for spot in series.spots]
            numbers = [row[-2:] for row in rows if len(row) > 1][1:]
            assert [n for _, n in numbers] == [[str(spot.n)] for spot in spots], name
            assert [e[0].split(" ")[0] for e, _ in numbers] == [f"{s.mean:.1f}" for s in spots]


# --- files and the command


def write(path: Path, lines: list[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """A results folder with one short file."""
    folder = tmp_path / "results"
    folder.mkdir()
    runs = [Run("width", variant) for variant in ("sgd-mean", "osgd", "sgd-sum")]
    write(folder / "micro.jsonl", [cell_line(run, MICRO, 0, SMALL) for run in runs])
    return folder


def test_the_command_writes_both_files_and_their_pictures(
    some: Path, tmp_path: Path, capsys: Out, real_drawings: None
) -> None:
    out = tmp_path / "a" / "out"
    assert main(["report", str(some), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "micro, CIFAR-10 (resized to 12): 3 cells, " in said
    assert str(out / "report.html") in said
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (out / "report.md").read_text())
    assert links
    for link in links:
        svg = (out / link).read_text()
        assert svg.startswith("<svg ")
        assert "xmlns=" in svg
    assert {p.name for p in out.iterdir()} == {"report.html", "report.md", "report-figures"}
    first = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert main(["report", str(some / "micro.jsonl"), str(some), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(out / "report.md"), str(out / "report.html")]
    assert told["sections"][0]["cells"] == 3  # a file that is named twice counts once
    assert len(told["sections"][0]["claims"]) == sum(not claim.control for claim in CLAIMS)
    assert main(["report", str(some), "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == first


def test_without_names_the_folder_results_is_read(
    some: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(some.parent)
    assert main(["report", "--out", "out"]) == 0
    text = (some.parent / "out" / "report.md").read_text()
    assert "    anynest report results --out FOLDER" in text
    assert "- results/micro.jsonl: 3 lines, SHA-256 " in text


def test_a_line_of_an_unknown_kind_is_passed_over(some: Path, tmp_path: Path) -> None:
    strange = {"kind": "new", "key": "k", "protocol": "micro", "data": SMALL, "seed": None}
    with (some / "micro.jsonl").open("a") as file:
        file.write(json.dumps(strange) + "\n")
    assert main(["report", str(some), "--out", str(tmp_path / "out")]) == 0


def test_an_empty_file_says_what_there_is_to_do(tmp_path: Path) -> None:
    (tmp_path / "micro.jsonl").touch()
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "There are no results yet." in page
    assert all(f">{name}<" in page for name in EXPERIMENTS)


def test_a_copy_counts_once_and_a_contradiction_is_refused(
    some: Path, tmp_path: Path, capsys: Out
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((some / "micro.jsonl").read_bytes())
    command = ["report", str(some), str(copy), "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["sections"][0]["cells"] == 3
    other = json.loads(copy.read_text().splitlines()[0])
    write(copy, [{**other, "error": [0.9, 0.9, 0.9]}])
    assert main(command) == 2
    assert "a cell must have one result" in capsys.readouterr().err


GOOD = cell_line(Run("width", "osgd"), MICRO, 0, SMALL)
MEASURED = lines_of(MICRO, SMALL, 1)[-1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no json", "line 1, must be JSON"),
        ([1], "is no result"),
        ({**GOOD, "error": "many"}, "error must be a list of numbers from 0 to 1, found 'many'"),
        ({**GOOD, "error": [0.1, 12.0, 0.1]}, "error must be a list of numbers from 0 to 1"),
        ({**GOOD, "error": []}, "error must be a list"),
        ({**GOOD, "error": [0.1, float("nan"), 0.1]}, "error must be a list"),
        ({**GOOD, "error": [0.1], "multiply_adds": [1]}, "must have 3 stages, found 1"),
        ({**GOOD, "multiply_adds": [1, 2]}, "multiply_adds must have as many stages as error"),
        ({**GOOD, "multiply_adds": [0, 1, 2]}, "multiply_adds must be a list of numbers above 0"),
        ({**GOOD, "seed": -1}, "seed must be a whole number from 0 to 999, found -1"),
        ({**GOOD, "seed": 10**9}, "seed must be a whole number from 0 to 999"),
        ({**GOOD, "multiply_adds": [1, 2, 10**400]}, "multiply_adds must be a list of numbers"),
        ({**GOOD, "independent": 0}, "independent must be null or a stage's number, found 0"),
        ({k: v for k, v in GOOD.items() if k != "settings"}, "settings must be an object"),
        ({**GOOD, "cosines": [{"epoch": 1, "cosines": [[0.1, 0.2]]}]}, "cosines must be"),
        ({**GOOD, "cosines": [{"epoch": 1, "cosines": [[0.1]]}]}, "must have 3 stages, found 2"),
        ({**GOOD, "environment": "E" * 200}, "environment must be an object, found 'EEE"),
        ({**MEASURED, "panel": "z"}, "panel must be one of a, b, c, found 'z'"),
        ({**MEASURED, "error": {"oracle-all": [0.1]}}, "error must have 8 numbers from 0 to 1"),
        ({**MEASURED, "error": {**MEASURED["error"], "old": [0.1] * 8}}, ", found old"),
        ({**MEASURED, "seed": 7}, "must be of panel"),
    ],
)
def test_a_bad_line_ends_in_one_line(line: Any, words: str, tmp_path: Path, capsys: Out) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text((line if isinstance(line, str) else json.dumps(line)) + "\n")
    assert main(["report", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert len(said) < 400
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/nowhere"], "there is no"),
        (["{tmp}"], "must hold *.jsonl"),
        (["{some}", "--seeds", "0"], "--seeds must be at least 1, found 0"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], words: str, some: Path, tmp_path: Path, capsys: Out
) -> None:
    argv = [part.format(tmp=tmp_path, some=some) for part in arguments]
    assert main(["report", *argv, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_leaves_what_was_there(
    some: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    assert main(["report", str(some), "--out", str(taken)]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert taken.read_text() == "mine"

    out = tmp_path / "out"
    assert main(["report", str(some), "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    write(some / "micro.jsonl", [GOOD])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert main(["report", str(some), "--out", str(out)]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    monkeypatch.undo()

    monkeypatch.setattr(report_files, "render_html", full)  # nothing is written before all is made
    assert main(["report", str(some), "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
