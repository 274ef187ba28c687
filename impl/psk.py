"""Pre-shared keys for TLS: files of them, and contexts that know the other side by its key and by nothing else.

A key for each name, in hex: a file of lines `NAME:KEY`, as psktool(1) writes it. Every connection has keys of its own
beside (ECDHE or DHE), so that who learns a key later cannot read what went before.

Source:  nbdkit-tls(1), nbd_set_tls_psk_file(3); RFC 9257 section 6 for the length of a key; Python's `ssl`, which has
         the calls from 3.13 on.
Errors:  StartError for a file that is of no use, or a Python that does not have the calls.
"""

from __future__ import annotations

import platform
import ssl
from collections.abc import Callable, Mapping

from impl.errors import StartError

# None of them has a certificate, so TLS 1.2 cannot be spoken with somebody who has one in place of the key.
# Nor may the key be all that there is: some of these would prove it, and encrypt nothing.
CIPHERS = "kECDHEPSK:kDHEPSK:!eNULL"
KEY_MIN_BYTES = 16
# OpenSSL's PSK_MAX_PSK_LEN; and PSK_MAX_IDENTITY_LEN, less what Python's `ssl` needs behind it.
KEY_MAX_BYTES, NAME_MAX_BYTES = 512, 255

Keys = Mapping[str, bytes]


def read_keys(path: str) -> Keys:
    """The keys in a file, by whose they are."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except ValueError:  # as UnicodeDecodeError is, too
        raise StartError(f"{path} is not UTF-8, so it holds no pre-shared keys") from None
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}; `psktool -u NAME -p FILE` makes a file of keys") from None
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, key = _parsed(line)
            if name in keys:
                raise ValueError("that name has a key already")
        except ValueError as error:  # which tells nothing of the line: what is in the wrong place may be the key
            raise StartError(f"{path}, line {number}: {error}; expected NAME:KEY, the key in hex") from None
        keys[name] = key
    if not keys:
        raise StartError(f"{path} holds no keys; `psktool -u NAME -p FILE` makes one")
    return keys


def _parsed(line: str) -> tuple[str, bytes]:
    """The name and the key in a line; ValueError where it has none."""
    name, colon, digits = line.strip().partition(":")
    if not (name and colon):
        raise ValueError("there is no name")
    if name.startswith("#"):
        raise ValueError("a name in hex (#) is not understood")
    if len(name.encode()) > NAME_MAX_BYTES or "\0" in name:
        raise ValueError(f"the name has a zero byte, or more than {NAME_MAX_BYTES}")
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        raise ValueError("the key is not hex") from None
    if not KEY_MIN_BYTES <= len(key) <= KEY_MAX_BYTES:
        raise ValueError(f"the key has {len(key)} bytes, not {KEY_MIN_BYTES} to {KEY_MAX_BYTES}")
    return name, key


def server_context(keys: Keys) -> ssl.SSLContext:
    """For clients who have one of the keys."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    # A name without a key gets an empty one, which ends the handshake.
    _setter(context, "set_psk_server_callback")(lambda name: keys.get(name or "", b""))
    return context


def client_context(path: str, name: str) -> ssl.SSLContext:
    """For a server that has the same key for a name as a file."""
    keys = read_keys(path)
    if name not in keys:
        known = ", ".join(map(repr, sorted(keys)))
        raise StartError(f"{path} has no key for {name!r}, only for {known}; say whose to use, as in nbds://NAME@HOST")
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    # The server has no name to be checked. It has to be verified all the same: TLS 1.3 lets a server that does not know
    # the key show a certificate instead, and as nobody is trusted, none will do.
    context.check_hostname = False
    _setter(context, "set_psk_client_callback")(lambda _hint: (name, keys[name]))
    return context


def _context(side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    return context


def _setter(context: ssl.SSLContext, name: str) -> Callable[[Callable[[str | None], object]], None]:
    """What sets the callback of one side; StartError if this Python has none."""
    if not getattr(ssl, "HAS_PSK", False):
        raise StartError(
            f"TLS with pre-shared keys needs Python 3.13 or later, and an OpenSSL that has them: this is Python "
            f"{platform.python_version()}, {ssl.OPENSSL_VERSION}; certificates need neither"
        )
    setter: Callable[[Callable[[str | None], object]], None] = getattr(context, name)
    return setter
