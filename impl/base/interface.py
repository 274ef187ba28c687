"""What a base is: an immutable disk that is only ever read.

There is no way to write through this interface, which is half of promise P3; the other half is that the overlay
calls it with no lock held.

Units:   offsets and lengths in bytes; the caller keeps 0 <= offset, length > 0, offset + length <= size.
Errors:  OSError with an errno from `pread` and `prefetch`; never a short read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from impl.extents import Extent

CacheMode = Literal["ignore", "passthrough", "read"]


class Base(Protocol):
    """An immutable disk of `size` bytes; every method may be called from many threads at once."""

    @property
    def size(self) -> int:
        """Length of the disk in bytes, at least 1; it never changes."""

    @property
    def description(self) -> str:
        """One line for people, sent to clients that ask (NBD_INFO_DESCRIPTION)."""

    @property
    def cache_mode(self) -> CacheMode:
        """What NBD_CMD_CACHE should do: nothing, `prefetch`, or a `pread` whose result is dropped."""

    @property
    def extents_may_wait(self) -> bool:
        """Whether `extents` may have to wait, as for a disk's file system, or another server."""

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; may wait as long as the medium takes."""

    def is_ready(self, offset: int, length: int) -> bool:
        """Whether `pread` of this range would return at once. A hint: wrong answers cost time, not truth."""

    def pread_at_once(self, offset: int, length: int) -> bytes | bytearray | None:
        """As `pread`, or None if that would have to wait. For small ranges."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Runs that cover the range exactly; one run of data where the medium does not know better."""

    def prefetch(self, offset: int, length: int) -> None:
        """Ask the medium to bring the range closer; returns at once."""

    def fileno(self) -> int | None:
        """A descriptor from which the kernel may send the base's bytes (sendfile), offset for offset, or None."""

    def close(self) -> None:
        """Give up descriptors. No other call may follow."""
