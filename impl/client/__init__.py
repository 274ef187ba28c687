"""An NBD client in pure Python: all that its users need to name is here."""

from impl.client.client import Client, NbdError, connect
from impl.client.link import HandshakeError, export_info, list_contexts, list_exports
from impl.client.uri import Target, parse
from impl.errors import UsageError
from impl.extents import Extent
from impl.nbd.agreement import Agreement, ExportInfo
from impl.nbd.constants import Command, CommandFlag, TransmissionFlag
from impl.nbd.reply_reader import Reply
from impl.nbd.wire import MetaContext, ServerEntry

__all__ = [
    "Agreement",
    "Client",
    "Command",
    "CommandFlag",
    "ExportInfo",
    "Extent",
    "HandshakeError",
    "MetaContext",
    "NbdError",
    "Reply",
    "ServerEntry",
    "Target",
    "TransmissionFlag",
    "UsageError",
    "connect",
    "export_info",
    "list_contexts",
    "list_exports",
    "parse",
]
