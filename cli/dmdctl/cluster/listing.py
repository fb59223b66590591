"""`dmdctl list` and `dmdctl get`: the runs of a namespace or of all, and one of them as the API server has it."""

import asyncio
import json
from http import HTTPStatus
from typing import Any, Literal

import typer
import yaml
from kubernetes.aio.client import ApiException

from dmd_api.crd import GROUP, PLURAL, VERSION
from dmd_api.text import neutral
from dmdctl.cluster.cluster import REQUEST_SECONDS, UNREACHABLE, Cluster, connect, find
from dmdctl.cluster.target import Target
from dmdctl.console import Console

AS_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
"""Asks the API server for the columns that it gives kubectl (the CRD's `additionalPrinterColumns`)."""


def list_runs(target: Target, *, everywhere: bool) -> None:
    """Prints the runs, a line each.

    Raises:
        BadInputError: they may not be listed, or the cluster cannot be used.
        InfrastructureError: the API server does not answer.
    """
    console = Console()
    for line in asyncio.run(_list(target, everywhere=everywhere)):
        console.print_line(line)


def get_run(name: str, form: Literal["yaml", "json"], target: Target) -> None:
    """Prints a run's resource, status included, without what only the API server needs.

    Raises:
        BadInputError: there is no such run, or the cluster cannot be used.
        InfrastructureError: the API server does not answer.
    """
    resource = asyncio.run(_get(name, target))
    resource["metadata"].pop("managedFields", None)
    # For other programs, as it is: JSON escapes what steers a terminal, and so does YAML.
    text = json.dumps(resource, indent=2) if form == "json" else yaml.safe_dump(resource, sort_keys=False)
    typer.echo(text.rstrip())


async def _get(name: str, target: Target) -> dict[str, Any]:
    async with connect(target) as cluster:
        return await find(cluster, name)


async def _list(target: Target, *, everywhere: bool) -> list[str]:
    async with connect(target) as cluster:
        try:
            found = await _table(cluster, everywhere=everywhere)
        except (ApiException, *UNREACHABLE) as error:
            raise cluster.in_words(error) from error
        if not found["rows"]:
            return [f"no DMDDistillation in {'any namespace' if everywhere else f'the namespace {cluster.namespace}'}"]
    shown = [number for number, column in enumerate(found["columnDefinitions"]) if column["priority"] == 0]
    names = [found["columnDefinitions"][number]["name"] for number in shown]
    table = [[*(["Namespace"] if everywhere else []), *names]]
    for row in found["rows"]:
        cells = [row["cells"][number] for number in shown]
        place = [row["object"]["metadata"]["namespace"]] if everywhere else []
        table.append(["" if cell is None else neutral(str(cell)) for cell in (*place, *cells)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


async def _table(cluster: Cluster, *, everywhere: bool) -> dict[str, Any]:
    where = "" if everywhere else f"/namespaces/{cluster.namespace}"
    api: Any = cluster.api
    request = await api.param_serialize(
        method="GET",
        resource_path=f"/apis/{GROUP}/{VERSION}{where}/{PLURAL}",
        header_params={"Accept": AS_TABLE},
        auth_settings=["BearerToken"],
    )
    answer = await api.call_api(*request, _request_timeout=REQUEST_SECONDS)
    body = await answer.read()
    if answer.status != HTTPStatus.OK:
        api.response_deserialize(answer, {"default": "str"})  # raises
    found: dict[str, Any] = json.loads(body)
    return found
