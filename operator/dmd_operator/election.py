"""The election of one leader among the replicas, by a Lease."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import aiohttp
from kubernetes.aio.client import ApiClient, ApiException, V1Lease, V1ObjectMeta
from kubernetes.aio.leaderelection import electionconfig
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

log = logging.getLogger(__name__)

T = TypeVar("T")


class LeadLostError(Exception):
    """This replica lost the lead and must do nothing more: its process has to end."""


async def lead(
    lock: "Lock", lease_seconds: int, work: Callable[[], Coroutine[Any, Any, None]], stop: asyncio.Event
) -> None:
    """Waits to be the leader, works, and returns when the work is done or `stop` is set.

    A leader that cannot renew stops well before others take over; what it still has under way conflicts with theirs,
    since every write of a status says which version it follows from.

    Args:
        lock: the Lease.
        lease_seconds: how long a silent leader is waited for.
        work: what a leader does; it ends by itself once `stop` is set.
        stop: ends the wait for the lead.

    Raises:
        LeadLostError: the Lease could not be renewed in time.
    """
    working: asyncio.Future[asyncio.Task[None]] = asyncio.get_running_loop().create_future()

    async def started() -> None:
        log.info("%s leads", lock.identity)
        task = asyncio.create_task(work())
        working.set_result(task)
        await asyncio.wait({task})

    async def stopped() -> None:
        pass  # said by the error below

    config = electionconfig.Config(
        lock,
        lease_duration=lease_seconds,
        renew_deadline=lease_seconds * 2 / 3,
        retry_period=max(1.0, lease_seconds / 7.5),
        onstarted_leading=started,
        onstopped_leading=stopped,
    )
    election = asyncio.create_task(LeaderElection(config).run())
    stopping = asyncio.create_task(stop.wait())
    try:
        waited: set[asyncio.Future[Any]] = {election, stopping, working}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            # The election continues during the work: it renews the Lease.
            await asyncio.wait({election, working.result()}, return_when=asyncio.FIRST_COMPLETED)
            if not working.result().done():
                working.result().cancel()
                raise LeadLostError(f"{lock.identity} did not renew the Lease {lock.name} in time and no longer leads")
            working.result().result()  # its error is ours
        elif election.done():
            election.result()
    finally:
        for task in (election, stopping):
            task.cancel()
        await asyncio.gather(election, stopping, return_exceptions=True)
        await lock.release()


class Lock(LeaseLock):
    """The Lease; an API server that is away or slow is a failed try, not the end of the election.

    Args:
        name: the Lease's name.
        namespace: the Lease's namespace.
        identity: this replica's identity.
        api: the client.
        timeout: seconds that a try may take.
    """

    def __init__(self, name: str, namespace: str, identity: str, api: ApiClient, timeout: float) -> None:
        super().__init__(name, namespace, identity, api)
        self._timeout = timeout

    async def get(self, name: str, namespace: str) -> Any:
        """The Lease's record, or why there is none."""
        return await self._in_time(super().get(name, namespace), lambda why: (False, ApiException(reason=why)))

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        """Creates the Lease, and returns whether that succeeded."""
        return await self._in_time(self._create(name, namespace, election_record), lambda _: False)

    async def _create(self, name: str, namespace: str, election_record: Any) -> bool:
        # The client's own call is refused by the client: it passes `pretty` as a truth value, which has to be a string.
        lease = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            await self.api_instance.create_namespaced_lease(namespace, lease)
        except ApiException as error:
            log.warning("the Lease %s/%s was not created: %s", namespace, name, error.reason)
            return False
        return True

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        """Writes the Lease, and returns whether that succeeded."""
        return await self._in_time(super().update(name, namespace, updated_record), lambda _: False)

    async def release(self) -> None:
        """Gives up the lead, so that the next replica need not wait for the Lease to expire."""
        try:
            async with asyncio.timeout(self._timeout):
                await self.get(self.name, self.namespace)  # the last renewal made a newer version of it
                held = self.lease_reference
                if held is None or held.spec is None or held.spec.holder_identity != self.identity:
                    return
                held.spec.holder_identity = ""
                await self.api_instance.replace_namespaced_lease(self.name, self.namespace, held)
        except (ApiException, aiohttp.ClientError, TimeoutError, OSError) as error:
            log.info("the Lease was not released and runs out by itself: %s", type(error).__name__)

    async def _in_time(self, attempt: Awaitable[T], failed: Callable[[str], T]) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await attempt
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return failed(f"{type(error).__name__}: {error}")
