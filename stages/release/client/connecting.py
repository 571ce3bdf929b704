"""A session of `requests` that no server can hold up for ever, and that follows no redirect by itself.

The timeout of `requests` bounds each wait for a byte, so a server that sends headers, or the head of a chunk, byte by
byte would hold a client for ever. Here all waits for one answer's headers are bounded together, and so are all waits
for its body in which too few bytes come.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from stages.release.client.downloading import LEAST

BODY = 2  # timeouts for the body: who reads it sees sooner that it trickles, unless what trickles is between its parts


class Session(requests.Session):
    """Answers are returned as they come: `target` says where a redirect leads, and its body is never read."""

    def __init__(self) -> None:
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, Adapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None

    def target(self, response: requests.Response) -> str | None:
        return super().get_redirect_target(response)


class Adapter(HTTPAdapter):
    """Connections, also those through proxies, whose answers are `Answer`."""

    def init_poolmanager(self, *words: Any, **options: Any) -> None:
        super().init_poolmanager(*words, **options)
        bound(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if not known:
            bound(manager)
        return manager


def bound(manager: Any) -> None:
    """Give a manager of pools pools whose connections return `Answer`."""
    pools = {}
    for scheme, pool in manager.pool_classes_by_scheme.items():
        connection = type("Connection", (pool.ConnectionCls,), {"response_class": Answer})
        pools[scheme] = type("Pool", (pool,), {"ConnectionCls": connection})
    manager.pool_classes_by_scheme = pools


class Answer(http.client.HTTPResponse):
    """An answer that is read at a pace."""

    def __init__(self, sock: socket.socket, *words: Any, **options: Any) -> None:
        super().__init__(sock, *words, **options)
        self.paced = Paced(self.fp.detach(), sock.gettimeout())
        self.fp = io.BufferedReader(self.paced)

    def begin(self) -> None:
        super().begin()
        self.paced.ends(BODY)


class Paced(io.RawIOBase):
    """Bytes of a socket. Raises TimeoutError once all waits together took `timeout` seconds, and brought fewer than
    `LEAST` bytes a second."""

    def __init__(self, raw: Any, timeout: float | None) -> None:
        self.raw, self.timeout = raw, timeout
        self.ends(1)

    def ends(self, timeouts: int) -> None:
        """Begin anew, with so many timeouts to the next look."""
        self.waited, self.count, self.timeouts = 0.0, 0, timeouts

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        began = time.monotonic()
        count: int | None = self.raw.readinto(buffer)
        self.waited += time.monotonic() - began
        self.count += count or 0
        if self.timeout is not None and self.waited > self.timeouts * self.timeout:
            if self.count < LEAST * self.waited:
                raise TimeoutError("timed out")
            self.ends(self.timeouts)
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()
