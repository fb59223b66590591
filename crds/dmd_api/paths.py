"""Paths that come from elsewhere, such as a bucket's keys: none of them leads out of the folder that it is below"""

from pathlib import Path

from dmd_api.errors import BadInputError


def check_path(name: str) -> None:
    """Refuses a path that may lead elsewhere than below the folder that it counts from.

    Args:
        name: the path, as a bucket, a hub, an archive or a file names it.

    Raises:
        ValueError: it is absolute, it has an empty segment, `.` or `..`, or a backslash or NUL in it.
    """
    if "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} has a backslash or a NUL in it")
    if bad := {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"{name!r} is not a path below a folder: it has the segment {bad.pop()!r}")


def below(folder: Path, name: str, source: str) -> Path:
    """The path of what `source` calls `name`, below a local folder.

    Args:
        folder: the local folder.
        name: a path with slashes, which nothing vouches for.
        source: what names it, for messages.

    Raises:
        BadInputError: it leads elsewhere, or may.
    """
    try:
        check_path(name)
    except ValueError as error:
        raise BadInputError(f"{source}: {error}; rename or remove it") from error
    return folder / name
