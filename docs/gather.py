"""Gathers the documentation's site: docs/, files of the repository that have a page there, and the Python API's pages.

python docs/gather.py FOLDER

A page links to any file of the repository as it does on GitHub, by its path. Here a link to a file that has a page
leads to the page, and any other one to the file on GitHub; a link to what is not there ends the command with exit code
1. What builds the site from FOLDER (mkdocs.yml) checks the links between pages and their anchors.
"""

import re
import shutil
import sys
from pathlib import Path
from posixpath import dirname, normpath, relpath

import tables  # docs/tables.py: the first lines of docstrings

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/dmd-operator/dmd-operator"
# File of the repository: its page.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "charts/dmd-operator/README.md": "chart.md",
}
# Package: the title of its page. Those that others may want to call are here, and not those that string them together.
ROOMS = {
    "crds/dmd_api": "The manifest's API",
    "trainer/dmd_trainer/diffusion": "Schedules, denoisers, samplers",
    "trainer/dmd_trainer/dmd": "The method",
    "trainer/dmd_trainer/families": "Teachers",
    "trainer/dmd_trainer/conditions": "Conditions",
    "trainer/dmd_trainer/data": "Data",
    "trainer/dmd_trainer/evaluation": "Evaluation",
    "trainer/dmd_trainer/health": "Health",
    "trainer/dmd_trainer/publishing": "Export and registry",
}
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()(?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?(\))")


def gather(folder: Path) -> list[str]:
    """Writes the site's sources into `folder`, which is made anew, and returns what is wrong with their links."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    sources = {f"docs/{file.relative_to(folder).as_posix()}": file for file in folder.rglob("*.md")}
    sources |= {source: folder / page for source, page in PAGES.items()}
    wrong: list[str] = []
    for source, file in sources.items():
        file.write_text(with_links_of_the_site((ROOT / source).read_text(), source, wrong))
    (folder / "reference").mkdir()
    (folder / "reference" / "index.md").write_text(overview())
    for room, title in ROOMS.items():
        (folder / "reference" / f"{Path(room).name}.md").write_text(reference(room, title))
    return wrong


def with_links_of_the_site(text: str, source: str, wrong: list[str]) -> str:
    """The text of a file of the repository with its links turned into the site's.

    Args:
        text: Markdown. What stands in its fenced blocks is no link.
        source: the file's path in the repository.
        wrong: what is wrong with a link is added to it.
    """
    here = page_of(source)
    assert here is not None

    def turned(found: re.Match[str]) -> str:
        opening, link, anchor, closing = found.groups(default="")
        target = normpath(f"{dirname(source)}/{link}").lstrip("/")
        if not (ROOT / target).exists():
            wrong.append(f"{source}: links to {target}, which is not there")
        page = page_of(target)
        if page is not None:
            return f"{opening}{relpath(page, dirname(here) or '.')}{anchor}{closing}"
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{opening}{REPOSITORY}/{kind}/main/{target}{anchor}{closing}"

    # `[/PATH][@REVISION]` of a URI is no reference either.
    text = "".join(part if FENCED.match(part) else LINK.sub(turned, part) for part in FENCED.split(text))
    return text.replace("[@", r"\[@")


def page_of(path: str) -> str | None:
    """The site's path of a file of the repository; None where it has none."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") and not path.endswith(".py") else None


def reference(room: str, title: str) -> str:
    """A page of the Python API: what the docstrings of each module of a package say."""
    package = room.partition("/")[2].replace("/", ".")
    names = sorted(file.stem for file in (ROOT / room).glob("*.py") if not file.stem.startswith("_"))
    modules = "\n\n".join(f"::: {package}.{name}" for name in names)
    return f"# {title}\n\n{tables.idea(ROOT / room / '__init__.py')}.\n\n{modules}\n"


def overview() -> str:
    """The page that the others of the Python API are listed on."""
    listed = "\n".join(
        f"- [{title}]({Path(room).name}.md): {tables.idea(ROOT / room / '__init__.py')}"
        for room, title in ROOMS.items()
    )
    return f"""# The Python API

What the packages' docstrings say. Before version 1.0 names in Python may change at any time. What stays stable is the
[manifest](../manifest.md), the command, and the pipeline that a run exports.

{listed}
"""


def main() -> int:
    """The command; its exit code."""
    wrong = gather(Path(sys.argv[1]))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
