"""`dmdctl watch`: follows a run in a cluster to its end."""

import asyncio
from collections.abc import AsyncIterator

from kubernetes.aio.client import CustomObjectsApi

from dmd_api.crd import GROUP, PLURAL, VERSION
from dmd_api.errors import BadInputError, DMDError
from dmd_api.exit_codes import ExitCode
from dmdctl.cluster.cluster import Cluster, connect, find
from dmdctl.cluster.following import Objects, Outage, snapshots
from dmdctl.cluster.merging import Merge
from dmdctl.cluster.run_view import RunView, exit_code, next_command, summary
from dmdctl.cluster.target import Target
from dmdctl.console import Console, one_line, warning
from dmdctl.display import make_display
from dmdctl.json_lines import JsonLines
from dmdctl.waiting import waiting

EVENTS = ("events.k8s.io", "v1")


def watch_run(name: str, target: Target, *, as_json: bool = False) -> ExitCode:
    """Shows the run until it is over, as JSON lines if wished; what it ended with.

    Raises:
        BadInputError: there is no such run, or the cluster cannot be used.
        InfrastructureError: the API server does not answer.
    """
    console = Console(stderr=as_json)
    try:
        return asyncio.run(_watch(name, target, console, JsonLines() if as_json else None))
    except KeyboardInterrupt:
        console.aside().print_line(f"the run goes on by itself; dmdctl watch {name} shows it again")
        return ExitCode.INTERRUPTED


async def _watch(name: str, target: Target, console: Console, lines: JsonLines | None) -> ExitCode:
    async with connect(target) as cluster:
        with waiting(console, "asking the API server"):
            resource = await find(cluster, name)
        with lines or make_display(console, estimate=False) as display:
            display.say(one_line((name, "bold"), f"  namespace {cluster.namespace}"))
            view = RunView(display)
            async with Merge[tuple[bool, Objects]]() as changes:
                outage = Outage(cluster, display.say)
                uid = resource["metadata"]["uid"]
                events = _events(cluster, outage, uid)
                # Events before the resource: of what is past by then, the status says what still matters.
                old: set[str] = set()
                try:
                    old.update(await anext(events))
                    changes.add(_labelled(True, events))
                except BadInputError as error:
                    view.hears = False
                    display.say(warning(f"going on without events: {error.message}"))
                changes.add(_labelled(False, _resource(cluster, outage, name)))
                over = False
                while not over:
                    are_events, objects = await changes.next()
                    if are_events:
                        for event in _new(objects, old):
                            view.hear(event)
                        continue
                    if name not in objects or objects[name]["metadata"]["uid"] != uid:
                        raise DMDError(f"{name}: was deleted")
                    resource = objects[name]
                    over = view.see(resource)
    assert view.status is not None
    if lines is not None:
        lines.result(exit_code(view.status), status=resource["status"])
        return exit_code(view.status)
    for line in summary(resource, view.status):
        console.print(line, soft_wrap=True)
    if (command := next_command(resource, view.status)) is not None:
        console.aside().print(command, soft_wrap=True)
    return exit_code(view.status)


def _resource(cluster: Cluster, outage: Outage, name: str) -> AsyncIterator[Objects]:
    lister = CustomObjectsApi(cluster.api).list_namespaced_custom_object
    where = (GROUP, VERSION, cluster.namespace, PLURAL)
    return snapshots(outage, "resource", lister, *where, field_selector=f"metadata.name={name}")


def _events(cluster: Cluster, outage: Outage, uid: str) -> AsyncIterator[Objects]:
    # As custom objects: the client's own models refuse events that older writers leave fields out of.
    lister = CustomObjectsApi(cluster.api).list_namespaced_custom_object
    where = (*EVENTS, cluster.namespace, "events")
    return snapshots(outage, "events", lister, *where, field_selector=f"regarding.uid={uid}")


def _new(events: Objects, old: set[str]) -> list[dict[str, object]]:
    """The events that are not among `old`, by their time; they are from now on."""
    news = sorted((event.get("eventTime") or "", name) for name, event in events.items() if name not in old)
    old.update(name for _, name in news)
    return [events[name] for _, name in news]


async def _labelled(events: bool, source: AsyncIterator[Objects]) -> AsyncIterator[tuple[bool, Objects]]:
    async for objects in source:
        yield events, objects
