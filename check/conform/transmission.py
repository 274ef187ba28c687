"""Rules of the transmission phase that do not depend on what is on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from check.conform.disk import Disk
from check.conform.link import DATA, ERROR_CHUNK, Answer, Link
from check.conform.rule import Failure, Need, NotOffered, rule
from check.conform.subject import Subject
from check.conform.talk import chosen, read, still_served, told
from impl.nbd import wire
from impl.nbd.constants import (
    MAX_PAYLOAD_BYTES,
    MAX_STRING_BYTES,
    UINT32_MAX,
    ChunkType,
    Command,
    CommandFlag,
    ErrorValue,
    TransmissionFlag,
)

MUST, SHOULD = Need.MUST, Need.SHOULD
UNKNOWN_COMMAND = 0x7FFF
MANY = 100
LARGE_DISK = Disk(72 << 20, True)
NEEDED = {
    Command.FLUSH: TransmissionFlag.SEND_FLUSH,
    Command.TRIM: TransmissionFlag.SEND_TRIM,
    Command.CACHE: TransmissionFlag.SEND_CACHE,
    Command.WRITE_ZEROES: TransmissionFlag.SEND_WRITE_ZEROES,
}
DF_BYTES = 65_536  # what every server has to answer in one piece


@rule("transmission/unknown-command", SHOULD, "Request types; Error values")
def unknown_command(subject: Subject) -> None:
    """A command that the server does not know is NBD_EINVAL, and the connection lives."""
    with chosen(subject) as link:
        for length in (0, link.sector):  # which no payload follows
            link.request(UNKNOWN_COMMAND, 7, 0, length)
            error = link.error_of(7)
            if error != ErrorValue.EINVAL:
                raise Failure(f"an unknown command with length {length}: {told(error)}, expected EINVAL")
            still_served(link)


@rule("transmission/error-values", MUST, "Error values")
def error_values(subject: Subject) -> None:
    """Only the standard's error numbers travel."""
    with chosen(subject) as link:
        end = link.size // link.unit * link.unit
        asked = [(Command.READ, end), (UNKNOWN_COMMAND, 0), *((command, end) for command in NEEDED)]
        for cookie, (command, offset) in enumerate(asked):
            try:
                link.request(command, cookie, offset, link.unit)
                error = link.error_of(cookie)
            except Failure:
                return  # whoever hangs up says no number
            if error not in (0, *ErrorValue):
                raise Failure(f"command {int(command)} at {offset}: error {error}")
            if command == Command.READ and not error:
                return  # data may follow, or not


@rule("transmission/read-far-beyond", MUST, "NBD_CMD_READ")
def read_far_beyond(subject: Subject) -> None:
    """A read whose end cannot be counted in 64 bits is an error without a payload, unless the server hangs up."""
    for before_the_end in (1 << 63, 0):
        with chosen(subject) as link:
            length = max(16, link.unit)
            offset = (1 << 64) - length - before_the_end
            try:
                error, _ = read(link, 7, offset, length)
            except Failure:
                continue  # "The server MAY then initiate a hard disconnect"
            if not error:
                raise Failure(f"a read of {length} bytes at {offset} succeeds")
            still_served(link)


@rule("transmission/write-far-beyond", SHOULD, "NBD_CMD_WRITE")
def write_far_beyond(subject: Subject) -> None:
    """A write whose end cannot be counted in 64 bits is an error, its payload is skipped, and the connection lives."""
    with chosen(subject, writes=True) as link:
        for offset in (1 << 63, (1 << 64) - link.sector):
            link.write(7, offset, b"\x25\x60\x95\x13" * (link.sector // 4))
            if not link.error_of(7):
                raise Failure(f"a write of {link.sector} bytes at {offset} succeeds")
            still_served(link)


@rule("transmission/read-beyond-the-end", SHOULD, "NBD_CMD_READ; Error values")
def read_beyond(subject: Subject) -> None:
    """A read beyond the end is NBD_EINVAL, and the connection lives."""
    with chosen(subject) as link:
        end = link.size // link.unit * link.unit
        link.request(Command.READ, 7, end, link.sector)
        error = link.error_of(7)
        if error != ErrorValue.EINVAL:
            raise Failure(f"a read of {link.sector} bytes at the end: {told(error)}, expected EINVAL")
        still_served(link)


@rule("transmission/write-beyond-the-end", SHOULD, "NBD_CMD_WRITE")
def write_beyond(subject: Subject) -> None:
    """A write beyond the end is NBD_ENOSPC, its payload is skipped, and the connection lives."""
    with chosen(subject, writes=True) as link:
        link.write(7, link.size // link.unit * link.unit, bytes(link.sector))
        error = link.error_of(7)
        if error != ErrorValue.ENOSPC:
            raise Failure(f"a write of {link.sector} bytes at the end: {told(error)}, expected ENOSPC")
        still_served(link)


@rule("transmission/unknown-flag", SHOULD, "Command flags")
def unknown_flag(subject: Subject) -> None:
    """A flag that the server does not know is NBD_EINVAL, and the connection lives."""
    with chosen(subject) as link:
        error, _ = read(link, 7, 0, link.unit, flags=1 << 15)
        if error != ErrorValue.EINVAL:
            raise Failure(f"a read with flag 0x8000: {told(error)}, expected EINVAL")
        still_served(link)


@rule("transmission/cookies", MUST, "Simple reply message")
def cookies(subject: Subject) -> None:
    """Of many requests in flight each is answered once, with its own cookie."""
    with chosen(subject, structured=False) as link:
        wanted = {cookie * 0x1234_5678_9ABC % (1 << 64) for cookie in range(1, MANY + 1)}
        link.send(b"".join(wire.pack_request(Command.READ, 0, cookie, 0, link.sector) for cookie in wanted))
        for _ in range(MANY):
            answer = link.answer()
            if answer.cookie not in wanted:
                raise Failure(f"an answer has cookie {answer.cookie:#x}, which no request has that waits")
            wanted.remove(answer.cookie)
            if answer.error:
                raise Failure(f"a read of {link.sector} bytes: {told(answer.error)}")
            link.receive(link.sector, "data")


@rule("transmission/disconnect", MUST, "NBD_CMD_DISC")
def disconnect(subject: Subject) -> None:
    """NBD_CMD_DISC has no reply, and then the server closes."""
    with chosen(subject) as link:
        read(link, 7, 0, link.sector)
        link.request(Command.DISC, 8)
        link.ends("NBD_CMD_DISC")


@rule("transmission/disconnect-answers", SHOULD, "NBD_CMD_DISC")
def disconnect_answers(subject: Subject) -> None:
    """What was asked before NBD_CMD_DISC is answered."""
    with chosen(subject) as link:
        link.send(wire.pack_request(Command.READ, 0, 7, 0, link.sector) + wire.pack_request(Command.DISC, 0, 8, 0, 0))
        answer = link.answer()
        if (answer.cookie, answer.error) != (7, 0):
            raise Failure(f"the read before it: cookie {answer.cookie:#x}, {told(answer.error)}")
        link.receive(link.sector, "data")


@rule("transmission/structured-read", MUST, "Structured replies; NBD_CMD_READ")
def structured_read(subject: Subject) -> None:
    """With structured replies, a read is answered with chunks that cover it, each byte once, the last one DONE."""
    with chosen(subject, structured=True) as link:
        length = min(link.size, 1 << 20) // link.unit * link.unit
        link.request(Command.READ, 7, 0, length)
        covered = []
        for part in link.whole_answer(7):
            if part.chunk_type is None:
                raise Failure("a read is answered with a simple reply, though structured replies were negotiated")
            if part.chunk_type == DATA:
                covered.append((int.from_bytes(part.payload[:8], "big"), len(part.payload) - 8))
            elif part.chunk_type == ChunkType.OFFSET_HOLE:
                covered.append((int.from_bytes(part.payload[:8], "big"), int.from_bytes(part.payload[8:12], "big")))
            elif part.chunk_type != ChunkType.NONE:
                raise Failure(f"a read of [0, +{length}) is answered with a chunk of type {part.chunk_type:#x}")
        at = 0
        for offset, count in sorted(covered):
            if offset != at or not count:
                raise Failure(f"chunks cover [{offset}, +{count}) where {at} is next: {sorted(covered)[:10]}")
            at += count
        if at != length:
            raise Failure(f"chunks cover {at} bytes of {length}")


@rule("transmission/df", MUST, "NBD_CMD_FLAG_DF")
def df(subject: Subject) -> None:
    """A read with NBD_CMD_FLAG_DF is one content chunk."""
    with chosen(subject, structured=True) as link:
        if not link.flags & TransmissionFlag.SEND_DF:
            raise NotOffered("no NBD_FLAG_SEND_DF")
        if link.can_write and link.flags & TransmissionFlag.SEND_WRITE_ZEROES:
            # So that there is something to fragment for.
            link.request(Command.WRITE_ZEROES, 6, 0, min(link.size, DF_BYTES) // 2 // link.unit * link.unit)
            link.error_of(6)
        link.request(Command.READ, 7, 0, min(link.size // link.unit * link.unit, DF_BYTES), flags=CommandFlag.DF)
        content = [part for part in link.whole_answer(7) if part.chunk_type in (DATA, ChunkType.OFFSET_HOLE)]
        if len(content) != 1:
            raise Failure(f"{len(content)} content chunks, expected one")


@rule("transmission/flush", MUST, "NBD_CMD_FLUSH")
def flush(subject: Subject) -> None:
    """NBD_CMD_FLUSH succeeds where it is advertised."""
    with chosen(subject) as link:
        if not link.flags & TransmissionFlag.SEND_FLUSH:
            raise NotOffered("no NBD_FLAG_SEND_FLUSH")
        link.request(Command.FLUSH, 7)
        error = link.error_of(7)
        if error:
            raise Failure(f"a flush: {told(error)}")


@rule("transmission/status-without-context", SHOULD, "NBD_CMD_BLOCK_STATUS")
def status_without_context(subject: Subject) -> None:
    """NBD_CMD_BLOCK_STATUS without a context that was selected is NBD_EINVAL, and the connection lives."""
    with chosen(subject) as link:
        link.request(Command.BLOCK_STATUS, 7, 0, 512)
        error = link.error_of(7)
        if error != ErrorValue.EINVAL:
            raise Failure(f"a block status without a context: {told(error)}, expected EINVAL")
        still_served(link)


@rule("transmission/multi-conn", MUST, "NBD_FLAG_CAN_MULTI_CONN")
def multi_conn(subject: Subject) -> None:
    """What one connection has written and flushed, another one reads, where NBD_FLAG_CAN_MULTI_CONN is set."""
    with chosen(subject, writes=True) as one, chosen(subject) as other:
        if not one.flags & TransmissionFlag.CAN_MULTI_CONN:
            raise NotOffered("no NBD_FLAG_CAN_MULTI_CONN")
        for byte in (0x5A, 0xA5):
            one.write(1, one.unit, bytes([byte]) * one.unit)
            one.error_of(1)
            if one.flags & TransmissionFlag.SEND_FLUSH:
                one.request(Command.FLUSH, 2)
                one.error_of(2)
            error, found = read(other, 3, one.unit, one.unit)
            if found != bytes([byte]) * one.unit:
                said = found[:8].hex() or told(error)
                raise Failure(f"another connection reads {said}, expected {bytes([byte] * min(8, one.unit)).hex()}")


@rule("transmission/fua", MUST, "Command flags; NBD_CMD_FLAG_FUA")
def fua(subject: Subject) -> None:
    """NBD_CMD_FLAG_FUA is accepted with every command, where NBD_FLAG_SEND_FUA is set."""
    with chosen(subject) as link:
        if not link.flags & TransmissionFlag.SEND_FUA:
            raise NotOffered("no NBD_FLAG_SEND_FUA")
        for command in commands_of(link):
            error = ask(link, command, 7, 0, link.sector, CommandFlag.FUA)
            if error == ErrorValue.EINVAL and not ask(link, command, 8, 0, link.sector):
                raise Failure(f"{command.name} with NBD_CMD_FLAG_FUA: EINVAL; without, it succeeds")


@rule("transmission/no-hole", MUST, "NBD_CMD_FLAG_NO_HOLE")
def no_hole(subject: Subject) -> None:
    """NBD_CMD_WRITE_ZEROES takes NBD_CMD_FLAG_NO_HOLE."""
    with chosen(subject, writes=True) as link:
        if not link.flags & TransmissionFlag.SEND_WRITE_ZEROES:
            raise NotOffered("no NBD_FLAG_SEND_WRITE_ZEROES")
        error = ask(link, Command.WRITE_ZEROES, 7, 0, link.sector, CommandFlag.NO_HOLE)
        if error:
            raise Failure(f"zeroes with NBD_CMD_FLAG_NO_HOLE: {told(error)}")


@rule("transmission/misplaced-flags", SHOULD, "Command flags; Error values")
def misplaced_flags(subject: Subject) -> None:
    """A flag that is not for its command is NBD_EINVAL, the payload is skipped, and the connection lives."""
    misplaced = {
        Command.READ: CommandFlag.NO_HOLE,
        Command.WRITE: CommandFlag.DF,
        Command.FLUSH: CommandFlag.REQ_ONE,
        Command.TRIM: CommandFlag.NO_HOLE,
        Command.CACHE: CommandFlag.FAST_ZERO,
        Command.WRITE_ZEROES: CommandFlag.REQ_ONE,
        Command.BLOCK_STATUS: CommandFlag.NO_HOLE,
    }
    with chosen(subject) as link:
        for command in commands_of(link):
            flag = misplaced[command]
            error = ask(link, command, 7, 0, link.sector, flag)
            if error != ErrorValue.EINVAL:
                raise Failure(f"{command.name} with NBD_CMD_FLAG_{flag.name}: {told(error)}, expected EINVAL")
        still_served(link)


@rule("transmission/zero-length", SHOULD, "NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES")
def zero_length(subject: Subject) -> None:
    """A request of no bytes does not end the connection, whatever is answered."""
    with chosen(subject) as link:
        for command in commands_of(link):
            ask(link, command, 7, 0, 0)
        still_served(link)


@rule("transmission/read-only", MUST, "NBD_FLAG_READ_ONLY")
def read_only(subject: Subject) -> None:
    """On a read-only export, whatever would write is an error."""
    with chosen(subject) as link:
        if link.can_write:
            raise NotOffered("the export can be written to")
        for command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES):
            if not ask(link, command, 7, 0, link.sector):
                raise Failure(f"{command.name} succeeds, though NBD_FLAG_READ_ONLY is set")
        still_served(link)


@rule("transmission/unaligned", SHOULD, "Size constraints")
def unaligned(subject: Subject) -> None:
    """What is not aligned to the minimum block size is NBD_EINVAL, and the connection lives."""
    with chosen(subject) as link:
        if link.unit == 1:
            raise NotOffered("the minimum block size is 1")
        for offset, length in ((1, link.unit), (0, link.unit - 1)):
            error, _ = read(link, 7, offset, length)
            if error != ErrorValue.EINVAL:
                raise Failure(f"a read of [{offset}, +{length}): {told(error)}, expected EINVAL")
        still_served(link)


@rule("transmission/large-payload", SHOULD, "Size constraints")
def large_payload(subject: Subject) -> None:
    """A write of 32 MiB, wherever it would end, does not end the connection."""
    with chosen(subject, writes=True) as link:
        link.write(7, link.size // link.unit * link.unit, bytes(MAX_PAYLOAD_BYTES))
        if not link.error_of(7):
            raise Failure("a write of 32 MiB at the end succeeds")
        still_served(link)


@rule("transmission/large-effect", SHOULD, "Size constraints")
def large_effect(subject: Subject) -> None:
    """A trim, a cache or zeroes of nearly 4 GiB do not end the connection, whatever is answered."""
    with chosen(subject) as link:
        for command in (Command.TRIM, Command.CACHE, Command.WRITE_ZEROES):
            if command in commands_of(link):
                ask(link, command, 7, 0, UINT32_MAX & ~0xFFFF)
        still_served(link)


@rule("transmission/maximum-payload", SHOULD, "Size constraints; NBD_INFO_BLOCK_SIZE")
def maximum_payload(subject: Subject) -> None:
    """A read of the maximum payload size that is advertised succeeds, or of more than 64 MiB, if that is less."""
    with subject.fresh(LARGE_DISK) as server, chosen(server, structured=True) as link:
        length = min(link.block_sizes.maximum, LARGE_DISK.size) // link.unit * link.unit
        error, _ = read(link, 7, 0, length)
        if error:
            maximum = link.block_sizes.maximum
            raise Failure(f"a read of {length} bytes: {told(error)}; the maximum payload size is said to be {maximum}")


@rule("transmission/structured-errors", MUST, "Structured reply chunk message; NBD_REPLY_TYPE_ERROR")
def structured_errors(subject: Subject) -> None:
    """With structured replies, the error of a read is an error chunk, whose message is not longer than the chunk."""
    with chosen(subject, structured=True) as link:
        for offset, flags in ((link.size // link.unit * link.unit, 0), (0, 1 << 15)):
            link.request(Command.READ, 7, offset, link.sector, flags=flags)
            for part in link.whole_answer(7):
                if part.chunk_type is None:
                    raise Failure(f"a read that fails ({told(part.error)}) has a simple reply")
                if part.chunk_type & ERROR_CHUNK:
                    _well_formed(part)


def _well_formed(part: Answer) -> None:
    if len(part.payload) < 6 or not part.error:
        raise Failure(f"an error chunk is {len(part.payload)} bytes long, and says error {part.error}")
    more = 8 if part.chunk_type == ChunkType.ERROR_OFFSET else 0
    length = int.from_bytes(part.payload[4:6], "big")
    if length > min(len(part.payload) - 6 - more, MAX_STRING_BYTES):
        raise Failure(f"an error chunk of {len(part.payload)} bytes says that its message is {length} bytes long")


@rule("transmission/disconnect-after-writes", MUST, "NBD_CMD_DISC")
def disconnect_after_writes(subject: Subject) -> None:
    """What was asked to be written before NBD_CMD_DISC is written, unless an error is replied."""
    with chosen(subject, writes=True) as link:
        link.write(1, 0, b"\xc1" * link.sector)
        link.error_of(1)
        link.request(Command.DISC, 99)
        link.drain()
    with chosen(subject) as link:
        if read(link, 1, 0, link.unit)[1] != b"\xc1" * link.unit:
            raise NotOffered("what is written on one connection is not there on the next")
    _written_before_leaving(subject)


def _written_before_leaving(subject: Subject) -> None:
    with chosen(subject) as link:
        sector, unit = link.sector, link.unit
        count = min(32, link.size // sector)
        for number in range(count):
            link.write(number, number * sector, bytes([0xD0 + number % 16]) * sector)
        link.request(Command.DISC, 99)
        refused = {answer.cookie for answer in _last_answers(link) if answer.error}
    with chosen(subject) as link:
        for number in set(range(count)) - refused:
            if read(link, number, number * sector, unit)[1] != bytes([0xD0 + number % 16]) * unit:
                raise Failure(f"the write of sector {number}, one of {count} before NBD_CMD_DISC, is not there")


def _last_answers(link: Link) -> Iterator[Answer]:
    """All of them, until the server closes."""
    with suppress(Failure):
        while True:
            yield link.answer()


def commands_of(link: Link) -> list[Command]:
    """The commands that may be asked for, but DISC."""
    writes = [Command.WRITE] if link.can_write else []
    flagged = [command for command, flag in NEEDED.items() if link.flags & flag]
    status = [Command.BLOCK_STATUS] if link.contexts else []
    return [Command.READ, *writes, *flagged, *status]


def ask(link: Link, command: Command, cookie: int, offset: int, length: int, flags: int = 0) -> int:
    """The error of a request; a write is of zeroes."""
    if command == Command.READ:
        return read(link, cookie, offset, length, flags)[0]
    if command == Command.WRITE:
        link.write(cookie, offset, bytes(length), flags)
    elif command == Command.FLUSH:
        link.request(command, cookie, 0, 0, flags)
    else:
        link.request(command, cookie, offset, length, flags)
    return link.error_of(cookie)
