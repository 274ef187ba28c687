"""The server's side of the handshake: fixed newstyle. Bytes in, bytes out.

Source:  NBD protocol, "Newstyle negotiation", "Fixed newstyle negotiation", "Option types", "Metadata querying",
         "TLS support".
TLS:     when STARTTLS was granted, `wants_tls` is set: what is to be sent still goes in the clear, and everything else
         encrypted, in both directions; `tls_started` says that it does. What was negotiated before counts no more, and
         a client that has sent anything behind STARTTLS is dropped: it could have come from somebody else.
Errors:  none is raised, whatever a client sends. What the standard answers with an error reply gets one, and the next
         option is parsed where it begins; what it does not leaves phase CLOSED, with the reason in `error`.
Bounds:  what is kept of a client is at most one option of MAX_OPTION_DATA_BYTES beside what the caller passed last;
         longer data are skipped as they come. Options are counted. Replies that nobody fetched are bounded, since a
         client "MUST NOT send any option until it has received a final reply".

Where the standard leaves a choice: a repeated STRUCTURED_REPLY is acknowledged again; BLOCK_SIZE is sent when asked
for, and unasked when it differs from the defaults; NAME and DESCRIPTION only when asked for; contexts set for one
name of an export hold for its other name (""); a query without a colon belongs to no namespace we know, and is
ignored; a client without FIXED_NEWSTYLE that sends any option but EXPORT_NAME is dropped, for it would not
understand an error reply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

from impl.errors import PeerError
from impl.nbd import wire
from impl.nbd.agreement import Agreement, ExportInfo, Phase, Tls
from impl.nbd.constants import (
    BLOCK_PREFERRED_DEFAULT_BYTES,
    CONTEXT_IDS,
    EXPORT_NAME_ZEROES_BYTES,
    MAX_OPTION_COUNT,
    MAX_OPTION_DATA_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_STRING_BYTES,
    OPTION_MAGIC,
    REQUEST_MAGIC,
    ClientFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
)

__all__ = ["Agreement", "ExportInfo", "Phase", "ServerHandshake"]

HANDSHAKE_FLAGS = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
KNOWN_CLIENT_FLAGS = int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)  # an int: ~ of a flag has known bits only
MAX_UNSENT_BYTES = 1 << 20
# What a client may ask before TLS where that is required ("FORCEDTLS mode").
ALLOWED_IN_THE_CLEAR = (Option.STARTTLS, Option.ABORT)
DEFAULT_SIZES = wire.BlockSizes(1, BLOCK_PREFERRED_DEFAULT_BYTES, MAX_PAYLOAD_BYTES)


class _Header(NamedTuple):
    """An option whose data are awaited."""

    option: int
    length: int


class _Refused(Exception):
    """An option cannot be granted: the reply, and why."""

    def __init__(self, reply: OptionReply, reason: str) -> None:
        super().__init__(reason)
        self.reply = reply


Handler = Callable[["ServerHandshake", int, bytes], None]


class _Rule(NamedTuple):
    """How one option is served: its handler; the data it may carry, and the reply if it carries more."""

    handler: Handler
    data_max: int
    too_long: OptionReply | None  # None: data are ignored


class ServerHandshake:
    """One client's handshake. Feed `receive`, send what `data_to_send` gives, look at `phase`."""

    def __init__(self, exports: Mapping[str, ExportInfo], default: str, tls: Tls = Tls.OFF) -> None:
        for name, export in exports.items():
            assert export.name == name, f"export {export.name!r} is listed as {name!r}"
            export.check()
        self._exports = exports
        self._default = default
        self._tls = tls
        self._is_secure = False
        self.wants_tls = False
        self.phase = Phase.CLIENT_FLAGS
        self.agreement: Agreement | None = None
        self.leftover = b""
        self.error: str | None = None
        self._outgoing = bytearray(wire.pack_greeting(HANDSHAKE_FLAGS))
        self._incoming = bytearray()
        self._header: _Header | None = None
        self._skip = 0  # bytes of the current option's data still to be thrown away
        self._option_count = 0
        self._fixed = False
        self._no_zeroes = False
        self._structured = False
        self._extended = False
        self._contexts: tuple[int, ...] = ()
        self._contexts_export: ExportInfo | None = None

    def data_to_send(self) -> bytes:
        """What is to be sent now; it is handed out once."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes) -> None:
        """Take bytes as they came. Those behind the handshake are in `leftover`; after CLOSED they are dropped."""
        self._incoming += data
        while not self.wants_tls and self._STEPS[self.phase](self):
            pass
        if self.wants_tls and self._incoming:
            self.wants_tls = False
            self._close("it has sent something in the clear behind NBD_OPT_STARTTLS")
            self._outgoing.clear()

    def tls_started(self) -> None:
        """From here on, bytes are received and sent encrypted."""
        assert self.wants_tls
        self.wants_tls, self._is_secure = False, True
        self._structured = self._extended = False
        self._contexts, self._contexts_export = (), None

    # Phases. A step says whether another may follow on what has already been received.

    def _take_client_flags(self) -> bool:
        if len(self._incoming) < wire.CLIENT_FLAGS.size:
            return False
        (flags,) = wire.CLIENT_FLAGS.unpack(self._take(wire.CLIENT_FLAGS.size))
        if flags == REQUEST_MAGIC:
            self._close("it speaks the oldstyle handshake, in which a request comes at once; this is newstyle")
            return True
        if flags & ~KNOWN_CLIENT_FLAGS:
            self._close(f"client flags are {flags:#x}, known are {KNOWN_CLIENT_FLAGS:#x}")
            return True
        self._fixed = bool(flags & ClientFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & ClientFlag.NO_ZEROES)
        self.phase = Phase.OPTIONS
        return True

    def _take_option(self) -> bool:
        if self._header is None and not self._take_header():
            return False
        if self.phase is Phase.CLOSED:
            return True
        header = self._header
        assert header is not None
        if self._skip:
            skipped = min(self._skip, len(self._incoming))
            del self._incoming[:skipped]
            self._skip -= skipped
            if self._skip:
                return False
            data = b""
        elif len(self._incoming) < self._kept(header):
            return False
        else:
            data = self._take(self._kept(header))
        self._header = None
        self._serve(header, data)
        return True

    def _take_header(self) -> bool:
        if len(self._incoming) < wire.OPTION.size:
            return False
        magic, option, length = wire.OPTION.unpack(self._take(wire.OPTION.size))
        self._header = _Header(option, length)
        self._option_count += 1
        if magic != OPTION_MAGIC:
            self._close(f"option magic is {magic:#x}, expected {OPTION_MAGIC:#x}")
        elif self._option_count > MAX_OPTION_COUNT:
            self._close(f"more than {MAX_OPTION_COUNT} options")
        elif len(self._outgoing) > MAX_UNSENT_BYTES:
            self._close("client sends options without waiting for the replies")
        elif not self._fixed and option != Option.EXPORT_NAME:
            self._close(f"option {_name(option)} from a client that does not speak fixed newstyle")
        elif option == Option.EXPORT_NAME and length > MAX_STRING_BYTES:
            self._close(f"export name of {length} bytes, at most {MAX_STRING_BYTES} allowed")
        elif not self._kept(self._header):
            self._skip = length
        return True

    def _take_nothing_more(self) -> bool:
        self.leftover += self._take(len(self._incoming))
        return False

    def _drop(self) -> bool:
        self._incoming.clear()
        return False

    _STEPS: ClassVar[dict[Phase, Callable[[ServerHandshake], bool]]] = {
        Phase.CLIENT_FLAGS: _take_client_flags,
        Phase.OPTIONS: _take_option,
        Phase.TRANSMISSION: _take_nothing_more,
        Phase.CLOSED: _drop,
    }

    # Options.

    def _kept(self, header: _Header) -> int:
        """How much of an option's data is kept: all of it or nothing."""
        rule = self._RULES.get(header.option)
        return header.length if rule is not None and header.length <= rule.data_max else 0

    def _serve(self, header: _Header, data: bytes) -> None:
        option = header.option
        rule = self._RULES.get(option)
        try:
            if self._tls is Tls.REQUIRE and not self._is_secure and option not in ALLOWED_IN_THE_CLEAR:
                self._insist_on_tls(option)
                return
            if rule is None:
                raise _Refused(OptionReply.ERR_UNSUP, f"option {option} is not supported")
            if header.length > rule.data_max and rule.too_long is not None:
                self._forget_contexts(option)
                raise _Refused(rule.too_long, f"{header.length} bytes of data, at most {rule.data_max} allowed")
            rule.handler(self, option, data)
        except _Refused as refused:
            self._reply(option, refused.reply, wire.shorten(str(refused)))
        except PeerError as error:
            self._reply(option, OptionReply.ERR_INVALID, wire.shorten(str(error)))

    def _insist_on_tls(self, option: int) -> None:
        if option == Option.EXPORT_NAME:
            self._close(f"{_name(option)} in the clear, and TLS is required")
            return
        raise _Refused(OptionReply.ERR_TLS_REQD, "this server requires TLS")

    def _export_name(self, option: int, data: bytes) -> None:
        if self._extended:  # "a client MUST NOT use NBD_OPT_EXPORT_NAME"
            self._close(f"{_name(option)} from a client that has asked for extended headers")
            return
        try:
            export = self._find(wire.text(data))
        except (PeerError, _Refused) as error:
            self._close(f"{_name(option)}: {error}")  # this option knows no error reply
            return
        self._agree(export)
        assert self.agreement is not None
        self._outgoing += wire.EXPORT_NAME_REPLY.pack(export.size, self.agreement.flags)
        if not self._no_zeroes:
            self._outgoing += bytes(EXPORT_NAME_ZEROES_BYTES)

    def _abort(self, option: int, _: bytes) -> None:
        self._reply(option, OptionReply.ACK)
        self._close(None)  # it is in order to leave like this

    def _list(self, option: int, _: bytes) -> None:
        for export in self._exports.values():
            self._reply(option, OptionReply.SERVER, wire.pack_server_entry(export.name, export.description))
        self._reply(option, OptionReply.ACK)

    def _start_tls(self, option: int, _: bytes) -> None:
        if self._tls is Tls.OFF:
            raise _Refused(OptionReply.ERR_POLICY, "this server does not offer TLS")
        if self._is_secure:
            raise _Refused(OptionReply.ERR_INVALID, "TLS has been started already")
        self._reply(option, OptionReply.ACK)
        self.wants_tls = True

    def _info_or_go(self, option: int, data: bytes) -> None:
        request = wire.unpack_info_request(data)
        export = self._find(request.name)
        replies = [wire.pack_info_export(export.size, self._flags(export))]
        if Info.NAME in request.infos:
            replies.append(wire.pack_info_text(Info.NAME, export.name))
        if Info.DESCRIPTION in request.infos and export.description:
            replies.append(wire.pack_info_text(Info.DESCRIPTION, export.description))
        if Info.BLOCK_SIZE in request.infos or export.block_sizes != DEFAULT_SIZES:
            replies.append(wire.pack_info_block_size(export.block_sizes))
        for reply in replies:
            self._reply(option, OptionReply.INFO, reply)
        self._reply(option, OptionReply.ACK)
        if option == Option.GO:
            self._agree(export)

    def _structured_reply(self, option: int, _: bytes) -> None:
        if self._extended:
            raise _Refused(OptionReply.ERR_EXT_HEADER_REQD, "extended headers were asked for, and take precedence")
        self._structured = True
        self._reply(option, OptionReply.ACK)

    def _extended_headers(self, option: int, _: bytes) -> None:
        self._structured = self._extended = True  # "takes precedence over structured replies"
        self._reply(option, OptionReply.ACK)

    def _list_meta_context(self, option: int, data: bytes) -> None:
        queries = self._meta_queries(data)[1]
        for name in CONTEXT_IDS:
            if not queries or name in queries or _namespace(name) in queries:
                self._reply(option, OptionReply.META_CONTEXT, wire.pack_meta_context(0, name))
        self._reply(option, OptionReply.ACK)

    def _set_meta_context(self, option: int, data: bytes) -> None:
        self._forget_contexts(option)  # "including when this command fails"
        export, queries = self._meta_queries(data)
        selected = {name: id_ for name, id_ in CONTEXT_IDS.items() if name in queries}
        self._contexts, self._contexts_export = tuple(selected.values()), export
        for name, id_ in selected.items():
            self._reply(option, OptionReply.META_CONTEXT, wire.pack_meta_context(id_, name))
        self._reply(option, OptionReply.ACK)

    def _meta_queries(self, data: bytes) -> tuple[ExportInfo, tuple[str, ...]]:
        if not self._structured:
            raise _Refused(OptionReply.ERR_INVALID, "negotiate structured replies first")
        query = wire.unpack_meta_query(data)
        return self._find(query.export), query.queries

    _RULES: ClassVar[dict[int, _Rule]] = {
        Option.EXPORT_NAME: _Rule(_export_name, MAX_STRING_BYTES, OptionReply.ERR_INVALID),
        Option.ABORT: _Rule(_abort, 0, None),
        Option.LIST: _Rule(_list, 0, OptionReply.ERR_INVALID),
        Option.STARTTLS: _Rule(_start_tls, 0, OptionReply.ERR_INVALID),
        Option.INFO: _Rule(_info_or_go, MAX_OPTION_DATA_BYTES, OptionReply.ERR_TOO_BIG),
        Option.GO: _Rule(_info_or_go, MAX_OPTION_DATA_BYTES, OptionReply.ERR_TOO_BIG),
        Option.STRUCTURED_REPLY: _Rule(_structured_reply, 0, OptionReply.ERR_INVALID),
        Option.EXTENDED_HEADERS: _Rule(_extended_headers, 0, OptionReply.ERR_INVALID),
        Option.LIST_META_CONTEXT: _Rule(_list_meta_context, MAX_OPTION_DATA_BYTES, OptionReply.ERR_TOO_BIG),
        Option.SET_META_CONTEXT: _Rule(_set_meta_context, MAX_OPTION_DATA_BYTES, OptionReply.ERR_TOO_BIG),
    }

    # What the steps and handlers share.

    def _find(self, name: str) -> ExportInfo:
        export = self._exports.get(name or self._default)
        if export is None:
            raise _Refused(OptionReply.ERR_UNKNOWN, f"no export is named {name!r}")
        return export

    def _flags(self, export: ExportInfo) -> TransmissionFlag:
        flags = export.flags | TransmissionFlag.HAS_FLAGS
        if self._structured:
            flags |= TransmissionFlag.SEND_DF
        if self._extended and self._contexts and export is self._contexts_export:
            flags |= TransmissionFlag.BLOCK_STATUS_PAYLOAD
        return flags

    def _agree(self, export: ExportInfo) -> None:
        contexts = self._contexts if export is self._contexts_export else ()
        self.agreement = Agreement(export, self._flags(export), self._structured, contexts, self._extended)
        self.phase = Phase.TRANSMISSION

    def _forget_contexts(self, option: int) -> None:
        if option == Option.SET_META_CONTEXT:
            self._contexts, self._contexts_export = (), None

    def _reply(self, option: int, reply: OptionReply, data: bytes = b"") -> None:
        self._outgoing += wire.pack_option_reply(option, reply, data)

    def _close(self, reason: str | None) -> None:
        self.error = reason
        self.phase = Phase.CLOSED

    def _take(self, count: int) -> bytes:
        taken = bytes(self._incoming[:count])
        del self._incoming[:count]
        return taken


def _namespace(context: str) -> str:
    """The query for all contexts of a namespace: all up to the colon."""
    return context.partition(":")[0] + ":"


def _name(option: int) -> str:
    try:
        return f"NBD_OPT_{Option(option).name}"
    except ValueError:
        return str(option)
