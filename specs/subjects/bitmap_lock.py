"""nbdkit's cow filter after the patch: a lock for each look at the map, and one for read-modify-write cycles.

The review finds it safe. What it does not see: a write of a whole block does not take the lock of those who are about
to merge with what was there before it, nor does a copy look again before it is stored.

Source:  the mail in which the patch is reviewed; nbdkit-cow-filter(1) for copy-on-read, which came later.
Omits:   runs of blocks in one state, which are read at once: nothing comes between them that may not come here.
"""

from __future__ import annotations

from dataclasses import dataclass

from specs.subjects.seam import ALLOCATED, NOT_ALLOCATED, TRIMMED, Base, Lock, Map, Piece, Store, pieces


@dataclass(frozen=True)
class BitmapLock:
    """The device."""

    base: Base
    store: Store
    map: Map
    lock: Lock
    rmw: Lock
    block_size: int
    copy_on_read: bool = False
    copy_on_cache: bool = False

    def read(self, offset: int, length: int) -> bytes:
        """Block by block."""
        found = pieces(offset, length, self.block_size, self.base.size)
        return b"".join(self._read_block(piece)[piece.start : piece.end] for piece in found)

    def write(self, offset: int, data: bytes) -> None:
        """Block by block; those not covered one after the other, under their lock."""
        for piece in pieces(offset, len(data), self.block_size, self.base.size):
            part = data[piece.at : piece.at + piece.end - piece.start]
            if piece.is_whole:
                self._write_block(piece, part)
            else:
                self._merge(piece, part)

    def zero(self, offset: int, length: int) -> None:
        """A write of zeroes."""
        self.write(offset, bytes(length))

    def trim(self, offset: int, length: int) -> None:
        """Whole blocks lose their data; parts of blocks are written."""
        for piece in pieces(offset, length, self.block_size, self.base.size):
            if piece.is_whole:
                with self.lock:
                    self.map.set(piece.block, TRIMMED)
            else:
                self._merge(piece, bytes(piece.end - piece.start))

    def cache(self, offset: int, length: int) -> None:
        """The lock of the map is held all the time, the base's read included."""
        for piece in pieces(offset, length, self.block_size, self.base.size):
            with self.lock:
                if self.map.get(piece.block) == NOT_ALLOCATED:
                    data = self.base.pread(piece.block * self.block_size, piece.length)
                    if self.copy_on_cache:
                        self.store.pwrite(piece.block * self.block_size, [data])
                        self.map.set(piece.block, ALLOCATED)

    def _read_block(self, piece: Piece) -> bytes:
        with self.lock:
            state = self.map.get(piece.block)
        if state == ALLOCATED:
            return self.store.pread(piece.block * self.block_size, piece.length)
        if state == TRIMMED:
            return bytes(piece.length)
        data = self.base.pread(piece.block * self.block_size, piece.length)
        if self.copy_on_read:
            # Neither is the state looked at again, nor is it set under the lock.
            self.store.pwrite(piece.block * self.block_size, [data])
            self.map.set(piece.block, ALLOCATED)
        return data

    def _write_block(self, piece: Piece, data: bytes) -> None:
        self.store.pwrite(piece.block * self.block_size, [data])
        with self.lock:
            self.map.set(piece.block, ALLOCATED)

    def _merge(self, piece: Piece, part: bytes) -> None:
        with self.rmw:
            old = self._read_block(piece)
            self._write_block(piece, old[: piece.start] + part + old[piece.end :])
