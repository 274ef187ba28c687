"""Rules of metadata contexts: how they are listed and selected, and what NBD_CMD_BLOCK_STATUS says of a range."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

from check.conform.handshake import NO_SUCH_EXPORT
from check.conform.link import Answer, Link, OptionAnswer, contexts_in
from check.conform.rule import Closed, Failure, Need, NotApplicable, NotOffered, rule
from check.conform.subject import Subject
from check.conform.talk import chosen, greeted, read, still_in_step, still_served, told
from impl.nbd import wire
from impl.nbd.constants import (
    BASE_ALLOCATION,
    AllocationFlag,
    ChunkType,
    Command,
    CommandFlag,
    ErrorValue,
    Option,
    OptionReply,
    TransmissionFlag,
)

MUST, SHOULD = Need.MUST, Need.SHOULD
SECTORS = 8
UNKNOWN_CONTEXT = "x-nobody-knows-this:leaf"

Extents = list[tuple[int, int]]  # length and flags of each


def listed(link: Link, subject: Subject, *queries: str) -> OptionAnswer:
    """What NBD_OPT_LIST_META_CONTEXT answers; NotOffered where there are no contexts."""
    answer = link.option(Option.LIST_META_CONTEXT, wire.pack_meta_query(subject.target.export, queries))
    if answer.final == OptionReply.ERR_UNSUP:
        raise NotOffered("no metadata contexts")
    return answer


def structured(link: Link) -> None:
    """Structured replies, which contexts need."""
    if not link.structured():
        raise NotOffered("no structured replies")


@rule("contexts/list-all", MUST, "NBD_OPT_LIST_META_CONTEXT")
def list_all(subject: Subject) -> None:
    """NBD_OPT_LIST_META_CONTEXT without a query lists base:allocation, if that can be selected."""
    with greeted(subject) as link:
        structured(link)
        answer = listed(link, subject)
        if BASE_ALLOCATION not in contexts_in(link.select(BASE_ALLOCATION)):
            raise NotOffered(f"no {BASE_ALLOCATION}")
        # "a client might reply simply with the namespace with no leaf-name": a wildcard does as well.
        if not answer.granted or not {BASE_ALLOCATION, "base:"} & contexts_in(answer).keys():
            raise Failure(f"no query: {answer.told} after {sorted(contexts_in(answer))}")


@rule("contexts/list-base", MUST, "The base: metadata namespace")
def list_base(subject: Subject) -> None:
    """NBD_OPT_LIST_META_CONTEXT with the query base: lists what is in that namespace, and nothing else."""
    with greeted(subject) as link:
        structured(link)
        answer = listed(link, subject, "base:")
        found = contexts_in(answer)
        others = [name for name in found if not name.startswith("base:")]
        if BASE_ALLOCATION not in contexts_in(link.select(BASE_ALLOCATION)):
            raise NotOffered(f"no {BASE_ALLOCATION}")
        if not answer.granted or BASE_ALLOCATION not in found or others:
            raise Failure(f"query base: {answer.told} after {sorted(found)}")


@rule("contexts/select-base", MUST, "The base: metadata namespace")
def select_base(subject: Subject) -> None:
    """NBD_OPT_SET_META_CONTEXT with the query base: selects nothing, and so does a leaf that is not known."""
    with greeted(subject) as link:
        structured(link)
        listed(link, subject)
        for query in ("base:", "base:x-no-such-leaf"):
            answer = link.select(query)
            if not answer.granted or answer.between:
                raise Failure(f"query {query}: {answer.told} after {sorted(contexts_in(answer))}")


@rule("contexts/select-none", MUST, "NBD_OPT_SET_META_CONTEXT")
def select_none(subject: Subject) -> None:
    """NBD_OPT_SET_META_CONTEXT without a query selects nothing."""
    with greeted(subject) as link:
        structured(link)
        listed(link, subject)
        answer = link.select()
        if not answer.granted or answer.between:
            raise Failure(f"no query: {answer.told} after {sorted(contexts_in(answer))}")


@rule("contexts/malformed", MUST, "NBD_OPT_LIST_META_CONTEXT")
def malformed(subject: Subject) -> None:
    """A query that reaches beyond the option's end is NBD_REP_ERR_INVALID, and the next option is understood."""
    with greeted(subject) as link:
        structured(link)
        listed(link, subject)
        name = subject.target.export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, 1000) + b"base:"
        answer = link.option(Option.LIST_META_CONTEXT, data)
        if answer.final != OptionReply.ERR_INVALID:
            raise Failure(f"a query of 1000 bytes of which 5 are there: {answer.told}, expected NBD_REP_ERR_INVALID")
        still_in_step(link)


@rule("contexts/bytes-behind", SHOULD, "NBD_OPT_LIST_META_CONTEXT")
def bytes_behind(subject: Subject) -> None:
    """Bytes behind the last query are NBD_REP_ERR_INVALID, or skipped, and the next option is understood."""
    with greeted(subject) as link:
        structured(link)
        listed(link, subject)
        data = wire.pack_meta_query(subject.target.export, ("base:",)) + bytes(100)
        answer = link.option(Option.LIST_META_CONTEXT, data)
        if not answer.granted and answer.final != OptionReply.ERR_INVALID:
            raise Failure(f"100 bytes behind the last query: {answer.told}")
        still_in_step(link)


@rule("contexts/replaced", MUST, "NBD_OPT_SET_META_CONTEXT")
def replaced(subject: Subject) -> None:
    """What was selected before is not any longer, once something else is asked for."""
    with greeted(subject) as link:
        structured(link)
        listed(link, subject)
        if not link.select(BASE_ALLOCATION).between:
            raise NotOffered(f"no {BASE_ALLOCATION}")
        link.select(UNKNOWN_CONTEXT)
        link.enter(subject.target.export)
        _nothing_selected(link, "a second NBD_OPT_SET_META_CONTEXT, of something else")


@rule("contexts/other-export", MUST, "Metadata querying; NBD_OPT_SET_META_CONTEXT")
def other_export(subject: Subject) -> None:
    """What was selected for one export does not count for another."""
    with greeted(subject) as link:
        structured(link)
        listed(link, subject)
        if not link.select(BASE_ALLOCATION).between:
            raise NotOffered(f"no {BASE_ALLOCATION}")
        link.select(BASE_ALLOCATION, export=NO_SUCH_EXPORT)
        link.enter(subject.target.export)
        _nothing_selected(link, f"NBD_OPT_SET_META_CONTEXT of {NO_SUCH_EXPORT}")


def _nothing_selected(link: Link, what: str) -> None:
    link.request(Command.BLOCK_STATUS, 7, 0, link.sector)
    with suppress(Closed):  # a client MUST NOT ask for this
        if not link.error_of(7):
            raise Failure(f"after {what}, a block status still succeeds")


@rule("status/extents", MUST, "NBD_REPLY_TYPE_BLOCK_STATUS")
def extents(subject: Subject) -> None:
    """There is a chunk for each context, with extents that have a length, and begin within the range."""
    with greeted(subject) as link:
        structured(link)
        names = sorted(contexts_in(listed(link, subject)))
        link.select(*names)
        if not link.contexts:
            raise NotOffered("no metadata contexts")
        link.enter(subject.target.export)
        if not link.end:
            raise NotApplicable(f"the export has {link.size} bytes")
        length = _make_pieces(link)
        for start in {0, min(link.sector, length - link.unit)}:
            for extents in status_of(link, start, length - start):
                _within(extents, length - start)


def _within(extents: Extents, length: int) -> None:
    if not extents:
        raise Failure("a block status has no extent")
    if not all(count for count, _ in extents):
        raise Failure(f"an extent has no length: {extents[:10]}")
    before = sum(count for count, _ in extents[:-1])
    if before >= length:
        raise Failure(f"an extent begins {before} bytes on, in the status of {length} bytes: {extents[:10]}")


@rule("status/one", MUST, "NBD_CMD_FLAG_REQ_ONE")
def one(subject: Subject) -> None:
    """With NBD_CMD_FLAG_REQ_ONE there is one extent, no longer than was asked for."""
    with chosen(subject, BASE_ALLOCATION) as link:
        _make_pieces(link)
        for extents in status_of(link, 0, link.sector, CommandFlag.REQ_ONE):
            if len(extents) != 1 or extents[0][0] > link.sector:
                raise Failure(f"one extent of up to {link.sector} bytes was asked for, but there is {extents[:10]}")


@rule("status/aligned", SHOULD, "NBD_CMD_BLOCK_STATUS")
def aligned(subject: Subject) -> None:
    """Extents are whole multiples of the minimum block size, but for the end of the disk."""
    with chosen(subject, BASE_ALLOCATION) as link:
        length = _make_pieces(link)
        for extents in status_of(link, 0, length):
            counts = [count for count, _ in extents]
            ends = sum(counts) >= link.size  # "with an obvious exception at the end of the image"
            odd = [count for count in (counts[:-1] if ends else counts) if count % link.unit]
            if odd:
                raise Failure(f"extents of {odd[:5]} bytes, where the minimum block size is {link.unit}")


@rule("status/flags", SHOULD, "base:allocation metadata context")
def flags(subject: Subject) -> None:
    """base:allocation says nothing but NBD_STATE_HOLE and NBD_STATE_ZERO."""
    with chosen(subject, BASE_ALLOCATION) as link:
        known = int(AllocationFlag.HOLE | AllocationFlag.ZERO)
        odd = [found for extents in status_of(link, 0, _make_pieces(link)) for _, found in extents if found & ~known]
        if odd:
            raise Failure(f"flags {odd[0]:#x}")


@rule("status/zero", MUST, "base:allocation metadata context")
def zero(subject: Subject) -> None:
    """What is said to be zero reads as zeroes."""
    with chosen(subject, BASE_ALLOCATION) as link:
        length = _make_pieces(link)
        at = 0
        for count, found in next(status_of(link, 0, length)):
            end = min(at + count, length)
            if found & AllocationFlag.ZERO and any(read(link, 9, at, end - at)[1]):
                raise Failure(f"[{at}, {end}) is said to be zero, and is not")
            at = end


@rule("status/beyond-the-end", SHOULD, "NBD_CMD_BLOCK_STATUS")
def beyond(subject: Subject) -> None:
    """A block status beyond the end is NBD_EINVAL, and the connection lives."""
    with chosen(subject, BASE_ALLOCATION) as link:
        link.request(Command.BLOCK_STATUS, 7, link.end, link.sector)
        error = link.error_of(7)
        if error != ErrorValue.EINVAL:
            raise Failure(f"a block status of {link.sector} bytes at the end: {told(error)}, expected EINVAL")
        still_served(link)


def _make_pieces(link: Link) -> int:
    """Write, zero and trim sectors side by side, so that there are extents; how many bytes there are to look at."""
    count = min(SECTORS, link.size // link.sector)
    if link.can_write:
        for number in range(count):
            at = number * link.sector
            if number % 4 == 1 and link.flags & TransmissionFlag.SEND_WRITE_ZEROES:
                link.request(Command.WRITE_ZEROES, 5, at, link.sector)
            elif number % 4 == 3 and link.flags & TransmissionFlag.SEND_TRIM:
                link.request(Command.TRIM, 5, at, link.sector)
            else:
                link.write(5, at, b"\x5a" * link.sector)
            link.error_of(5)
    return min(link.end, 1 << 20)


def status_of(link: Link, offset: int, length: int, flags: int = 0) -> Iterator[Extents]:
    """The extents of each context that was selected; Failure unless each has its chunk."""
    link.request(Command.BLOCK_STATUS, 7, offset, length, flags)
    parts = link.whole_answer(7)
    error = next((part.error for part in parts if part.error), 0)
    if error:
        raise Failure(f"a block status of [{offset}, +{length}): {told(error)}")
    found = [_unpacked(part) for part in parts if part.chunk_type != ChunkType.NONE]
    numbers = sorted(number for number, _ in found)
    if numbers != sorted(link.contexts.values()):
        raise Failure(f"a block status has chunks of contexts {numbers}, selected are {link.contexts}")
    return (extents for _, extents in found)


def _unpacked(part: Answer) -> tuple[int, Extents]:
    """The number of a context, and its extents."""
    is_long = part.offset is not None
    kind = ChunkType.BLOCK_STATUS_EXT if is_long else ChunkType.BLOCK_STATUS
    start, size = (8, 16) if is_long else (4, 8)
    if part.chunk_type != kind:
        raise Failure(f"a block status is answered with {part.chunk_type!r}, expected {kind.name}")
    if len(part.payload) < start + size or (len(part.payload) - start) % size:
        raise Failure(f"a chunk of a block status is {len(part.payload)} bytes long")
    if is_long and int.from_bytes(part.payload[4:8], "big") != (len(part.payload) - start) // size:
        raise Failure("a chunk of a block status does not say how many extents it has")
    unpack = wire.unpack_extended_descriptors if is_long else wire.unpack_descriptors
    return int.from_bytes(part.payload[:4], "big"), unpack(part.payload[start:])
