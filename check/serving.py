"""The real server, in threads of this process, on a Unix socket: for checks that need to reach into it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from impl.server.export import Export
from impl.server.listeners import listen_unix, uri_of
from impl.server.server import Server

STOP_TIMEOUT_S = 30.0


@dataclass
class Serving:
    """A server that runs."""

    server: Server
    uri: str
    thread: threading.Thread

    def stop(self) -> None:
        """End it as SIGTERM would, and wait until it has gone."""
        self.server.stop()
        self.thread.join(STOP_TIMEOUT_S)
        assert not self.thread.is_alive(), "the server did not stop"


def serve_export(export: Export, path: str, threads: int = 4, grace_s: float = 10.0) -> Serving:
    """Serve `export` at the Unix socket `path` until `stop`."""
    listener = listen_unix(path)
    uri = uri_of(listener, export.info.name)
    server = Server({export.info.name: export}, export.info.name, threads, grace_s)
    thread = threading.Thread(target=server.run, args=([listener],), name="server", daemon=True)
    thread.start()
    return Serving(server, uri, thread)
