"""Sockets to listen on: TCP, Unix, or handed over by a service manager.

Source:  sd_listen_fds(3) for socket activation; unix(7) for the length of a path.
Errors:  StartError, one line that says which address, and why not.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import quote

from impl.errors import StartError
from impl.server.paths import why_not_made

LISTEN_FDS_FIRST = 3
UNIX_PATH_MAX_BYTES = 107
BACKLOG = 1024


def listen_tcp(host: str, port: int) -> list[socket.socket]:
    """A listening socket for every address of `host`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise StartError(f"cannot listen on {host}: {getattr(error, 'strerror', None) or error}") from None
    listeners: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            for made in (listener, *listeners):
                made.close()
            raise StartError(f"cannot listen on {host} port {port}: {why_not_bound(error)}") from None
        listeners.append(listener)
    return listeners


def why_not_bound(error: OSError) -> str:
    """What the kernel says of a port, and what to do about it, where there is something."""
    hint = {
        errno.EADDRINUSE: "; choose another with --port (0 takes a free one)",
        errno.EACCES: "; without privileges, choose one from 1024 with --port",
    }
    return f"{error.strerror}{hint.get(error.errno or 0, '')}"


class UnixListener(socket.socket):
    """A Unix socket that takes its name with it when it is closed, unless the name is somebody else's by then."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = os.path.abspath(path)
        self._made: os.stat_result | None = None

    def bind_to_path(self) -> None:
        """Make the name."""
        self.bind(self._path)
        self._made = os.lstat(self._path)

    def close(self) -> None:
        """Remove the name, and close."""
        made, self._made = self._made, None
        if made is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(made, os.lstat(self._path)):
                    os.unlink(self._path)
        super().close()


def listen_unix(path: str, mode: int | None = None) -> socket.socket:
    """A listening socket at `path`. What a server that died left there is replaced; a living one's is not.

    mode:  its permission bits; None leaves them to the process's umask. Nobody can connect before it has them.
    """
    if len(os.fsencode(path)) > UNIX_PATH_MAX_BYTES:
        raise StartError(f"cannot listen on {path}: a socket's path has at most {UNIX_PATH_MAX_BYTES} bytes")
    if os.path.lexists(path):
        _remove_dead_socket(path)
    listener = UnixListener(path)
    try:
        listener.bind_to_path()
        if mode is not None:
            os.chmod(path, mode)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {path}: {why_not_made(error, path)}") from None
    return listener


def _remove_dead_socket(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StartError(f"cannot listen on {path}: there is a file of that name, and it is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"cannot listen on {path}: {error.strerror}") from None
    else:
        raise StartError(f"cannot listen on {path}: another server listens there; choose another path with --unix")


def inherited(environment: Mapping[str, str]) -> list[socket.socket]:
    """The sockets a service manager opened for this process; none if it opened none."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "")
    if not count.isdigit():
        raise StartError(f"LISTEN_FDS is {count!r}, expected a number of sockets")
    listeners = []
    for fd in range(LISTEN_FDS_FIRST, LISTEN_FDS_FIRST + int(count)):
        try:
            os.set_inheritable(fd, False)
            listeners.append(socket.socket(fileno=fd))
        except OSError as error:
            raise StartError(f"inherited descriptor {fd} is not a socket: {error.strerror}") from None
    return listeners


def uri_of(
    listener: socket.socket, export_name: str, is_secure: bool = False, user: str = "", key_file: str = ""
) -> str:
    """What a client is given to connect to `listener`.

    is_secure:       it has to use TLS
    user, key_file:  and with the pre-shared key of a name in a file, if there is one
    """
    name = quote(export_name, safe="/")
    scheme = "nbds" if is_secure else "nbd"
    who = f"{quote(user, safe='')}@" if user else ""
    key = f"tls-psk-file={quote(os.fsencode(os.path.abspath(key_file)), safe='/')}" if user else ""
    if listener.family == socket.AF_UNIX:
        place = quote(os.fsencode(os.path.abspath(str(listener.getsockname()))), safe="/")
        return f"{scheme}+unix://{who}/{name}?socket={place}{f'&{key}' if key else ''}"
    host, port = listener.getsockname()[:2]
    host = {"127.0.0.1": "localhost", "0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    where = f"[{host}]" if ":" in host else host
    path = f"/{name}?{key}" if key else f"/{name}" if name else ""
    return f"{scheme}://{who}{where}{'' if port == 10809 else f':{port}'}{path}"
