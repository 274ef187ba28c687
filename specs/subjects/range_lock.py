"""The right one, as short as it can be said: the base outside every lock, one range lock for each request.

The shipped overlay does the same, and more quickly; it is explored by itself. This is to be read beside the other two.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from specs.subjects.seam import ALLOCATED, NOT_ALLOCATED, TRIMMED, Base, Map, Piece, Ranges, Store, pieces


@dataclass(frozen=True)
class RangeLocked:
    """The device."""

    base: Base
    store: Store
    map: Map
    ranges: Ranges
    block_size: int
    copy_on_read: bool = False
    copy_on_cache: bool = False

    def read(self, offset: int, length: int) -> bytes:
        """Look under the lock; fetch afterwards, for the base cannot have changed; keep what nobody wrote meanwhile."""
        found = self._pieces(offset, length)
        parts: list[bytes] = []
        missing: list[int] = []
        with self.ranges.shared(found[0].block, found[-1].block):
            for at, piece in enumerate(found):
                state = self.map.get(piece.block)
                if state == NOT_ALLOCATED:
                    missing.append(at)
                start, length = self._origin(piece) + piece.start, piece.end - piece.start
                parts.append(self.store.pread(start, length) if state == ALLOCATED else bytes(length))
        # All is fetched before any is kept: a read that fails has changed nothing. One that cannot keep has its bytes.
        fetched = {at: self._from_base(found[at]) for at in missing}
        for at, data in fetched.items():
            parts[at] = data[found[at].start : found[at].end]
            if self.copy_on_read:
                with suppress(OSError):
                    self._keep(found[at], data)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Fetch what may have to be merged; look again under the lock."""
        found = self._pieces(offset, len(data))
        old = self._fetched(found)
        with self.ranges.exclusive(found[0].block, found[-1].block):
            for piece in found:
                self._write_piece(piece, data[piece.at : piece.at + piece.end - piece.start], old)

    def zero(self, offset: int, length: int) -> None:
        """As a trim: what was zeroed needs no space."""
        self.trim(offset, length)

    def trim(self, offset: int, length: int) -> None:
        """Whole blocks lose their data; parts of blocks are written, where they are not zeroes already."""
        found = self._pieces(offset, length)
        old = self._fetched(found)
        with self.ranges.exclusive(found[0].block, found[-1].block):
            for piece in found:
                if piece.is_whole:
                    self.map.set(piece.block, TRIMMED)
                elif self.map.get(piece.block) != TRIMMED:
                    self._write_piece(piece, bytes(piece.end - piece.start), old)

    def cache(self, offset: int, length: int) -> None:
        """Copy what nobody has written."""
        for piece in self._pieces(offset, length):
            if self.map.get(piece.block) == NOT_ALLOCATED:
                data = self._from_base(piece)
                if self.copy_on_cache:
                    self._keep(piece, data)

    def _write_piece(self, piece: Piece, part: bytes, old: dict[int, bytes]) -> None:
        state = self.map.get(piece.block)
        if piece.is_whole or state == ALLOCATED:
            self.store.pwrite(self._origin(piece) + piece.start, [part])
        else:
            rest = old[piece.block] if state == NOT_ALLOCATED else bytes(piece.length)
            self.store.pwrite(self._origin(piece), [rest[: piece.start] + part + rest[piece.end :]])
        self.map.set(piece.block, ALLOCATED)

    def _keep(self, piece: Piece, data: bytes) -> None:
        """Shared is enough: writers are kept out, and two copies of one block are the same."""
        with self.ranges.shared(piece.block, piece.block):
            if self.map.get(piece.block) == NOT_ALLOCATED:
                self.store.pwrite(self._origin(piece), [data])
                self.map.set(piece.block, ALLOCATED)

    def _fetched(self, found: list[Piece]) -> dict[int, bytes]:
        return {
            piece.block: self._from_base(piece)
            for piece in found
            if not piece.is_whole and self.map.get(piece.block) == NOT_ALLOCATED
        }

    def _from_base(self, piece: Piece) -> bytes:
        return self.base.pread(self._origin(piece), piece.length)

    def _origin(self, piece: Piece) -> int:
        return piece.block * self.block_size

    def _pieces(self, offset: int, length: int) -> list[Piece]:
        return list(pieces(offset, length, self.block_size, self.base.size))
