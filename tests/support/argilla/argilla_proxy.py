"""A small TCP proxy before a real server: it forwards until it is told to cut, in the middle of a request or before its reply."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from select import select
from socket import SHUT_RDWR, create_connection, socket
from socketserver import BaseRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit

LARGE = 50_000


class Proxy(ThreadingTCPServer):
    """cut_after: bytes that clients may still send until every connection breaks and new ones are closed; None: no limit.

    drop_replies: so many replies to requests of at least 50,000 bytes get lost: the server has done its work, the client hears nothing.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Forwarding)
        self.target, self.url = urlsplit(target), f"http://127.0.0.1:{self.server_address[1]}"
        self.cut_after: int | None = None
        self.drop_replies = self.cuts = 0
        self.ends = set[socket]()

    def cut(self) -> None:
        """Break what is open."""
        self.cuts += 1
        for end in list(self.ends):
            with suppress(OSError):
                end.shutdown(SHUT_RDWR)


class Forwarding(BaseRequestHandler):
    """One connection."""

    server: Proxy

    def handle(self) -> None:
        proxy, client, asked = self.server, self.request, 0
        if proxy.cut_after is not None and proxy.cut_after <= 0:
            return
        with suppress(OSError), create_connection((proxy.target.hostname, proxy.target.port)) as server:
            proxy.ends |= {client, server}
            while True:
                [one, *_], _, _ = select([client, server], [], [])
                if not (data := one.recv(16_384)):
                    break
                if one is client:
                    asked += len(data)
                    if proxy.cut_after is not None:
                        data, proxy.cut_after = data[: max(proxy.cut_after, 0)], proxy.cut_after - len(data)
                    server.sendall(data)
                    if proxy.cut_after is not None and proxy.cut_after <= 0:
                        proxy.cut()
                else:
                    if asked >= LARGE and proxy.drop_replies:
                        proxy.drop_replies -= 1
                        proxy.cut()
                        break
                    asked = 0
                    client.sendall(data)
            proxy.ends -= {client, server}


@contextmanager
def proxy_to(target: str) -> Iterator[Proxy]:
    """A proxy before the server at an address, closed at the end."""
    with Proxy(target) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            proxy.cut()
