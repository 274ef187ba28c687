"""The NBD protocol byte by byte, for clients that do what no library lets them do.

Source:  NBD protocol, "Newstyle negotiation" (NBD_OPT_EXPORT_NAME, with NO_ZEROES), "Request message", "Simple reply
         message". Written without impl/nbd, so that a mistake there does not agree with itself here.
"""

import socket
import struct

READ, WRITE, DISC, FLUSH, TRIM = 0, 1, 2, 3, 4
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
GREETING_BYTES = 18
EXPORT_BYTES = 10
TIMEOUT_S = 20.0


def hello(export=b""):
    """All that a client has to say before its first request."""
    return struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(export)) + export


def request(command, cookie, offset=0, length=0, payload=b"", flags=0):
    return REQUEST.pack(0x25609513, flags, command, cookie, offset, length or len(payload)) + payload


class RawClient:
    """A socket in the transmission phase, with simple replies."""

    def __init__(self, path=None, port=None):
        if path is None:
            self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(TIMEOUT_S)
            self.socket.connect(str(path))
        self.send(hello())
        assert self.receive(GREETING_BYTES).startswith(b"NBDMAGICIHAVEOPT")
        self.size, self.flags = struct.unpack(">QH", self.receive(EXPORT_BYTES))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, length):
        return receive(self.socket.recv, length)

    def reply(self, lengths=None):
        """(cookie, error, data) of the next reply; `lengths` says how much data follows which cookie."""
        return take_reply(self.receive, lengths or {})

    def finish_sending(self):
        self.socket.shutdown(socket.SHUT_WR)

    def is_closed_by_the_server(self):
        return self.socket.recv(1) == b""


def receive(read, length):
    """Exactly `length` bytes from `read`, which gives at most as many as it is asked for."""
    data = bytearray()
    while len(data) < length:
        part = read(length - len(data))
        assert part, f"the connection ended after {len(data)} of {length} bytes"
        data += part
    return bytes(data)


def take_reply(receive_exactly, lengths):
    magic, error, cookie = REPLY.unpack(receive_exactly(REPLY.size))
    assert magic == 0x67446698, hex(magic)
    return cookie, error, receive_exactly(0 if error else lengths.get(cookie, 0))
