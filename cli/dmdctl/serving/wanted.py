"""What a request asks for, held against what the generator can draw; a refusal names the field and its range"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from dmdctl.model.generator import Generator

MAX_SEED = 2**63 - 1
"""What a pyfunc's `long` holds."""
MAX_COUNT = 16
MAX_PROMPT = 1000


def _empty_is_none(value: object) -> object:
    """An emptied field of a form arrives as an empty text."""
    return None if value == "" else value


class Wanted(BaseModel):
    """The fields of a request.

    Attributes:
        prompt: of a generator that draws from text.
        class_label: of one that draws classes; None: each picture's is the next of all.
        seed: the first picture's; each further one's is one more.
        count: how many pictures.
        steps: how many the generator takes; None: as many as it was trained for.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    class_label: Annotated[int | None, BeforeValidator(_empty_is_none)] = None
    seed: int = 0
    count: int = 1
    steps: Annotated[int | None, BeforeValidator(_empty_is_none)] = None


@dataclass(frozen=True)
class Task:
    """Pictures that are drawn together; of labels and prompts there is one for each seed, or there are none."""

    seeds: list[int]
    labels: list[int] | None
    prompts: list[str] | None
    steps: int

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, start: int, stop: int) -> "Task":
        """Some of its pictures."""
        part = slice(start, stop)
        return Task(
            self.seeds[part], self.labels and self.labels[part], self.prompts and self.prompts[part], self.steps
        )


class RefusedError(Exception):
    """A request that cannot be answered as it is.

    Args:
        field: of the request.
        message: what is wrong with it, and what would be right.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


def task_for(wanted: Wanted, generator: Generator) -> Task:
    """The task that a request is for this generator.

    Raises:
        RefusedError: a field is missing, of no use, or out of its range.
    """
    count = _within("count", wanted.count, 1, MAX_COUNT)
    seed = _within("seed", wanted.seed, 0, MAX_SEED - count + 1)
    steps = generator.steps[-1] if wanted.steps is None else wanted.steps
    _within("steps", steps, generator.steps[0], generator.steps[-1])
    return Task(
        list(range(seed, seed + count)),
        _labels(wanted.class_label, count, generator.classes),
        _prompts(wanted.prompt, count, takes_text=generator.takes_text),
        steps,
    )


def _labels(label: int | None, count: int, classes: int | None) -> list[int] | None:
    if classes is None:
        if label is not None:
            raise RefusedError("class_label", "this generator has no classes; leave it out")
        return None
    if label is None:
        return [picture % classes for picture in range(count)]
    return [_within("class_label", label, 0, classes - 1)] * count


def _prompts(prompt: str | None, count: int, *, takes_text: bool) -> list[str] | None:
    if not takes_text:
        if prompt is not None:
            raise RefusedError("prompt", "this generator does not draw from text; leave it out")
        return None
    if prompt is None or not prompt.strip():
        raise RefusedError("prompt", f"missing; this generator draws from text of 1 to {MAX_PROMPT} characters")
    if len(prompt) > MAX_PROMPT:
        raise RefusedError("prompt", f"has {len(prompt)} characters; it may have 1 to {MAX_PROMPT}")
    if not prompt.isascii() and prompt != prompt.encode("utf-8", "ignore").decode():
        raise RefusedError("prompt", "holds half a character; send whole ones")
    return [prompt] * count


def _within(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise RefusedError(field, f"{value} is out of range; it may be {low}" + (f" to {high}" if high > low else ""))
    return value
