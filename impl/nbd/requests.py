"""Requests off the wire, validated: the server's receiving half of the transmission phase.

Source:  NBD protocol, "Request message", "Command flags", "Request types", "Error values", "Size constraints".
Shapes:  the transport receives into `buffer()`, says how much with `received()`, and takes requests from `next()`
         until that gives None; only then may it ask for the buffer again.
Units:   offset and length in bytes.
Errors:  a request that breaks a rule comes out with `error` set, in its turn, and only wants that error as its reply;
         the payload of such a WRITE has been skipped, however long it claims to be. A wrong magic is PeerError, and
         stays so on every further call: there is no telling where the next request begins.
Bounds:  one receive buffer, and one payload of at most `agreement.payload_max` bytes; and of payloads that were given
         back, SPARES_MAX.

With extended headers, a payload is what PAYLOAD_LEN says; one that is too long for this connection is a PeerError, too
("Request message"), and any other that a request may not have is skipped. The judge of requests, `refusal`, is not
shown that flag where a payload is in order.

Many small requests are parsed out of one receive, and their payloads copied out of it; a payload that is not yet
whole gets a buffer of its own, which the kernel fills directly.

Where the standard leaves a choice: an empty READ, WRITE, TRIM, WRITE_ZEROES or CACHE is in order, an empty BLOCK_STATUS
is EINVAL; a READ above the limit is EINVAL; a command that was not advertised is EINVAL; on a read-only export every
request to write is EPERM, whatever else is wrong with it; offset and length of a FLUSH are not looked at.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import NamedTuple

from impl.errors import PeerError
from impl.nbd.agreement import Agreement
from impl.nbd.constants import (
    EXTENDED_REQUEST_MAGIC,
    REQUEST_MAGIC,
    UINT32_MAX,
    UINT64_MAX,
    Command,
    CommandFlag,
    ErrorValue,
    TransmissionFlag,
)
from impl.nbd.wire import EXTENDED_REQUEST, REQUEST, STATUS_REQUEST, Buffer, unpack_status_request

RECEIVE_BUFFER_BYTES = 64 << 10
# What is received at once while large payloads come one after the other: the header of the next request, and as little
# as possible of its payload, which would have to be copied.
BULK_RECEIVE_BYTES = 1 << 10
BULK_PAYLOAD_MIN_BYTES = 32 << 10
# Buffers that are kept for payloads to come.
SPARES_MAX = 4


class Request(NamedTuple):
    """One request. When `error` is not 0, nothing is to be done but to reply with it."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    # Of WRITE; it stays valid, and belongs to the receiver of the request. Of BLOCK_STATUS, the contexts asked for.
    payload: Buffer
    error: int
    message: str


PAYLOAD_LEN = int(CommandFlag.PAYLOAD_LEN)

# What runs for each request: without a NamedTuple's own constructor, which takes twice as long.
_new = tuple.__new__
_unpack = REQUEST.unpack_from


class Rule(NamedTuple):
    """What one command asks of a request."""

    advertised: TransmissionFlag  # must have been sent to the client
    flags: CommandFlag  # allowed, beside those in FLAG_NEEDS
    writes: bool
    ranged: bool  # offset and length say something
    payload: bool  # length counts against the payload limit
    empty_error: int
    beyond_error: int  # the range reaches beyond the export


_ALWAYS = TransmissionFlag.HAS_FLAGS
_NO_FLAG = CommandFlag(0)

RULES: dict[int, Rule] = {
    Command.READ: Rule(_ALWAYS, CommandFlag.DF, False, True, True, 0, ErrorValue.EINVAL),
    Command.WRITE: Rule(_ALWAYS, _NO_FLAG, True, True, True, 0, ErrorValue.ENOSPC),
    Command.DISC: Rule(_ALWAYS, _NO_FLAG, False, False, False, 0, 0),
    Command.FLUSH: Rule(TransmissionFlag.SEND_FLUSH, _NO_FLAG, False, False, False, 0, 0),
    Command.TRIM: Rule(TransmissionFlag.SEND_TRIM, _NO_FLAG, True, True, False, 0, ErrorValue.EINVAL),
    Command.CACHE: Rule(TransmissionFlag.SEND_CACHE, _NO_FLAG, False, True, False, 0, ErrorValue.EINVAL),
    Command.WRITE_ZEROES: Rule(
        TransmissionFlag.SEND_WRITE_ZEROES,
        CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
        True,
        True,
        False,
        0,
        ErrorValue.ENOSPC,
    ),
    Command.BLOCK_STATUS: Rule(_ALWAYS, CommandFlag.REQ_ONE, False, True, False, ErrorValue.EINVAL, ErrorValue.EINVAL),
}

# Flags that must have been advertised; FUA is then allowed on every command ("Command flags").
FLAG_NEEDS: dict[CommandFlag, TransmissionFlag] = {
    CommandFlag.FUA: TransmissionFlag.SEND_FUA,
    CommandFlag.DF: TransmissionFlag.SEND_DF,
    CommandFlag.FAST_ZERO: TransmissionFlag.SEND_FAST_ZERO,
}


def allowed_flags(agreement: Agreement, command: int) -> int:
    """The flags a request with this known command may carry."""
    allowed = RULES[command].flags | CommandFlag.FUA
    for flag, needed in FLAG_NEEDS.items():
        if not agreement.flags & needed:
            allowed &= ~flag
    return int(allowed)


def unusable(agreement: Agreement, command: int) -> tuple[int, str]:
    """Why a command is refused on this connection, whatever the request says; (0, "") when it is not."""
    rule = RULES.get(command)
    if rule is None:
        return ErrorValue.EINVAL, f"unknown command {command}"
    name = Command(command).name
    if rule.writes and agreement.flags & TransmissionFlag.READ_ONLY:
        return ErrorValue.EPERM, f"{name} on a read-only export"
    if not agreement.flags & rule.advertised:
        return ErrorValue.EINVAL, f"{name} was not advertised"
    if command == Command.BLOCK_STATUS and not agreement.contexts:
        return ErrorValue.EINVAL, "no metadata context was selected for this export"
    return 0, ""


def refusal(agreement: Agreement, command: int, flags: int, offset: int, length: int) -> tuple[int, str]:
    """The error a request deserves, and why, for a human; (0, "") when it is in order."""
    error, message = unusable(agreement, command)
    if error:
        return error, message
    rule, name = RULES[command], Command(command).name
    wrong_flags = flags & ~allowed_flags(agreement, command)
    if wrong_flags:
        return ErrorValue.EINVAL, f"flags {wrong_flags:#x} are not allowed on {name} here"
    if not rule.ranged:
        return 0, ""
    if rule.payload and length > agreement.payload_max:
        return ErrorValue.EINVAL, f"{name} of {length} bytes, at most {agreement.payload_max} allowed"
    if not length and rule.empty_error:
        return rule.empty_error, f"{name} of no bytes"
    if (offset | length) & (agreement.export.block_min - 1):
        return ErrorValue.EINVAL, f"{name} of [{offset}, +{length}) is not aligned to {agreement.export.block_min}"
    if offset + length > agreement.export.size:
        return rule.beyond_error, f"{name} of [{offset}, +{length}) is beyond the end, {agreement.export.size}"
    return 0, ""


class Limits(NamedTuple):
    """The rule of one command on one connection, ready to be checked in one expression."""

    wrong_flags: int
    length_min: int
    length_max: int
    end_max: int
    misaligned: int  # bits that neither offset nor length may have


def limits(agreement: Agreement, command: int) -> Limits | None:
    """Exactly the requests that `refusal` lets pass, for a known command; None when there are none."""
    rule = RULES[command]
    if unusable(agreement, command)[0]:
        return None
    wrong_flags = UINT32_MAX & ~allowed_flags(agreement, command)
    length_max = agreement.length_max
    if not rule.ranged:
        return Limits(wrong_flags, 0, length_max, UINT64_MAX + length_max, 0)
    return Limits(
        wrong_flags,
        1 if rule.empty_error else 0,
        agreement.payload_max if rule.payload else length_max,
        agreement.export.size,
        agreement.export.block_min - 1,
    )


@lru_cache(maxsize=64)
def all_limits(agreement: Agreement) -> dict[int, tuple[int, int, int, int, int]]:
    """The limits of every command that has any: the same for all who have agreed on the same. Not to be changed."""
    found = {int(command): limits(agreement, command) for command in RULES}
    return {command: (*each,) for command, each in found.items() if each is not None}


class RequestReader:
    """One connection's requests, in the order they came."""

    def __init__(self, agreement: Agreement, leftover: bytes = b"") -> None:
        self._agreement = agreement
        self._limits = all_limits(agreement)
        self._view = memoryview(bytearray(max(RECEIVE_BUFFER_BYTES, len(leftover))))
        self._view[: len(leftover)] = leftover
        self._window = len(self._view)  # how much of it is offered at once
        self._spares: deque[bytearray] = deque(maxlen=SPARES_MAX)  # buffers of payloads that were given back
        self._start = 0  # of what has been received and not yet been parsed
        self._end = len(leftover)
        self._waiting: Request | None = None  # its payload is on its way: into the request, or to be skipped
        self._payload = memoryview(b"")  # the part of it still to be filled
        self.awaits_payload = False  # whether `buffer()` is the rest of one payload: all of it is on its way
        self._skip = 0
        self._disconnected = False

    def buffer(self) -> memoryview:
        """Where to receive into; never empty. Ask only after `next()` gave None."""
        if self.awaits_payload:
            return self._payload
        unparsed = self._end - self._start
        if not unparsed:
            self._start = self._end = 0
            return self._view if self._window == len(self._view) else self._view[: self._window]
        if self._start:
            self._view[:unparsed] = self._view[self._start : self._end]
            self._start, self._end = 0, unparsed
        assert self._end < len(self._view), "requests are waiting to be taken"
        return self._view[self._end : max(self._window, self._end + REQUEST.size)]

    def received(self, count: int) -> None:
        """Say that `count` bytes, more than none, were received into the start of what `buffer()` gave."""
        if self.awaits_payload:
            self._payload = self._payload[count:]
            self.awaits_payload = len(self._payload) > 0
        elif not self._disconnected:
            self._end += count
            if self._end >= self._window:  # small requests queue up
                self._window = len(self._view)

    def next(self) -> Request | None:
        """The next request, or None until more is received. Nothing follows a DISC."""
        if self._waiting is not None:
            return self._finish()
        start = self._start
        if self._end - start < 28:
            return None
        view = self._view
        magic, flags, command, cookie, offset, length = _unpack(view, start)
        if magic != REQUEST_MAGIC:
            raise PeerError(f"request magic is {magic:#x}, expected {REQUEST_MAGIC:#x}")
        start += 28
        self._start = start
        found = self._limits.get(command)
        if found is not None:
            wrong_flags, length_min, length_max, end_max, misaligned = found
            if (
                not flags & wrong_flags
                and length_min <= length <= length_max
                and offset + length <= end_max
                and not (offset | length) & misaligned
            ):
                if command != 1 or not length:
                    if command == 2:
                        self._disconnect()
                    return _new(Request, (command, flags, cookie, offset, length, b"", 0, ""))
                end = start + length
                if end <= self._end:
                    self._start = end
                    return _new(Request, (command, flags, cookie, offset, length, bytes(view[start:end]), 0, ""))
                payload = self._payload_buffer(length)
                have = self._end - start
                payload[:have] = view[start : self._end]
                self._start = self._end
                self._payload = payload[have:]
                self.awaits_payload = True
                self._waiting = Request(command, flags, cookie, offset, length, payload, 0, "")
                return None
        return self._refuse(command, flags, cookie, offset, length)

    def give_back(self, payload: Buffer) -> None:
        """Say that a payload is needed no more; nobody may look at it again. From any thread.

        Optional: it saves making the next one.
        """
        if isinstance(payload, memoryview) and isinstance(payload.obj, bytearray):
            self._spares.append(payload.obj)

    def _payload_buffer(self, length: int) -> memoryview:
        """Room for a payload: what was given back, if it is of a size."""
        if length < BULK_PAYLOAD_MIN_BYTES:
            return memoryview(bytearray(length))
        self._window = BULK_RECEIVE_BYTES
        try:
            spare = self._spares.pop()
        except IndexError:
            return memoryview(bytearray(length))
        return memoryview(spare if length <= len(spare) <= 2 * length else bytearray(length))[:length]

    def _refuse(self, command: int, flags: int, cookie: int, offset: int, length: int) -> Request | None:
        error, message = refusal(self._agreement, command, flags, offset, length)
        if command == Command.DISC:  # it has no reply, so no rule of it can be enforced
            self._disconnect()
            error, message = 0, ""
        else:
            assert error, (command, flags, offset, length, self._agreement)
        request = Request(command, flags, cookie, offset, length, b"", error, message)
        if command != Command.WRITE:
            return request
        self._waiting, self._skip = request, length
        return self._finish()

    def _disconnect(self) -> None:
        self._disconnected = True
        self._start = self._end

    def _finish(self) -> Request | None:
        """The waiting request, once its payload is whole, or skipped."""
        if self.awaits_payload:
            return None
        if self._skip:
            skipped = min(self._skip, self._end - self._start)
            self._skip -= skipped
            self._start += skipped
            if self._skip:
                return None
        request, self._waiting = self._waiting, None
        return request


class ExtendedRequestReader(RequestReader):
    """The same, with extended headers."""

    def next(self) -> Request | None:
        """As without."""
        if self._waiting is not None:
            return self._finish()
        if self._end - self._start < EXTENDED_REQUEST.size:
            return None
        magic, flags, command, cookie, offset, length = EXTENDED_REQUEST.unpack_from(self._view, self._start)
        if magic != EXTENDED_REQUEST_MAGIC:
            raise PeerError(f"request magic is {magic:#x}, expected {EXTENDED_REQUEST_MAGIC:#x}")
        if flags & PAYLOAD_LEN and length > self._agreement.payload_max:
            raise PeerError(f"payload of {length} bytes, at most {self._agreement.payload_max} allowed")
        self._start += EXTENDED_REQUEST.size
        if command == Command.DISC:
            self._disconnect()
            return Request(command, flags, cookie, offset, length, b"", 0, "")
        if flags & PAYLOAD_LEN:
            return self._take_payload(command, flags, cookie, offset, length)
        error, message = self._judged(command, flags, offset, length)
        return Request(command, flags, cookie, offset, length, b"", error, message)

    def _judged(self, command: int, flags: int, offset: int, length: int) -> tuple[int, str]:
        """Of a request without a payload."""
        found = self._limits.get(command)
        if found is not None and (command != Command.WRITE or not length):
            wrong_flags, length_min, length_max, end_max, misaligned = found
            if (
                not flags & wrong_flags
                and length_min <= length <= length_max
                and offset + length <= end_max
                and not (offset | length) & misaligned
            ):
                return 0, ""
        error, message = refusal(self._agreement, command, flags, offset, length)
        return (error, message) if error else (ErrorValue.EINVAL, "WRITE without a payload")

    def _take_payload(self, command: int, flags: int, cookie: int, offset: int, length: int) -> Request | None:
        """A payload to be received, or, if the request is wrong already, to be skipped."""
        error, message = self._judged_payload(command, flags, offset, length)
        if error:
            self._waiting, self._skip = Request(command, flags, cookie, offset, length, b"", error, message), length
            return self._finish()
        payload = self._payload_buffer(length)
        have = min(self._end - self._start, length)
        payload[:have] = self._view[self._start : self._start + have]
        self._start += have
        self._payload = payload[have:]
        self.awaits_payload = have < length
        self._waiting = Request(command, flags, cookie, offset, length, payload, 0, "")
        return self._finish()

    def _judged_payload(self, command: int, flags: int, offset: int, length: int) -> tuple[int, str]:
        agreement = self._agreement
        if command == Command.WRITE:
            return refusal(agreement, command, flags & ~PAYLOAD_LEN, offset, length)
        if command != Command.BLOCK_STATUS or not agreement.flags & TransmissionFlag.BLOCK_STATUS_PAYLOAD:
            return refusal(agreement, command, flags, 0, 0)
        longest = STATUS_REQUEST.size + 4 * len(agreement.contexts)
        if length > longest:  # some are unknown, or there twice
            return ErrorValue.EINVAL, f"BLOCK_STATUS with a payload of {length} bytes, at most {longest} expected"
        return 0, ""

    def _finish(self) -> Request | None:
        """The waiting request, once its payload is whole, or skipped, and understood."""
        request = super()._finish()
        if request is None or request.command != Command.BLOCK_STATUS or request.error:
            return request
        flags = request.flags & ~PAYLOAD_LEN
        try:
            length, contexts = unpack_status_request(request.payload)
        except PeerError as problem:
            return request._replace(error=ErrorValue.EINVAL, message=str(problem), payload=b"")
        if not contexts or len(set(contexts)) < len(contexts) or not set(contexts) <= set(self._agreement.contexts):
            message = f"BLOCK_STATUS of contexts {list(contexts)}, selected are {list(self._agreement.contexts)}"
            return request._replace(length=length, error=ErrorValue.EINVAL, message=message, payload=b"")
        error, message = refusal(self._agreement, request.command, flags, request.offset, length)
        return request._replace(length=length, error=error, message=message)


def request_reader(agreement: Agreement, leftover: bytes = b"") -> RequestReader:
    """A reader for the headers that were agreed on."""
    return ExtendedRequestReader(agreement, leftover) if agreement.extended else RequestReader(agreement, leftover)
