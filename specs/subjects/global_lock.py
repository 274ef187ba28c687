"""nbdkit's cow filter before the patch: one lock, held for every block that is read or changed, base and all.

A block is atomic. A request over several blocks never was: the lock is given back between them.

Source:  the mail in which the patch is reviewed, which tells what was before it; nbdkit commit a0ae7b21 for `old_tail`.
Omits:   what the filter does with a whole zero, which no client of NBD could ask for: it is a write of zeroes.
"""

from __future__ import annotations

from dataclasses import dataclass

from specs.subjects.seam import ALLOCATED, NOT_ALLOCATED, TRIMMED, Base, Lock, Map, Piece, Store, pieces


@dataclass(frozen=True)
class GlobalLock:
    """The device.

    old_tail:  the fault that zeroed, of the last block of an unaligned zero or trim, the part behind the range.
    """

    base: Base
    store: Store
    map: Map
    lock: Lock
    block_size: int
    copy_on_cache: bool = False
    old_tail: bool = False

    def read(self, offset: int, length: int) -> bytes:
        """Block by block, each under the lock."""
        parts = []
        for piece in pieces(offset, length, self.block_size, self.base.size):
            with self.lock:
                parts.append(self._read_block(piece)[piece.start : piece.end])
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Block by block; of a block that is not covered, the rest is read first."""
        for piece in pieces(offset, len(data), self.block_size, self.base.size):
            part = data[piece.at : piece.at + piece.end - piece.start]
            with self.lock:
                self._write_block(piece, part if piece.is_whole else self._merged(piece, part))

    def zero(self, offset: int, length: int) -> None:
        """A write of zeroes."""
        for piece in pieces(offset, length, self.block_size, self.base.size):
            with self.lock:
                zeroes = bytes(piece.end - piece.start)
                self._write_block(piece, zeroes if piece.is_whole else self._zeroed(piece))

    def trim(self, offset: int, length: int) -> None:
        """Whole blocks lose their data; parts of blocks are zeroed."""
        for piece in pieces(offset, length, self.block_size, self.base.size):
            with self.lock:
                if piece.is_whole:
                    self.map.set(piece.block, TRIMMED)
                else:
                    self._write_block(piece, self._zeroed(piece))

    def cache(self, offset: int, length: int) -> None:
        """Copy what is not there yet."""
        for piece in pieces(offset, length, self.block_size, self.base.size):
            with self.lock:
                if self.map.get(piece.block) == NOT_ALLOCATED:
                    data = self._read_block(piece)
                    if self.copy_on_cache:
                        self._write_block(piece, data)

    def _read_block(self, piece: Piece) -> bytes:
        state = self.map.get(piece.block)
        if state == NOT_ALLOCATED:
            return self.base.pread(piece.block * self.block_size, piece.length)
        if state == ALLOCATED:
            return self.store.pread(piece.block * self.block_size, piece.length)
        return bytes(piece.length)

    def _write_block(self, piece: Piece, data: bytes) -> None:
        self.store.pwrite(piece.block * self.block_size, [data])
        self.map.set(piece.block, ALLOCATED)

    def _merged(self, piece: Piece, part: bytes) -> bytes:
        old = self._read_block(piece)
        return old[: piece.start] + part + old[piece.end :]

    def _zeroed(self, piece: Piece) -> bytes:
        old = self._read_block(piece)
        if self.old_tail and piece.start == 0:
            return old[: piece.end] + bytes(piece.length - piece.end)
        return old[: piece.start] + bytes(piece.end - piece.start) + old[piece.end :]
