"""The documentation site: it builds without a warning, and its checks find what they should."""

import importlib
import os.path
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("furo")

ROOT = Path(__file__).parents[2]
EXTENSIONS = ROOT / "docs" / "_ext"


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    return importlib.import_module(request.param)


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = ["-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", source, out]
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    done = build(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        assert (tmp_path / page.relative_to(ROOT / "docs")).with_suffix(".html").exists()
    assert "<math" in (tmp_path / "api" / "multitask.html").read_text()


CONF = f"""
import sys
sys.path[:0] = [{str(EXTENSIONS)!r}, "PACKAGE"]
project = "p"
extensions = ["myst_parser", "sphinx.ext.autodoc", "foreign_urls", "mathml", "public_names"]
myst_enable_extensions = ["dollarmath"]
public_package = "small"
html_theme = "furo"
html_math_renderer = "mathml"
"""
PACKAGE = {
    "__init__.py": '"""A package."""\nfrom .sub import f\n__all__ = ["f"]\n',
    "sub/__init__.py": (
        '"""A room."""\n__all__ = ["C", "f"]\ndef f():\n    """Says."""\n'
        'class C:\n    """Holds."""\n    def m(self):\n        """Does."""\n'
    ),
}
PAGE = """# Title

[a page](#title), $a^2$

```{eval-rst}
.. autofunction:: small.f
.. autoclass:: small.sub.C
   :members:
```
"""


def small_site(
    folder: Path, page: str = PAGE, docstring: str = '"""Does."""'
) -> subprocess.CompletedProcess[str]:
    package = folder / "package" / "small"
    for name, text in PACKAGE.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text.replace('"""Does."""', docstring))
    (folder / "docs").mkdir()
    (folder / "docs" / "conf.py").write_text(CONF.replace("PACKAGE", str(folder / "package")))
    (folder / "docs" / "index.md").write_text(page)
    return build(folder / "docs", folder / "out")


def test_a_small_site_builds(tmp_path: Path) -> None:
    done = small_site(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<msup>" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("(#title)", "(missing.md)", "missing.md"),
        ("(#title)", "(#missing)", "missing"),
        (".. autofunction:: small.f\n", "", "small.f is not in the API reference"),
        ("autofunction:: small.f", "autofunction:: small.g", "failed to import 'g'"),
        ("a^2", r"\nonsense", "nonsense"),
        ("# Title", "# Title\n\n![](https://example.org/a.png)", "loads https://example.org/a.png"),
    ],
)
def test_a_mistake_on_a_page_ends_the_build(tmp_path: Path, old: str, new: str, said: str) -> None:
    done = small_site(tmp_path, PAGE.replace(old, new))
    assert done.returncode != 0
    assert said in done.stderr


def test_a_name_without_docstring_ends_the_build(tmp_path: Path) -> None:
    done = small_site(tmp_path, docstring="return 1")
    assert done.returncode != 0
    assert "small.sub.C.m has no docstring" in done.stderr


@pytest.mark.parametrize("extension", ["foreign_urls"], indirect=True)
def test_foreign_loads_are_found(extension: ModuleType) -> None:
    url = "https://example.org/x"
    for loading in (
        f'<script src="{url}"></script>',
        f'<link rel="stylesheet" href="{url}">',
        f'<link rel="preload" as="font" href="{url}">',
        f'<img src="{url}">',
        f'<iframe src="{url}"></iframe>',
        f'<p style="background: url({url})">',
        f"<style>@import '{url}';</style>",
    ):
        assert extension.foreign_urls(loading, ".html") == [url], loading
    assert extension.foreign_urls('<script src="//example.org/x">', ".html") == ["//example.org/x"]
    assert extension.foreign_urls(f"@font-face {{src: url('{url}')}}", ".css") == [url]
    for harmless in (
        f'<a href="{url}">read</a>',
        f'<link rel="canonical" href="{url}">',
        '<img src="_images/a.png">',
        '<img src="data:image/png;base64,//8A">',
        "<script>let s = 'a // b'</script>",
    ):
        assert extension.foreign_urls(harmless, ".html") == [], harmless


@pytest.mark.parametrize("extension", ["outside_links"], indirect=True)
def test_links_out_of_docs_lead_to_pages(extension: ModuleType) -> None:
    for pages in extension.PAGES:
        assert (ROOT / "docs" / pages).exists()
    assert extension.rewrite("[r](../results/report.md#micro)") == "[r](report.md#micro)"
    assert extension.rewrite("[r](../../results/report.md)", 1) == "[r](../report.md)"
    assert extension.rewrite("[x](../examples/plain_loop.py)") == "[x](../examples/plain_loop.py)"
    assert extension.rewrite("[m](multitask.md)") == "[m](multitask.md)"
    assert extension.rewrite("[docs/data.md](data.md#a)") == "[](data.md#a)"
    assert extension.rewrite("[data.md](data.py)") == "[data.md](data.py)"


@pytest.mark.parametrize("extension", ["outside_links"], indirect=True)
def test_docstrings_link_to_pages(extension: ModuleType) -> None:
    lines = ["(docs/predict.md has them)", "src/docs/a.md"]
    extension.on_docstring(None, "class", "C", None, None, lines)
    assert lines == ["(:doc:`/predict` has them)", "src/docs/a.md"]


@pytest.mark.parametrize("extension", ["public_names"], indirect=True)
def test_a_name_may_be_documented_under_another(extension: ModuleType) -> None:
    public = {"os.path.join": os.path.join, "a.b": object()}
    assert extension.undocumented(public, ["posixpath.join"]) == ["a.b"]
    assert extension.undocumented(public, ["a.b", "os.path.join"]) == []
    assert extension.undocumented(public, []) == ["a.b", "os.path.join"]
