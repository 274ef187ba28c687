"""Rules of requests that are very long, of no bytes, or not aligned."""

from __future__ import annotations

from check.conform.disk import Disk
from check.conform.rule import Failure, Need, NotOffered, rule
from check.conform.subject import Subject
from check.conform.talk import ask, chosen, commands_of, read, still_served, told
from impl.nbd.constants import MAX_PAYLOAD_BYTES, UINT32_MAX, Command, ErrorValue

SHOULD = Need.SHOULD
LARGE_DISK = Disk(MAX_PAYLOAD_BYTES, True)


@rule("transmission/zero-length", SHOULD, "NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES")
def zero_length(subject: Subject) -> None:
    """A request of no bytes does not end the connection, whatever is answered."""
    with chosen(subject) as link:
        for command in commands_of(link):
            ask(link, command, 7, 0, 0)
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
        link.write(7, link.end, bytes(MAX_PAYLOAD_BYTES))
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
    """A read of the maximum payload size that is advertised succeeds, or of 32 MiB, if that is less."""
    with subject.fresh(LARGE_DISK) as server, chosen(server, structured=True) as link:
        maximum = link.block_sizes.maximum
        length = min(maximum, MAX_PAYLOAD_BYTES, link.end) // link.unit * link.unit
        error, _ = read(link, 7, 0, length)
        if error:
            raise Failure(f"a read of {length} bytes: {told(error)}; the maximum payload size is said to be {maximum}")
