"""`dmdctl init`: writes one of the manifests that come with the command, to be run or changed."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from dmd_api.errors import BadInputError
from dmdctl.console import Console

PREFIX = "distill-"


def examples() -> Mapping[str, Path]:
    """The manifests that come with the command, by name.

    A wheel has them in the package. In a checkout they are the repository's, which are the same files.
    """
    here = Path(__file__).parent
    folder = next(place for place in (here / "examples", here.parents[1] / "examples") if place.is_dir())
    return {file.stem.removeprefix(PREFIX): file for file in sorted(folder.glob(f"{PREFIX}*.yaml"))}


def write_example(name: str, out: Path | None) -> Path:
    """Writes the manifest `name`, and returns where it is; does nothing where it is there already.

    Raises:
        BadInputError: there is no such example, or another file is there.
    """
    known = examples()
    if name not in known:
        raise BadInputError(f"EXAMPLE: there is no {name!r}; choose one of {', '.join(known)}")
    # Its comments name it as the repository does.
    text = known[name].read_text().replace("examples/", "")
    target = out or Path(known[name].name)
    try:
        if target.exists():
            if target.read_text() == text:
                return target
            raise BadInputError(f"{target}: is there already and differs; write to another file with --out")
        target.write_text(text)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{target}: cannot be written: {error}") from error
    return target


def show_written(file: Path) -> None:
    """Prints where the manifest is, and the commands that go on from there."""
    console = Console()
    name = shlex.quote(str(file))
    console.print_line("wrote ", (str(file), "bold"))
    hints = console.aside()
    for command, what in (
        (f"dmdctl plan {name}", "shows what it takes"),
        (f"dmdctl run {name}", "runs it on this machine"),
        (f"dmdctl run {name} --shrink", "rehearses it in minutes"),
    ):
        hints.print_line(f"  {command:<{len(name) + 22}}{what}")


def show_examples() -> None:
    """Prints the name of each example and the first sentence of its comment."""
    console = Console()
    known = examples()
    width = max(map(len, known))
    for name, file in known.items():
        console.print_line((name.ljust(width), "bold"), f"  {_first_sentence(file.read_text())}")


def _first_sentence(text: str) -> str:
    comment = " ".join(line[1:].strip() for line in text.partition("\napiVersion:")[0].splitlines())
    found = re.match(r".*?\.(?=\s|$)", comment)
    return found[0] if found else comment
