"""Where an NBD server is, written as a URI.

Source:  "NBD URI" specification of the NBD project: nbd://HOST[:PORT][/EXPORT], nbd+unix:///[EXPORT]?socket=PATH; the
         same with nbds, for TLS, and NAME@ before the host, for a pre-shared key; nbd_connect_uri(3) for
         tls-certificates, tls-hostname, tls-psk-file and tls-verify-peer.
Errors:  UsageError, which says what would be understood.
Omits:   nbd+vsock.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from impl.errors import UsageError
from impl.nbd.constants import MAX_STRING_BYTES

DEFAULT_PORT = 10809
FORMS = "nbd://HOST[:PORT][/EXPORT] or nbd+unix:///[EXPORT]?socket=PATH, or nbds for TLS"
TLS_PARAMETERS = ("tls-certificates", "tls-hostname", "tls-psk-file", "tls-verify-peer")
BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True)
class Tls:
    """How a server is made sure of: files of a directory, the name it has to have, and whether that matters at all.

    psk_file:  in place of all that, a file of keys that both sides have
    username:  whose key; None: that of the user who runs this
    """

    certificates: str | None = None
    hostname: str | None = None
    verify_peer: bool = True
    psk_file: str | None = None
    username: str | None = None

    def parameters(self) -> dict[str, str]:
        """As they are written in a URI."""
        found = {
            "tls-certificates": self.certificates,
            "tls-hostname": self.hostname,
            "tls-psk-file": self.psk_file,
        }
        told = {name: value for name, value in found.items() if value is not None}
        return told if self.verify_peer else {**told, "tls-verify-peer": "false"}


@dataclass(frozen=True)
class Target:
    """An export on a server: at `path` if that is not empty, else at `host` and `port`."""

    export: str = ""
    path: str = ""
    host: str = ""
    port: int = DEFAULT_PORT
    tls: Tls | None = None

    @property
    def uri(self) -> str:
        """The URI that parses to this."""
        scheme = "nbd" if self.tls is None else "nbds"
        export = quote(self.export, safe="/")
        parameters = {} if self.tls is None else self.tls.parameters()
        username = None if self.tls is None else self.tls.username
        user = "" if username is None else f"{quote(username, safe='')}@"
        if self.path:
            scheme, where = f"{scheme}+unix", f"{user}/"
            parameters = {"socket": self.path, **parameters}
        else:
            where = f"{user}{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"
        query = urlencode(parameters, safe="/", quote_via=quote)
        return f"{scheme}://{where}{export}{'?' if query else ''}{query}"


def parse(uri: str) -> Target:
    """The target that a URI names."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:  # of a port it says what stands there, which may be a password
        raise _wrong(uri, "the port is no number up to 65535" if "Port" in str(error) else str(error)) from None
    if parts.fragment:
        raise _wrong(uri, "a fragment (#) means nothing here; in an export's name it is written %23")
    scheme, plus, transport = parts.scheme.partition("+")
    if scheme not in ("nbd", "nbds") or (plus and transport != "unix"):
        raise _wrong(uri, f"scheme {parts.scheme!r} is not known")
    known = [*(["socket"] if transport else []), *(TLS_PARAMETERS if scheme == "nbds" else [])]
    parameters = _parameters(uri, parts, known)
    tls = _tls(uri, parts, parameters) if scheme == "nbds" else None
    if "@" in parts.netloc and (tls is None or tls.psk_file is None):
        raise _wrong(uri, "a name (NAME@) says whose pre-shared key it is: nbds and tls-psk-file=FILE are needed")
    if transport:
        if parts.netloc.rpartition("@")[2]:
            raise _wrong(uri, f"a Unix socket has no host, but here is {parts.netloc!r}: three slashes are needed")
        if not parameters.get("socket"):
            raise _wrong(uri, "one socket=PATH is needed")
        return Target(_export(uri, parts), path=parameters["socket"], tls=tls)
    if not parts.hostname:
        raise _wrong(uri, "the host is missing")
    host, port = unquote(parts.hostname), DEFAULT_PORT if port is None else port
    return Target(_export(uri, parts), host=host, port=port, tls=tls)


def _parameters(uri: str, parts: SplitResult, known: Collection[str]) -> dict[str, str]:
    """What stands behind the question mark; each once."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise _wrong(uri, f"parameter {name!r} is not known")
        if name in found:
            raise _wrong(uri, f"one {name}= is needed, not two")
        if "\0" in value:
            raise _wrong(uri, f"{name}= has a zero byte")
        found[name] = value
    return found


def _tls(uri: str, parts: SplitResult, parameters: dict[str, str]) -> Tls:
    verify = parameters.get("tls-verify-peer", "true")
    if verify not in BOOLEANS:
        raise _wrong(uri, f"tls-verify-peer={verify} is neither true nor false")
    certificates, psk_file = parameters.get("tls-certificates"), parameters.get("tls-psk-file")
    if psk_file is not None and (certificates is not None or not BOOLEANS[verify]):
        raise _wrong(uri, "with tls-psk-file, it is the key that both sides are known by, and no certificate")
    return Tls(certificates, parameters.get("tls-hostname"), BOOLEANS[verify], psk_file, _username(uri, parts))


def _username(uri: str, parts: SplitResult) -> str | None:
    """What stands before the host, if anything does."""
    user, at, _host = parts.netloc.rpartition("@")
    if not at:
        return None
    if not user or ":" in user:
        raise _wrong(uri, "before @ there is one name, and no password")
    return unquote(user)


def _export(uri: str, parts: SplitResult) -> str:
    try:
        name = unquote(parts.path.removeprefix("/"), errors="strict")
    except UnicodeDecodeError:
        raise _wrong(uri, "the export's name is not UTF-8") from None
    if "\0" in name or len(name.encode()) > MAX_STRING_BYTES:
        raise _wrong(uri, f"the export's name has a zero byte, or more than {MAX_STRING_BYTES}")
    return name


def _wrong(uri: str, reason: str) -> UsageError:
    uri = re.sub(r"(?<=//)[^?]*:[^?]*@", "...@", uri)  # a password is not repeated, wherever it stands
    return UsageError(f"{uri!r} is not an NBD URI: {reason}; expected {FORMS}")
