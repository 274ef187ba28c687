"""Where the overlay keeps its blocks: a sparse file of the device's size, each block at its own offset.

A temporary file has no name, so nothing is left behind however the process ends; a memory store is the same over a
file that the kernel keeps in memory. Neither outlives the process, so there is nothing for `sync` to do.

Units:   offsets and lengths in bytes.
Errors:  OSError with an errno; a short read is EIO. StartError when the store cannot be made.
Source:  fallocate(2) for holes and zeroes; memfd_create(2); open(2), O_TMPFILE (through `tempfile`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from impl.errors import StartError
from impl.overlay import room
from impl.sizes import format_about, format_size

Buffer = bytes | bytearray | memoryview

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
# Below this, writing zeroes is cheaper than asking the file system to make them.
ZERO_BY_WRITING_MAX_BYTES = 128 << 10
ZEROES = bytes(1 << 20)
# ext4 keeps what one call writes in one piece of the page cache, of up to 2 MiB, and goes through all the pages of a
# piece when any of it is written again: later writes of 4 KiB would take several times as long (docs/benchmarks.md).
WRITE_MAX_BYTES = 128 << 10
DEFAULT_DIRECTORY = "/var/tmp"


class Store(Protocol):
    """What the overlay needs of its storage. Blocks that are not ALLOCATED may hold anything."""

    def pread(self, offset: int, length: int) -> bytes: ...

    def pwrite(self, offset: int, buffers: Sequence[Buffer]) -> None: ...

    def write_zeroes(self, offset: int, length: int) -> None: ...

    def punch_hole(self, offset: int, length: int) -> None: ...

    def prefetch(self, offset: int, length: int) -> None: ...

    def sync(self) -> None: ...


def _load_fallocate() -> ctypes._NamedFuncPointer | None:
    """fallocate(2), which Python does not offer with flags; None where the C library has none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    return function


_fallocate = _load_fallocate()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); OSError as it says, ENOSYS where there is none."""
    if _fallocate is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    while _fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


class FileStore:
    """A store in an open file that nobody else has."""

    def __init__(self, fd: int, size: int, reserve: bool = False) -> None:
        """Take over `fd`; with `reserve`, allocate the whole of it now and never give any of it back."""
        self._fd = fd
        self._size = size
        self._reserved = reserve
        os.ftruncate(fd, size)
        if reserve:
            os.posix_fallocate(fd, 0, size)

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        data = os.pread(self._fd, length, offset)
        if len(data) == length:
            return data
        parts = [data]
        done = len(data)
        while done < length and parts[-1]:
            parts.append(os.pread(self._fd, length - done, offset + done))
            done += len(parts[-1])
        if done < length:
            raise OSError(errno.EIO, f"overlay ends at {offset + done}, expected {offset + length}")
        return b"".join(parts)

    def pwrite(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers one behind the other; on an error, a part of them may have been written."""
        done = 0
        if len(buffers) == 1:  # by far the most frequent
            data = buffers[0]
            length = len(data)
            if length <= WRITE_MAX_BYTES:
                done = os.pwrite(self._fd, data, offset)
        else:
            length = sum(map(len, buffers))
            if length <= WRITE_MAX_BYTES:
                done = os.pwritev(self._fd, buffers, offset)
        if done < length:
            self._write_from(offset, buffers, done)

    def _write_from(self, offset: int, buffers: Sequence[Buffer], done: int) -> None:
        """All but the first `done` bytes, in pieces."""
        for buffer in buffers:
            left = memoryview(buffer)[done:]
            offset += len(buffer) - len(left)
            done = max(done - len(buffer), 0)
            while left:
                count = os.pwrite(self._fd, left[:WRITE_MAX_BYTES], offset)
                left = left[count:]
                offset += count

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range zeroes, with space of its own: a later write to it needs no more."""
        if length > ZERO_BY_WRITING_MAX_BYTES:
            try:
                fallocate(self._fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)
                return
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        zeroes = memoryview(ZEROES)
        for start in range(offset, offset + length, len(ZEROES)):
            self.pwrite(start, [zeroes[: min(len(ZEROES), offset + length - start)]])

    def punch_hole(self, offset: int, length: int) -> None:
        """Give the range's space back, where the file system can; what it holds then is of no interest."""
        if self._reserved:
            return
        try:
            fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise

    def prefetch(self, offset: int, length: int) -> None:
        """Ask for the range to be in memory soon."""
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def sync(self) -> None:
        """Nothing: what does not outlive the process cannot be made to survive the machine."""

    def close(self) -> None:
        """Give the file, and with it the space, back."""
        os.close(self._fd)

    def allocated_bytes(self) -> int:
        """How much space the store takes now."""
        return os.fstat(self._fd).st_blocks * 512


def temporary_store(size: int, reserve: bool = False) -> FileStore:
    """A store in an unlinked file in TMPDIR, or /var/tmp: big, and on a disk, where /tmp is often memory."""
    directory = os.environ.get("TMPDIR") or DEFAULT_DIRECTORY
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            fd = os.dup(file.fileno())
    except OSError as error:
        raise StartError(
            f"cannot make a temporary overlay in {directory}: {error.strerror}; "
            "set TMPDIR to a folder that exists and can be written to, or use --overlay memory"
        ) from None
    hint = "set TMPDIR to a folder on a larger disk"
    return _store(fd, size, reserve, Room(directory, room.disk_bytes(fd), errno.ENOSPC, hint))


def memory_store(size: int, reserve: bool = False) -> FileStore:
    """A store in memory, which takes what is written and gives back what is trimmed."""
    fd = os.memfd_create("cowproof-overlay", os.MFD_CLOEXEC)
    return _store(fd, size, reserve, Room("memory", room.memory_bytes(), errno.ENOMEM, "leave out --overlay memory"))


class Room(NamedTuple):
    """Where a store is to be, and what can be said if it does not fit."""

    where: str
    free_bytes: int | None
    errno_without: int
    hint: str


def _store(fd: int, size: int, reserve: bool, at: Room) -> FileStore:
    try:
        if reserve and at.free_bytes is not None and size > at.free_bytes:
            free = format_about(at.free_bytes)
            raise OSError(at.errno_without, f"{os.strerror(at.errno_without)} (there is room for {free})")
        return FileStore(fd, size, reserve)
    except (OSError, OverflowError) as error:
        os.close(fd)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        wanted = "reserve" if reserve else "make a sparse overlay of"
        hint = f"leave out --overlay-reserve, or {at.hint}" if reserve else at.hint
        raise StartError(f"cannot {wanted} {format_size(size)} in {at.where}: {reason}; {hint}") from None
