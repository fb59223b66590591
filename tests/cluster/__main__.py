"""`python -m tests.cluster up` and `down`: the tests' cluster, for a person; `build` makes all that it is made of."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.cluster import binaries, cluster, images, owners
from tests.cluster.processes import ClusterError, wait_for

_KEPT = "kept"
"""Marks a cluster that a person asked for, and not a test."""
_READY = "ready: "


def up() -> None:
    """Brings a cluster up that stays after this command, and prints how to reach it; the one that is up, if one is."""
    names = _kept() or [_start_keeper()]
    folder = cluster.FOLDER / names[0]
    print(f"# two nodes, until `make cluster-down`; logs are in {folder}")
    print(f"export KUBECONFIG={folder / 'kubeconfig'}")


def down() -> None:
    """Takes down what `up` brought up, and removes what dead test runs left."""
    for name in _kept():
        folder = cluster.FOLDER / name
        keeper = cluster.owner(folder)
        owners.send(keeper, signal.SIGTERM)
        with contextlib.suppress(ClusterError):
            wait_for(lambda keeper=keeper: not owners.alive(keeper), f"{name} is down", deadline=60)
        owners.send(keeper, signal.SIGKILL)
        wait_for(lambda keeper=keeper: not owners.alive(keeper), f"the keeper of {name} is gone", deadline=20)
        print(f"# {name} is down")
    for name in cluster.sweep():
        print(f"# {name} was left behind, and is removed")


def build(part: str = "") -> None:
    """Builds and installs what is not in the cache: minutes once, and more than a test has.

    Args:
        part: `control-plane`, for what needs no nodes; all of it otherwise. Several may build at the same time: each
            waits for what another one is building.
    """
    root = not os.geteuid() and sys.platform.startswith("linux")
    nodes = root and part != "control-plane"
    names = (*binaries.CONTROL_PLANE, "kwok", *(name for name in binaries.CLUSTER if nodes))
    steps: list[tuple[str, Callable[[], object]]] = [(name, partial(binaries.build, name)) for name in names]
    if nodes:
        steps.insert(0, ("Debian's packages", binaries.install_debian_packages))
        steps += [("the image of pause", images.pause_archive), ("the base image", images.base_archive)]
    for name, step in steps:
        started = time.monotonic()
        step()
        if (seconds := time.monotonic() - started) > 1:
            print(f"# {name}: {seconds:.0f} s", flush=True)


def keep() -> None:
    """Owns a cluster until a signal asks for its end; everything in it ends with this process."""
    # Should `up` be killed, the line that it waits for cannot be written, and the cluster goes again.
    asked = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: sys.exit(1))
    kept = cluster.Cluster()
    kept.up()
    try:
        (kept.folder / _KEPT).touch()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, lambda *_: asked.set())
        print(f"{_READY}{kept.name}", flush=True)
        with Path(os.devnull).open("w") as nowhere:  # the terminal belongs to whoever called `up`
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        asked.wait()
    finally:
        kept.down()


def _kept() -> list[str]:
    return [
        folder.name
        for folder in sorted(cluster.FOLDER.glob("dmd-*"))
        if (folder / _KEPT).exists() and owners.alive(cluster.owner(folder))
    ]


def _start_keeper() -> str:
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)
    keeper = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", "keep"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        for line in keeper.stdout or ():
            if line.startswith(_READY):
                return line.removeprefix(_READY).strip()
            print(line, end="", file=sys.stderr)
    except KeyboardInterrupt:
        keeper.terminate()
        keeper.wait(60)
    sys.exit("no cluster")


if __name__ == "__main__":
    commands: dict[tuple[str, ...], Callable[[], None]] = {
        ("up",): up,
        ("down",): down,
        ("build",): build,
        ("build", "control-plane"): partial(build, "control-plane"),
        ("keep",): keep,
    }
    if (command := commands.get(tuple(sys.argv[1:]))) is None:
        sys.exit("usage: python -m tests.cluster up|down|build [control-plane]")
    command()
