"""Namespaces that are held by processes and by nothing else.

What is made in them (interfaces, routes, nftables rules, mounts, the containers of a node) goes when these processes
go: the kernel cleans up after a test run that was killed, and nothing ever shows in the machine's own namespaces.
"""

import contextlib
import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import owners
from tests.cluster.processes import Daemon, call, start, wait_for

_RUN_WITHOUT_END = "sleep infinity & wait"
"""A shell that waits also reaps: as process 1 it inherits what containerd's shims leave."""
# kubelet insists on these, for the whole machine. In a node's own /proc it finds them as it wants them.
_KERNEL = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}


class Namespace:
    """A network namespace.

    Attributes:
        pid: the process that holds it.
        enter: the beginning of a command line that runs the rest inside.
    """

    def __init__(self, pid: int, holder: Daemon, enter: Sequence[str]) -> None:
        self.pid = pid
        self.enter = enter
        self._holder = holder

    @property
    def net(self) -> Path:
        """The namespace as a file, for setns."""
        return Path(f"/proc/{self.pid}/ns/net")

    def run(self, script: str) -> str:
        """Runs a shell script inside, and returns what it prints."""
        return call([*self.enter, "sh", "-ec", script])

    def close(self) -> None:
        """Ends the holder; whatever runs in its process namespace ends with it, and before it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._holder.process.wait(30)


def network_namespace(name: str, logs: Path) -> Namespace:
    """A network namespace without any interface but its own loopback."""
    holder = start(name, ["sleep", "infinity"], logs, ["unshare", "--net", "--"])
    outside = os.readlink("/proc/self/ns/net")
    namespace = Namespace(holder.pid, holder, ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"])
    wait_for(lambda: os.readlink(namespace.net) != outside, f"{name} has its namespace", holder)
    namespace.run("ip link set lo up")
    return namespace


def machine_namespace(name: str, folder: Path, logs: Path) -> Namespace:
    """Namespaces of network, mounts and processes, with what several kubelets would share kept apart in `folder`."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    script = ["set -e", "mount --make-rshared /"]
    script += [f"mount -t tmpfs -o mode=755 tmpfs {path}" for path in ("/run", "/var/log")]
    # libcni keeps its results there, whatever its caller says; an empty folder is all that stays of it.
    script += ["mkdir -p /var/lib/cni", "mount -t tmpfs tmpfs /var/lib/cni"]
    for setting, value in _KERNEL.items():
        wanted = folder / "kernel" / setting
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.write_text(f"{value}\n")
        script.append(f"mount --bind {shlex.quote(str(wanted))} /proc/sys/{setting}")
    script += [f"touch {shlex.quote(str(ready))}", _RUN_WITHOUT_END]
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    holder = start(name, ["sh", "-c", "\n".join(script)], logs, [*unshare, "--propagation=private", "--"])
    wait_for(ready.exists, f"{name} has its namespaces", holder)
    pid = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
    # Process 1 ends after all others: who waits for it has waited for the whole machine.
    holder.log.with_name(f"{name}-1.pid").write_text(owners.identity(pid))
    namespace = Namespace(pid, holder, ["nsenter", f"--target={pid}", "--net", "--mount", "--pid", "--"])
    namespace.run("ip link set lo up")
    return namespace
