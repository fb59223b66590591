"""The cluster that a kubeconfig names, and a plain message for whatever keeps us from reaching it.

The client is an optional dependency: only the commands that speak with a cluster import this file.
"""

import difflib
import json
import os
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from kubernetes.aio.client import ApiClient, ApiException, Configuration, CustomObjectsApi
from kubernetes.aio.config import (
    KUBE_CONFIG_DEFAULT_LOCATION,
    ConfigException,
    list_kube_config_contexts,
    load_incluster_config,
    load_kube_config,
)

from dmd_api.crd import GROUP, PLURAL, VERSION
from dmd_api.errors import BadInputError, DMDError, InfrastructureError
from dmdctl.cluster.target import Target

UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError)
"""Raised by the client where no answer came, or only a part of one."""
CONNECTIONS = 0
"""No limit: each worker's log is a stream of its own, and merging them waits for all."""
REQUEST_SECONDS = 20.0
_BROKEN = (ConfigException, yaml.YAMLError, OSError, TypeError, KeyError, AttributeError, ValueError)
"""Raised by the client for kubeconfigs that are none."""


@dataclass(frozen=True)
class Cluster:
    """An API server and the namespace that is spoken of.

    Attributes:
        api: the client.
        namespace: the command's, else the context's, else `default`.
        target: what the command was told.
    """

    api: ApiClient
    namespace: str
    target: Target = field(default_factory=Target)

    async def sign_in_again(self) -> None:
        """Reads the kubeconfig again: tokens that a program hands out last for minutes.

        Raises:
            BadInputError: it cannot be used any more.
        """
        await _load(self.api.configuration, self.target)

    def in_words(self, error: Exception) -> DMDError:
        """Words for the user about `error`, an `ApiException` or one of `UNREACHABLE`."""
        host = self.api.configuration.host
        if not isinstance(error, ApiException):
            if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLError):
                return BadInputError(
                    f"{host}: its certificate is not trusted; check certificate-authority in kubeconfig"
                )
            said = str(error) or type(error).__name__
            return InfrastructureError(
                f"{host}: the API server does not answer ({said}); check --context and the network"
            )
        match error.status:
            case HTTPStatus.UNAUTHORIZED:
                return BadInputError(f"{host}: the API server does not know you; sign in again, or check --context")
            case HTTPStatus.FORBIDDEN:
                return BadInputError(f"{message_of(error)}; ask for a role that may do this, or check -n and --context")
            case HTTPStatus.NOT_FOUND:
                return BadInputError(
                    f"{host}: knows no {PLURAL}.{GROUP}: install the operator with its CRD first, or check --context"
                )
        return InfrastructureError(f"{host}: {message_of(error)}; try again")


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[Cluster]:
    """The cluster of a kubeconfig's context, or the one that this pod is in.

    Args:
        target: what the command was told.

    Raises:
        BadInputError: there is no kubeconfig, or it cannot be used; or an answer is nested too deeply to be read.
    """
    configuration = Configuration()
    own = await _load(configuration, target)
    configuration.connection_pool_maxsize = CONNECTIONS
    try:
        api = ApiClient(configuration)
    except (OSError, ValueError) as error:
        raise BadInputError(f"the kubeconfig's certificates cannot be used ({error}); sign in again") from error
    async with api:
        try:
            yield Cluster(api, target.namespace or own or "default", target)
        except RecursionError as error:
            # Of what the API server keeps, an owner of objects may nest parts as deeply as they like.
            raise BadInputError(
                f"{configuration.host}: an object that it returned is nested too deeply to be read; look for it among "
                "the run and its pods (podTemplate, resources, managedFields), and delete it"
            ) from error


async def find(cluster: Cluster, name: str) -> dict[str, Any]:
    """The resource as it is now.

    Raises:
        BadInputError: there is none, or it may not be read.
        InfrastructureError: nobody answers.
    """
    lister = CustomObjectsApi(cluster.api).list_namespaced_custom_object
    where = (GROUP, VERSION, cluster.namespace, PLURAL)
    try:
        found: Any = await lister(*where, field_selector=f"metadata.name={name}", _request_timeout=REQUEST_SECONDS)
        if found["items"]:
            return dict(found["items"][0])
        others: Any = await lister(*where, _request_timeout=REQUEST_SECONDS)
    except (ApiException, *UNREACHABLE) as error:
        raise cluster.in_words(error) from error
    raise not_found(name, cluster.namespace, [other["metadata"]["name"] for other in others["items"]])


def not_found(name: str, namespace: str, names: Iterable[str]) -> BadInputError:
    """The error for a name that is not there, among those that are."""
    there = sorted(names)
    if close := difflib.get_close_matches(name, there, n=3, cutoff=0.5):
        hint = f"did you mean {' or '.join(close)}?"
    elif there:
        hint = f"there {'is' if len(there) == 1 else 'are'} {', '.join(there[:10])}{', ...' if len(there) > 10 else ''}"
    else:
        hint = "it has none at all; check -n and --context"
    return BadInputError(f"{name}: no such DMDDistillation in the namespace {namespace}; {hint}")


def message_of(error: ApiException) -> str:
    """The API server's message, without the HTTP around it."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body
    try:
        return str(json.loads(body or "")["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{error.status} {error.reason}".strip()


async def _load(configuration: Configuration, target: Target) -> str | None:
    """Fills `configuration`; the namespace that belongs to it, where one does."""
    files = _files(target)
    if not any(map(os.path.exists, files)):
        if target.kubeconfig is not None:
            raise BadInputError(
                f"--kubeconfig {target.kubeconfig}: no such file; name one kubeconfig (KUBECONFIG takes several)"
            )
        if target.context is None and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            return _load_own_pod(configuration)
        raise BadInputError(f"no kubeconfig: {', '.join(files)} is not there; set KUBECONFIG to one")
    try:
        loader = await load_kube_config(  # type: ignore[no-untyped-call]
            os.pathsep.join(files), target.context, client_configuration=configuration, persist_config=False
        )
        namespace = (loader.current_context.get("context") or {}).get("namespace")
    except _BROKEN as error:
        if isinstance(error, OSError) and error.filename in files:
            raise BadInputError(f"{error.filename}: cannot be read ({error.strerror}); name a kubeconfig") from error
        if target.context is not None and target.context not in (names := _contexts(files)):
            there = f"there is {', '.join(names)}" if names else "it has none"
            raise BadInputError(
                f"--context {target.context}: no such context in {', '.join(files)}; {there}"
            ) from error
        said = " ".join(str(error).split())
        raise BadInputError(f"{', '.join(files)}: cannot be used as a kubeconfig ({said}); check it") from error
    return str(namespace) if namespace else None


def _files(target: Target) -> list[str]:
    """The kubeconfigs, whether they are there or not."""
    if target.kubeconfig is not None:
        return [str(target.kubeconfig.expanduser())]
    return [os.path.expanduser(path) for path in KUBE_CONFIG_DEFAULT_LOCATION.split(os.pathsep) if path]


def _load_own_pod(configuration: Configuration) -> str | None:
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException as error:
        raise BadInputError(f"this pod has no usable service account ({error}); set KUBECONFIG") from error
    namespace = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return namespace.read_text().strip() if namespace.exists() else None


def _contexts(files: list[str]) -> list[str]:
    try:
        contexts, _ = list_kube_config_contexts(os.pathsep.join(files))  # type: ignore[no-untyped-call]
        return sorted(str(context["name"]) for context in contexts)
    except _BROKEN:
        return []
