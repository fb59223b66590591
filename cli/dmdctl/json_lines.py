"""A run as one JSON object a line, for other programs: `--output json` of `dmdctl run` and `dmdctl watch`.

Each has `event`: `start`, `progress`, `finish` and `fail` of a stage, `message`, and at last `result`. JSON has no NaN:
what is not finite is null.
"""

import sys
from types import TracebackType
from typing import Any, Self

from pydantic.alias_generators import to_camel
from pydantic_core import to_json
from rich.text import Text

from dmd_api.exit_codes import ExitCode
from dmd_api.runtime import Progress
from dmd_api.stages import Stage


class JsonLines:
    """Shows a run on standard output."""

    def __init__(self) -> None:
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def start(self, stage: Stage, ago: float = 0.0) -> None:
        """A stage begins."""
        self._write("start", stage=str(stage), secondsAgo=round(ago))

    def show(self, progress: Progress) -> None:
        """A stage's progress, where it is another one than the last."""
        # How long nothing has changed changes all the time.
        fields = progress.model_dump(mode="json", exclude={"unchanged_seconds"}, exclude_none=True)
        line = _line("progress", **{to_camel(name): value for name, value in fields.items()})
        if line != self._last:
            self._last = line
            self._print(line)

    def finish(self, stage: Stage, note: str, took: float | None = None) -> None:
        """A stage is done."""
        self._write("finish", stage=str(stage), note=note, **({} if took is None else {"seconds": round(took, 1)}))

    def fail(self, stage: Stage, note: str) -> None:
        """A stage ended without success."""
        self._write("fail", stage=str(stage), reason=note)

    def say(self, text: str | Text) -> None:
        """What a person would read."""
        self._write("message", text=str(text).strip())

    def result(self, code: ExitCode, **fields: Any) -> None:
        """The last line: what the command ends with."""
        self._write("result", exitCode=int(code), **fields)

    def _write(self, event: str, **fields: Any) -> None:
        self._print(_line(event, **fields))

    def _print(self, line: str) -> None:
        sys.stdout.write(line)
        sys.stdout.flush()


def _line(event: str, **fields: Any) -> str:
    return to_json({"event": event, **fields}, inf_nan_mode="null").decode() + "\n"
