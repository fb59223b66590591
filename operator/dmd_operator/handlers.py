"""The handlers that kopf calls: each event of a resource or its children wakes its queue.

The handlers are coroutines because kopf runs plain functions in threads, and neither the cache nor the queue is made
for those.
"""

from typing import Any

import kopf

from dmd_api.labels import DISTILLATION
from dmd_api.manifest import API_VERSION
from dmd_operator.cluster import PLURAL, owner_uid
from dmd_operator.observe import observe_job, observe_pod
from dmd_operator.queue import Queue
from dmd_operator.reading import kept
from dmd_operator.seen import Key, Seen

WATCH_SECONDS = 10 * 60
LISTED_AT_ONCE = 20
"""Objects that a list is read in parts of: one can have 1.5 MB, and a tenant can make as many as they like."""


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
    settings.watching.chunk_size = LISTED_AT_ONCE
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
            seen.run(key).resource = None  # the next look forgets it, if there is no other of its name
        elif not seen.run(key).saw(kept(event["object"])):
            return
        queue.add(key)

    @kopf.on.event("batch", "v1", "jobs", labels=labelled, registry=registry)
    async def job(event: kopf.RawEvent, namespace: str | None, name: str, labels: kopf.Labels, **_: Any) -> None:
        # A label names a run, and anyone may write it: whose a Job is, its owner says.
        key, body = Key(str(namespace), labels[DISTILLATION]), dict(event["object"])
        if (run := seen.known(key)) is None:
            return
        observed = observe_job(body) if run.owns(owner_uid(body)) else None
        if observed is None:
            run.jobs.pop(name, None)
        elif event["type"] == "DELETED":
            run.saw_deleted(observed)
        else:
            run.jobs[name] = observed
        queue.add(key)

    @kopf.on.event("", "v1", "pods", labels=labelled, registry=registry)
    async def pod(event: kopf.RawEvent, namespace: str | None, name: str, labels: kopf.Labels, **_: Any) -> None:
        key, body = Key(str(namespace), labels[DISTILLATION]), dict(event["object"])
        if (run := seen.known(key)) is None:
            return
        run.pods.pop(name, None)
        owner = owner_uid(body)
        if event["type"] != "DELETED" and owner is not None and (observed := observe_pod(body)) is not None:
            run.saw_pod(owner, observed)
        queue.add(key)

    return registry
