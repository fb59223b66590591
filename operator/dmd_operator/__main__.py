"""`python -m dmd_operator`: the operator, in a pod or on a laptop with a kubeconfig."""

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import Any, cast

import aiohttp
import kopf
from kubernetes.aio.client import ApiClient, ApiException, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from prometheus_client import REGISTRY
from pydantic import ValidationError

from dmd_api.manifest import API_VERSION
from dmd_operator.cluster import PLURAL, Cluster, message_of
from dmd_operator.election import LeadLostError, Lock, lead
from dmd_operator.handlers import handlers, kopf_settings
from dmd_operator.metrics import ERRORS, Distillations, count_requests
from dmd_operator.objects import Objects
from dmd_operator.queue import Queue
from dmd_operator.reconcile import Reconciler
from dmd_operator.seen import Key, Seen
from dmd_operator.server import serve
from dmd_operator.settings import OperatorSettings

log = logging.getLogger("dmd_operator")

WAIT_FOR_API_SECONDS = 2.0


def main() -> None:
    """Runs until a signal stops it, or until it has lost the lead."""
    try:
        settings = OperatorSettings()
    except ValidationError as error:
        problems = (f"{'.'.join(str(part) for part in p['loc'])}: {p['msg']}" for p in error.errors())
        sys.exit("the settings DMD_OPERATOR_* cannot be used:\n" + "\n".join(problems))
    kopf.configure(debug=settings.debug, log_format=kopf.LogFormat.JSON)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # a line for each event of each pod otherwise
    try:
        asyncio.run(run(settings))
    except ConfigException as error:
        sys.exit(f"no cluster: neither a pod's service account nor a kubeconfig was found ({error}); set KUBECONFIG")
    except LeadLostError as error:
        sys.exit(f"{error}: another replica takes over")


async def run(settings: OperatorSettings) -> None:
    """The operator, from the first contact with the API server to the last.

    Raises:
        ConfigException: nothing says where the API server is.
        LeadLostError: this replica led and could not renew its Lease.
    """
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    configuration = Configuration()
    await _find_cluster(configuration)
    configuration.connection_pool_maxsize = settings.concurrent_requests
    configuration.trace_configs = [count_requests()]
    seen, ready = Seen(), asyncio.Event()
    REGISTRY.register(Distillations(seen))
    async with ApiClient(configuration) as api, aiohttp.ClientSession() as http:
        server = await serve(settings.port, REGISTRY, ready.is_set)
        try:
            await _wait_for_api(api, settings, stop)
            ready.set()
            cluster = Cluster(api, http, settings.progress_timeout_seconds)

            async def work() -> None:
                await _work(cluster, seen, settings, stop)

            if stop.is_set():
                pass
            elif settings.lease_namespace is None:
                await work()
            else:
                identity = settings.identity or f"{socket.gethostname()}-{os.getpid()}"
                lock = Lock(settings.lease_name, settings.lease_namespace, identity, api, settings.lease_seconds / 5)
                await lead(lock, settings.lease_seconds, work, stop)
        finally:
            await server.cleanup()
    log.info("stopped")


async def _find_cluster(configuration: Configuration) -> None:
    """Reads a pod's service account, or a kubeconfig."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]


async def _work(cluster: Cluster, seen: Seen, settings: OperatorSettings, stop: asyncio.Event) -> None:
    """Watches and reconciles, as the leader does, until `stop` is set."""

    def failed(key: Key, error: Exception) -> None:
        if isinstance(error, ApiException):
            reason, text = f"Api{error.status}", message_of(error)
        else:
            reason, text = type(error).__name__, str(error)
        ERRORS.labels(reason).inc()
        expected = isinstance(error, ApiException | aiohttp.ClientError | TimeoutError | OSError)
        log.warning("%s/%s: %s: %s; trying again", key.namespace, key.name, reason, text, exc_info=not expected)

    queue = Queue(Reconciler(cluster, seen, settings).look, failed)
    try:
        await kopf.operator(
            registry=handlers(seen, queue),
            settings=kopf_settings(),
            standalone=True,
            identity=cast(Any, "dmd-operator"),  # it asks for the user's name otherwise, which a pod's has not
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            stop_flag=stop,
        )
    finally:
        await queue.close()


async def _wait_for_api(api: ApiClient, settings: OperatorSettings, stop: asyncio.Event) -> None:
    """Returns when distillations can be listed, or at the stop: a chart installs CRD, rights and operator at once."""
    objects, said = Objects(api), ""
    while not stop.is_set():
        try:
            for namespace in settings.namespaces or (None,):
                await objects.list(PLURAL, namespace, limit=1)
        except (ApiException, aiohttp.ClientError, TimeoutError, OSError) as error:
            why = message_of(error) if isinstance(error, ApiException) else f"{type(error).__name__}: {error}"
            if why != said:
                log.warning("%s %s cannot be listed yet: %s", API_VERSION, PLURAL, why)
                said = why
        else:
            return
        try:
            await asyncio.wait_for(stop.wait(), WAIT_FOR_API_SECONDS)
        except TimeoutError:
            continue


if __name__ == "__main__":
    main()
