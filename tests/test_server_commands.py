"""From a request to its reply, without a socket: what is said, and who may have to wait to say it.

Source: impl/server/commands.py; NBD protocol, "Request types", "Structured reply types", "Error values".
"""

import errno
import struct
import threading
from contextlib import contextmanager

import pytest

from check.subjects import ScriptedBase, ServerSubject, Setup, assemble
from impl.base.file import FileBase
from impl.base.memory import MemoryBase
from impl.extents import Extent
from impl.nbd.agreement import Agreement, ExportInfo
from impl.nbd.constants import Command, CommandFlag, ErrorValue, TransmissionFlag
from impl.nbd.requests import Request
from impl.overlay.statemap import ALLOCATED, NOT_ALLOCATED
from impl.server.commands import EXTENTS_MAX_COUNT, SENDFILE_MIN_BYTES, Commands, Later
from impl.server.export import Export, ExportOptions, make_export, transmission_flags
from impl.server.outbox import FileSlice
from model.block import CacheMode
from model.device import Read

BLOCK, MIB = 4096, 1 << 20
BASE = bytes(1 + index % 251 for index in range(6 * BLOCK))
COOKIE = 0x0102030405060708
CONTEXT = 1
C, F, E = Command, CommandFlag, ErrorValue
DONE = 1
NONE, DATA, HOLE, STATUS, ERROR = 0, 1, 2, 5, 0x8001
START_LIMIT_S = 5


@contextmanager
def serving(base=None, structured=True, **options):
    """Commands of a connection to the shipped overlay over `base`."""
    parts = assemble(Setup(BASE, BLOCK, **options))
    if base is not None:
        object.__setattr__(parts.overlay, "base", base)
    export = Export(ExportInfo("", len(BASE), "", transmission_flags(False)), parts.overlay, base or parts.base, None)
    try:
        yield commands_of(export, structured), parts.overlay
    finally:
        parts.file.close()


def commands_of(export, structured=True):
    flags = export.info.flags | (TransmissionFlag.SEND_DF if structured else 0)
    return Commands(export, Agreement(export.info, flags, structured, (CONTEXT,) if structured else ()))


def request(command, offset=0, length=0, flags=0, payload=b""):
    return Request(command, flags, COOKIE, offset, length or len(payload), payload, 0, "")


def answer(commands, asked):
    """(reply, whether it took a worker)."""
    started = commands.start(asked)
    took_worker = isinstance(started, Later)
    while isinstance(started, Later):
        started = started.run()
    return started, took_worker


def reply_bytes(commands, asked):
    reply, _ = answer(commands, asked)
    assert not any(isinstance(part, FileSlice) for part in reply)
    return b"".join(map(bytes, reply))


def chunks_of(data):
    """(flags, type, payload) of each chunk; all of `data` is chunks of our reply."""
    found = []
    while data:
        magic, flags, kind, cookie, length = struct.unpack_from(">IHHQI", data)
        assert (magic, cookie) == (0x668E33EF, COOKIE)
        assert len(data) >= 20 + length
        found.append((flags, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def data_chunk(offset, data, flags=0):
    return flags, DATA, struct.pack(">Q", offset) + data


def hole_chunk(offset, length, flags=0):
    return flags, HOLE, struct.pack(">QI", offset, length)


SIMPLE_OK = struct.pack(">IIQ", 0x67446698, 0, COOKIE)


# What a read says. Block 1 is written, blocks 2 and 3 are trimmed, the rest is the base's.

X = b"\xee" * BLOCK
READS = [  # (claim, offset, length, chunks)
    ("the base's bytes are one chunk", 0, BLOCK, [data_chunk(0, BASE[:BLOCK], DONE)]),
    ("a part of them too", 5, 7, [data_chunk(5, BASE[5:12], DONE)]),
    ("written bytes are one chunk", BLOCK, BLOCK, [data_chunk(BLOCK, X, DONE)]),
    ("a trimmed block is a hole", 2 * BLOCK, BLOCK, [hole_chunk(2 * BLOCK, BLOCK, DONE)]),
    ("so are its neighbours, in one", 2 * BLOCK + 1, 2 * BLOCK - 2, [hole_chunk(2 * BLOCK + 1, 2 * BLOCK - 2, DONE)]),
    (
        "a mixture is a chunk for each part, and the last one is done",
        BLOCK - 10,
        4 * BLOCK,
        [
            data_chunk(BLOCK - 10, BASE[BLOCK - 10 : BLOCK]),
            data_chunk(BLOCK, X),
            hole_chunk(2 * BLOCK, 2 * BLOCK),
            data_chunk(4 * BLOCK, BASE[4 * BLOCK : 5 * BLOCK - 10], DONE),
        ],
    ),
    (
        "a hole may come last",
        2 * BLOCK - 1,
        BLOCK,
        [data_chunk(2 * BLOCK - 1, X[:1]), hole_chunk(2 * BLOCK, BLOCK - 1, DONE)],
    ),
    ("a read of no bytes is done", 0, 0, [(DONE, NONE, b"")]),
]
CONTENTS = BASE[:BLOCK] + X + bytes(2 * BLOCK) + BASE[4 * BLOCK :]


def prepare(overlay):
    overlay.write(BLOCK, X)
    overlay.trim(2 * BLOCK, 2 * BLOCK)


def rows(table):
    return [pytest.param(*row, id=claim) for claim, *row in table]


@pytest.mark.parametrize(("offset", "length", "chunks"), rows(READS))
def test_a_structured_read_has_a_chunk_for_each_part(offset, length, chunks):
    with serving() as (commands, overlay):
        prepare(overlay)
        assert chunks_of(reply_bytes(commands, request(C.READ, offset, length))) == chunks


@pytest.mark.parametrize(("offset", "length"), [row[1:3] for row in READS if row[2]])
def test_a_read_that_forbids_fragments_is_one_chunk_zeroes_and_all(offset, length):
    with serving() as (commands, overlay):
        prepare(overlay)
        found = chunks_of(reply_bytes(commands, request(C.READ, offset, length, F.DF)))
        assert found == [data_chunk(offset, CONTENTS[offset : offset + length], DONE)]


@pytest.mark.parametrize(("offset", "length"), [row[1:3] for row in READS])
def test_a_simple_read_is_a_header_and_all_the_bytes(offset, length):
    with serving(structured=False) as (commands, overlay):
        prepare(overlay)
        found = reply_bytes(commands, request(C.READ, offset, length))
        assert found == SIMPLE_OK + CONTENTS[offset : offset + length]


SUCCESSES = [
    ("a write", request(C.WRITE, 3, payload=b"abc")),
    ("a write with FUA", request(C.WRITE, 3, payload=b"abc", flags=F.FUA)),
    ("a write of nothing", request(C.WRITE, 3)),
    ("a trim", request(C.TRIM, 0, 5000)),
    ("a trim of nothing", request(C.TRIM, 0)),
    ("a zero", request(C.WRITE_ZEROES, 1, 5000)),
    ("a zero without a hole", request(C.WRITE_ZEROES, 1, 5000, F.NO_HOLE)),
    ("a fast zero of whole blocks", request(C.WRITE_ZEROES, 0, BLOCK, F.FAST_ZERO)),
    ("a zero of nothing", request(C.WRITE_ZEROES, 1)),
    ("a cache", request(C.CACHE, 0, 6 * BLOCK)),
    ("a cache of nothing", request(C.CACHE, 0)),
    ("a flush", request(C.FLUSH)),
    ("a flush with numbers nobody looks at", request(C.FLUSH, 1 << 60, 77)),
]


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("asked", [asked for _, asked in SUCCESSES], ids=[claim for claim, _ in SUCCESSES])
def test_what_has_no_data_to_send_succeeds_with_a_simple_reply(asked, structured):
    with serving(structured=structured) as (commands, _):
        assert reply_bytes(commands, asked) == SIMPLE_OK


# By reference: the kernel sends what the base has in a file.

LARGE = 2 * SENDFILE_MIN_BYTES


@pytest.fixture
def file_export(tmp_path):
    (tmp_path / "base").write_bytes(bytes(1 + index % 251 for index in range(4 * LARGE)))
    base = FileBase(tmp_path / "base")
    # In the page cache, as far as the file system can tell.
    base.is_ready = lambda offset, length: True
    export = make_export(base, ExportOptions(block_size=BLOCK, store="memory"))
    yield export
    export.close()


def test_a_large_part_of_a_file_is_sent_by_reference_and_done_comes_after_it(file_export):
    file_export.overlay.trim(LARGE, BLOCK)
    reply, took_worker = answer(commands_of(file_export), request(C.READ, 0, LARGE + BLOCK))
    assert not took_worker
    header, slice_, *rest = reply
    assert struct.unpack(">IHHQIQ", header) == (0x668E33EF, 0, DATA, COOKIE, 8 + LARGE, 0)
    assert (slice_.offset, slice_.length) == (0, LARGE)
    assert chunks_of(b"".join(rest)) == [hole_chunk(LARGE, BLOCK), (DONE, NONE, b"")]
    ((flags, kind, payload),) = chunks_of(slice_.on_error(errno.EIO))
    assert (flags, kind) == (0, 0x8002), "an error at an offset, and not the end of the reply"
    assert struct.unpack(">IH", payload[:6]) == (E.EIO, len(payload) - 14)
    assert payload[-8:] == bytes(8)


def test_a_simple_reply_by_reference_has_no_way_to_say_that_it_failed(file_export):
    reply, _ = answer(commands_of(file_export, structured=False), request(C.READ, 10, LARGE))
    header, slice_ = reply
    assert header == SIMPLE_OK
    assert (slice_.offset, slice_.length, slice_.on_error) == (10, LARGE, None)


NOT_BY_REFERENCE = [
    ("what is small", request(C.READ, 1, SENDFILE_MIN_BYTES - 1), True),
    ("what may not be fragmented, for an error chunk could not come between", request(C.READ, 0, LARGE, F.DF), True),
    ("what a base is not ready to give, for a worker can wait and the kernel's queue cannot", None, False),
]


@pytest.mark.parametrize(("asked", "ready"), rows(NOT_BY_REFERENCE))
def test_not_sent_by_reference_is(asked, ready, file_export):
    file_export.base.is_ready = lambda offset, length: ready
    found = reply_bytes(commands_of(file_export), asked or request(C.READ, 0, LARGE))
    ((flags, kind, _),) = chunks_of(found)
    assert (flags, kind) == (DONE, DATA)


# Block status.


def descriptors(commands, asked):
    ((flags, kind, payload),) = chunks_of(reply_bytes(commands, asked))
    assert (flags, kind) == (DONE, STATUS)
    assert struct.unpack_from(">I", payload) == (CONTEXT,)
    return list(struct.iter_unpack(">II", payload[4:]))


STATUSES = [  # (claim, offset, length, flags, descriptors), over the same blocks as READS; HOLE is 1, and ZERO 2
    ("data, written or not, is one extent", 0, 2 * BLOCK, 0, [(2 * BLOCK, 0)]),
    ("a trimmed block is a hole that reads as zeroes", 2 * BLOCK, BLOCK, 0, [(BLOCK, 3)]),
    ("equal neighbours are one extent", 0, 6 * BLOCK, 0, [(2 * BLOCK, 0), (2 * BLOCK, 3), (2 * BLOCK, 0)]),
    ("extents are cut to the request", 2 * BLOCK - 1, BLOCK, 0, [(1, 0), (BLOCK - 1, 3)]),
    ("one, if one is wanted", 0, 6 * BLOCK, F.REQ_ONE, [(2 * BLOCK, 0)]),
    ("and not longer than was asked", 0, 10, F.REQ_ONE, [(10, 0)]),
]


@pytest.mark.parametrize(("offset", "length", "flags", "expected"), rows(STATUSES))
def test_block_status(offset, length, flags, expected):
    with serving() as (commands, overlay):
        prepare(overlay)
        assert descriptors(commands, request(C.BLOCK_STATUS, offset, length, flags)) == expected


class Striped(MemoryBase):
    """Data and holes by turns, 512 bytes each; it counts the extents it is asked for."""

    given = 0

    def extents(self, offset, length):
        for start in range(0, length, 512):
            self.given += 1
            hole = (offset + start) // 512 % 2 == 1
            yield Extent(min(512, length - start), hole, hole)


def test_a_status_of_very_many_extents_is_cut_and_the_base_not_asked_for_the_rest():
    base = Striped(512 * 4 * EXTENTS_MAX_COUNT)
    export = make_export(base, ExportOptions(store="memory"))
    try:
        found = descriptors(commands_of(export), request(C.BLOCK_STATUS, 0, base.size))
        assert found == [(512, 0), (512, 3)] * (EXTENTS_MAX_COUNT // 2)
        assert len(found) <= 1 << 20, "the protocol's own limit"
        assert base.given <= EXTENTS_MAX_COUNT + 1
        assert descriptors(commands_of(export), request(C.BLOCK_STATUS, 0, base.size, F.REQ_ONE)) == [(512, 0)]
        assert base.given <= EXTENTS_MAX_COUNT + 3
    finally:
        export.close()


# Errors.


class FailingBase(ScriptedBase):
    """Each read raises what it is told to; blocks are as ready as ever."""

    error: BaseException = OSError()

    def pread(self, offset, length):
        raise self.error


NEEDS_BASE = [
    ("a read, at once", request(C.READ, 0, 10), False),
    ("a read, by a worker", request(C.READ, BLOCK, 10), True),
    ("a write of a part, at once", request(C.WRITE, 1, payload=b"x"), False),
    ("a write of a part, by a worker", request(C.WRITE, BLOCK + 1, payload=b"x"), True),
    ("a trim of a part", request(C.TRIM, 3, 10), False),
    ("a zero of a part", request(C.WRITE_ZEROES, BLOCK + 3, 10), True),
]
ERRORS = [  # (exception, error value, message)
    (OSError(errno.EIO, "a scratch on the disk"), E.EIO, b"a scratch on the disk"),
    (OSError(errno.ENOSPC, "full"), E.ENOSPC, b"full"),
    (OSError(errno.EDQUOT, "your share is full"), E.ENOSPC, b"your share is full"),
    (OSError(errno.EFBIG, "too long"), E.ENOSPC, b"too long"),
    (OSError(errno.EACCES, "no"), E.EPERM, b"no"),
    (OSError(errno.EROFS, "no"), E.EPERM, b"no"),
    (OSError(errno.ETIMEDOUT, "the network is away"), E.EIO, b"the network is away"),
    (OSError(errno.ENOTSUP, "never heard of it"), E.ENOTSUP, b"never heard of it"),
    (ConnectionResetError(errno.ECONNRESET, "reset"), E.EIO, b"reset"),
    (OSError("no number at all"), E.EIO, None),
    (MemoryError(), E.ENOMEM, None),
]


@pytest.mark.parametrize(("asked", "by_worker"), rows(NEEDS_BASE))
@pytest.mark.parametrize(("error", "value", "message"), ERRORS, ids=[repr(row[0]) for row in ERRORS])
def test_an_error_of_the_base_is_replied_with_its_number_and_its_words(error, value, message, asked, by_worker):
    base = FailingBase(Setup(BASE, BLOCK))
    base.error = error
    with serving(base) as (commands, _):
        reply, took_worker = answer(commands, asked)
        assert took_worker == by_worker
        ((flags, kind, payload),) = chunks_of(b"".join(reply))
        assert (flags, kind) == (DONE, ERROR)
        assert struct.unpack_from(">IH", payload) == (value, len(payload) - 6)
        assert payload[6:] == message if message is not None else payload[6:]
    with serving(base, structured=False) as (commands, _):
        assert reply_bytes(commands, asked) == struct.pack(">IIQ", 0x67446698, value, COOKIE)


@pytest.mark.parametrize("asked", [request(C.READ, 0, 10), request(C.READ, BLOCK, 10)], ids=["at once", "by a worker"])
def test_what_is_no_error_of_the_world_is_a_bug_and_not_replied(asked):
    base = FailingBase(Setup(BASE, BLOCK))
    base.error = AssertionError("an invariant is broken")
    with serving(base) as (commands, _), pytest.raises(AssertionError, match="an invariant is broken"):
        answer(commands, asked)


def test_a_fast_zero_that_would_write_is_not_supported():
    with serving() as (commands, _):
        ((_, kind, payload),) = chunks_of(reply_bytes(commands, request(C.WRITE_ZEROES, 1, 10, F.FAST_ZERO)))
        assert (kind, payload[:4]) == (ERROR, struct.pack(">I", E.ENOTSUP))


@pytest.mark.parametrize("command", [*Command, 77])
def test_a_request_that_came_with_an_error_is_replied_with_that_and_not_done(command):
    wrong = Request(command, 0, COOKIE, 0, 512, b"x" * 512, E.EINVAL, "because")
    with serving() as (commands, overlay):
        found = chunks_of(reply_bytes(commands, wrong))
        assert found == [(DONE, ERROR, struct.pack(">IH", E.EINVAL, 7) + b"because")]
        assert overlay.pread(0, len(BASE)) == BASE


def test_after_an_error_of_the_base_the_connection_lives_on():
    subject = ServerSubject(Setup(BASE, BLOCK, bad=frozenset({1, 2})), connections=1)
    try:
        for block in (1, 2):
            with pytest.raises(OSError, match="a bad block of the base") as raised:
                subject.ask(Read(block * BLOCK, 1))
            assert raised.value.errno == errno.EIO
            assert subject.ask(Read(0, 10)).data == BASE[:10]
    finally:
        subject.close()


# Who waits. Of the scripted base, even blocks are ready and odd ones are not; block 3 is written, block 5 trimmed.

READY, SLOW, WRITTEN, TRIMMED = 2 * BLOCK, 1 * BLOCK, 3 * BLOCK, 5 * BLOCK
WHOLE = b"w" * BLOCK
AT_ONCE = [
    ("a read of what the base has ready", request(C.READ, READY, BLOCK)),
    ("a read of what was written", request(C.READ, WRITTEN, BLOCK)),
    ("a read of what was trimmed", request(C.READ, TRIMMED + 1, 10)),
    ("a write of a whole block", request(C.WRITE, SLOW, payload=WHOLE)),
    ("a write of a part of a ready block", request(C.WRITE, READY + 1, payload=b"x")),
    ("a write of a part of a written block", request(C.WRITE, WRITTEN + 1, payload=b"x")),
    ("a write of a part of a trimmed block", request(C.WRITE, TRIMMED + 1, payload=b"x")),
    ("a trim of a whole block", request(C.TRIM, SLOW, BLOCK)),
    ("a trim of a part of a written block", request(C.TRIM, WRITTEN, 1)),
    ("a zero of a whole block", request(C.WRITE_ZEROES, SLOW, BLOCK)),
    ("a cache that does nothing", request(C.CACHE, SLOW, BLOCK)),
    ("a block status", request(C.BLOCK_STATUS, 0, 6 * BLOCK)),
    ("a flush", request(C.FLUSH)),
]
BY_A_WORKER = [
    ("a read of a slow base", request(C.READ, SLOW, BLOCK)),
    ("a write of a part of a slow block", request(C.WRITE, SLOW + 1, payload=b"x")),
    ("a write that ends in a slow block", request(C.WRITE, 0, payload=WHOLE + b"x")),
    ("a trim of a part of a slow block", request(C.TRIM, SLOW, 1)),
    ("a zero of a part of a slow block", request(C.WRITE_ZEROES, SLOW, 1)),
]


def took_worker(commands, asked):
    """Whether a worker has to do it; a request that is started, and then waits for a lock, is an error."""
    try:
        return isinstance(Running(lambda: commands.start(asked)).join_within(START_LIMIT_S), Later)
    except TimeoutError:
        raise AssertionError("the loop's own thread waits, and every request behind this one with it") from None


class Running(threading.Thread):
    """A call on a thread of its own, so that one which waits for ever fails a test and does not hang it."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self._call, self._results = call, []
        self.start()

    def run(self):
        self._results.append(self._call())

    def join_within(self, limit_s):
        self.join(limit_s)
        if not self._results:
            raise TimeoutError
        return self._results[0]


@contextmanager
def half_used(**options):
    with serving(**options) as (commands, overlay):
        overlay.write(WRITTEN, WHOLE)
        overlay.trim(TRIMMED, BLOCK)
        yield commands, overlay


@pytest.mark.parametrize("asked", [row[1] for row in AT_ONCE], ids=[row[0] for row in AT_ONCE])
def test_answered_at_once_is(asked):
    with half_used() as (commands, _):
        assert not took_worker(commands, asked)


@pytest.mark.parametrize("asked", [row[1] for row in BY_A_WORKER], ids=[row[0] for row in BY_A_WORKER])
def test_left_to_a_worker_is(asked):
    with half_used() as (commands, _):
        assert took_worker(commands, asked)


def test_one_slow_part_of_a_read_is_enough():
    with serving() as (commands, overlay):
        overlay.write(2 * BLOCK, WHOLE)
        assert not took_worker(commands, request(C.READ, 0, 3 * BLOCK))
        assert took_worker(commands, request(C.READ, 0, 3 * BLOCK + 1))


@pytest.mark.parametrize("command", [C.WRITE_ZEROES, C.TRIM])
def test_a_change_that_brings_no_bytes_is_left_to_a_worker_if_it_is_long(command):
    export = make_export(MemoryBase(16 * MIB), ExportOptions(block_size=BLOCK, store="memory"))
    try:
        commands = commands_of(export)
        assert not took_worker(commands, request(command, BLOCK, 4 * MIB))
        assert took_worker(commands, request(command, BLOCK, 4 * MIB + 1))
    finally:
        export.close()


# Offset and length, and whether it is left to a worker.
COPYING = [
    (READY, 10, False),
    (SLOW, 10, True),
    (SLOW - 1, 1, False),
    (WRITTEN, 10, False),
    (TRIMMED, 10, False),
]


@pytest.mark.parametrize(("offset", "length", "later"), COPYING)
def test_a_read_that_copies_is_left_to_a_worker_if_it_waits_for_what_it_copies(offset, length, later):
    with half_used(copy_on_read=True) as (commands, overlay):
        assert took_worker(commands, request(C.READ, offset, length)) == later
        assert (overlay.states.at(offset // BLOCK) == NOT_ALLOCATED) == later


@pytest.mark.parametrize(
    ("length", "block_size", "later"),
    [(128 << 10, BLOCK, False), ((128 << 10) + 1, BLOCK, True), (1, 128 << 10, False), (1, 256 << 10, True)],
)
def test_a_read_that_copies_much_is_left_to_a_worker(length, block_size, later):
    options = ExportOptions(block_size=block_size, store="memory", copy_on_read=lambda: True)
    export = make_export(MemoryBase(MIB), options)
    try:
        assert took_worker(commands_of(export), request(C.READ, 0, length)) == later
    finally:
        export.close()


@pytest.mark.parametrize("mode", [CacheMode.PASSTHROUGH, CacheMode.READ, CacheMode.COW])
def test_a_cache_that_does_something_is_left_to_a_worker(mode):
    with half_used(cache_mode=mode) as (commands, _):
        assert took_worker(commands, request(C.CACHE, READY, BLOCK))


@pytest.mark.parametrize(
    ("copy_on_cache", "prefetched", "state"),
    [(False, [(BLOCK, 2 * BLOCK)], NOT_ALLOCATED), (True, [], ALLOCATED)],
    ids=["prefetches", "copies"],
)
def test_a_cache_does_what_the_base_wants_unless_it_is_to_copy(copy_on_cache, prefetched, state, tmp_path):
    (tmp_path / "base").write_bytes(BASE)
    base, asked = FileBase(tmp_path / "base"), []
    base.prefetch = lambda offset, length: asked.append((offset, length))
    export = make_export(base, ExportOptions(block_size=BLOCK, store="memory", copy_on_cache=copy_on_cache))
    try:
        assert reply_bytes(commands_of(export), request(C.CACHE, BLOCK, 2 * BLOCK)) == SIMPLE_OK
        assert asked == prefetched
        assert list(export.overlay.states.get(1, 3)) == [state] * 2
    finally:
        export.close()


RANGED = [
    ("a read", request(C.READ, WRITTEN, BLOCK), True),
    ("a write", request(C.WRITE, WRITTEN, payload=WHOLE), False),
    ("a trim", request(C.TRIM, WRITTEN, BLOCK), False),
    ("a zero", request(C.WRITE_ZEROES, WRITTEN, BLOCK), False),
    ("a cache", request(C.CACHE, WRITTEN, BLOCK), True),
    ("a block status", request(C.BLOCK_STATUS, WRITTEN, BLOCK), True),
]


@pytest.mark.parametrize(("asked", "shares"), rows(RANGED))
def test_left_to_a_worker_while_another_changes_the_range_is(asked, shares):
    with half_used() as (commands, overlay):
        with overlay.ranges.exclusive(3, 3):
            assert took_worker(commands, asked)
        assert not took_worker(commands, asked)


@pytest.mark.parametrize(("asked", "shares"), rows(RANGED))
def test_beside_one_that_looks_who_changes_waits_and_who_looks_does_not(asked, shares):
    with half_used() as (commands, overlay), overlay.ranges.shared(3, 3):
        assert took_worker(commands, asked) == (not shares)


@pytest.mark.parametrize(("asked", "shares"), rows(RANGED))
def test_nobody_waits_for_a_range_beside_his_own(asked, shares):
    with half_used() as (commands, overlay), overlay.ranges.exclusive(0, 2), overlay.ranges.exclusive(4, 5):
        assert not took_worker(commands, asked)
