"""How the server ends: what is finished, what is refused, what is dropped, and what the exit status says of it.

In this process, where a test can reach into it, choose what is running at the moment of the stop, and set its clocks.

Source:  impl/server/session.py, "Phases"; NBD protocol, "Terminating the transmission phase".
"""

import socket
import struct
import threading

import pytest

from impl.base.memory import BytesBase
from impl.server.export import ExportOptions, make_export
from impl.server.server import Server

pytestmark = pytest.mark.timeout(60)

WAIT_S = 20
BLOCK = 4096
BASE = bytes(1 + index % 251 for index in range(16 * BLOCK))


def run_to_the_end(server, **arguments):
    """What `run` returns; a server that does not end fails the test instead of hanging it."""
    results = []
    thread = threading.Thread(target=lambda: results.append(server.run(**arguments)), daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert results, "the server did not end"
    return results[0]


# One client only.


def reset_connection():
    """A TCP socket whose peer has vanished before anybody looked at it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        accepted, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    accepted.setblocking(True)
    with pytest.raises(ConnectionError):
        accepted.recv(1)
    return accepted


def test_a_server_of_one_client_that_has_gone_before_it_was_served_ends_and_says_so():
    export = make_export(BytesBase(BASE), ExportOptions(store="memory"))
    try:
        sock = reset_connection()
        assert run_to_the_end(Server({"": export}, "", 1), only_client=sock) is False
        assert sock.fileno() == -1
    finally:
        export.close()
