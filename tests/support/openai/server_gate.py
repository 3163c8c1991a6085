"""The listening socket of the test server: on the loopback interface only, and shut for a while where a plan says so."""

import asyncio
import socket
from collections.abc import Callable

__all__ = ["LOOPBACK", "Gate"]

LOOPBACK = "127.0.0.1"


class Gate:
    """Listens on one port for all its life. make: a protocol for a new connection."""

    def __init__(self, make: Callable[[], asyncio.Protocol]) -> None:
        self.make = make
        self.server: asyncio.Server | None = None
        self.opening: asyncio.Task[None] | None = None

    async def listen(self, port: int) -> int:
        """Binds the port (0: any free one) and listens; returns the port. OSError where another process has it."""
        if port:
            _bound(port, shared=False).close()
        # Bound but not listening, it keeps the port ours while the listening socket is closed.
        self.reservation = _bound(port, shared=True)
        self.port = int(self.reservation.getsockname()[1])
        await self._open()
        return self.port

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(self.make, sock=_bound(self.port, shared=True), backlog=4096)

    def shut(self, seconds: float) -> None:
        """Refuses new connections for so long; shut already, it stays as it is."""
        if self.server is None:
            return
        self.server.close()
        self.server = None
        asyncio.get_running_loop().call_later(seconds, self._reopen)

    def _reopen(self) -> None:
        self.opening = asyncio.get_running_loop().create_task(self._open())


def _bound(port: int, *, shared: bool) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named; left on, it costs 40 ms a reply.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((LOOPBACK, port))
    except OSError:
        sock.close()
        raise
    return sock
