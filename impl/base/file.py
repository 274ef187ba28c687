"""A base that is a regular file or a block device.

Source:  lseek(2) for SEEK_DATA and SEEK_HOLE, preadv2(2) for RWF_NOWAIT, posix_fadvise(2).
Errors:  StartError where the file cannot be served at all; OSError from `pread` once it is.
Omits:   systems other than Linux; a file that changes while it is served, which breaks what a base promises. One
         that becomes shorter is noticed (EIO), anything else is not.

No lock is needed. The descriptor is shared by all threads, and lseek moves its file position; but nobody reads at
that position (pread, preadv and sendfile are given their offsets), and what lseek finds is its return value, not
the position it leaves behind.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from impl.base.interface import CacheMode
from impl.errors import StartError
from impl.extents import Extent
from impl.sizes import format_size

# WILLNEED brings in only one read-ahead window per call, at least 128 KiB by default: longer ranges take several calls.
_PREFETCH_STEP_BYTES = 128 * 1024

# A hint must return at once, and a cache request may name the whole disk.
_PREFETCH_MAX_BYTES = 32 * 1024 * 1024

_PAGE_BYTES = 4096
RWF_NOWAIT = os.RWF_NOWAIT
# Pages come into the cache, and leave it, many at a time: of a range like this the ends tell enough.
_PROBED_AT_ENDS_BYTES = 128 * 1024
# What is read into it by whoever asks means nothing to anybody.
_PROBE = (bytearray(1),)

_OTHER_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISSOCK, "a socket"),
)


class FileBase:
    """The bytes of a file, as long as it was when it was opened."""

    cache_mode: Final[CacheMode] = "passthrough"
    extents_may_wait: Final = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path)
        self._fd, self.size = _open(name)
        self.description: Final = f"{_printable(Path(name).name)}, {format_size(self.size)}"

    def pread(self, offset: int, length: int) -> bytes:
        """The bytes of the file; EIO if it has become shorter than it was."""
        assert 0 <= offset < offset + length <= self.size, f"{offset}+{length} is not within {self.size} bytes"
        data = os.pread(self._fd, length, offset)
        if len(data) == length:
            return data
        return self._pread_rest(offset, length, data)

    def _pread_rest(self, offset: int, length: int, data: bytes) -> bytes:
        """What is missing after a short read: a signal, a network file system, or more than 2 GiB at once."""
        pieces = [data]
        have = len(data)
        while have < length:
            if not data:
                raise OSError(
                    errno.EIO, f"base file ends at byte {offset + have}, expected {self.size}: it became shorter"
                )
            data = os.pread(self._fd, length - have, offset + have)
            pieces.append(data)
            have += len(data)
        return b"".join(pieces)

    def is_ready(self, offset: int, length: int) -> bool:
        """Whether the first and the last page of the range, and of a long one the middle, are in the page cache.

        File systems that cannot tell (tmpfs among them) are never ready: a needless detour through a thread that may
        wait is cheap, and a loop that serves everybody and waits for a disk is not.
        """
        last = offset + length - 1
        try:
            os.preadv(self._fd, _PROBE, offset, RWF_NOWAIT)
            if length > 1:
                os.preadv(self._fd, _PROBE, last, RWF_NOWAIT)
            if length > _PROBED_AT_ENDS_BYTES:
                os.preadv(self._fd, _PROBE, (offset + last) // 2, RWF_NOWAIT)
        except OSError:  # EAGAIN: it would wait. EOPNOTSUPP: it cannot say. Others: pread will say.
            return False
        return True

    def pread_at_once(self, offset: int, length: int) -> bytearray | None:
        """One call for what is in the page cache. Why there is nothing, or less, is for `pread` to say."""
        buffer = bytearray(length)
        try:
            if os.preadv(self._fd, (buffer,), offset, RWF_NOWAIT) == length:
                return buffer
        except OSError:  # as of is_ready
            return None
        return None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Data and holes as the file system knows them, two system calls for each pair, made as they are asked for."""
        end = offset + length
        while offset < end:
            data = self._next_data(offset, end)
            if data > offset:
                yield Extent(data - offset, hole=True, zero=True)
            if data < end:
                hole = self._next_hole(data, end)
                yield Extent(hole - data, hole=False, zero=False)
                offset = hole
            else:
                offset = end

    def _next_data(self, offset: int, end: int) -> int:
        """Where the first data at or after `offset` begins, at most `end`."""
        try:
            return min(os.lseek(self._fd, offset, os.SEEK_DATA), end)
        except OSError as error:
            # ENXIO means a hole up to the end of the file, which is our end too unless it became shorter. Anything
            # else (EINVAL on a block device) means that nobody knows, and data is always a right answer.
            if error.errno == errno.ENXIO and os.fstat(self._fd).st_size >= end:
                return end
            return offset

    def _next_hole(self, offset: int, end: int) -> int:
        """Where the data at `offset` ends, more than `offset` and at most `end`."""
        try:
            hole = os.lseek(self._fd, offset, os.SEEK_HOLE)
        except OSError:
            return end
        # Where _next_data had to guess, or the file changed in between, there may be a hole here: it counts as data.
        return min(hole, end) if hole > offset else end

    def prefetch(self, offset: int, length: int) -> None:
        """Ask for the first 32 MiB of the range: what a hint can bring in without making its caller wait."""
        end = offset + min(length, _PREFETCH_MAX_BYTES)
        for start in range(offset, end, _PREFETCH_STEP_BYTES):
            os.posix_fadvise(self._fd, start, min(_PREFETCH_STEP_BYTES, end - start), os.POSIX_FADV_WILLNEED)

    def fileno(self) -> int | None:
        return self._fd

    def close(self) -> None:
        """Give up the descriptor; a second call does nothing.

        A number that was closed may be somebody else's descriptor by then.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _open(name: str) -> tuple[int, int]:
    """A descriptor and the size behind it, or StartError."""
    try:
        # Before opening, because opening some devices has effects; after it, because the name may mean another file.
        _refuse_other_kinds(name, os.stat(name).st_mode)
        # O_NONBLOCK, so that a named pipe put there meanwhile cannot hold us up.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            mode = os.fstat(fd).st_mode
            _refuse_other_kinds(name, mode)
            os.set_blocking(fd, True)
            # A block device has no st_size.
            size = os.lseek(fd, 0, os.SEEK_END) if stat.S_ISBLK(mode) else os.fstat(fd).st_size
            if size == 0:
                raise StartError(f"cannot serve {name!r}: it is empty, expected at least 1 byte")
        except BaseException:
            os.close(fd)
            raise
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it.
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"cannot open {name!r}: {reason}") from error
    return fd, size


def _refuse_other_kinds(name: str, mode: int) -> None:
    for is_kind, kind in _OTHER_KINDS:
        if is_kind(mode):
            raise StartError(f"cannot serve {name!r}: it is {kind}, expected a regular file or a block device")


def _printable(name: str) -> str:
    """A file name for people: names may hold line ends, and bytes that are not UTF-8."""
    return "".join(character if character.isprintable() else "?" for character in name)
