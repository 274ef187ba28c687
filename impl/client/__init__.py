"""An NBD client in pure Python."""

from impl.client.client import Client, NbdError, connect
from impl.client.link import HandshakeError, export_info, list_contexts, list_exports
from impl.client.uri import Target, parse

__all__ = [
    "Client",
    "HandshakeError",
    "NbdError",
    "Target",
    "connect",
    "export_info",
    "list_contexts",
    "list_exports",
    "parse",
]
