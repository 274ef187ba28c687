"""Rules of what a server refuses, with which error, and that the connection lives on."""

from __future__ import annotations

from check.conform.handshake import UNKNOWN_COMMAND
from check.conform.link import ERROR_CHUNK, Answer
from check.conform.rule import Closed, Failure, Need, NotOffered, rule
from check.conform.subject import Subject
from check.conform.talk import NEEDED, ask, chosen, commands_of, read, still_served, told
from impl.nbd.constants import MAX_STRING_BYTES, ChunkType, Command, CommandFlag, ErrorValue, TransmissionFlag

MUST, SHOULD = Need.MUST, Need.SHOULD


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
        end = link.end
        asked = [(Command.READ, end), (UNKNOWN_COMMAND, 0), *((command, end) for command in NEEDED)]
        for cookie, (command, offset) in enumerate(asked):
            try:
                link.request(command, cookie, offset, link.unit)
                error = link.error_of(cookie)
            except Closed:
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
            if offset < link.size:
                continue
            try:
                error, _ = read(link, 7, offset, length)
            except Closed:
                continue  # "The server MAY then initiate a hard disconnect"
            if not error:
                raise Failure(f"a read of {length} bytes at {offset} succeeds")
            still_served(link)


@rule("transmission/write-far-beyond", SHOULD, "NBD_CMD_WRITE")
def write_far_beyond(subject: Subject) -> None:
    """A write whose end cannot be counted in 64 bits is an error, its payload is skipped, and the connection lives."""
    with chosen(subject, writes=True) as link:
        for offset in (1 << 63, (1 << 64) - link.sector):
            if offset < link.size:
                continue
            link.write(7, offset, (b"\x25\x60\x95\x13" * link.sector)[: link.sector])
            if not link.error_of(7):
                raise Failure(f"a write of {link.sector} bytes at {offset} succeeds")
            still_served(link)


@rule("transmission/read-beyond-the-end", SHOULD, "NBD_CMD_READ; Error values")
def read_beyond(subject: Subject) -> None:
    """A read beyond the end is NBD_EINVAL, and the connection lives."""
    with chosen(subject) as link:
        end = link.end
        link.request(Command.READ, 7, end, link.sector)
        error = link.error_of(7)
        if error != ErrorValue.EINVAL:
            raise Failure(f"a read of {link.sector} bytes at the end: {told(error)}, expected EINVAL")
        still_served(link)


@rule("transmission/write-beyond-the-end", SHOULD, "Error values; Size constraints")
def write_beyond(subject: Subject) -> None:
    """A write beyond the end is NBD_ENOSPC or NBD_EINVAL, its payload is skipped, and the connection lives."""
    with chosen(subject, writes=True) as link:
        link.write(7, link.end, bytes(link.sector))
        error = link.error_of(7)
        if error not in (ErrorValue.ENOSPC, ErrorValue.EINVAL):  # "Error values"; "Size constraints"
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


@rule("transmission/status-without-context", SHOULD, "NBD_CMD_BLOCK_STATUS")
def status_without_context(subject: Subject) -> None:
    """NBD_CMD_BLOCK_STATUS without a context that was selected is NBD_EINVAL, and the connection lives."""
    with chosen(subject) as link:
        link.request(Command.BLOCK_STATUS, 7, 0, 512)
        error = link.error_of(7)
        if error != ErrorValue.EINVAL:
            raise Failure(f"a block status without a context: {told(error)}, expected EINVAL")
        still_served(link)


@rule("transmission/read-only", MUST, "NBD_FLAG_READ_ONLY")
def read_only(subject: Subject) -> None:
    """On a read-only export, whatever would write is an error, or hung up on."""
    for command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES):
        with chosen(subject) as link:
            if link.can_write:
                raise NotOffered("the export can be written to")
            if command != Command.WRITE and command not in commands_of(link):
                continue
            try:
                error = ask(link, command, 7, 0, link.sector)
            except Closed:
                continue  # a client MUST NOT do this
            if not error:
                raise Failure(f"{command.name} succeeds, though NBD_FLAG_READ_ONLY is set")


@rule("transmission/structured-errors", MUST, "Structured reply chunk message; NBD_REPLY_TYPE_ERROR")
def structured_errors(subject: Subject) -> None:
    """With structured replies, the error of a read is an error chunk, whose message is not longer than the chunk."""
    for at_the_end, flags in ((True, 0), (False, 1 << 15)):
        with chosen(subject, structured=True) as link:
            link.request(Command.READ, 7, link.end if at_the_end else 0, link.sector, flags=flags)
            try:
                parts = link.whole_answer(7)
            except Closed:
                continue  # a client MUST NOT ask for this
            for part in parts:
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


@rule("transmission/fast-zero-unasked", SHOULD, "NBD_CMD_WRITE_ZEROES; NBD_FLAG_SEND_FAST_ZERO")
def fast_zero_unasked(subject: Subject) -> None:
    """NBD_CMD_FLAG_FAST_ZERO is NBD_EINVAL where NBD_FLAG_SEND_FAST_ZERO is not set, and the connection lives."""
    with chosen(subject, writes=True) as link:
        if Command.WRITE_ZEROES not in commands_of(link):
            raise NotOffered("no NBD_FLAG_SEND_WRITE_ZEROES")
        if link.flags & TransmissionFlag.SEND_FAST_ZERO:
            raise NotOffered("there are fast zeroes")
        error = ask(link, Command.WRITE_ZEROES, 7, 0, link.sector, CommandFlag.FAST_ZERO)
        if error != ErrorValue.EINVAL:
            raise Failure(f"zeroes with NBD_CMD_FLAG_FAST_ZERO: {told(error)}, expected EINVAL")
        still_served(link)
