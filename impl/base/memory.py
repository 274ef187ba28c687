"""Bases without a medium: a disk of zeroes of any size, and bytes that are in memory already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from impl.base.interface import CacheMode
from impl.extents import Extent
from impl.sizes import format_size


class MemoryBase:
    """`size` bytes that are all zero, and take no memory until they are read: an empty disk to write on."""

    cache_mode: Final[CacheMode] = "ignore"
    extents_may_wait: Final = False

    def __init__(self, size: int) -> None:
        assert size > 0, f"size is {size}, expected at least 1"
        self.size: Final = size
        self.description: Final = f"empty disk, {format_size(size)}"

    def pread(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < offset + length <= self.size, f"{offset}+{length} is not within {self.size} bytes"
        return bytes(length)

    def is_ready(self, offset: int, length: int) -> bool:
        return True

    def pread_at_once(self, offset: int, length: int) -> bytes | None:
        return self.pread(offset, length) if self.is_ready(offset, length) else None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """One hole, however large the disk is."""
        yield Extent(length, hole=True, zero=True)

    def prefetch(self, offset: int, length: int) -> None:
        pass

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        pass


class BytesBase:
    """A disk that holds `data`."""

    cache_mode: Final[CacheMode] = "ignore"
    extents_may_wait: Final = False

    def __init__(self, data: bytes, description: str = "bytes in memory") -> None:
        assert data, "data is empty, expected at least 1 byte"
        self._data = data
        self.size: Final = len(data)
        self.description: Final = description

    def pread(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < offset + length <= self.size, f"{offset}+{length} is not within {self.size} bytes"
        return self._data[offset : offset + length]

    def is_ready(self, offset: int, length: int) -> bool:
        return True

    def pread_at_once(self, offset: int, length: int) -> bytes | None:
        return self.pread(offset, length) if self.is_ready(offset, length) else None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """One run of data, though parts of it may be zero: nobody has looked."""
        yield Extent(length, hole=False, zero=False)

    def prefetch(self, offset: int, length: int) -> None:
        pass

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        pass
