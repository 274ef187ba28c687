"""What `ssl` has from Python 3.13 on, for a Python that is older: so that keys are tried wherever the tests run.

The same OpenSSL is asked for the same, behind Python's back. A context's second word points to OpenSSL's own
(`PySSLContext` in CPython's Modules/_ssl.c, 3.7 to 3.13).
"""

import _ssl
import ctypes
import ssl

from servers import refuse

SERVER_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint)
CLIENT_CALLBACK = ctypes.CFUNCTYPE(
    *(ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p),
    *(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint),
)
POINTER_OFFSET_BYTES = 2 * ctypes.sizeof(ctypes.c_void_p)


def set_psk_server_callback(context, callback):
    """As of 3.13."""

    def found(_connection, name, place, room):
        try:
            return _put(place, callback(name.decode()), room)
        except UnicodeDecodeError:
            return 0

    _set(context, "SSL_CTX_set_psk_server_callback", SERVER_CALLBACK(found))


def set_psk_client_callback(context, callback):
    """As of 3.13."""

    def found(_connection, hint, name_place, name_room, place, room):
        name, key = callback(hint and hint.decode())
        _put(name_place, name.encode() + b"\0", name_room)
        return _put(place, key, room)

    _set(context, "SSL_CTX_set_psk_client_callback", CLIENT_CALLBACK(found))
    # Before 3.13 a client's context says whose sessions it takes up again, and a key of TLS 1.3 is such a session.
    _openssl("SSL_CTX_set_session_id_context", context, b"", 0)


def _set(context, function, callback):
    context.kept = callback  # as long as OpenSSL may call it
    _openssl(function, context, callback)


def _openssl(function, context, *arguments):
    place = ctypes.c_void_p.from_address(id(context) + POINTER_OFFSET_BYTES)
    getattr(ctypes.CDLL(_ssl.__file__), function)(place, *arguments)


def _put(place, data, room):
    assert len(data) <= room
    ctypes.memmove(place, data, len(data))
    return len(data)


def give(monkeypatch):
    """Have `ssl` be as that of 3.13, if it is not."""
    if not getattr(ssl, "HAS_PSK", False):
        if not hasattr(_ssl, "__file__"):
            refuse("this Python has its OpenSSL built in, out of reach: install Python 3.13, or Debian's python3")
        monkeypatch.setattr(ssl, "HAS_PSK", True, raising=False)
        for call in (set_psk_server_callback, set_psk_client_callback):
            monkeypatch.setattr(ssl.SSLContext, call.__name__, call, raising=False)
