"""Rules of the transmission phase that do not depend on what is on the disk."""

from __future__ import annotations

from check.conform.handshake import greeted
from check.conform.link import DATA, Link
from check.conform.rule import Failure, Need, NotOffered, rule
from check.conform.subject import Subject
from impl.nbd import wire
from impl.nbd.constants import ChunkType, Command, CommandFlag, ErrorValue, TransmissionFlag

MUST, SHOULD = Need.MUST, Need.SHOULD
UNKNOWN_COMMAND = 0x7FFF
MANY = 100


def chosen(subject: Subject, structured: bool = False) -> Link:
    """A connection in the transmission phase."""
    link = greeted(subject)
    try:
        if structured and not link.structured():
            raise NotOffered("no structured replies")
        link.go(subject.target.export)
    except BaseException:
        link.__exit__(None, None, None)
        raise
    return link


def still_served(link: Link) -> None:
    """The next request is understood: one that every server has."""
    link.request(Command.READ, 0xA11, 0, 1)
    error = link.error_of(0xA11)
    if not link.is_structured and not error:
        link.receive(1, "a byte")
    if error:
        raise Failure(f"a read of one byte after that: error {error}")


def told(error: int) -> str:
    """An error by its name."""
    return "success" if not error else ErrorValue(error).name if error in list(ErrorValue) else f"error {error}"


@rule("transmission/unknown-command", SHOULD, "Request types; Error values")
def unknown_command(subject: Subject) -> None:
    """A command that the server does not know is NBD_EINVAL, and the connection lives."""
    with chosen(subject) as link:
        link.request(UNKNOWN_COMMAND, 7)
        error = link.error_of(7)
        if error != ErrorValue.EINVAL:
            raise Failure(f"an unknown command: {told(error)}, expected EINVAL")
        still_served(link)


@rule("transmission/error-values", MUST, "Error values")
def error_values(subject: Subject) -> None:
    """Only the standard's error numbers travel."""
    with chosen(subject) as link:
        for cookie, (command, offset, length) in enumerate([(Command.READ, link.size, 1), (UNKNOWN_COMMAND, 0, 0)]):
            link.request(command, cookie, offset, length)
            error = link.error_of(cookie)
            if error not in list(ErrorValue):
                raise Failure(f"command {int(command)} at {offset}: {told(error)}")


@rule("transmission/read-beyond-the-end", SHOULD, "NBD_CMD_READ; Error values")
def read_beyond(subject: Subject) -> None:
    """A read beyond the end is NBD_EINVAL, and the connection lives."""
    with chosen(subject) as link:
        link.request(Command.READ, 7, link.size, 512)
        error = link.error_of(7)
        if error != ErrorValue.EINVAL:
            raise Failure(f"a read of 512 bytes at the end: {told(error)}, expected EINVAL")
        still_served(link)


@rule("transmission/write-beyond-the-end", SHOULD, "NBD_CMD_WRITE")
def write_beyond(subject: Subject) -> None:
    """A write beyond the end is NBD_ENOSPC, its payload is skipped, and the connection lives."""
    with chosen(subject) as link:
        if link.flags & TransmissionFlag.READ_ONLY:
            raise NotOffered("the export is read-only")
        link.send(wire.pack_request(Command.WRITE, 0, 7, link.size, 512) + bytes(512))
        error = link.error_of(7)
        if error not in (ErrorValue.ENOSPC, ErrorValue.EINVAL):
            raise Failure(f"a write of 512 bytes at the end: {told(error)}, expected ENOSPC")
        still_served(link)
        if error != ErrorValue.ENOSPC:
            raise Failure(f"a write of 512 bytes at the end: {told(error)}; a server SHOULD say ENOSPC")


@rule("transmission/unknown-flag", SHOULD, "Command flags")
def unknown_flag(subject: Subject) -> None:
    """A flag that the server does not know is NBD_EINVAL, and the connection lives."""
    with chosen(subject) as link:
        link.request(Command.READ, 7, 0, 1, flags=1 << 15)
        error = link.error_of(7)
        if not error and not link.is_structured:
            link.receive(1, "a byte")
        if error != ErrorValue.EINVAL:
            raise Failure(f"a read with flag 0x8000: {told(error)}, expected EINVAL")
        still_served(link)


@rule("transmission/cookies", MUST, "Simple reply message")
def cookies(subject: Subject) -> None:
    """Of many requests in flight each is answered once, with its own cookie."""
    with chosen(subject, structured=False) as link:
        wanted = {cookie * 0x1234_5678_9ABC % (1 << 64) for cookie in range(1, MANY + 1)}
        link.send(b"".join(wire.pack_request(Command.READ, 0, cookie, 0, 8) for cookie in wanted))
        for _ in range(MANY):
            answer = link.answer()
            if answer.cookie not in wanted:
                raise Failure(f"an answer has cookie {answer.cookie:#x}, which no request has that waits")
            wanted.remove(answer.cookie)
            if answer.error:
                raise Failure(f"a read of 8 bytes: {told(answer.error)}")
            link.receive(8, "data")


@rule("transmission/disconnect", MUST, "NBD_CMD_DISC")
def disconnect(subject: Subject) -> None:
    """NBD_CMD_DISC has no reply; what was asked before is answered, and then the server closes."""
    with chosen(subject) as link:
        link.send(wire.pack_request(Command.READ, 0, 7, 0, 8) + wire.pack_request(Command.DISC, 0, 8, 0, 0))
        answer = link.answer()
        if (answer.cookie, answer.error) != (7, 0):
            raise Failure(f"the read before it: cookie {answer.cookie:#x}, {told(answer.error)}")
        link.receive(8, "data")
        link.ends("NBD_CMD_DISC")


@rule("transmission/structured-read", MUST, "Structured replies; NBD_CMD_READ")
def structured_read(subject: Subject) -> None:
    """With structured replies, a read is answered with chunks that cover it, each byte once, the last one DONE."""
    with chosen(subject, structured=True) as link:
        length = min(link.size, 1 << 20)
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
        if not link.flags & TransmissionFlag.READ_ONLY and link.flags & TransmissionFlag.SEND_WRITE_ZEROES:
            link.request(Command.WRITE_ZEROES, 6, 0, link.size // 2)  # so that there is something to fragment for
            link.error_of(6)
        link.request(Command.READ, 7, 0, min(link.size, 1 << 20), flags=CommandFlag.DF)
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
    with chosen(subject) as one, chosen(subject) as other:
        if not one.flags & TransmissionFlag.CAN_MULTI_CONN:
            raise NotOffered("no NBD_FLAG_CAN_MULTI_CONN")
        if one.flags & TransmissionFlag.READ_ONLY:
            raise NotOffered("the export is read-only")
        for byte in (0x5A, 0xA5):
            one.send(wire.pack_request(Command.WRITE, 0, 1, 3, 5) + bytes([byte]) * 5)
            one.error_of(1)
            if one.flags & TransmissionFlag.SEND_FLUSH:
                one.request(Command.FLUSH, 2)
                one.error_of(2)
            other.request(Command.READ, 3, 3, 5)
            error = other.error_of(3)
            found = b"" if error else other.receive(5, "data")
            if found != bytes([byte]) * 5:
                raise Failure(
                    f"another connection reads {found.hex() or told(error)}, expected {bytes([byte] * 5).hex()}"
                )
