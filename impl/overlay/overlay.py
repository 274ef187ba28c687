"""A writable device over a base that never changes.

Two rules carry every argument here. **Rule 1**: the base is immutable, so it is read outside every lock; a lock is
held only across the overlay's own store and the state map. **Rule 2**: one range lock per request, over all its
blocks at once, shared to look and exclusive to change; what was seen before the lock is looked at again under it.

A block goes from NOT_ALLOCATED to ALLOCATED or TRIMMED and never back. So what shows the base is seen without a lock,
too (`is_untouched`): every request that changes something can be thought to take effect when it gives its range back,
by when it has set its last state. The store's bytes of a block mean something
only while it is ALLOCATED, and then all of them do: so a write that fails half way into blocks that were not
ALLOCATED has changed nothing, and a block that is ALLOCATED has all its space, so writing to it cannot run out.
Parts of an ALLOCATED block are therefore zeroed in place, and space is given back by whole blocks only.

Source:  the table of requests and states in `model/block.py`; the reasons in docs/architecture.md.
Units:   offsets and lengths in bytes; blocks by index, ranges of blocks half open unless they are a lock's.
Errors:  OSError: EIO or another errno from the base or the store, ENOTSUP for a zero that would not be fast.
         A request that fails has changed nothing, or has happened for some whole blocks.
Locks:   the range lock, and nothing else. An Overlay's attributes do not change after it is made.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from impl.extents import Extent, coalesce
from impl.overlay.blocks import block_count, covers_whole_blocks, edges, end_of, is_aligned, part_in, split, touched
from impl.overlay.parking import WouldWait
from impl.overlay.rangelock import Ranges
from impl.overlay.statemap import ALLOCATED, FILL_CHUNK_BLOCKS, NOT_ALLOCATED, TRIMMED, States, runs
from impl.overlay.store import Buffer, Store

CacheMode = Literal["ignore", "passthrough", "read", "cow"]

CACHE_CHUNK_BYTES = 1 << 20

log = logging.getLogger("cowproof.overlay")


class Zeroes(NamedTuple):
    """A part of a read that is zeroes, and is known to be without looking."""

    length: int


class FromBase(NamedTuple):
    """A part of a read that the base holds; it cannot have changed whenever it is fetched."""

    offset: int
    length: int


Segment = bytes | bytearray | memoryview | Zeroes | FromBase

# Blocks of the base, whole. What is not among them was not NOT_ALLOCATED when they were fetched, and never will be.
Fetched = dict[int, bytes]


class ReadableBase(Protocol):
    """The part of a base that the overlay uses."""

    @property
    def size(self) -> int: ...

    def pread(self, offset: int, length: int) -> bytes: ...

    def is_ready(self, offset: int, length: int) -> bool: ...

    def extents(self, offset: int, length: int) -> Iterator[Extent]: ...

    def prefetch(self, offset: int, length: int) -> None: ...


def never() -> bool:
    """The switch of an overlay that does not copy on read."""
    return False


def always() -> bool:
    """The wish of a caller who waits to the end."""
    return True


@dataclass(frozen=True, slots=True)
class Overlay:
    """The device: `base` seen through what `store` and `states` hold.

    copy_on_read:  asked at each read whether the blocks it fetches from the base should be kept.
    cache_mode:    what a cache request does to blocks that are NOT_ALLOCATED.
    """

    base: ReadableBase
    store: Store
    states: States
    ranges: Ranges
    block_size: int
    cache_mode: CacheMode = "ignore"
    copy_on_read: Callable[[], bool] = never

    @property
    def size(self) -> int:
        """Length of the device in bytes: the base's."""
        return self.base.size

    # Reading

    def read(self, offset: int, length: int) -> list[Segment]:
        """What the range holds at one instant during the call, in order; the base's parts are yet to be fetched."""
        if self.copy_on_read():
            return self._read_copying(offset, length)
        return self.look(offset, length)

    def pread(self, offset: int, length: int) -> bytes:
        """What the range holds, the base's parts fetched."""
        return b"".join(self.fetch(segment) for segment in self.read(offset, length))

    def fetch(self, segment: Segment) -> bytes | bytearray | memoryview:
        """The bytes of one segment; takes no lock, and waits only for the base."""
        found = self.fetched(segment)
        if isinstance(found, Zeroes):
            return bytes(found.length)
        assert not isinstance(found, FromBase)
        return found

    def fetched(self, segment: Segment) -> Segment:
        """A segment without what would have to be fetched; zeroes stay what they are."""
        return self.base.pread(segment.offset, segment.length) if isinstance(segment, FromBase) else segment

    def is_untouched(self, offset: int, length: int) -> bool:
        """Whether the whole range showed the base at one instant during the call; no lock is taken.

        The instant is when the first state is looked at: since none goes back to NOT_ALLOCATED, blocks that are found
        so one after the other were all so then. Whoever is changing one of them has not given its range back, so it
        has not taken effect.
        """
        first, last = touched(offset, length, self.block_size)
        if first == last:
            return self.states.at(first) == NOT_ALLOCATED
        return self.states.get(first, last + 1).count(NOT_ALLOCATED) == last + 1 - first

    def look(self, offset: int, length: int) -> list[Segment]:
        """Linearization point of a read: the states noted and the overlay's bytes copied out under one lock.

        Of a range that shows nothing but the base, no bytes are copied, and no lock is needed.
        """
        if self.is_untouched(offset, length):
            return [FromBase(offset, length)]
        return self.look_under_lock(offset, length)

    def look_under_lock(self, offset: int, length: int) -> list[Segment]:
        """As `look`, of a range that does not show the base alone, or of which that is not known."""
        first, last = touched(offset, length, self.block_size)
        with self.ranges.shared(first, last):
            if first == last:
                return [self._segment(self.states.at(first), offset, length)]
            states = self.states.get(first, last + 1)
            state = states[0]
            if states.count(state) == len(states):
                return [self._segment(state, offset, length)]
            segments = []
            for run in runs(states, first):
                part = part_in(offset, length, run.first, run.end, self.block_size)
                segments.append(self._segment(run.state, *part))
            return segments

    def _segment(self, state: int, offset: int, length: int) -> Segment:
        """A part of a read whose blocks are all in `state`; the caller holds the range."""
        if state == NOT_ALLOCATED:
            return FromBase(offset, length)
        if state == TRIMMED:
            return Zeroes(length)
        return self.store.pread(offset, length)

    def _read_copying(self, offset: int, length: int) -> list[Segment]:
        return self.copied(self.look(offset, length))

    def copied(self, seen: Sequence[Segment]) -> list[Segment]:
        """What a look has found, the base's parts fetched and kept: whole blocks, if nobody has changed them meanwhile.

        All is fetched before any is kept, so a base that cannot be read has changed nothing.
        """
        fetched = {part: self._fetch_whole_blocks(part) for part in seen if isinstance(part, FromBase)}
        for first, data in fetched.values():
            try:
                self._keep(first, data)
            except OSError as error:
                # The client asked for bytes, not for a copy of them, and the bytes are here.
                log.warning("copy-on-read could not keep what it read: %s", error.strerror)
        return [self._cut_out(part, *fetched[part]) if isinstance(part, FromBase) else part for part in seen]

    def is_ready_to_copy(self, part: FromBase) -> bool:
        """Whether the base gives a part, with its blocks whole, without waiting: a hint, as `would_wait_to_fetch`."""
        first, last = touched(part.offset, part.length, self.block_size)
        start = first * self.block_size
        return self.base.is_ready(start, self._end_of(last) - start)

    def _fetch_whole_blocks(self, part: FromBase) -> tuple[int, memoryview]:
        """The first block of a part of the base, and the bytes of it and all the others, whole."""
        first, last = touched(part.offset, part.length, self.block_size)
        return first, memoryview(self._read_base_blocks(first, last + 1))

    def _cut_out(self, part: FromBase, first: int, data: memoryview) -> bytes | memoryview:
        """A part of what was fetched; a small one is copied, for a view of it would keep all of it in memory."""
        skipped = part.offset - first * self.block_size
        view = data[skipped : skipped + part.length]
        return view if 2 * len(view) >= len(data) else bytes(view)

    def _keep(self, first: int, data: memoryview) -> None:
        """Store the base's `data`, from block `first` on, in those blocks that are still NOT_ALLOCATED.

        Shared is enough: writers are kept out, and two readers that copy the same block write the same bytes.
        A copy is not worth waiting for: where that is not wanted (AtOnce), and somebody changes a block, none is kept.
        """
        end = first + block_count(len(data), self.block_size)
        try:
            held = self.ranges.shared(first, end - 1)
        except WouldWait:
            return
        with held:
            for run in runs(self.states.get(first, end), first):
                if run.state == NOT_ALLOCATED:
                    part = data[(run.first - first) * self.block_size : (run.end - first) * self.block_size]
                    self.store.pwrite(run.first * self.block_size, [part])
                    self.states.fill(run.first, run.end, ALLOCATED)

    # Writing

    def write(self, offset: int, data: Buffer, fetched: Fetched | None = None) -> None:
        """Replace the range by `data`.

        fetched:  what `fetch_blocks` gave for those of its `partial_blocks` that were `missing`, however long ago.
        """
        length = len(data)
        if is_aligned(offset, length, self.block_size):
            first, last = touched(offset, length, self.block_size)
            with self.ranges.exclusive(first, last):
                self._write_blocks(first, last, offset, (data,))
            return
        first, last, before, after = edges(offset, length, self.block_size, self.size)
        if fetched is None:
            fetched = self.fetch_blocks(self.missing({*([first] if before else []), *([last] if after else [])}))
        with self.ranges.exclusive(first, last):
            # What is left of a block that is not ALLOCATED has to be written too.
            head = self._kept_part(first, fetched, 0, before) if before else b""
            tail = self._kept_part(last, fetched, -after, None) if after else b""
            self._write_blocks(first, last, offset - len(head), [part for part in (head, data, tail) if part])

    def _kept_part(self, block: int, fetched: Fetched, from_: int, to: int | None) -> Buffer:
        """The part [from_:to] of a block that is about to become ALLOCATED; empty where it is so already."""
        state = self.states.at(block)
        if state == ALLOCATED:
            return b""
        if state == TRIMMED:
            length = self._end_of(block) - block * self.block_size
            return bytes(len(range(length)[from_:to]))
        # It was NOT_ALLOCATED when the base was read, for a state never goes back.
        return memoryview(fetched[block])[from_:to]

    def _write_blocks(self, first: int, last: int, start: int, parts: Sequence[Buffer]) -> None:
        """Store `parts`, which leave no byte of a block that is not ALLOCATED undefined; then say so.

        The states come after the data: if the store fails, blocks that were not ALLOCATED are as they were.
        """
        try:
            self.store.pwrite(start, parts)
        except OSError:
            self._give_back(first, last + 1)
            raise
        self.states.fill(first, last + 1, ALLOCATED)

    def _give_back(self, first: int, end: int) -> None:
        """After a failure under the exclusive lock: free what it left in blocks that do not hold anything."""
        for start in range(first, end, FILL_CHUNK_BLOCKS):  # a request may cover the whole device
            for run in runs(self.states.get(start, min(start + FILL_CHUNK_BLOCKS, end)), start):
                if run.state != ALLOCATED:
                    self._punch(run.first, run.end)

    def _punch(self, first: int, end: int) -> None:
        """Free the blocks' space. Nothing depends on it: no state names what is there."""
        start = first * self.block_size
        try:
            self.store.punch_hole(start, self._end_of(end - 1) - start)
        except OSError as error:
            log.warning("the overlay could not give space back: %s", error.strerror)

    # Zeroes

    def trim(self, offset: int, length: int, fetched: Fetched | None = None) -> None:
        """Make the range read as zeroes and give the space of its whole blocks back; `fetched` as of a write."""
        self.zero(offset, length, fetched=fetched)

    def zero(
        self, offset: int, length: int, no_hole: bool = False, fast: bool = False, fetched: Fetched | None = None
    ) -> None:
        """Make the range read as zeroes: with `no_hole`, with space of its own; with `fast`, without writing.

        fetched:  as of a write; not needed when `fast`.
        """
        pieces = split(offset, length, self.block_size, self.size)
        partial = pieces.partial()
        if fetched is None:
            fetched = {} if fast else self.fetch_blocks(self.missing(partial))
        with self.ranges.exclusive(pieces.first, pieces.last):
            if fast and not self._is_fast(partial, no_hole):
                raise OSError(errno.ENOTSUP, "zeroing this range means writing data")
            for block in partial:
                self._zero_part(block, offset, offset + length, no_hole, fetched)
            if pieces.body_first < pieces.body_end:
                self._zero_whole(pieces.body_first, pieces.body_end, no_hole)

    def _is_fast(self, partial: Sequence[int], no_hole: bool) -> bool:
        """Whether no data has to be written: by state, never by what the data is."""
        return not no_hole and all(self.states.at(block) == TRIMMED for block in partial)

    def _zero_part(self, block: int, offset: int, end: int, no_hole: bool, fetched: Fetched) -> None:
        """Zero the part of one block that lies in [offset, end)."""
        start, length = part_in(offset, end - offset, block, block + 1, self.block_size)
        state = self.states.at(block)
        if state == ALLOCATED:
            self.store.write_zeroes(start, length)
        elif state == NOT_ALLOCATED:
            _, _, before, after = edges(start, length, self.block_size, self.size)
            old = memoryview(fetched[block])
            parts: list[Buffer] = [old[:before], bytes(length), old[len(old) - after :]]
            self._write_blocks(block, block, start - before, [part for part in parts if part])
        elif no_hole:
            self._provide_zeroes(block, block + 1)

    def _zero_whole(self, first: int, end: int, no_hole: bool) -> None:
        if no_hole:
            self._provide_zeroes(first, end)
            return
        # State and hole may come in either order: nobody sees one without the other, and a hole fails nobody. Blocks
        # that are not ALLOCATED may have space too: a copy that could not be kept whole has left it there.
        self.states.fill(first, end, TRIMMED)
        self._punch(first, end)

    def _provide_zeroes(self, first: int, end: int) -> None:
        """Whole blocks of zeroes that have their space."""
        start = first * self.block_size
        try:
            self.store.write_zeroes(start, self._end_of(end - 1) - start)
        except OSError:
            self._give_back(first, end)
            raise
        self.states.fill(first, end, ALLOCATED)

    # Looking ahead, and at what is there

    def cache(self, offset: int, length: int) -> None:
        """Bring the range closer, as the cache mode says; what it reads as does not change.

        The lock is there for what it saves: a block that is being written just now is not fetched in vain. Bytes do
        not depend on it, for a state that is out of date costs a read of the base, and `_keep` looks again.
        """
        self.cache_noted(*self.note(offset, length))

    def note(self, offset: int, length: int) -> tuple[int, bytes]:
        """The first block of the range, and the states of all of its blocks at one instant."""
        first, last = touched(offset, length, self.block_size)
        with self.ranges.shared(first, last):
            return first, self.states.get(first, last + 1)

    def cache_noted(self, first: int, states: bytes, is_wanted: Callable[[], bool] = always) -> None:
        """Bring blocks closer whose states have been noted, as long as that is wanted: it can take very long."""
        for run in runs(states, first):
            if not is_wanted():
                return
            start = run.first * self.block_size
            length = self._end_of(run.end - 1) - start
            if run.state == ALLOCATED:
                self.store.prefetch(start, length)
            elif run.state == NOT_ALLOCATED:
                self._cache_from_base(run.first, run.end, is_wanted)

    def _cache_from_base(self, first: int, end: int, is_wanted: Callable[[], bool]) -> None:
        if self.cache_mode == "passthrough":
            start = first * self.block_size
            self.base.prefetch(start, self._end_of(end - 1) - start)
        elif self.cache_mode in ("read", "cow"):
            # By chunks: a request may cover the whole device, and memory is bounded.
            step = max(CACHE_CHUNK_BYTES // self.block_size, 1)
            for chunk in range(first, end, step):
                if not is_wanted():
                    return
                chunk_end = min(chunk + step, end)
                data = self._read_base_blocks(chunk, chunk_end)
                if self.cache_mode == "cow":
                    self._keep(chunk, memoryview(data))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What the range consists of, as of one instant; the base's own extents follow as they are asked for."""
        return self.extents_noted(offset, length, *self.note(offset, length))

    def extents_noted(self, offset: int, length: int, first: int, states: bytes) -> Iterator[Extent]:
        """As `extents`, of a range whose states have been noted."""
        return coalesce(self._extents(offset, length, states, first))

    def states_noted(self, offset: int, length: int, first: int, states: bytes) -> Iterator[tuple[int, int]]:
        """The same as lengths with their state; neighbours differ."""
        for run in runs(states, first):
            yield part_in(offset, length, run.first, run.end, self.block_size)[1], run.state

    def _extents(self, offset: int, length: int, states: bytes, first: int) -> Iterator[Extent]:
        for run in runs(states, first):
            part_start, part_length = part_in(offset, length, run.first, run.end, self.block_size)
            if run.state == NOT_ALLOCATED:
                yield from self.base.extents(part_start, part_length)
            else:
                trimmed = run.state == TRIMMED
                yield Extent(part_length, hole=trimmed, zero=trimmed)

    def flush(self) -> None:
        """Make what was acknowledged as durable as the store makes anything."""
        self.store.sync()

    # What a change needs of the base. It is read with no lock held.

    def partial_blocks(self, offset: int, length: int) -> Sequence[int]:
        """The blocks, at most two, that the range covers in part."""
        block_size = self.block_size
        if is_aligned(offset, length, block_size) or covers_whole_blocks(offset, length, block_size, self.size):
            return ()
        return split(offset, length, self.block_size, self.size).partial()

    def missing(self, blocks: Collection[int]) -> Sequence[int]:
        """Those of the blocks that look NOT_ALLOCATED, so that the base has to be read for a change of parts of them.

        Looking without a lock is safe: a state that is out of date costs a read of the base, never bytes, because
        a block that no longer is NOT_ALLOCATED when the lock is held never is again.
        """
        states = self.states
        return [block for block in blocks if states.at(block) == NOT_ALLOCATED]

    def would_wait_to_fetch(self, blocks: Sequence[int]) -> bool:
        """Whether the base is not ready to give them: a hint for choosing a thread, and out of date at once."""
        starts = [block * self.block_size for block in blocks]
        return not all([self.base.is_ready(start, min(self.block_size, self.size - start)) for start in starts])

    def fetch_blocks(self, blocks: Sequence[int]) -> Fetched:
        """The base's content of the blocks; takes no lock, and waits only for the base."""
        return {block: self._read_base_blocks(block, block + 1) for block in blocks}

    # The base

    def _end_of(self, block: int) -> int:
        """The offset just past a block."""
        return end_of(block, self.block_size, self.size)

    def _read_base_blocks(self, first: int, end: int) -> bytes:
        start = first * self.block_size
        return self.base.pread(start, self._end_of(end - 1) - start)
