"""What is committed under results/ says what its own lines say."""

import subprocess
import sys
from pathlib import Path

import pytest

from anynest.experiments.report import find_files, make_report, read_all, write_report

ROOT = Path(__file__).parents[2]


def test_the_page_of_evidence_is_that_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``make report`` brings it up to date too."""
    monkeypatch.chdir(ROOT)
    page = tmp_path / "evidence.md"
    page.write_text((ROOT / "docs/evidence.md").read_text())
    command = [sys.executable, "benchmarks/evidence.py", "results", "--into", str(page)]
    subprocess.run(command, check=True, timeout=300)
    assert (ROOT / "docs/evidence.md").read_text() == page.read_text()
    marks = page.read_text()
    assert "cells" in marks.partition("<!-- answer: begin -->")[2].partition("<!-- answer: end")[0]


def test_the_report_is_that_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``make report`` brings it up to date."""
    monkeypatch.chdir(ROOT)
    report = make_report(*read_all(find_files(["results"])), ["results"])
    write_report(report, tmp_path)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert names
    for name in names:
        assert (ROOT / "results" / name).is_file(), f"{name} is missing: make report"
    # pictures and the page that holds them depend on the drawing library's version, the text does not
    assert (ROOT / "results/report.md").read_text() == (tmp_path / "report.md").read_text()


def test_the_readme_says_what_the_claims_do() -> None:
    """README.md says that the control does as well, for as long as no claim against it holds."""
    (micro,) = [
        section
        for section in make_report(
            *read_all(find_files([str(ROOT / "results")])), ["results"]
        ).to_json()["sections"]
        if section["protocol"] == "micro"
    ]
    assert micro["controls"]["osgd-late-against-sum"]["outcome"] == "fails"
    said = " ".join((ROOT / "README.md").read_text().split())
    assert "SGD on the plain *sum* of the losses does as well as OSGD" in said
