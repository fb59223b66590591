"""A cluster's control groups: kubelet puts its pods under them. They are all that its processes do not take along."""

import contextlib
from pathlib import Path

from tests.cluster.processes import wait_for

_MOUNT = Path("/sys/fs/cgroup")


def create(name: str) -> None:
    """Makes the group in every hierarchy (there is one in version 2, one for each controller in version 1)."""
    for hierarchy in _hierarchies():
        if hierarchy.name == "unified":
            continue  # has no controllers, and kubelet asks for nothing there
        group = hierarchy / name
        group.mkdir(parents=True, exist_ok=True)
        if hierarchy == _MOUNT:
            for parent in (hierarchy, *reversed(list(group.relative_to(hierarchy).parents)[:-1])):
                folder = hierarchy / parent
                controllers = (folder / "cgroup.controllers").read_text().split()
                (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def remove(name: str) -> None:
    """Removes the group and all below, once the processes in them, which must have been killed, are gone."""
    wait_for(lambda: not _remaining(name), f"the control groups of {name} are empty and removed", deadline=30)


def exists(name: str) -> bool:
    """Whether something of the group is left."""
    return any((hierarchy / name).exists() for hierarchy in _hierarchies())


def _remaining(name: str) -> bool:
    for hierarchy in _hierarchies():
        groups = [path for path in (hierarchy / name).rglob("*") if path.is_dir()]
        for group in (*reversed(groups), hierarchy / name):
            with contextlib.suppress(OSError):
                group.rmdir()
    return exists(name)


def _hierarchies() -> list[Path]:
    if (_MOUNT / "cgroup.controllers").exists():
        return [_MOUNT]
    # With version 1, runc uses `unified` too where it is mounted.
    return [path for path in _MOUNT.iterdir() if not path.is_symlink() and (path / "cgroup.procs").exists()]
