"""Parses JSON and YAML that others wrote: bounded in size and depth, and an error says which file and why"""

import json
import re
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dmd_api.errors import BadInputError

M = TypeVar("M", bound=BaseModel)

DEEPEST = 64
"""Levels of lists and mappings in each other: the deepest field of a pod template is at 14."""
LARGEST_JSON = 4 * 2**20
"""Bytes; configurations of models have thousands, indices of their weights hundreds of thousands."""
LARGEST_YAML = 256 * 2**10
"""Bytes; a manifest has thousands, and Kubernetes takes a million and a half."""
MOST_VALUES = 50_000
"""Values of YAML, with every alias counted as all that it stands for."""


def parse_json(text: bytes | str, source: str) -> Any:
    """The value of JSON.

    Args:
        text: at most `LARGEST_JSON` long.
        source: where it is from, for messages.

    Raises:
        BadInputError: it is none, or too large or too deep.
    """
    if len(text) > LARGEST_JSON:
        raise BadInputError(f"{source}: is larger than {LARGEST_JSON // 2**20} MiB; is it the right file?")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep(source) from error
    except ValueError as error:
        raise BadInputError(f"{source}: cannot be read as JSON ({error}); replace it") from error
    _check_depth(value, source)
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, such as a configuration.

    Raises:
        BadInputError: as `parse_json`; or it is another value, or cannot be read.
        FileNotFoundError: it is not there.
    """
    try:
        with path.open("rb") as file:
            value = parse_json(file.read(LARGEST_JSON + 1), str(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{path}: is not a JSON object; is it the right file?")
    return value


def parse_model(model: type[M], text: bytes | str, source: str) -> M:
    """JSON as a model's instance.

    Raises:
        BadInputError: it is not.
    """
    try:
        return model.model_validate(parse_json(text, source))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "all of it"
        raise BadInputError(
            f"{source}: is no {model.__name__} that this version reads ({where}: {problem['msg']}); remove it, or use "
            "the version that wrote it"
        ) from error


def read_yaml_text(file: BinaryIO, source: str) -> str:
    """The text of a file of YAML.

    Raises:
        BadInputError: it is too large, or not UTF-8 text.
        OSError: it cannot be read.
    """
    content = file.read(LARGEST_YAML + 1)
    if len(content) > LARGEST_YAML:
        raise BadInputError(f"{source}: is larger than {LARGEST_YAML // 2**10} KiB; is it the right file?")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{source}: cannot be read: it is not UTF-8 text; save it as such") from error


def parse_yaml(text: str, source: str) -> list[Any]:
    """The documents of YAML that are not empty.

    Args:
        text: as `read_yaml_text` returns it.
        source: where it is from, for messages.

    Raises:
        BadInputError: it is not valid, a key appears twice, or it is too deep or too large with its aliases.
    """
    try:
        documents = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInputError(f"{source}{where}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise BadInputError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from error
    for document in documents:
        _check_depth(document, source)  # aliases in aliases are deep too
    return documents


_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: 1e-5 is a number, keys are text, and one that appears twice is an error."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = self._values = 0
        self._values_of: dict[str, int] = {}  # by anchor

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        alias, before = isinstance(event, yaml.AliasEvent), self._values
        if not alias:
            self._values_of.pop(event.anchor, None)
        self._depth += 1
        if self._depth > DEEPEST:
            self._refuse(f"it is nested more than {DEEPEST} levels deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and event.anchor not in self._values_of:
            self._refuse(f"the alias *{event.anchor} is within what it stands for; write it out", event)
        self._values += self._values_of[event.anchor] if alias else 1
        if self._values > MOST_VALUES:
            self._refuse(f"it has more than {MOST_VALUES} values, with its aliases written out; make it smaller", event)
        if not alias and event.anchor is not None:
            self._values_of[event.anchor] = self._values - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str | int):
                str(value).encode()  # neither half a character, "\ud800", nor a number of thousands of digits
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # PyYAML's constructors of dates and numbers fail at what only looks like one, as 2026-02-30 does.
            raise yaml.constructor.ConstructorError(
                None, None, f"{str(node.value)[:60]!r} is no {node.tag.rpartition(':')[2]}", node.start_mark
            ) from error
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key_node.tag != _MERGE:
                key_node.tag = _TEXT  # as in JSON: 1 and "1" are the same key
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} appears twice; keep one", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def _refuse(self, problem: str, event: Any) -> None:
        raise yaml.composer.ComposerError(None, None, problem, event.start_mark)


_Loader.yaml_implicit_resolvers = {  # a copy: the lists are shared with PyYAML's own loader
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$|^[-+]?\.inf$|^\.nan$"
    ),
    list("-+.0123456789"),
)


def _check_depth(value: Any, source: str) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [inner for inner in level if isinstance(inner, dict | list)]
        if not level:
            return
        level = [child for inner in level for child in (inner.values() if isinstance(inner, dict) else inner)]
    raise _too_deep(source)


def _too_deep(source: str) -> BadInputError:
    return BadInputError(f"{source}: is nested more than {DEEPEST} levels deep; is it the right file?")
