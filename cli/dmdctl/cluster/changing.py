"""`dmdctl suspend`, `resume` and `delete`: what people do to a run besides creating it."""

import asyncio
from typing import Any

from kubernetes.aio.client import ApiException, CustomObjectsApi

from dmd_api.crd import GROUP, PLURAL, VERSION
from dmdctl.cluster.cluster import REQUEST_SECONDS, UNREACHABLE, connect, find
from dmdctl.cluster.target import Target
from dmdctl.console import Console, one_line


def set_suspend(name: str, target: Target, *, suspend: bool) -> None:
    """Suspends a run, whose pods end after a checkpoint, or lets it go on.

    Raises:
        BadInputError: there is no such run, or it may not be changed.
        InfrastructureError: the API server does not answer.
    """
    changed = asyncio.run(_set_suspend(name, target, suspend=suspend))
    said = "suspended: its pods end after a checkpoint" if suspend else "resumed: it goes on from its last checkpoint"
    Console().print(one_line((name, "bold"), f"  {said if changed else 'was so already'}"))


def delete_run(name: str, target: Target) -> None:
    """Deletes a run with its Jobs and pods; what it stored and registered stays.

    Raises:
        BadInputError: there is no such run, or it may not be deleted.
        InfrastructureError: the API server does not answer.
    """
    asyncio.run(_delete(name, target))
    Console().print(one_line((name, "bold"), "  deleted; what it stored and registered stays"))


async def _set_suspend(name: str, target: Target, *, suspend: bool) -> bool:
    async with connect(target) as cluster:
        resource = await find(cluster, name)
        if bool(resource["spec"].get("suspend")) == suspend:
            return False
        # The version says that it is the run which was found, and not another one of its name.
        metadata = {"resourceVersion": resource["metadata"]["resourceVersion"]}
        body: dict[str, Any] = {"metadata": metadata, "spec": {"suspend": suspend}}
        patch = CustomObjectsApi(cluster.api).patch_namespaced_custom_object
        try:
            await patch(
                *(GROUP, VERSION, cluster.namespace, PLURAL, name, body),
                field_manager="dmdctl",
                _content_type="application/merge-patch+json",
                _request_timeout=REQUEST_SECONDS,
            )
        except (ApiException, *UNREACHABLE) as error:
            raise cluster.in_words(error) from error
        return True


async def _delete(name: str, target: Target) -> None:
    async with connect(target) as cluster:
        resource = await find(cluster, name)
        options: Any = {"preconditions": {"uid": resource["metadata"]["uid"]}, "propagationPolicy": "Background"}
        delete = CustomObjectsApi(cluster.api).delete_namespaced_custom_object
        try:
            await delete(
                *(GROUP, VERSION, cluster.namespace, PLURAL, name), body=options, _request_timeout=REQUEST_SECONDS
            )
        except (ApiException, *UNREACHABLE) as error:
            raise cluster.in_words(error) from error
