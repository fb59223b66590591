"""What the processes of a stage write into their logs, line by line while they write it"""

from collections.abc import Iterator
from pathlib import Path

STREAMS = ("stdout.log", "stderr.log")
"""torchx's names for what a replica writes."""


class StageLogs:
    """The logs of an attempt, each of which is read once.

    Args:
        folder: torchx's, which need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def news(self, *, over: bool = False) -> Iterator[str]:
        """The lines since the last call, those of the first replica first; each says whose it is.

        Args:
            over: nothing more is written: a last line without an end counts too.
        """
        files = [file for file in self._folder.rglob("*.log") if file.name in STREAMS]
        for file in sorted(files, key=lambda file: (int(file.parent.name), file.name)):
            with file.open("rb") as log:
                log.seek(self._read.get(file, 0))
                content = log.read()
            complete = len(content) if over else content.rfind(b"\n") + 1
            self._read[file] = self._read.get(file, 0) + complete
            role, replica = file.parts[-3:-1]
            for line in content[:complete].decode(errors="replace").split("\n"):
                if line.strip():
                    shown = line.rstrip().rpartition("\r")[2]  # libraries draw their bars over each other
                    yield f"{role}-{replica} {shown}"
