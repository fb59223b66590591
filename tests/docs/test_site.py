"""The site: built without a warning, with nothing from elsewhere in it, and strict about links."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ZENSICAL = Path(sys.executable).with_name("zensical")
LOADED = re.compile(
    r"""
      <(?:script|img|iframe|source|video)\b[^>]*\bsrc=["']?(?:https?:)?//
    | <link\b[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon)\b[^>]*\bhref=["']?(?:https?:)?//
    | @import
    | url\(["']?(?:https?:)?//
    """,
    re.VERBOSE,
)
"""What makes a browser ask somebody else."""


@pytest.fixture(scope="module")
def gather() -> ModuleType:
    """docs/gather.py."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        spec = importlib.util.spec_from_file_location("gather", ROOT / "docs" / "gather.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return module


def test_it_is_built_without_a_warning_and_loads_nothing_from_elsewhere() -> None:
    command = ["make", "--no-print-directory", "docs", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    site = ROOT / "dist" / "site"
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for file in [*pages, *site.rglob("*.css")]:
        assert not LOADED.search(file.read_text()), file
        assert 'data-md-component="source"' not in file.read_text(), "it would ask GitHub for the repository's stars"
    reference = (site / "reference" / "diffusion" / "index.html").read_text()
    assert "The solver that a teacher" in reference, "docstrings are on the page"


@pytest.mark.parametrize(
    "text",
    [
        '<script async src="https://cdn.test/a.js">',
        "<img alt=x src=//cdn.test/a.png>",
        '<link rel="stylesheet" media="all" href="https://fonts.test/css">',
        "body {background: url(https://cdn.test/a.png)}",
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(text: str) -> None:
    assert LOADED.search(text)


def test_every_page_is_in_the_navigation(gather: ModuleType, tmp_path: Path) -> None:
    assert gather.gather(tmp_path) == []
    listed = re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.md"))


@pytest.mark.parametrize(
    ("link", "becomes"),
    [
        ("docs/manifest.md#fields-of-spec", "manifest.md#fields-of-spec"),
        ("docs/images/emoji.png", "images/emoji.png"),
        ("charts/dmd-operator/README.md", "chart.md"),
        (
            "examples/distill-digits.yaml",
            "https://github.com/dmd-operator/dmd-operator/blob/main/examples/distill-digits.yaml",
        ),
        ("benchmarks/", "https://github.com/dmd-operator/dmd-operator/tree/main/benchmarks"),
        ("https://arxiv.org/abs/2405.14867", "https://arxiv.org/abs/2405.14867"),
    ],
)
def test_links_of_the_repository_lead_on(gather: ModuleType, link: str, becomes: str) -> None:
    wrong: list[str] = []
    assert gather.with_links_of_the_site(f"[x]({link})", "README.md", wrong) == f"[x]({becomes})"
    assert wrong == []


def test_a_link_to_what_is_not_there_is_told(gather: ModuleType) -> None:
    wrong: list[str] = []
    gather.with_links_of_the_site("[x](../nothing.md)\n\n```\n[y](neither.md)\n```\n", "docs/method.md", wrong)
    assert wrong == ["docs/method.md: links to nothing.md, which is not there"]


@pytest.mark.parametrize("link", ["b.md#nowhere", "nowhere.md", "#nowhere"])
def test_the_builder_refuses_wrong_links(link: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A\n\n[x]({link}), [y](b.md#b)\n")
    (tmp_path / "docs" / "b.md").write_text("# B\n")
    ours = (ROOT / "mkdocs.yml").read_text()
    config = re.sub(r"^nav:.*?(?=^plugins)", "", ours, flags=re.MULTILINE | re.DOTALL)
    config = config.replace("docs_dir: dist/docs", "docs_dir: docs").replace("site_dir: dist/site", "site_dir: site")
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"  - mkdocstrings:.*?(?=^markdown)", "", config, flags=re.M | re.S))
    done = subprocess.run([ZENSICAL, "build", "--strict"], cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode != 0, done.stdout
