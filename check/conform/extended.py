"""Rules of extended headers, which the protocol calls experimental: they bind those who offer them.

Source:  the branch extension-ext-header of the protocol's text.
"""

from __future__ import annotations

from check.conform.contexts import status_of
from check.conform.link import Answer, Link, contexts_in
from check.conform.rule import Failure, Need, NotOffered, rule
from check.conform.subject import Subject
from check.conform.talk import ask, chosen, commands_of, greeted, read, still_in_step, still_served, told
from impl.nbd import wire
from impl.nbd.constants import (
    BASE_ALLOCATION,
    Command,
    CommandFlag,
    ErrorValue,
    Option,
    OptionReply,
    TransmissionFlag,
)

MUST, SHOULD = Need.MUST, Need.SHOULD
TOO_LONG = 1 << 62
COOKIE = 0xFEDC_BA98_7654_3210


@rule("extended/structured-after", SHOULD, "NBD_OPT_STRUCTURED_REPLY (EXTENDED_HEADERS)")
def structured_after(subject: Subject) -> None:
    """NBD_OPT_STRUCTURED_REPLY after extended headers is NBD_REP_ERR_EXT_HEADER_REQD."""
    with greeted(subject) as link:
        if not link.extended():
            raise NotOffered("no extended headers")
        answer = link.option(Option.STRUCTURED_REPLY)
        if answer.final != OptionReply.ERR_EXT_HEADER_REQD:
            raise Failure(f"NBD_OPT_STRUCTURED_REPLY: {answer.told}")
        still_in_step(link)


@rule("extended/with-data", SHOULD, "NBD_OPT_EXTENDED_HEADERS")
def with_data(subject: Subject) -> None:
    """NBD_OPT_EXTENDED_HEADERS with data is refused with NBD_REP_ERR_INVALID."""
    with greeted(subject) as link:
        answer = link.option(Option.EXTENDED_HEADERS, b"data")
        if answer.final == OptionReply.ERR_UNSUP:
            raise NotOffered("no extended headers")
        if answer.final != OptionReply.ERR_INVALID:
            raise Failure(f"it, with 4 bytes: {answer.told}")
        still_in_step(link)


@rule("extended/replies", MUST, "Extended reply chunk message")
def replies(subject: Subject) -> None:
    """Every reply is an extended one, with the cookie and the offset of its request."""
    with chosen(subject, extended=True) as link:
        for command in commands_of(link):
            offset = 0 if command == Command.FLUSH else link.size // link.unit // 2 * link.unit
            _send(link, command, offset)
            for part in link.whole_answer(COOKIE):
                _echoes(part, command, offset)


def _send(link: Link, command: Command, offset: int) -> None:
    if command == Command.WRITE:
        link.write(COOKIE, offset, bytes(link.unit))
    else:
        link.request(command, COOKIE, offset, 0 if command == Command.FLUSH else link.unit)


def _echoes(part: Answer, command: Command, offset: int) -> None:
    if part.offset != offset:
        raise Failure(f"the reply to {command.name} at {offset} says offset {part.offset}")


@rule("extended/payload-unasked", SHOULD, "NBD_CMD_FLAG_PAYLOAD_LEN")
def payload_unasked(subject: Subject) -> None:
    """A payload with a command that has none is skipped; the command is NBD_EINVAL, and the connection lives."""
    with chosen(subject, extended=True) as link:
        header = wire.pack_extended_request(Command.READ, CommandFlag.PAYLOAD_LEN, 7, 0, link.sector)
        link.send(header + b"\x25" * link.sector)
        error = link.error_of(7)
        if error != ErrorValue.EINVAL:
            raise Failure(f"a read with a payload: {told(error)}, expected EINVAL")
        still_served(link)


@rule("extended/long-effect", SHOULD, "Size constraints (EXTENDED_HEADERS)")
def long_effect(subject: Subject) -> None:
    """A request that is far too long does not end the connection, and is an error."""
    with chosen(subject, extended=True) as link:
        for command in (Command.READ, Command.TRIM, Command.WRITE_ZEROES):
            if link.size < TOO_LONG and command in commands_of(link) and not ask(link, command, 7, 0, TOO_LONG):
                raise Failure(f"{command.name} of [0, +{TOO_LONG}) succeeds on a disk of {link.size} bytes")
        still_served(link)


@rule("extended/read-back", MUST, "NBD_CMD_WRITE (EXTENDED_HEADERS)")
def read_back(subject: Subject) -> None:
    """What is written with NBD_CMD_FLAG_PAYLOAD_LEN is read back."""
    with chosen(subject, extended=True, writes=True) as link:
        link.write(7, 0, b"\x7e" * link.sector)
        error = link.error_of(7) or read(link, 8, 0, link.sector)[0]
        if error or read(link, 9, 0, link.sector)[1] != b"\x7e" * link.sector:
            raise Failure(f"a write of {link.sector} bytes is not read back: {told(error)}")


@rule("extended/status", MUST, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT")
def status(subject: Subject) -> None:
    """A block status is answered with NBD_REPLY_TYPE_BLOCK_STATUS_EXT, which says how many extents there are."""
    with chosen(subject, BASE_ALLOCATION, extended=True) as link:
        for extents in status_of(link, 0, link.end):
            if any(flags >> 32 for _, flags in extents):
                raise Failure(f"{BASE_ALLOCATION} says more than 32 bits: {extents[:5]}")


@rule("extended/status-payload", MUST, "NBD_FLAG_BLOCK_STATUS_PAYLOAD")
def status_payload(subject: Subject) -> None:
    """A block status whose payload names contexts is of these alone; unknown ones, or one twice, are NBD_EINVAL."""
    with chosen(subject, BASE_ALLOCATION, extended=True) as link:
        if not link.flags & TransmissionFlag.BLOCK_STATUS_PAYLOAD:
            raise NotOffered("no NBD_FLAG_BLOCK_STATUS_PAYLOAD")
        known = link.contexts[BASE_ALLOCATION]
        for numbers in ((known ^ 0x4000_0000,), (known, known)):
            error = max(part.error for part in _status_of(link, numbers))
            if error != ErrorValue.EINVAL:
                raise Failure(f"contexts {numbers} in the payload: {told(error)}, expected EINVAL")
        still_served(link)
    with greeted(subject) as link:
        link.extended()
        names = contexts_in(link.option(Option.LIST_META_CONTEXT, wire.pack_meta_query(subject.target.export, ())))
        link.select(*names)
        link.enter(subject.target.export)
        for number in link.contexts.values():
            parts = [part for part in _status_of(link, (number,)) if part.chunk_type]
            found = [int.from_bytes(part.payload[:4], "big") for part in parts]
            if found != [number]:
                raise Failure(f"context {number} in the payload: chunks of {found}")


def _status_of(link: Link, numbers: tuple[int, ...]) -> list[Answer]:
    payload = wire.pack_status_request(link.sector, numbers)
    link.send(wire.pack_extended_request(Command.BLOCK_STATUS, CommandFlag.PAYLOAD_LEN, 7, 0, len(payload)) + payload)
    return link.whole_answer(7)
