"""Where an NBD server is, written as a URI.

Source:  "NBD URI" specification of the NBD project: nbd://HOST[:PORT][/EXPORT], nbd+unix:///[EXPORT]?socket=PATH.
Errors:  UsageError, which says what would be understood.
Omits:   nbds (TLS) and nbd+vsock.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from impl.errors import UsageError

DEFAULT_PORT = 10809
FORMS = "nbd://HOST[:PORT][/EXPORT] or nbd+unix:///[EXPORT]?socket=PATH"


@dataclass(frozen=True)
class Target:
    """An export on a server: at `path` if that is not empty, else at `host` and `port`."""

    export: str = ""
    path: str = ""
    host: str = ""
    port: int = DEFAULT_PORT

    @property
    def uri(self) -> str:
        """The URI that parses to this."""
        export = quote(self.export, safe="/")
        if self.path:
            return f"nbd+unix:///{export}?socket={quote(self.path, safe='/')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd://{host}:{self.port}/{export}"


def parse(uri: str) -> Target:
    """The target that a URI names."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise _wrong(uri, str(error)) from None
    if parts.fragment:
        raise _wrong(uri, "a fragment (#) means nothing here; in an export's name it is written %23")
    if parts.scheme == "nbd+unix":
        return _unix(uri, parts)
    if parts.scheme != "nbd":
        raise _wrong(uri, f"scheme {parts.scheme!r} is not known")
    if not parts.hostname:
        raise _wrong(uri, "the host is missing")
    if parts.query:
        raise _wrong(uri, f"parameter {parts.query!r} is not known")
    return Target(_export(uri, parts), host=unquote(parts.hostname), port=DEFAULT_PORT if port is None else port)


def _unix(uri: str, parts: SplitResult) -> Target:
    if parts.netloc:
        raise _wrong(uri, f"a Unix socket has no host, but here is {parts.netloc!r}: three slashes are needed")
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    unknown = [name for name, _ in parameters if name != "socket"]
    if unknown:
        raise _wrong(uri, f"parameter {unknown[0]!r} is not known")
    paths = [value for _, value in parameters]
    if len(paths) != 1 or not paths[0]:
        raise _wrong(uri, "one socket=PATH is needed")
    return Target(_export(uri, parts), path=paths[0])


def _export(uri: str, parts: SplitResult) -> str:
    try:
        return unquote(parts.path.removeprefix("/"), errors="strict")
    except UnicodeDecodeError:
        raise _wrong(uri, "the export's name is not UTF-8") from None


def _wrong(uri: str, reason: str) -> UsageError:
    return UsageError(f"{uri!r} is not an NBD URI: {reason}; expected {FORMS}")
