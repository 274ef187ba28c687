"""What a recorder writes, so that whoever reads it can say who wrote it and where; and the reading of it.

A granule of 512 bytes is one stamp of 32 bytes, sixteen times. The stamp says at which granule it belongs, names the
write (run, writer, sequence), and ends with a checksum of that name. So a granule that is whole names one write; one
that is a mixture of two has stamps that differ; one that ended up at a wrong place says so itself.

Every byte of a write is compared with what it has to be, in few steps however many granules there are: each stamp is
the one before it, but that where a granule begins its number is one more. So the bytes are compared with themselves,
shifted by a stamp, after these numbers, and nothing else, were put in. A number needs no checksum: only one is right.

Shapes:  runs are ((who, bytes), ...) in order, neighbours never by the same: a write's name, BASE, ZERO, TORN for what
         no write and no base can have left there, or UNKNOWN for what nobody can tell.
Units:   offsets and lengths in bytes, whole granules; a granule's number is its offset divided by GRANULE.
Errors:  AssertionError for ranges that are not whole granules: the caller has cut them to that.
Omits:   bytes that others have written: without a stamp they are the base's, or UNKNOWN if the caller says so.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from itertools import compress, count, pairwise
from mmap import mmap
from operator import ne
from typing import Final, NamedTuple
from zlib import crc32

GRANULE: Final = 512
BASE: Final = "base"
ZERO: Final = "zero"
TORN: Final = "?"
UNKNOWN: Final = "*"

MAGIC: Final = b"cowproof"
NUMBER_MAX: Final = 2**32 - 1

Buffer = bytes | bytearray | memoryview
Run = tuple[str, int]

_STAMP = struct.Struct(">8sQIIII")  # magic, granule, run, writer, sequence, checksum
_unpack_stamp = _STAMP.unpack_from
_NAME = struct.Struct(">III")  # run, writer, sequence: what the checksum is of
_NAME_AT: Final = 16
_NAME_END: Final = _NAME_AT + _NAME.size
_COPIES: Final = GRANULE // _STAMP.size
_ZEROES: Final = bytes(1 << 20)

_LOW_AT: Final = 15  # in a stamp, the last byte of the number
_LAST_LOW_AT: Final = GRANULE - _STAMP.size + _LOW_AT  # in a granule's last stamp
_LOW: Final = bytes(range(256))
_CARRY: Final = len(_LOW)  # so many granules later, other bytes of the number change as well

# Bytes seen as words of 8: where in a granule its first stamp has what.
_WORD: Final = 8
_WORDS: Final = GRANULE // _WORD
_STAMP_WORDS: Final = _STAMP.size // _WORD
_MAGIC_WORD, _SEQUENCE_WORD = 0, 3
_NO_WORD: Final = bytes(_WORD)
_MAGIC_BYTE: Final = MAGIC[:1]
_FEW: Final = 32  # of those, it is cheaper to look at each than to take the words of all
_MAGIC_AS_WORD: Final = int.from_bytes(MAGIC, sys.byteorder)


class Stamp(NamedTuple):
    """What a stamp says."""

    run: int
    writer: int
    sequence: int
    granule: int

    @property
    def name(self) -> str:
        """The write's, in a history."""
        return write_name(self.run, self.sequence)


class Content(NamedTuple):
    """Who wrote what was read, and in words what is wrong with it."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()


def write_name(run: int, sequence: int) -> str:
    """How a history names a write: a run gives each of its writes a number of its own, whoever makes it."""
    return f"w{sequence}.{run:x}"


def stamped(run: int, writer: int, sequence: int, offset: int, length: int) -> bytes:
    """The bytes of a write."""
    assert offset % GRANULE == 0, f"offset {offset} is not that of a granule"
    assert length % GRANULE == 0, f"length {length} is not whole granules"
    first = offset // GRANULE
    checksum = crc32(_NAME.pack(run, writer, sequence))
    stamps = [
        _STAMP.pack(MAGIC, number, run, writer, sequence, checksum) * _COPIES
        for number in range(first, first + length // GRANULE)
    ]
    return b"".join(stamps)


def stamp_of(stamp: bytes) -> Stamp | None:
    """What these 32 bytes say; None if they are no stamp."""
    magic, number, run, writer, sequence, checksum = _STAMP.unpack(stamp)
    if magic != MAGIC or crc32(stamp[_NAME_AT:_NAME_END]) != checksum:
        return None
    return Stamp(run, writer, sequence, number)


def written(data: Buffer, offset: int) -> str | None:
    """The name of the one write that these bytes are, at the place where they belong; None if they are not."""
    size = len(data)
    if size % GRANULE or not size:
        return None
    magic, number, run, writer, sequence, checksum = _unpack_stamp(data)
    if magic != MAGIC or number * GRANULE != offset or crc32(data[_NAME_AT:_NAME_END]) != checksum:
        return None
    low = number % _CARRY
    if low * GRANULE + size > _CARRY * GRANULE:
        view = memoryview(data)
        is_whole = all(
            view[at : at + _STAMP.size] == _STAMP.pack(MAGIC, part, run, writer, sequence, checksum)
            and _is_counting(view[at:end], part % _CARRY)
            for part, at, end in _between_carries(number, size)
        )
    else:
        is_whole = _is_counting(data, low)
    return f"w{sequence}.{run:x}" if is_whole else None


def _is_counting(data: Buffer, low: int) -> bool:
    """Whether all stamps are like the first, whose number ends with `low`, and their numbers go on from there."""
    expected = bytearray(data)
    del expected[-_STAMP.size :]
    expected[_LAST_LOW_AT::GRANULE] = _LOW[low + 1 : low + len(data) // GRANULE]
    # A bytearray comes first: memoryviews compare byte by byte.
    return expected == memoryview(data)[_STAMP.size :]


def _between_carries(number: int, size: int) -> Iterator[tuple[int, int, int]]:
    """The parts in which only the last byte of the numbers changes: the first number, and from where to where."""
    at = 0
    while at < size:
        end = min(size, at + (_CARRY - number % _CARRY) * GRANULE)
        yield number, at, end
        number += (end - at) // GRANULE
        at = end


def is_zero(data: bytes) -> bool:
    """Whether all bytes are zero."""
    return _ZEROES.startswith(data) if len(data) <= len(_ZEROES) else data == bytes(len(data))


def may_be_stamped(data: Buffer) -> bool:
    """False if no granule of these is of a write with stamps; that is soon known."""
    return MAGIC in _words(data, _MAGIC_WORD).tobytes()


def is_plain(data: bytes) -> bool:
    """Whether no granule of these is zero, or has stamps, or parts of it have. It may be False of some that are."""
    beginnings = _words(data, _MAGIC_WORD).tobytes()
    return _NO_WORD not in beginnings and MAGIC not in beginnings and not _has_magic(data)


def _words(data: Buffer, at: int) -> memoryview:
    """One word of each granule."""
    return memoryview(data).cast("Q")[at::_WORDS]


class Attribution:
    """Says who wrote what is read.

    run:        whose stamps count; None: everybody's
    base:       what was there before, from offset 0 on; None if that is not known
    unstamped:  who wrote what has no stamp, where the base is not known
    """

    def __init__(self, run: int | None = None, base: bytes | mmap | None = None, unstamped: str = BASE) -> None:
        self._run = run
        self._suffix = "" if run is None else write_name(run, 0).removeprefix("w0")
        self._base = base
        self._unstamped = unstamped

    def of(self, data: bytes, offset: int) -> Content:
        """Who wrote these bytes, that were read at `offset`."""
        assert offset % GRANULE == 0, f"offset {offset} is not that of a granule"
        assert len(data) % GRANULE == 0, f"{len(data)} bytes are not whole granules"
        if not data:
            return Content(())
        if (who := self._one(data, offset)) is not None:
            return Content(((who, len(data)),))
        runs: list[Run] = []
        notes: list[str] = []
        self._add(data, offset, runs, notes)
        return Content(tuple(runs), tuple(notes))

    def _add(self, data: bytes, offset: int, runs: list[Run], notes: list[str]) -> None:
        """Runs and notes of these bytes, which are not all by one: by their parts that may be."""
        for start, end in _parts(data):
            part = data[start:end]
            if (who := self._one(part, offset + start)) is not None:
                _add_run(runs, who, len(part))
            else:
                self._add_granules(part, offset + start, runs, notes)

    def _one(self, data: bytes, offset: int) -> str | None:
        """Who wrote all of these bytes; None if that was not one, or it takes long to see."""
        name = written(data, offset)
        if name is not None and (self._run is None or name.endswith(self._suffix)):
            return name
        if is_zero(data):
            return ZERO
        if self._base is not None:
            return BASE if data == self._base[offset : offset + len(data)] else None
        return self._unstamped if is_plain(data) else None

    def _add_granules(self, data: bytes, offset: int, runs: list[Run], notes: list[str]) -> None:
        """One granule after the other."""
        for at in range(0, len(data), GRANULE):
            granule = data[at : at + GRANULE]
            who = self._one(granule, offset + at)
            _add_run(runs, self._other(granule, offset + at, notes) if who is None else who, GRANULE)

    def _other(self, granule: bytes, offset: int, notes: list[str]) -> str:
        """Who wrote a granule that is not wholly one write's at its place, nor zero, nor the base's."""
        stamps = self._stamps(granule)
        if not stamps:
            if self._base is None:
                return self._unstamped
            notes.append(f"{offset}: neither the base's bytes nor any write's")
            return TORN
        notes.append(f"{offset}: {_what_is_wrong(granule, stamps, offset)}")
        return TORN

    def _stamps(self, granule: bytes) -> list[Stamp]:
        """The stamps in a granule that count, each different one once."""
        if not _has_magic(granule):
            return []
        found: dict[Stamp, None] = {}
        for at in range(0, GRANULE, _STAMP.size):
            stamp = stamp_of(granule[at : at + _STAMP.size])
            if stamp is not None and (self._run is None or stamp.run == self._run):
                found[stamp] = None
        return list(found)


def _add_run(runs: list[Run], who: str, length: int) -> None:
    if runs and runs[-1][0] == who:
        length += runs.pop()[1]
    runs.append((who, length))


def _parts(data: bytes) -> Iterator[tuple[int, int]]:
    """Where granules begin alike that are neighbours: with stamps of one write, with zeroes, or with neither."""
    magics, sequences = _words(data, _MAGIC_WORD).tolist(), _words(data, _SEQUENCE_WORD).tolist()
    kinds = [
        sequence if magic == _MAGIC_AS_WORD else -1 if magic else -2
        for magic, sequence in zip(magics, sequences, strict=True)
    ]
    changes = [0, *compress(count(1), map(ne, kinds, kinds[1:])), len(kinds)]
    for first, end in pairwise(changes):
        yield first * GRANULE, end * GRANULE


def _has_magic(data: bytes) -> bool:
    """Whether there may be stamps, in granules or as parts of them."""
    firsts = data[:: _STAMP.size]
    if firsts.count(_MAGIC_BYTE) > _FEW:
        return MAGIC in memoryview(data).cast("Q")[::_STAMP_WORDS].tobytes()
    at = firsts.find(_MAGIC_BYTE)
    while at >= 0:
        if data.startswith(MAGIC, at * _STAMP.size):
            return True
        at = firsts.find(_MAGIC_BYTE, at + 1)
    return False


def _what_is_wrong(granule: bytes, stamps: list[Stamp], offset: int) -> str:
    names = " and ".join(stamp.name for stamp in stamps)
    first = stamps[0]
    if len(stamps) == 1 and granule == granule[: _STAMP.size] * _COPIES:
        return f"misdirected: {names} wrote this at {first.granule * GRANULE}"
    if len(stamps) == 1:
        return f"torn: a part is {names}'s, the rest is not"
    return (
        f"torn: parts are {names}'s"
        if all(stamp.granule * GRANULE == offset for stamp in stamps)
        else (
            f"torn and misdirected: parts are {names}'s, written at "
            + " and ".join(str(stamp.granule * GRANULE) for stamp in stamps)
        )
    )
