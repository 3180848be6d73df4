"""Files that the field expects beside the code, and that they agree with it."""

import re
import tomllib
from pathlib import Path

import pytest

import anynest

ROOT = Path(__file__).parents[1]
yaml = pytest.importorskip("yaml")


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_one_version() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert project["version"] == anynest.__version__ == str(citation["version"])


def test_the_workflow_calls_what_ci_runs() -> None:
    def targets(text: str) -> set[str]:
        calls = re.findall(r"^\s*(?:- run: )?make (.*)$", text, re.MULTILINE)
        words = {word for call in calls for word in call.split()}
        return {word for word in words if not word.startswith("-")}

    workflow = read(".github/workflows/ci.yml")
    assert targets(workflow) == targets(read(".ci/run")) | {"coverage"}
    assert "test" in targets(read(".ci/run"))
    assert targets(workflow) <= set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    rows = yaml.safe_load(workflow)["jobs"]["test"]["strategy"]["matrix"]["include"]
    project = tomllib.loads(read("pyproject.toml"))["project"]
    named = {c.rsplit(" ", 1)[1] for c in project["classifiers"] if "Python :: 3." in c}
    assert {row["python"] for row in rows} == named
    assert {row["torch"] for row in rows} == {"oldest", "newest"}


def test_the_oldest_torch_is_that_of_the_range() -> None:
    (dependency,) = (
        d for d in tomllib.loads(read("pyproject.toml"))["project"]["dependencies"] if "torch" in d
    )
    assert f"torch=={dependency.partition('>=')[2].split(',')[0]}." in read(".ci/oldest.txt")


def test_the_linter_before_a_commit_is_that_of_ci() -> None:
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    (ruff,) = (repo["rev"] for repo in hooks if "ruff" in repo["repo"])
    assert f"ruff=={ruff.removeprefix('v')}\n" in read("constraints.txt")


def test_forms_and_citation_are_whole() -> None:
    for form in ("bug", "feature"):
        found = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{form}.yml"))
        assert {"name", "description", "body"} <= set(found)
    paper = yaml.safe_load(read("CITATION.cff"))["preferred-citation"]
    assert paper["authors"][0]["family-names"] == "Wan"
    cited = yaml.safe_load(read("CITATION.cff"))
    bibtex = read("README.md").partition("```bibtex")[2].partition("```")[0]
    bibtex = bibtex.replace("{", "").replace("}", "")
    names = [f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]]
    for said in (
        " and ".join(names),
        paper["title"],
        paper["collection-title"],
        f"year = {paper['year']}",
        cited["title"],
        cited["authors"][0]["name"],
        f"version = {cited['version']}",
        f"year = {cited['date-released'].year}",
    ):
        assert said in bibtex
    assert "vulnerability" in read("SECURITY.md")


def test_lines_of_prose_are_at_most_100_characters_long() -> None:
    """Tables, code, pictures and links alone are longer."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "results/README.md"]:
        fenced = False
        for number, line in enumerate(page.read_text().split("\n"), 1):
            fenced ^= line.startswith("```")
            prose = not fenced and not line.lstrip().startswith(("|", "!", "<", "["))
            if prose and not line.startswith("    "):
                assert len(line) <= 100, f"{page.name}, line {number}: {len(line)} characters"
