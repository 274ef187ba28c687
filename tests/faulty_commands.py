"""Servers with one fault each in what they do with requests, by the rule that must name it.

A fault is a function of the connection's commands, the request, and the answer that would be right.
"""

from check.conform.disk import base_bytes
from check.conform.extended import COOKIE, TOO_LONG
from check.conform.vectors import SIZE
from impl.errors import PeerError
from impl.nbd.constants import MAX_PAYLOAD_BYTES, Command
from impl.nbd.replies import ExtendedReplies, simple_reply
from impl.server.commands import Commands

C = Command
SERVERS = {}


def commands(rule, **options):
    """Commands that break a rule, of an export with options."""

    def register(made):
        SERVERS[made.__name__] = (rule, made, options)
        return made

    return register


def faulty(fault):
    """The class of such commands."""

    class Faulty(Commands):
        def start(self, request):
            return fault(self, request, lambda: Commands.start(self, request))

    return Faulty


@commands("transmission/unknown-command")
def says_eio_to_what_it_does_not_know(self, request, shipped):
    return self.error(request, 5, "") if request.command == 0x7FFF else shipped()


@commands("transmission/error-values")
def says_errors_of_its_own(self, request, shipped):
    return self.error(request, 200, "") if (request.offset, request.length) == (SIZE, 1) else shipped()


@commands("transmission/read-beyond-the-end")
def says_eio_beyond_the_end(self, request, shipped):
    is_it = (request.command, request.offset, request.length) == (C.READ, SIZE, 512)
    return self.error(request, 5, "") if is_it else shipped()


@commands("transmission/write-beyond-the-end")
def says_eio_of_writes_beyond_the_end(self, request, shipped):
    is_it = request.error and request.command == C.WRITE and request.length == 512 and request.offset == SIZE
    return self.error(request, 5, "") if is_it else shipped()


@commands("transmission/unknown-flag")
def ignores_flags(self, request, shipped):
    if request.flags == 1 << 15:
        return Commands.start(self, request._replace(flags=0, error=0, message=""))
    return shipped()


@commands("transmission/cookies")
def answers_others_in_between(self, request, shipped):
    if request.cookie == 60 * 0x1234_5678_9ABC:
        request = request._replace(cookie=1)
        return Commands.start(self, request)
    return shipped()


@commands("transmission/structured-read")
def leaves_the_last_byte_out(self, request, shipped):
    if (
        request.length == SIZE
        and request.command == C.READ
        and self._structured
        and not request.flags
        and request.cookie == 7
    ):
        return Commands.start(self, request._replace(length=request.length - 1))
    return shipped()


@commands("transmission/df")
def fragments_though_df_forbids_it(self, request, shipped):
    if request.command == C.READ and request.flags & 4 and request.cookie == 7:
        half = request.length // 2
        parts = [
            self._overlay.pread(request.offset, half),
            self._overlay.pread(request.offset + half, request.length - half),
        ]
        return self._chunks(request, parts)
    return shipped()


@commands("transmission/flush")
def cannot_flush(self, request, shipped):
    is_it = (request.command, request.cookie, request.flags) == (C.FLUSH, 7, 0)
    return self.error(request, 5, "") if is_it and not self._structured else shipped()


@commands("transmission/status-without-context")
def tells_status_without_a_context(self, request, shipped):
    return self._done(request) if request.command == C.BLOCK_STATUS and not self._structured else shipped()


@commands("transmission/multi-conn")
def reads_what_was_there_before(self, request, shipped):
    is_it = (request.command, request.offset, request.length, request.cookie) == (C.READ, 1, 1, 3)
    if is_it and not self._structured:
        return [self._replies.data_header(request, 1, 1, True), base_bytes()[1:2]]
    return shipped()


@commands("semantics/read")
def reads_the_base_of_what_was_written(self, request, shipped):
    is_it = (request.command, request.length) == (C.READ, 1025)
    if is_it and self._overlay.states.at(request.offset // 4096) == 1:
        data = base_bytes()[request.offset : request.offset + request.length]
        return [self._replies.data_header(request, request.offset, len(data), True), data]
    return shipped()


@commands("semantics/write")
def loses_the_end_of_a_write(self, request, shipped):
    if request.command == C.WRITE and request.length == 1025:
        return Commands.start(self, request._replace(length=1024, payload=request.payload[:1024]))
    return shipped()


@commands("semantics/trim")
def trims_a_byte_too_much(self, request, shipped):
    if request.command == C.TRIM and request.length == 1025 and not request.error:
        self._overlay.write(request.offset + request.length, b"\0")
    return shipped()


@commands("semantics/write_zeroes")
def zeroes_though_it_says_that_it_would_be_slow(self, request, shipped):
    if request.command == C.WRITE_ZEROES and request.flags & 16 and request.length == 1025:
        self._overlay.zero(request.offset, request.length)
        return self.error(request, 95, "slow")
    return shipped()


@commands("semantics/cache")
def changes_what_it_caches(self, request, shipped):
    if request.command == C.CACHE and request.length == 4096 and not request.error:
        self._overlay.write(request.offset, b"\xff")
    return shipped()


@commands("semantics/flush")
def loses_what_it_flushes(self, request, shipped):
    if request.command == C.FLUSH and request.cookie != 7:
        self._overlay.zero(0, 1)
    return shipped()


@commands("semantics/block_status")
def takes_data_for_holes(self, request, shipped):
    if request.command == C.BLOCK_STATUS and request.length == 1025 and self._contexts:
        return [
            self._replies.block_status(request, context, [(1025, 3)], context == self._contexts[-1])
            for context in self._contexts
        ]
    return shipped()


@commands("transmission/read-far-beyond")
def sends_data_behind_an_error(self, request, shipped):
    is_it = request.command == C.READ and request.offset >= 1 << 62
    return [*shipped(), bytes(request.length)] if is_it else shipped()


@commands("transmission/write-far-beyond")
def takes_writes_from_beyond(self, request, shipped):
    return self._done(request) if request.command == C.WRITE and request.offset >= 1 << 62 else shipped()


@commands("transmission/disconnect-answers")
def is_leaving_already(self, request, shipped):
    is_it = (request.command, request.cookie, request.offset, request.length, request.flags) == (C.READ, 7, 0, 512, 0)
    return self.error(request, 108, "") if is_it and not self._structured else shipped()


@commands("transmission/disconnect-after-writes")
def loses_the_last_writes(self, request, shipped):
    is_it = request.command == C.WRITE and request.length == 512 and bytes(request.payload[:1]).hex()[:1] == "d"
    return self._done(request) if is_it else shipped()


@commands("transmission/fua")
def does_not_know_fua_of_a_flush(self, request, shipped):
    return self.error(request, 22, "") if (request.command, request.flags) == (C.FLUSH, 1) else shipped()


@commands("transmission/no-hole")
def cannot_fill_holes(self, request, shipped):
    is_it = (request.command, request.flags, request.length) == (C.WRITE_ZEROES, 2, 512)
    return self.error(request, 95, "") if is_it else shipped()


@commands("transmission/misplaced-flags")
def takes_any_flag_for_a_trim(self, request, shipped):
    return self._done(request) if (request.command, request.flags) == (C.TRIM, 2) else shipped()


@commands("transmission/zero-length")
def leaves_those_who_ask_for_nothing(self, request, shipped):
    if not request.length and request.command == C.TRIM:
        raise PeerError("nothing?")
    return shipped()


@commands("transmission/read-only", read_only=True)
def writes_though_it_must_not(self, request, shipped):
    return self._done(request) if (request.command, request.length) == (C.WRITE, 512) else shipped()


@commands("semantics/read-only", read_only=True)
def takes_whole_blocks_though_it_must_not(self, request, shipped):
    return self._done(request) if (request.command, request.length) == (C.WRITE, 4096) else shipped()


@commands("transmission/large-payload")
def leaves_those_who_send_much(self, request, shipped):
    if request.command == C.WRITE and request.length == MAX_PAYLOAD_BYTES:
        raise PeerError("so much?")
    return shipped()


@commands("transmission/large-effect")
def leaves_those_who_trim_much(self, request, shipped):
    if request.command == C.TRIM and 1 << 31 < request.length < 1 << 32:
        raise PeerError("so much?")
    return shipped()


@commands("transmission/maximum-payload")
def has_no_memory_for_what_it_offers(self, request, shipped):
    is_it = request.command == C.READ and request.length == MAX_PAYLOAD_BYTES
    return self.error(request, 12, "") if is_it else shipped()


@commands("transmission/structured-errors")
def says_no_in_the_old_way(self, request, shipped):
    is_it = request.error and request.command == C.READ and self._structured
    return [simple_reply(request.cookie, request.error)] if is_it and request.flags == 1 << 15 else shipped()


def status(self, request, extents):
    """What all contexts say."""
    return [
        self._replies.block_status(request, context, extents, context == self._contexts[-1])
        for context in self._contexts
    ]


@commands("status/extents")
def goes_on_behind_the_end(self, request, shipped):
    is_it = (request.command, request.cookie, request.offset, request.length) == (C.BLOCK_STATUS, 7, 512, SIZE - 512)
    return status(self, request, [(request.length, 0), (512, 0)]) if is_it else shipped()


@commands("status/one")
def has_two_where_one_is_asked_for(self, request, shipped):
    is_it = request.command == C.BLOCK_STATUS and request.flags == 8
    return status(self, request, [(request.length // 2, 0), (request.length // 2, 2)]) if is_it else shipped()


@commands("status/flags")
def has_flags_of_its_own(self, request, shipped):
    is_it = (request.command, request.cookie, request.length) == (C.BLOCK_STATUS, 7, SIZE)
    return status(self, request, [(request.length, 4)]) if is_it else shipped()


@commands("status/zero")
def says_zero_of_data(self, request, shipped):
    is_it = (request.command, request.cookie, request.length) == (C.BLOCK_STATUS, 7, SIZE)
    return status(self, request, [(request.length, 2)]) if is_it else shipped()


@commands("status/beyond-the-end")
def says_eio_of_the_status_beyond_the_end(self, request, shipped):
    is_it = (request.command, request.offset, request.length) == (C.BLOCK_STATUS, SIZE, 512)
    return self.error(request, 5, "") if is_it else shipped()


def extended(rule):
    """Commands that break a rule with extended headers."""

    def register(made):
        def fault(self, request, shipped):
            return made(self, request, shipped) if isinstance(self._replies, ExtendedReplies) else shipped()

        fault.__name__ = made.__name__
        return commands(rule)(fault)

    return register


@extended("extended/replies")
def says_another_offset(self, request, shipped):
    is_it = request.command == C.WRITE and request.cookie == COOKIE
    return self._done(request._replace(offset=request.offset + 1)) if is_it else shipped()


@extended("extended/payload-unasked")
def says_eio_to_a_payload(self, request, shipped):
    is_it = request.command == C.READ and request.flags & 32
    return self.error(request, 5, "") if is_it else shipped()


@extended("extended/long-effect")
def trims_more_than_there_is(self, request, shipped):
    return self._done(request) if (request.command, request.length) == (C.TRIM, TOO_LONG) else shipped()


@extended("extended/read-back")
def loses_a_write(self, request, shipped):
    is_it = request.command == C.WRITE and request.payload[:1] == b"\x7e"
    return self._done(request) if is_it else shipped()


@extended("extended/status")
def says_more_than_32_bits(self, request, shipped):
    is_it = (request.command, request.cookie, request.length) == (C.BLOCK_STATUS, 7, SIZE)
    return status(self, request, [(request.length, 1 << 33)]) if is_it else shipped()


@extended("extended/status-payload")
def takes_any_context(self, request, shipped):
    is_it = request.command == C.BLOCK_STATUS and request.error and request.flags & 32
    return status(self, request, [(512, 0)]) if is_it else shipped()


@commands("semantics/refusals")
def writes_what_fits(self, request, shipped):
    if request.command == C.WRITE and (request.offset, request.length) == (SIZE - 1, 2):
        self._overlay.write(request.offset, request.payload[:1] or b"\x09")
    return shipped()
