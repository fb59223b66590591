"""Writes the tables of files in docs/architecture.md: each package, its files, and what their docstrings say.

python docs/tables.py            writes
python docs/tables.py --check    says whether they are current, exit code 1 if not
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
SOURCES = ("crds/dmd_api", "trainer/dmd_trainer", "operator/dmd_operator", "cli/dmdctl")
MARKED = re.compile(r"(<!-- files of (\S+), by `make generate` -->\n)(.*?)(<!-- end of files -->)", re.DOTALL)


def page(text: str) -> str:
    """The page with its tables rewritten.

    Raises:
        ValueError: a package has no table, or a table no package.
    """
    marked, there = {marker[2] for marker in MARKED.finditer(text)}, set(rooms())
    if missing := sorted(there - marked):
        raise ValueError(f"docs/architecture.md has no table for {', '.join(missing)}: mark its place as the others'")
    if gone := sorted(marked - there):
        raise ValueError(f"docs/architecture.md has a table for {', '.join(gone)}, which is no package: remove it")
    return MARKED.sub(lambda found: found[1] + table(found[2]) + found[4], text)


def rooms() -> Iterator[str]:
    """The packages that have tables of their own: those below `SOURCES`, and they themselves."""
    for source in SOURCES:
        yield source
        yield from (f"{source}/{child.parent.name}" for child in (ROOT / source).glob("*/__init__.py"))


def table(room: str) -> str:
    """A package's table: its own idea as the head, then its files and those of packages inside it that have none."""
    folder = ROOT / room
    rows = [f"| `{folder.name}/` | {idea(folder / '__init__.py')} |", "|---|---|"]
    inside = folder.glob("*.py") if room in SOURCES else folder.rglob("*.py")
    for file in sorted(inside, key=lambda file: (file.parent, file.name)):
        name = file.relative_to(folder).as_posix().removesuffix("__init__.py")
        if name:
            rows.append(f"| `{name}` | {idea(file)} |")
    return "\n".join(rows) + "\n"


def idea(file: Path) -> str:
    """The first line of a module's docstring.

    Raises:
        ValueError: it has none.
    """
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    if not docstring:
        raise ValueError(f"{file.relative_to(ROOT)} has no docstring: its first line says what the file is")
    return docstring.splitlines()[0].removesuffix(".").replace("|", "\\|")


def main() -> int:
    """The command; its exit code."""
    text = PAGE.read_text()
    try:
        current = page(text)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(current)
    elif current != text:
        print(f"{PAGE.relative_to(ROOT)} is stale: run `make generate`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
