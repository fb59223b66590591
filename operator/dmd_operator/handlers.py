"""The handlers that kopf calls: each event of a resource or its children wakes its queue.

The handlers are coroutines because kopf runs plain functions in threads, and neither the cache nor the queue is made
for those.
"""

from typing import Any

import kopf

from dmd_api.labels import DISTILLATION, JOB_NAME
from dmd_api.manifest import API_VERSION
from dmd_operator.cluster import PLURAL, owner_uid
from dmd_operator.observe import observe_job, observe_pod
from dmd_operator.queue import Queue
from dmd_operator.seen import Key, Seen

WATCH_SECONDS = 10 * 60


class _NoDiff(kopf.AnnotationsDiffBaseStorage):
    """No handler asks what changed in an object: so kopf need not copy each one at each event."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Returns nothing."""
        return kopf.BodyEssence({})


def kopf_settings() -> kopf.OperatorSettings:
    """Sets how kopf watches."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # our events are the reconciler's, not kopf's log lines
    settings.persistence.diffbase_storage = _NoDiff()
    settings.scanning.disabled = True  # no watch over all CRDs and namespaces, nor the rights for one
    settings.watching.server_timeout = WATCH_SECONDS
    settings.networking.error_backoffs = (1, 1, 2, 3, 5) + (8,) * 100  # an API server that is away comes back
    for plural in ("jobs", "pods"):  # a cluster has many pods, few of them ours
        settings.watching.label_selectors[plural] = DISTILLATION
    return settings


def handlers(seen: Seen, queue: Queue) -> kopf.OperatorRegistry:
    """The handlers; none of them sets a finalizer, so that resources can be deleted without the operator.

    Args:
        seen: remembers what the events say.
        queue: is woken by it.
    """
    registry = kopf.OperatorRegistry()
    labelled = {DISTILLATION: kopf.PRESENT}

    @kopf.on.login(registry=registry)
    def login(**options: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**options) or kopf.login_with_kubeconfig(**options)

    @kopf.on.event(API_VERSION, PLURAL, registry=registry)
    async def resource(event: kopf.RawEvent, namespace: str | None, name: str, **_: Any) -> None:
        key = Key(str(namespace), name)
        if event["type"] == "DELETED":
            seen.run(key).resource = None
        elif not seen.run(key).saw(dict(event["object"])):
            return
        queue.add(key)

    @kopf.on.event("batch", "v1", "jobs", labels=labelled, registry=registry)
    async def job(event: kopf.RawEvent, namespace: str | None, name: str, labels: kopf.Labels, **_: Any) -> None:
        key = Key(str(namespace), labels[DISTILLATION])
        run, body = seen.run(key), dict(event["object"])
        if not run.owns(owner_uid(body)):
            run.jobs.pop(name, None)
        elif event["type"] == "DELETED":
            run.saw_deleted(observe_job(body))
        else:
            run.jobs[name] = observe_job(body)
        queue.add(key)

    @kopf.on.event("", "v1", "pods", labels=labelled, registry=registry)
    async def pod(event: kopf.RawEvent, namespace: str | None, name: str, labels: kopf.Labels, **_: Any) -> None:
        key = Key(str(namespace), labels[DISTILLATION])
        run = seen.run(key)
        run.pods.pop(name, None)
        if event["type"] != "DELETED" and JOB_NAME in labels:
            run.saw_pod(labels[JOB_NAME], observe_pod(dict(event["object"])))
        queue.add(key)

    return registry
