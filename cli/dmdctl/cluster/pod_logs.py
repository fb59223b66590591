"""A worker's log as the API server has it from the worker's node."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

from kubernetes.aio.client import ApiException, CoreV1Api

from dmd_api.labels import CONTAINER
from dmdctl.cluster.cluster import UNREACHABLE, Cluster, message_of
from dmdctl.cluster.following import BACK_OFF_SECONDS
from dmdctl.cluster.log_lines import Line, Worker, parse_line

OVERLAP_SECONDS = 60
"""Clocks differ: this much is asked for again where a stream goes on, and what is known of it is skipped."""


async def read_log(
    cluster: Cluster, worker: Worker, *, follow: bool = False, tail: int | None = None, after: int | None = None
) -> AsyncIterator[Line]:
    """Reads the lines that the worker has written.

    Args:
        cluster: where it is.
        worker: which.
        follow: go on with what it writes, until it ends.
        tail: only the last so many lines.
        after: only what was written later than this, in nanoseconds since 1970.

    Raises:
        ApiException: the API server has no log of it, or its node does not answer.
        OSError: (or another of `UNREACHABLE`) the API server does not answer.
    """
    options: dict[str, Any] = {"container": CONTAINER, "timestamps": True, "follow": follow}
    if tail is not None:
        options["tail_lines"] = tail
    if after is not None:
        options["since_seconds"] = max(1, round(time.time() - after / 1e9)) + OVERLAP_SECONDS
    core = CoreV1Api(cluster.api)
    response: Any = await core.read_namespaced_pod_log_without_preload_content(worker.pod, cluster.namespace, **options)
    try:
        if response.status != HTTPStatus.OK:
            error = ApiException(status=response.status, reason=response.reason)
            error.body = (await response.read()).decode(errors="replace")
            raise error
        last = after or 0
        while raw := await response.content.readline():
            at, text = parse_line(raw.decode(errors="replace").rstrip("\r\n"))
            if at is not None and after is not None and at <= after:
                continue
            # What has no time (a node's word on a log it has lost) comes with the line before it.
            last = last if at is None else at
            yield Line(last, worker, text)
    finally:
        response.release()


async def follow_log(
    cluster: Cluster,
    worker: Worker,
    after: int | None,
    present: Callable[[], Worker | None],
    say: Callable[[str], None],
) -> AsyncIterator[Line | Worker]:
    """Follows a worker's lines through interruptions: an API server that restarts, a node that is away for a while.

    Args:
        cluster: where it is.
        worker: which.
        after: what was written until then is known already.
        present: the worker as it is now; None once its pod is gone.
        say: tells the user, once a failure, why nothing comes.

    Yields:
        Its lines, and at last the worker itself: there will be no more.
    """
    pause, told = BACK_OFF_SECONDS[0], False
    while True:
        now = present()
        ends = now is None or now.over
        try:
            async for line in read_log(cluster, worker, follow=True, after=after):
                after, pause, told = line.at, BACK_OFF_SECONDS[0], False
                yield line
        except ApiException as error:
            ends = ends or error.status == HTTPStatus.NOT_FOUND
            if not told:
                told = True
                say(f"{worker.label} no log: {message_of(error)}")
        except UNREACHABLE:
            ends = False  # the API server is away, and will have the rest
        if ends:
            break
        await asyncio.sleep(pause)
        pause = min(2 * pause, BACK_OFF_SECONDS[1])
    yield worker
