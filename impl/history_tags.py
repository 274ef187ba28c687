"""What a recorder writes, so that whoever reads it can say who wrote it and where; and the reading of it.

A granule of 512 bytes is one stamp of 32 bytes, sixteen times. The stamp names the write (run, writer, sequence), says
at which granule it belongs, and ends with a checksum. So a granule that is whole names one write; one that is a mixture
of two has stamps that differ; one that ended up at a wrong place says so itself.

Shapes:  runs are ((who, bytes), ...) in order, neighbours never by the same: a write's name, BASE, ZERO, TORN for what
         no write and no base can have left there, or UNKNOWN for what nobody can tell.
Units:   offsets and lengths in bytes, whole granules; a granule's number is its offset divided by GRANULE.
Errors:  AssertionError for ranges that are not whole granules: the caller has cut them to that.
Omits:   bytes that others have written: without a stamp they are the base's, or UNKNOWN if the caller says so.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import mmap
from typing import Final, NamedTuple
from zlib import crc32

GRANULE: Final = 512
BASE: Final = "base"
ZERO: Final = "zero"
TORN: Final = "?"
UNKNOWN: Final = "*"

MAGIC: Final = b"cowproof"
NUMBER_MAX: Final = 2**32 - 1

Run = tuple[str, int]

_WHO = struct.Struct(">8sIIIQ")  # magic, run, writer, sequence, granule
_STAMP = struct.Struct(">8sIIIQI")  # and the checksum of those
_CHECKSUM = struct.Struct(">I")
_COPIES: Final = GRANULE // _STAMP.size
_NOTHING: Final = bytes(GRANULE)
_FEW: Final = bytes(16)  # looked for rather than _NOTHING, which would take longer
_ZEROES: Final = bytes(1 << 20)


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
    pieces = []
    for number in range(first, first + length // GRANULE):
        who = _WHO.pack(MAGIC, run, writer, sequence, number)
        pieces.append((who + _CHECKSUM.pack(crc32(who))) * _COPIES)
    return b"".join(pieces)


def stamp_of(stamp: bytes) -> Stamp | None:
    """What these 32 bytes say; None if they are no stamp."""
    magic, run, writer, sequence, number, checksum = _STAMP.unpack(stamp)
    if magic != MAGIC or crc32(stamp[: _WHO.size]) != checksum:
        return None
    return Stamp(run, writer, sequence, number)


def written(data: bytes, offset: int) -> str | None:
    """The name of the one write that these bytes are, at the place where they belong; None if they are not."""
    if len(data) % GRANULE or not data.startswith(MAGIC):
        return None
    first = stamp_of(data[: _STAMP.size])
    if first is None or data != stamped(first.run, first.writer, first.sequence, offset, len(data)):
        return None
    return first.name


def is_zero(data: bytes) -> bool:
    """Whether all bytes are zero."""
    return data == (_ZEROES[: len(data)] if len(data) <= len(_ZEROES) else bytes(len(data)))


class Attribution:
    """Says who wrote what is read.

    run:        whose stamps count; None: everybody's
    base:       what was there before, from offset 0 on; None if that is not known
    unstamped:  who wrote what has no stamp, where the base is not known
    """

    def __init__(self, run: int | None = None, base: bytes | mmap | None = None, unstamped: str = BASE) -> None:
        self._run = run
        self._base = base
        self._unstamped = unstamped

    def of(self, data: bytes, offset: int) -> Content:
        """Who wrote these bytes, that were read at `offset`."""
        assert offset % GRANULE == 0, f"offset {offset} is not that of a granule"
        assert len(data) % GRANULE == 0, f"{len(data)} bytes are not whole granules"
        if not data:
            return Content(())
        if is_zero(data):
            return Content(((ZERO, len(data)),))
        if data.startswith(MAGIC) and self._run is None and (name := written(data, offset)) is not None:
            return Content(((name, len(data)),))
        if self._base is not None and data == self._base[offset : offset + len(data)]:
            return Content(((BASE, len(data)),))
        if self._base is None and MAGIC not in data and _FEW not in data:
            return Content(((self._unstamped, len(data)),))
        return self._by_granule(data, offset)

    def _by_granule(self, data: bytes, offset: int) -> Content:
        notes: list[str] = []
        runs: list[Run] = []
        last, length = "", 0
        for who in self._owners(data, offset, notes):
            if who == last:
                length += GRANULE
                continue
            if length:
                runs.append((last, length))
            last, length = who, GRANULE
        runs.append((last, length))
        return Content(tuple(runs), tuple(notes))

    def _owners(self, data: bytes, offset: int, notes: list[str]) -> Iterator[str]:
        unpack, size, copies, who_size = _STAMP.unpack, _STAMP.size, _COPIES, _WHO.size
        wanted = self._run
        named: tuple[int, int, int] | None = None
        name = ""
        expected = offset // GRANULE - 1
        for at in range(0, len(data), GRANULE):
            expected += 1
            stamp = data[at : at + size]
            if stamp.startswith(MAGIC):
                _, run, writer, sequence, number, checksum = unpack(stamp)
                if (
                    number == expected
                    and (wanted is None or run == wanted)
                    and data[at : at + GRANULE] == stamp * copies
                    and crc32(stamp[:who_size]) == checksum
                ):
                    if (run, writer, sequence) != named:
                        named, name = (run, writer, sequence), write_name(run, sequence)
                    yield name
                    continue
            yield self._other(data[at : at + GRANULE], offset + at, notes)

    def _other(self, granule: bytes, offset: int, notes: list[str]) -> str:
        """Who wrote a granule that is not wholly one write's, at its place."""
        if granule == _NOTHING:
            return ZERO
        if self._base is not None and granule == self._base[offset : offset + GRANULE]:
            return BASE
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
        found: dict[Stamp, None] = {}
        for at in range(0, GRANULE, _STAMP.size):
            stamp = stamp_of(granule[at : at + _STAMP.size])
            if stamp is not None and (self._run is None or stamp.run == self._run):
                found[stamp] = None
        return list(found)


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
