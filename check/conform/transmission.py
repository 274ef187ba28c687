"""Rules of the transmission phase, of what every server does there; what it refuses is in `refusals.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from check.conform.link import DATA, Answer, Link
from check.conform.rule import Failure, Need, NotApplicable, NotOffered, rule
from check.conform.subject import Subject
from check.conform.talk import ask, chosen, commands_of, read, readable, told
from impl.nbd import wire
from impl.nbd.constants import ChunkType, Command, CommandFlag, TransmissionFlag

MUST, SHOULD = Need.MUST, Need.SHOULD
MANY = 100
DF_BYTES = 65_536  # what every server has to answer in one piece


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
            if not answer.error:
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
        length = min(link.end, 1 << 20, link.block_sizes.maximum // link.unit * link.unit)
        readable(link, 6, 0, length)
        link.request(Command.READ, 7, 0, length)
        covered = []
        for part in link.whole_answer(7):
            if part.chunk_type is None:
                raise Failure("a read is answered with a simple reply, though structured replies were negotiated")
            if part.chunk_type == DATA:
                covered.append((int.from_bytes(part.payload[:8], "big"), len(part.payload) - 8))
            elif part.chunk_type == ChunkType.OFFSET_HOLE:
                if len(part.payload) != 12:
                    raise Failure(f"NBD_REPLY_TYPE_OFFSET_HOLE is {len(part.payload)} bytes long, expected 12")
                covered.append((int.from_bytes(part.payload[:8], "big"), int.from_bytes(part.payload[8:12], "big")))
            elif part.chunk_type == ChunkType.NONE and part.payload:
                raise Failure(f"NBD_REPLY_TYPE_NONE has a payload of {len(part.payload)} bytes")
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
    """A read of up to 64 KiB with NBD_CMD_FLAG_DF is one content chunk, zeroes and all."""
    with chosen(subject, structured=True) as link:
        if not link.flags & TransmissionFlag.SEND_DF:
            raise NotOffered("no NBD_FLAG_SEND_DF")
        length = min(link.end, DF_BYTES)
        if link.can_write and link.flags & TransmissionFlag.SEND_WRITE_ZEROES:
            # So that there is something to fragment for.
            link.request(Command.WRITE_ZEROES, 6, 0, length // 2 // link.unit * link.unit)
            link.error_of(6)
        expected = readable(link, 5, 0, length)
        link.request(Command.READ, 7, 0, length, flags=CommandFlag.DF)
        parts = link.whole_answer(7)
        if any(part.error for part in parts):
            raise Failure(f"a read of {length} bytes with NBD_CMD_FLAG_DF: {told(max(part.error for part in parts))}")
        content = [part for part in parts if part.chunk_type in (DATA, ChunkType.OFFSET_HOLE)]
        if len(content) != 1:
            raise Failure(f"{len(content)} content chunks, expected one")
        found = content[0].payload[8:] if content[0].chunk_type == DATA else bytes(length)
        if found != expected:
            raise Failure(f"a read of {length} bytes with NBD_CMD_FLAG_DF does not give what one without it gives")


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


@rule("transmission/multi-conn", MUST, "NBD_FLAG_CAN_MULTI_CONN")
def multi_conn(subject: Subject) -> None:
    """What one connection has written and flushed, another one reads, where NBD_FLAG_CAN_MULTI_CONN is set."""
    with chosen(subject, writes=True) as one:
        if not one.flags & TransmissionFlag.CAN_MULTI_CONN:
            raise NotOffered("no NBD_FLAG_CAN_MULTI_CONN")
        with chosen(subject) as other:
            for byte in (0x5A, 0xA5):
                offset = min(one.unit, one.end - one.unit)
                one.write(1, offset, bytes([byte]) * one.unit)
                error = one.error_of(1)
                if not error and one.flags & TransmissionFlag.SEND_FLUSH:
                    one.request(Command.FLUSH, 2)
                    error = one.error_of(2)
                if error:
                    raise NotApplicable(f"a write, or a flush: {told(error)}")
                found = readable(other, 3, offset, one.unit)
                if found != bytes([byte]) * one.unit:
                    raise Failure(f"another connection reads {found[:8].hex()}, expected {bytes([byte] * 8).hex()}")


@rule("transmission/fua", MUST, "Command flags; NBD_CMD_FLAG_FUA")
def fua(subject: Subject) -> None:
    """NBD_CMD_FLAG_FUA is accepted with every command, where NBD_FLAG_SEND_FUA is set."""
    with chosen(subject) as link:
        if not link.flags & TransmissionFlag.SEND_FUA:
            raise NotOffered("no NBD_FLAG_SEND_FUA")
        for command in commands_of(link):
            error = ask(link, command, 7, 0, link.sector, CommandFlag.FUA)
            if error and not ask(link, command, 8, 0, link.sector):
                raise Failure(f"{command.name} with NBD_CMD_FLAG_FUA: {told(error)}; without, it succeeds")


@rule("transmission/no-hole", MUST, "NBD_CMD_FLAG_NO_HOLE")
def no_hole(subject: Subject) -> None:
    """NBD_CMD_WRITE_ZEROES takes NBD_CMD_FLAG_NO_HOLE."""
    with chosen(subject, writes=True) as link:
        if not link.flags & TransmissionFlag.SEND_WRITE_ZEROES:
            raise NotOffered("no NBD_FLAG_SEND_WRITE_ZEROES")
        error = ask(link, Command.WRITE_ZEROES, 7, 0, link.sector, CommandFlag.NO_HOLE)
        if error and not ask(link, Command.WRITE_ZEROES, 8, 0, link.sector):
            raise Failure(f"zeroes with NBD_CMD_FLAG_NO_HOLE: {told(error)}")


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
