"""Text of others is shown as text."""

import pytest
import yaml
from markdown_it import MarkdownIt

from dmd_api.errors import BadInputError
from dmd_api.loading import ManifestError, Problem
from dmd_api.text import markdown, neutral
from tests.awkward import AWKWARD, steers


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_what_steers_is_replaced_on_one_line(text: str) -> None:
    shown = neutral(text)
    assert steers(shown) == []
    assert "\n" not in shown
    assert len(shown) == len(text)
    assert neutral(shown) == shown
    shown.encode()


def test_lines_are_kept_where_they_are_asked_for() -> None:
    assert neutral("a\nb\x1bc", "\n") == "a\nb\N{REPLACEMENT CHARACTER}c"
    assert neutral("a\nb", "\n  ") == "a\n  b"


JOINED = "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{MICROSCOPE}"


@pytest.mark.parametrize("text", ["plain", "naïve, 日本語 ✓", "a\tb", JOINED, "no-break\N{NO-BREAK SPACE}space", ""])
def test_text_of_people_stays_as_it_is(text: str) -> None:
    assert neutral(text) == text


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_markdown_shows_the_characters_and_nothing_else(text: str) -> None:
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    (_, inline, _) = page.parse(f"before {markdown(text)} after")
    kinds = {token.type for token in inline.children or []}
    assert kinds <= {"text", "text_special"}, kinds
    assert inline.children is not None
    assert "".join(token.content for token in inline.children) == f"before {neutral(text)} after"


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_errors_quote_it_neutrally(text: str) -> None:
    error = BadInputError(f"spec.teacher.uri: {text}; replace it")
    assert steers(error.message) == steers(str(error)) == []
    assert len(str(ManifestError([Problem(f"spec.{text}", text), Problem("", text)])).splitlines()) == 2


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_yaml_keeps_it_in_its_field(text: str) -> None:
    assert yaml.safe_load(yaml.safe_dump({"license": neutral(text), "x": 1})) == {"license": neutral(text), "x": 1}
