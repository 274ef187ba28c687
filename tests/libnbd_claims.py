"""What libnbd's Python bindings see of a server; run by the interpreter that has them:

    /usr/bin/python3 tests/libnbd_claims.py CLAIM URI BASE_FILE

Each claim is a function of the server's URI and the bytes of its base: 2 MiB, blocks of 64 KiB. It raises
AssertionError where it does not hold. The bindings are those of the distribution's Python, so nothing of this project
is imported here.
"""

import errno
import sys
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 64 * KIB
CLAIMS = {}


def claim(function):
    CLAIMS[function.__name__] = function
    return function


def opened(uri, prepare=lambda handle: None):
    import nbd

    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    prepare(handle)
    handle.connect_uri(uri)
    return handle


def fails_with(number, call, *arguments):
    import nbd

    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, f"{call.__name__}{arguments} failed with {error}, expected {number}"
    else:
        raise AssertionError(f"{call.__name__}{arguments} succeeded, expected errno {number}")


def extents(handle, offset, length):
    found = []

    def note(context, start, entries, _):
        assert (context, start) == ("base:allocation", offset), (context, start)
        found.extend(entries)

    handle.block_status(length, offset, note)
    return found


def anything_is_sent(handle):
    """Let invalid requests through to the server."""
    handle.set_strict_mode(0)


@claim
def what_is_written_zeroed_and_trimmed_reads_back(uri, base, prepare=lambda handle: None):
    import nbd

    handle = opened(uri, prepare)
    expected = bytearray(base)
    assert handle.pread(len(base), 0) == base
    handle.pwrite(b"\x07" * 70000, 100)
    expected[100:70100] = b"\x07" * 70000
    handle.zero(BLOCK + 10, 5 * BLOCK - 5)
    expected[5 * BLOCK - 5 : 6 * BLOCK + 5] = bytes(BLOCK + 10)
    handle.zero(10, 8 * BLOCK, nbd.CMD_FLAG_NO_HOLE)
    expected[8 * BLOCK : 8 * BLOCK + 10] = bytes(10)
    handle.trim(3 * BLOCK, 10 * BLOCK)
    expected[10 * BLOCK : 13 * BLOCK] = bytes(3 * BLOCK)
    handle.pwrite(b"end", len(base) - 3, nbd.CMD_FLAG_FUA)
    expected[-3:] = b"end"
    handle.cache(len(base), 0)
    handle.flush()
    assert handle.pread(len(base), 0) == bytes(expected)
    assert handle.pread(7, BLOCK - 3) == bytes(expected[BLOCK - 3 : BLOCK + 4])
    handle.shutdown()


@claim
def the_same_holds_without_structured_replies(uri, base):
    def simple(handle):
        handle.set_request_structured_replies(False)

    what_is_written_zeroed_and_trimmed_reads_back(uri, base, simple)
    handle = opened(uri, simple)
    assert not handle.get_structured_replies_negotiated()
    assert not handle.can_df()


@claim
def the_same_holds_for_a_client_of_the_oldest_handshake(uri, base):
    """NBD_OPT_EXPORT_NAME, and the 124 zeroes behind its answer."""
    what_is_written_zeroed_and_trimmed_reads_back(uri, base, lambda handle: handle.set_handshake_flags(0))


@claim
def a_read_comes_whole_or_in_chunks_that_cover_it_once(uri, base):
    import nbd

    handle = opened(uri)
    assert handle.get_structured_replies_negotiated()
    handle.trim(BLOCK, BLOCK)
    handle.pwrite(b"\x07" * BLOCK, 2 * BLOCK)
    expected = base[:BLOCK] + bytes(BLOCK) + b"\x07" * BLOCK + base[3 * BLOCK : 4 * BLOCK]
    for flags, at_most in ((0, None), (nbd.CMD_FLAG_DF, 1)):
        chunks = []

        def note(data, offset, status, error, chunks=chunks):
            chunks.append((offset, len(data), status))

        assert handle.pread_structured(4 * BLOCK, 0, note, flags) == expected
        assert at_most is None or len(chunks) == at_most, chunks
        end = 0
        for offset, length, _ in sorted(chunks):
            assert offset == end, chunks
            end += length
        assert end == 4 * BLOCK, chunks
        if at_most is None:
            assert nbd.READ_HOLE in [status for _, _, status in chunks], chunks


@claim
def block_status_tells_data_from_holes(uri, base):
    handle = opened(uri)
    assert handle.can_meta_context("base:allocation")
    assert extents(handle, 0, len(base)) == [len(base), 0]
    handle.trim(2 * BLOCK, BLOCK)
    assert extents(handle, 0, 4 * BLOCK) == [BLOCK, 0, 2 * BLOCK, 3, BLOCK, 0]
    assert extents(handle, 2 * BLOCK + 5, 10)[1] == 3
    handle.pwrite(b"x", 2 * BLOCK - 1)
    assert extents(handle, 0, 4 * BLOCK) == [2 * BLOCK, 0, BLOCK, 3, BLOCK, 0]


@claim
def many_requests_in_flight_are_each_answered_with_their_own(uri, base):
    import nbd

    handle = opened(uri)
    expected = bytearray(base)
    cookies = []
    for block in range(0, 32, 2):
        data = bytes([block]) * (BLOCK - 100)
        expected[block * BLOCK + 50 : block * BLOCK + 50 + len(data)] = data
        cookies.append(handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), block * BLOCK + 50))
    finish(handle, cookies)
    reads, cookies = [], []
    for piece in range(len(base) // 10000):
        buffer = nbd.Buffer(10000)
        reads.append((piece * 10000, buffer))
        cookies.append(handle.aio_pread(buffer, piece * 10000))
    assert handle.aio_in_flight() > 1, "nothing was in flight"
    finish(handle, cookies)
    for offset, buffer in reads:
        assert bytes(buffer.to_bytearray()) == bytes(expected[offset : offset + 10000]), offset


def finish(handle, cookies):
    """Wait for all that is in flight; each must succeed, or this raises."""
    for cookie in cookies:
        while not handle.aio_command_completed(cookie):
            handle.poll(-1)


@claim
def connections_see_each_others_writes_at_once(uri, base):
    one, two = opened(uri), opened(uri)
    assert one.can_multi_conn()
    for block in range(16):
        writer, reader = (one, two) if block % 2 else (two, one)
        writer.pwrite(bytes([block + 1]) * 1000, block * BLOCK + 7)
        before = base[block * BLOCK : block * BLOCK + 7]
        assert reader.pread(1007, block * BLOCK) == before + bytes([block + 1]) * 1000
        writer.trim(BLOCK, block * BLOCK)
        assert reader.pread(BLOCK, block * BLOCK) == bytes(BLOCK)
        assert extents(reader, block * BLOCK, BLOCK)[1] == 3


@claim
def a_fast_zero_is_fast_or_enotsup(uri, base):
    import nbd

    handle = opened(uri)
    assert handle.can_fast_zero()
    fails_with(errno.ENOTSUP, handle.zero, 10, 5, nbd.CMD_FLAG_FAST_ZERO)
    fails_with(errno.ENOTSUP, handle.zero, BLOCK, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    assert handle.pread(len(base), 0) == base
    handle.zero(2 * BLOCK, BLOCK, nbd.CMD_FLAG_FAST_ZERO)
    assert handle.pread(3 * BLOCK, 0) == base[:BLOCK] + bytes(2 * BLOCK)


@claim
def what_makes_no_sense_is_refused_and_the_connection_goes_on(uri, base):
    handle = opened(uri, anything_is_sent)
    size = len(base)
    for number, call, arguments in (
        (errno.EINVAL, handle.pread, (10, size - 5)),
        (errno.EINVAL, handle.pread, (1, 1 << 62)),
        (errno.ENOSPC, handle.pwrite, (b"x" * 10, size - 5)),
        (errno.ENOSPC, handle.pwrite, (b"x", 1 << 63)),
        (errno.ENOSPC, handle.zero, (10, size)),
        (errno.EINVAL, handle.trim, (10, size - 5)),
        (errno.EINVAL, handle.cache, (2, size - 1)),
        (errno.EINVAL, handle.pread, (10, 0, 1 << 15)),
        (errno.EINVAL, handle.pwrite, (b"x" * 10, 0, 1 << 14)),
        (errno.EINVAL, handle.block_status, (10, size - 5, lambda *_: 0)),
    ):
        fails_with(number, call, *arguments)
        assert handle.pread(5, size - 5) == base[-5:], call
    assert handle.pread(size, 0) == base


@claim
def a_request_of_no_bytes_is_nothing_to_hang_up_for(uri, base):
    handle = opened(uri, anything_is_sent)
    for call, arguments in (
        (handle.pread, (0, 0)),
        (handle.pwrite, (b"", 0)),
        (handle.trim, (0, 0)),
        (handle.zero, (0, 0)),
        (handle.cache, (0, 0)),
    ):
        call(*arguments)
    fails_with(errno.EINVAL, handle.block_status, 0, 0, lambda *_: 0)
    assert handle.pread(len(base), 0) == base


@claim
def exports_are_listed_and_others_unknown(uri, base):
    import nbd

    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(uri)
    name, listed = handle.get_export_name(), []
    handle.opt_list(lambda export, description: listed.append(export) or 0)
    assert listed == [name], listed
    handle.set_export_name("nobody's")
    fails_with(errno.ENOENT, handle.opt_info)
    fails_with(errno.ENOENT, handle.opt_go)
    handle.set_export_name(name)
    handle.opt_info()
    assert handle.get_size() == len(base)
    handle.opt_go()
    assert handle.pread(5, 0) == base[:5]


# A claim about a larger base.


def the_largest_payload_is_served_and_more_is_refused_in_peace(uri, base):
    import nbd

    handle = opened(uri, anything_is_sent)
    most = handle.get_block_size(nbd.SIZE_MAXIMUM)
    assert most == 32 * MIB
    handle.pwrite(b"\x07" * most, 5)
    assert handle.pread(most, 1) == base[1:5] + b"\x07" * (most - 4)
    fails_with(errno.EINVAL, handle.pread, most + 1, 0)
    fails_with(errno.EINVAL, handle.pwrite, b"x" * (most + 1), 0)
    handle.zero(most + 1, 0)
    handle.trim(most + 1, 0)
    assert handle.pread(most, 0) == bytes(most)


# A claim about how a server is reached.


def started_by_the_client(connect, base, command):
    """`connect` is a method that takes the server's command line."""
    import nbd

    handle = nbd.NBD()
    getattr(handle, connect)(command)
    handle.pwrite(b"mine", 3)
    assert handle.pread(len(base), 0) == base[:3] + b"mine" + base[7:]
    handle.shutdown()


def main():
    what, *rest = sys.argv[1:]
    if what.startswith("connect_"):
        base, *command = rest
        started_by_the_client(what, Path(base).read_bytes(), command)
    else:
        uri, base = rest
        globals()[what](uri, Path(base).read_bytes())


if __name__ == "__main__":
    main()
