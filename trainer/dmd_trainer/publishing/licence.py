"""The teacher's licence, which holds for its generator too: its files, and what its model card says of it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError
from dmd_api.parsing import LARGEST_YAML, parse_yaml
from dmd_api.text import neutral
from dmd_trainer.runtime.sources import is_own

_NAMED_SO = re.compile(r"licen[cs]e|copying|notice|use.?policy", re.IGNORECASE)
_TEXTS = ("", ".txt", ".md", ".rst", ".html", ".pdf")
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)


def copy_licence(teacher: Path, pipeline: Path) -> None:
    """Copies the teacher's licence files to the same places in the exported pipeline."""
    for file in _licence_files(teacher):
        target = pipeline / file.relative_to(teacher)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def licence_fields(teacher: Path) -> dict[str, Any]:
    """The fields `license`, `license_name` and `license_link` of the generator's model card, as its teacher has them.

    Where the teacher's card names no licence, they say so, and point to its first licence file.
    """
    card = front_matter(teacher / "README.md")
    found = {field: _shown(card[field]) for field in ("license", "license_name", "license_link") if card.get(field)}
    if "license" in found:
        return found
    # The hub takes only "other" for a licence that it does not know by its name.
    link = next((str(file.relative_to(teacher)) for file in _licence_files(teacher)), None)
    return {"license": "other", "license_name": "the-teachers"} | found | ({"license_link": link} if link else {})


def _shown(value: Any) -> Any:
    """A licence's name, or several, as a card may show them."""
    return [neutral(str(name)) for name in value] if isinstance(value, list) else neutral(str(value))


def front_matter(card: Path) -> dict[str, Any]:
    """The YAML on top of a model card; nothing where there is no card, or none that can be read."""
    try:
        with card.open("rb") as file:
            text = file.read(LARGEST_YAML).decode("utf-8-sig", errors="replace")
        found = _FRONT_MATTER.match(text.replace("\r\n", "\n"))
        (fields,) = parse_yaml(found[1], str(card)) if found else ({},)
    except (OSError, ValueError, BadInputError):  # a card is for people: no run ends because of one
        return {}
    return fields if isinstance(fields, dict) else {}


def _licence_files(teacher: Path) -> Iterator[Path]:
    for file in sorted(teacher.rglob("*")):
        name = str(file.relative_to(teacher))
        named_so = _NAMED_SO.search(name) and file.suffix.lower() in _TEXTS
        if named_so and file.is_file() and is_own(file, teacher):  # what is published must not be somebody's secret
            yield file
