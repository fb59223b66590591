"""Class numbers from the folders that pictures are in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}


@dataclass(frozen=True)
class ClassFolders:
    """The classes of pictures in folders.

    Attributes:
        labels: of each picture.
        names: of the classes as they were numbered, in their order; None where the folders' names are the numbers.
    """

    labels: list[int]
    names: list[str] | None


def class_folders(keys: Sequence[str]) -> ClassFolders | str:
    """The classes of pictures that lie in a folder for each, or why their folders are no classes.

    Folders that are named by numbers are these classes; others are numbered as they are sorted, as torchvision's
    ImageFolder does. One folder above all others is none.

    Args:
        keys: the pictures' paths.
    """
    folders = [PurePosixPath(key).parts[:-1] for key in keys]
    # All in one, such as `train/CLASS/`: the classes are below.
    while folders and len({parts[:1] for parts in folders}) == 1 and all(len(parts) > 1 for parts in folders):
        folders = [parts[1:] for parts in folders]
    if not all(folders):
        return "not every picture is in a folder of its class"
    tops = [parts[0] for parts in folders]
    known = sorted(set(tops))
    if {name.lower() for name in known} <= SPLITS:
        return f"the folders {', '.join(known)} are no classes; give the URI of one that holds a folder for each class"
    # EXAMPLE/images/ below each class is fine; ANIMAL/dog/ beside VEHICLE/car/ may mean either.
    below = set(folders)
    if all(len(parts) > 1 for parts in folders) and len(below) > len(known):
        return f"folders are nested, as in {'/'.join(min(below))}; give a URI that holds a folder for each class"
    if all(name.isascii() and name.isdecimal() for name in known):
        if len({int(name) for name in known}) < len(known):
            return f"two of the folders {', '.join(known)} are the same number"
        return ClassFolders([int(name) for name in tops], None)
    numbers = {name: number for number, name in enumerate(known)}
    return ClassFolders([numbers[name] for name in tops], known)
