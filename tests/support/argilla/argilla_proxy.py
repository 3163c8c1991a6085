"""A small TCP proxy before a real server: it forwards until it is told to cut, in the middle of a request or before its reply."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

__all__ = ["Proxy", "proxy_to"]


class Proxy:
    """cut_after: bytes that clients may still send until every connection breaks and new ones are refused; None: no limit.

    drop_replies: so many replies to requests of at least `large` bytes get lost: the server has done its work, the client hears nothing.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.cut_after: int | None = None
        self.drop_replies = 0
        self.large = 50_000
        self.sent = 0
        self.cuts = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and break what is open."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._break()
        self._thread.join(timeout=5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.cut_after is not None and self.cut_after <= 0:
                client.close()
                continue
            server = socket.create_connection(self._target)
            with self._lock:
                self._open |= {client, server}
            state = {"request": 0}
            for one, other, up in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._forward, args=(one, other, up, state), daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket, up: bool, state: dict[str, int]) -> None:
        try:
            while data := one.recv(16_384):
                if up:
                    state["request"] += len(data)
                    self.sent += len(data)
                    if self.cut_after is not None:
                        data, self.cut_after = data[: max(self.cut_after, 0)], self.cut_after - len(data)
                        if self.cut_after <= 0:
                            other.sendall(data)
                            self.cuts += 1
                            self._break()
                            return
                else:
                    large, state["request"] = state["request"] >= self.large, 0
                    if large and self.drop_replies:
                        self.drop_replies -= 1
                        self.cuts += 1
                        self._break()
                        return
                other.sendall(data)
        except OSError:
            pass
        finally:
            for end in (one, other):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                with self._lock:
                    self._open.discard(end)
                end.close()

    def _break(self) -> None:
        with self._lock:
            broken, self._open = self._open, set()
        for end in broken:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_to(target: str) -> Iterator[Proxy]:
    """A proxy before the server at an address, closed at the end."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
