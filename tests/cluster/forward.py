"""TCP ports carried across network namespaces: the cluster's on the machine's loopback, and the other way round."""

import contextlib
import ctypes
import os
import socket
import threading
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_CHUNK = 1 << 16
_HERE = Path("/proc/self/ns/net")


class Forward:
    """Listens at `listen` in one namespace, and connects each caller to `target` in another.

    Attributes:
        port: where it listens; a free one if `listen` names port 0.
    """

    def __init__(
        self, listen: tuple[str, int], target: tuple[str, int], listen_in: Path = _HERE, target_in: Path = _HERE
    ) -> None:
        self._target, self._target_in = target, target_in
        self._server = socket_in(listen_in)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._server.bind(listen)
        self._server.listen(128)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._serve, name=f"forward-{self.port}", daemon=True).start()

    def close(self) -> None:
        """Takes no more callers."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes accept, which close does not
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(caller,), daemon=True).start()

    def _join(self, caller: socket.socket) -> None:
        try:
            callee = socket_in(self._target_in)
            callee.connect(self._target)
        except OSError:
            caller.close()
            return
        back = threading.Thread(target=_copy, args=(callee, caller), daemon=True)
        back.start()
        _copy(caller, callee)
        back.join()
        caller.close()
        callee.close()


def socket_in(namespace: Path) -> socket.socket:
    """A TCP socket of another network namespace: it stays there, wherever it is used."""
    if namespace == _HERE:
        return socket.socket()
    made: list[socket.socket | OSError] = []
    thread = threading.Thread(target=_make, args=(namespace, made))  # a thread of its own, so that none need go back
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _make(namespace: Path, made: list[socket.socket | OSError]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        with namespace.open() as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(namespace))
        made.append(socket.socket())
    except OSError as error:
        made.append(error)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    # Half of the connection is over: the other half may still have an answer to carry.
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        source.shutdown(socket.SHUT_RD)
