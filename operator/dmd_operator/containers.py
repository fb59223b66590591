"""Reads the containers of a pod: why it waits, why it failed, and what outlives its trainer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dmd_api.labels import CONTAINER

_STARTING = {"ContainerCreating", "PodInitializing"}
"""Reasons for waiting that need no report, unless they last."""


@dataclass(frozen=True)
class Container:
    """A container of a pod, whoever put it there.

    Attributes:
        title: how a message calls it; empty for the trainer's.
        status: as its kubelet writes it.
        init: it runs before the trainer.
    """

    title: str
    status: Mapping[str, Any]
    init: bool = False

    def state(self, name: str) -> Mapping[str, Any]:
        """Its state of this name, empty where it is in another."""
        return (self.status.get("state") or {}).get(name) or {}

    @property
    def running(self) -> bool:
        """It runs."""
        return "running" in (self.status.get("state") or {})

    @property
    def prefix(self) -> str:
        """Begins a message about it."""
        return f"{self.title}: " if self.title else ""


def containers(status: Mapping[str, Any]) -> Iterator[Container]:
    """All containers of a pod, in the order in which they start."""
    for one in status.get("initContainerStatuses") or []:
        yield Container(f"init container {one['name']}", one, init=True)
    for one in (*(status.get("containerStatuses") or []), *(status.get("ephemeralContainerStatuses") or [])):
        yield Container("" if one["name"] == CONTAINER else f"container {one['name']}", one)


def trainer(status: Mapping[str, Any]) -> Container:
    """The trainer's container, without a state before its kubelet has one."""
    return next((one for one in containers(status) if not one.title), Container("", {}))


def waiting(status: Mapping[str, Any]) -> str | None:
    """Why a container cannot start, as `Reason: container: message`; None where none is held up."""
    for one in containers(status):
        wait = one.state("waiting")
        if wait and wait.get("reason") not in _STARTING:
            return f"{wait.get('reason')}: {one.prefix}{wait.get('message', '')}".rstrip(": ")
    return None


def starting(status: Mapping[str, Any]) -> str | None:
    """What a pod is busy with before its trainer can start; None where that has started."""
    if trainer(status).state("waiting").get("reason") not in _STARTING:
        return None
    at_work = next((one for one in containers(status) if one.init and one.running), None)
    return f"{at_work.title} runs" if at_work is not None else str(trainer(status).state("waiting")["reason"])


def failure(status: Mapping[str, Any]) -> str | None:
    """Why a pod failed, in its kubelet's words or by the end of a container other than the trainer's."""
    if status.get("reason"):
        return f"{status['reason']}: {status.get('message', '')}".rstrip(": ")
    for one in containers(status):
        ended = one.state("terminated")
        if one.title and ended.get("exitCode"):
            return f"{one.title} ended with exit code {ended['exitCode']} ({ended.get('reason', 'no reason given')})"
    return None


def running(status: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the containers that run beside the trainer's, without the sidecars that Kubernetes itself ends."""
    return tuple(one.status["name"] for one in containers(status) if one.title and not one.init and one.running)
