"""Texts in the cells of tables and the values of JSON: what is no text is refused, not written out."""

import math

COLUMNS = ("text", "caption", "prompt")
"""The columns or keys that hold a text, the first that is there."""


def texts_in(value: object) -> list[str]:
    """The texts of a cell or of a key's value: none where it is missing (null, NaN) or empty, each of a list's.

    Raises:
        ValueError: it is no text, or not in UTF-8.
    """
    match value:
        case None:
            return []
        case float() if math.isnan(value):  # how pandas writes what is missing
            return []
        case bytes():
            return texts_in(value.decode("utf-8-sig"))
        case str():
            value.encode()  # JSON can write half a character, which no tokenizer takes
            return [value.strip()] if value.strip() else []
        case list() | tuple():
            return [text for part in value for text in texts_in(part)]
    raise ValueError(f"{str(value)[:40]} is no text but of type {type(value).__name__}")


def text_column(names: list[str], wanted: str | None = None) -> str | None:
    """The column or key that holds the text, of those that there are.

    Args:
        names: of all columns.
        wanted: the one that the manifest names.
    """
    return next((name for name in ((wanted,) if wanted else COLUMNS) if name in names), None)
