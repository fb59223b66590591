"""`python -m dmd_operator`: the operator, in a pod or on a laptop with a kubeconfig."""

import asyncio
import logging
import os
import signal
import socket
import sys

import aiohttp
import kopf
from kubernetes.aio.client import ApiClient, ApiException, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from prometheus_client import REGISTRY
from pydantic import ValidationError

from dmd_operator.cluster import Cluster, message_of, progress_session
from dmd_operator.election import LeadLostError, Lock, lead
from dmd_operator.handlers import handlers
from dmd_operator.metrics import ERRORS, Distillations, count_requests
from dmd_operator.objects import Objects
from dmd_operator.queue import Queue
from dmd_operator.reconcile import Reconciler, UnreadableError
from dmd_operator.seen import Key, Seen
from dmd_operator.server import serve
from dmd_operator.settings import OperatorSettings
from dmd_operator.watching import Watching

log = logging.getLogger("dmd_operator")

DEEPEST_JSON = 10_000
"""Levels to which an API server takes JSON (Go's own bound); kopf reads whole objects, whatever is in them."""


def main() -> None:
    """Runs until a signal stops it, or until it has lost the lead."""
    try:
        settings = OperatorSettings()
    except ValidationError as error:
        problems = (f"{'.'.join(str(part) for part in p['loc'])}: {p['msg']}" for p in error.errors())
        sys.exit("the settings DMD_OPERATOR_* cannot be used:\n" + "\n".join(problems))
    # Python stops at 1,000 levels, and with it kopf's watchers would. Each level takes a call or two.
    sys.setrecursionlimit(4 * DEEPEST_JSON)
    kopf.configure(debug=settings.debug, log_format=kopf.LogFormat.JSON)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # a line for each event of each pod otherwise
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_traceback)
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
    async with ApiClient(configuration) as api, progress_session(settings.progress_timeout_seconds) as http:
        queue = Queue(Reconciler(Cluster(api, http), seen, settings).look, _failed)

        def lost(namespace: str) -> None:
            for key in seen.in_namespace(namespace):
                queue.drop(key)
                seen.forget(key)

        watching = Watching(Objects(api), settings.namespaces, lost)
        server = await serve(settings.port, REGISTRY, lambda: watching.healthy, ready.is_set)

        async def work() -> None:
            try:
                await watching.run(handlers(seen, queue), stop)
            finally:
                await queue.close()

        try:
            await watching.until_readable(stop)
            ready.set()
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


def _without_traceback(record: logging.LogRecord) -> bool:
    """Drops the traceback of what the API server answered, which kopf logs though it is no fault of the program's."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and any(isinstance(e, aiohttp.ClientError) for e in (error, error.__cause__)):
        record.exc_info = None
    return True


def _failed(key: Key, error: Exception) -> None:
    if isinstance(error, ApiException):
        reason, text = f"Api{error.status}", message_of(error)
    else:
        reason, text = type(error).__name__, str(error)
    ERRORS.labels(reason).inc()
    expected = isinstance(error, ApiException | aiohttp.ClientError | TimeoutError | OSError | UnreadableError)
    log.warning("%s/%s: %s: %s; trying again", key.namespace, key.name, reason, text, exc_info=not expected)


if __name__ == "__main__":
    main()
