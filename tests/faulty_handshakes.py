"""Handshakes with one fault each, by the rule that must name it."""

from check.conform.handshake import NO_SUCH_EXPORT
from impl.nbd.agreement import Phase
from impl.nbd.constants import BASE_ALLOCATION, CONTEXT_IDS, Option, OptionReply, TransmissionFlag
from impl.nbd.server_handshake import ServerHandshake
from impl.nbd.wire import pack_meta_context

HANDSHAKES = {}


def handshake(rule):
    """A handshake that breaks a rule."""

    def register(made):
        HANDSHAKES[made.__name__] = (rule, made)
        return made

    return register


@handshake("handshake/unknown-option")
class HangsUpOnWhatItDoesNotKnow(ServerHandshake):
    def _serve(self, header, data):
        if header.option not in self._RULES and not header.length:
            self._close("what is that?")
        else:
            super()._serve(header, data)


@handshake("handshake/unknown-option-with-data")
class TakesDataForAnOption(ServerHandshake):
    def _take_header(self):
        found = super()._take_header()
        if self._header is not None and self._header.option not in self._RULES:
            self._skip = 0
        return found


@handshake("handshake/client-flags")
class IgnoresClientFlags(ServerHandshake):
    def _take_client_flags(self):
        self._incoming[:3] = bytes(3)
        return super()._take_client_flags()

    _STEPS = {**ServerHandshake._STEPS, Phase.CLIENT_FLAGS: _take_client_flags}


@handshake("handshake/abort")
class LeavesWithoutAWord(ServerHandshake):
    def _serve(self, header, data):
        if header.option == 2 and not header.length:
            self._close(None)
        else:
            super()._serve(header, data)


@handshake("handshake/abort-with-data")
class RefusesDataOfAnAbort(ServerHandshake):
    def _serve(self, header, data):
        if header.option == 2 and header.length:
            self._reply(2, OptionReply.ERR_INVALID)
        else:
            super()._serve(header, data)


@handshake("handshake/list-with-data")
class ListsWhateverIsBehind(ServerHandshake):
    def _serve(self, header, data):
        super()._serve(header._replace(length=0) if header.option == 3 else header, b"" if header.option == 3 else data)


@handshake("handshake/list")
class ListsNamesThatAreTooLong(ServerHandshake):
    def _list(self, option, _):
        self._reply(option, OptionReply.SERVER, bytes.fromhex("00000fff") + b"short")
        self._reply(option, OptionReply.ACK)

    _RULES = {**ServerHandshake._RULES, 3: ServerHandshake._RULES[3]._replace(handler=_list)}


@handshake("handshake/go-malformed")
class TakesAnyNameForUnknown(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        super()._reply(
            option, OptionReply.ERR_UNKNOWN if (option, reply) == (7, OptionReply.ERR_INVALID) else reply, data
        )


@handshake("handshake/info-export")
class HasNoFlags(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        is_export = option in (6, 7) and reply == OptionReply.INFO and data[:2] == bytes(2)
        super()._reply(option, reply, data[:-1] + bytes([data[-1] & ~1]) if is_export else data)


@handshake("handshake/flags")
class SendsDfUnasked(ServerHandshake):
    def _flags(self, export):
        return super()._flags(export) | TransmissionFlag.SEND_DF


@handshake("handshake/block-sizes")
class HasOddBlocks(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        is_sizes = option in (6, 7) and reply == OptionReply.INFO and data[:2] == b"\0\3"
        super()._reply(option, reply, data[:6] + b"\0\0\x0f\xff" + data[10:] if is_sizes else data)


@handshake("handshake/info-twice")
class TellsMoreTheSecondTime(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        super()._reply(option, reply, data)
        if option == 7 and reply == OptionReply.INFO and data[:2] == b"\0\0":
            super()._reply(option, OptionReply.INFO, b"\0\2other")


@handshake("handshake/structured-with-data")
class StructuresWhateverIsBehind(ServerHandshake):
    def _serve(self, header, data):
        super()._serve(header._replace(length=0) if header.option == 8 else header, data)


@handshake("handshake/context-too-early")
class SelectsContextsTooEarly(ServerHandshake):
    def _meta_queries(self, data):
        was, self._structured = self._structured, True
        try:
            return super()._meta_queries(data)
        finally:
            self._structured = was


@handshake("handshake/unknown-context")
class RefusesContextsItDoesNotKnow(ServerHandshake):
    def _set_meta_context(self, option, data):
        self._forget_contexts(option)
        if self._structured and b"x-nobody" in data:
            self._reply(option, OptionReply.ERR_UNKNOWN)
        else:
            super()._set_meta_context(option, data)

    _RULES = {**ServerHandshake._RULES, 10: ServerHandshake._RULES[10]._replace(handler=_set_meta_context)}


@handshake("handshake/context-ids")
class NumbersAllContextsAlike(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        is_context = option == 10 and reply == OptionReply.META_CONTEXT and len(self._contexts) == 2
        super()._reply(option, reply, b"\0\0\0\1" + data[4:] if is_context else data)


@handshake("handshake/export-name")
class HasNoZeroes(ServerHandshake):
    def _export_name(self, option, data):
        super()._export_name(option, data)
        if not self._no_zeroes:
            self._outgoing[-100:] = b"x" * 100

    _RULES = {**ServerHandshake._RULES, 1: ServerHandshake._RULES[1]._replace(handler=_export_name)}


@handshake("handshake/info-and-go")
class HasNoInfo(ServerHandshake):
    def _serve(self, header, data):
        if header.option == Option.INFO:
            self._reply(Option.INFO, OptionReply.ERR_UNSUP)
        else:
            super()._serve(header, data)


@handshake("handshake/unknown-export")
class KnowsAllNamesAfterOne(ServerHandshake):
    seen = None

    def _find(self, name):
        if name == NO_SUCH_EXPORT and self.seen is not None:
            return self.seen
        export = super()._find(name)
        self.seen = export
        return export

    def _meta_queries(self, data):
        self.seen = None
        return super()._meta_queries(data)


@handshake("handshake/greeting-flags")
class HasFlagsOfItsOwn(ServerHandshake):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._outgoing[-1] |= 4


@handshake("tls/not-there")
class DoesNotKnowWhatTlsIs(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        super()._reply(option, OptionReply.ERR_UNKNOWN if option == Option.STARTTLS else reply, data)


@handshake("contexts/list-all")
class ListsNoContextsUnasked(ServerHandshake):
    def _list_meta_context(self, option, data):
        if self._meta_queries(data)[1]:
            super()._list_meta_context(option, data)
        else:
            self._reply(option, OptionReply.ACK)

    _RULES = {**ServerHandshake._RULES, 9: ServerHandshake._RULES[9]._replace(handler=_list_meta_context)}


@handshake("contexts/list-base")
class ListsAllForBase(ServerHandshake):
    def _list_meta_context(self, option, data):
        self._meta_queries(data)
        for name in CONTEXT_IDS:
            self._reply(option, OptionReply.META_CONTEXT, pack_meta_context(0, name))
        self._reply(option, OptionReply.ACK)

    _RULES = {**ServerHandshake._RULES, 9: ServerHandshake._RULES[9]._replace(handler=_list_meta_context)}


def selecting(wanted):
    """A handler that selects base:allocation whenever the queries are so."""

    def handler(self, option, data):
        self._forget_contexts(option)
        queries = self._meta_queries(data)[1]
        if not wanted(queries):
            ServerHandshake._set_meta_context(self, option, data)
            return
        self._contexts, self._contexts_export = (CONTEXT_IDS[BASE_ALLOCATION],), self._meta_queries(data)[0]
        self._reply(option, OptionReply.META_CONTEXT, pack_meta_context(1, BASE_ALLOCATION))
        self._reply(option, OptionReply.ACK)

    return {**ServerHandshake._RULES, 10: ServerHandshake._RULES[10]._replace(handler=handler)}


@handshake("contexts/select-base")
class SelectsAllOfBase(ServerHandshake):
    _RULES = selecting(lambda queries: queries == ("base:",))


@handshake("contexts/select-none")
class SelectsSomethingUnasked(ServerHandshake):
    _RULES = selecting(lambda queries: not queries)


@handshake("contexts/malformed")
class TakesHalfAQuery(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        if (option, reply) == (Option.LIST_META_CONTEXT, OptionReply.ERR_INVALID) and self._structured:
            super()._reply(option, OptionReply.ACK)
        else:
            super()._reply(option, reply, data)


@handshake("contexts/bytes-behind")
class LosesItsPlaceBehindQueries(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        super()._reply(option, reply, data)
        if option == Option.LIST_META_CONTEXT and b"behind the last field" in data:
            self._incoming += bytes(100)


@handshake("contexts/replaced")
class KeepsWhatWasSelected(ServerHandshake):
    def _set_meta_context(self, option, data):
        before = self._contexts, self._contexts_export
        super()._set_meta_context(option, data)
        if not self._contexts:
            self._contexts, self._contexts_export = before

    _RULES = {**ServerHandshake._RULES, 10: ServerHandshake._RULES[10]._replace(handler=_set_meta_context)}


@handshake("contexts/other-export")
class KeepsWhatWasSelectedForAnother(ServerHandshake):
    def _forget_contexts(self, option):
        pass


@handshake("extended/structured-after")
class TakesStructuredRepliesAfterAll(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        is_it = reply == OptionReply.ERR_EXT_HEADER_REQD
        super()._reply(option, OptionReply.ACK if is_it else reply, b"" if is_it else data)


@handshake("extended/with-data")
class ExtendsWhateverIsBehind(ServerHandshake):
    def _serve(self, header, data):
        super()._serve(header._replace(length=0) if header.option == 11 else header, data)


# With TLS.

TLS_HANDSHAKES = {}


def tls_handshake(rule, mode="on"):
    """A handshake that breaks a rule of TLS."""

    def register(made):
        TLS_HANDSHAKES[made.__name__] = (rule, mode, made)
        return made

    return register


@tls_handshake("tls/upgrade")
class DoesNotListFirst(ServerHandshake):
    is_first = True

    def _serve(self, header, data):
        if self._is_secure and header.option == Option.LIST and self.is_first:
            self._reply(Option.LIST, OptionReply.ERR_INVALID)
        else:
            super()._serve(header, data)
        self.is_first = self.is_first and not self._is_secure


@tls_handshake("tls/twice")
class HasAPolicyAgainstTwice(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        is_it = (option, reply) == (Option.STARTTLS, OptionReply.ERR_INVALID)
        super()._reply(option, OptionReply.ERR_POLICY if is_it else reply, data)


@tls_handshake("tls/forgets")
class ForgetsNothing(ServerHandshake):
    def tls_started(self):
        before = self._structured
        super().tls_started()
        self._structured = before


@tls_handshake("tls/injection")
class TakesWhatWasInTheClear(ServerHandshake):
    behind = b""

    def receive(self, data):
        self._incoming += data
        while not self.wants_tls and self._STEPS[self.phase](self):
            pass
        if self.wants_tls:
            self.behind = self._take(len(self._incoming))

    def tls_started(self):
        super().tls_started()
        self._incoming += self.behind


@tls_handshake("tls/required", "require")
class TellsWhatItDoesNotKnow(ServerHandshake):
    def _serve(self, header, data):
        if header.option not in self._RULES:
            self._reply(header.option, OptionReply.ERR_UNSUP)
        else:
            super()._serve(header, data)


# What clients send that makes no sense, and takes the whole server with it.

FRAGILE = {}


def fragile(rule):
    """A handshake that breaks a rule; once `broken`, nobody is served any longer."""

    def register(made):
        FRAGILE[made.__name__] = (rule, made)
        return made

    return register


class Fragile(ServerHandshake):
    broken = False

    def __init__(self, *arguments):
        super().__init__(*arguments)
        if type(self).broken:
            self._outgoing.clear()
            self.phase = Phase.CLOSED


@fragile("malformed/mutations")
class BreaksOnAMistake(Fragile):
    def _close(self, reason):
        super()._close(reason)
        type(self).broken |= reason is not None


@fragile("malformed/noise")
class BreaksOnNoise(BreaksOnAMistake):
    pass


@fragile("malformed/lengths")
class BreaksOnLengths(Fragile):
    def _take_header(self):
        found = super()._take_header()
        type(self).broken |= self._header is not None and self._header.length > 1 << 30
        return found


@fragile("malformed/halves")
class BreaksWhenTenHaveLeftEarly(Fragile):
    early = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        type(self).early += 1
        type(self).broken |= type(self).early > 10

    def _agree(self, export):
        super()._agree(export)
        type(self).early -= 1
