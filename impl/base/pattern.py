"""A base whose bytes are computed: any size, content that tells where it belongs, and as slow as asked for.

Shapes:  `pattern(seed, offset, length)` is a function of its arguments alone, however a range is cut up.
Units:   offsets and lengths in bytes, latency and jitter in seconds.

One stream of 1 MiB is derived from the seed. Each chunk of 4 KiB begins with a hash of its number, and goes on with
the part of the stream that begins where the hash says. So bytes that end up at a wrong place are seen: nothing
repeats inside a chunk, no two chunks are the same, and a smaller piece is the same in two chunks, at a given distance,
in one case of a million. Chunks that are computed each by itself would not have even that, but take 5 to 10 times as
long (SHAKE128 0.35 GB/s, random.randbytes 0.2 GB/s, this 1.5 to 2 GB/s on one machine), and load tests compute
everything twice: once to serve it, once to compare.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import blake2b, shake_128
from typing import Final

from impl.base.interface import CacheMode
from impl.extents import Extent
from impl.sizes import SIZE_MAX, format_size

SEED_MAX = 2**64 - 1

_CHUNK_BYTES = 4096
_REST_BYTES = _CHUNK_BYTES - blake2b().digest_size
_STREAM_STARTS = 2**20
_KEY = struct.Struct(">QQ")


def pattern(seed: int, offset: int, length: int) -> bytes:
    """The `length` bytes at `offset` of the endless disk that belongs to `seed`."""
    stream = _stream(seed)
    pieces: list[bytes | memoryview] = []
    for chunk in range(offset // _CHUNK_BYTES, -(-(offset + length) // _CHUNK_BYTES)):
        stamp = blake2b(_KEY.pack(seed, chunk)).digest()
        start = int.from_bytes(stamp[:4], "big") % _STREAM_STARTS
        pieces.append(stamp)
        pieces.append(stream[start : start + _REST_BYTES])
    chunks = b"".join(pieces)
    skip = offset % _CHUNK_BYTES
    return chunks if len(chunks) == length else chunks[skip : skip + length]


@lru_cache(maxsize=4)
def _stream(seed: int) -> memoryview:
    """A view, because slices of it are joined without being copied first, which is 3 times as fast for 1 MiB."""
    return memoryview(shake_128(b"cowproof pattern" + seed.to_bytes(8, "big")).digest(_STREAM_STARTS + _REST_BYTES))


class PatternBase:
    """`pattern(seed, ...)` as a disk; each read waits for `latency_s`, and up to `jitter_s` more."""

    # Not "passthrough": there is nothing to prefetch into. A cache request costs what a read costs.
    cache_mode: Final[CacheMode] = "read"
    extents_may_wait: Final = False

    def __init__(
        self,
        size: int,
        seed: int = 0,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        assert 0 < size <= SIZE_MAX, f"size is {size}, expected 1 to {SIZE_MAX}"
        assert 0 <= seed <= SEED_MAX, f"seed is {seed}, expected 0 to {SEED_MAX}"
        assert latency_s >= 0, f"latency_s is {latency_s}, expected 0 or more"
        assert jitter_s >= 0, f"jitter_s is {jitter_s}, expected 0 or more"
        self.size: Final = size
        self.description: Final = f"computed pattern, seed {seed}, {format_size(size)}"
        self._seed = seed
        self._latency_s = latency_s
        self._jitter_s = jitter_s
        self._sleep = sleep
        self._random = random.Random(seed)  # Its random() is one call into C: threads may share it.

    def pread(self, offset: int, length: int) -> bytes:
        """The bytes, after one wait, however long the range is."""
        assert 0 <= offset < offset + length <= self.size, f"{offset}+{length} is not within {self.size} bytes"
        if self._latency_s or self._jitter_s:
            self._sleep(self._latency_s + self._jitter_s * self._random.random())
        return pattern(self._seed, offset, length)

    def is_ready(self, offset: int, length: int) -> bool:
        return not (self._latency_s or self._jitter_s)

    def pread_at_once(self, offset: int, length: int) -> bytes | None:
        return self.pread(offset, length) if self.is_ready(offset, length) else None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(length, hole=False, zero=False)

    def prefetch(self, offset: int, length: int) -> None:
        """Nothing: what is computed anew for each read cannot be brought closer."""

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        pass
