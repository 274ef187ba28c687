"""The disk that is served when none is named: a small FAT16 file system that needs no file.

Source:  Microsoft, "FAT: General Overview of On-Disk Format" 1.03; names of fields are the ones used there.
Shapes:  16 MiB, of which only the pages that hold something are kept in memory; the same bytes on every start.
Omits:   long file names, directories but the root, code that boots.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import Final

from impl.base.interface import CacheMode
from impl.extents import Extent, coalesce
from impl.sizes import format_size

VOLUME_LABEL = b"COWPROOF   "

README = """\
COWPROOF: a disk to try things on
=================================

This is a demonstration disk. It is served by cowproof over NBD, it needs
no file, and you can write to it as you like: to these files, over these
files, or to the whole disk as if it had no files at all.

What you write goes to an overlay. The base, which is this disk as you see
it the first time, is never changed. The overlay is gone when the server
stops, and the disk is new again.

Three things to try, if the server listens on its default port:

  Copy all of it to a file, over several connections:

    nbdcopy nbd://127.0.0.1 copy.img

  Write to a part that no file uses, and read it back:

    qemu-io -f raw -c "write -P 0x55 8M 64k" -c "read -P 0x55 8M 64k" nbd://127.0.0.1

  Mount it (Linux, as root), and change this file:

    modprobe nbd
    nbd-client 127.0.0.1 /dev/nbd0
    mount /dev/nbd0 /mnt

PROMISES.TXT says what may be expected of the disk while many clients use
it at once. NUMBERS.TXT is long enough to span several blocks: a line that
is missing, repeated or mixed up would show.
"""

PROMISES = """\
What every client of this disk may rely on
==========================================

1. Each request takes effect at one instant between being sent and being
   answered, however much of the disk it covers. Nothing is torn.
2. A write that was answered is not lost, whatever else goes on.
3. The base is never written.
4. A request waits only for requests that overlap it.
5. What one connection was told is done, every connection sees.
"""

NUMBERS = "".join(f"line {number:04}\n" for number in range(1, 1001))

FILES = (
    (b"README  TXT", README),
    (b"PROMISESTXT", PROMISES),
    (b"NUMBERS TXT", NUMBERS),
)

_SECTOR_BYTES = 512  # BPB_BytsPerSec
_CLUSTER_SECTORS = 4  # BPB_SecPerClus
_TOTAL_SECTORS = 32768  # BPB_TotSec16
_RESERVED_SECTORS = 8  # BPB_RsvdSecCnt: 1 would do; with 8 the clusters begin on a page.
_FAT_COUNT = 2  # BPB_NumFATs
_FAT_SECTORS = 32  # BPB_FATSz16
_ROOT_ENTRIES = 512  # BPB_RootEntCnt
_MEDIA = 0xF8  # BPB_Media: a fixed disk.
_VOLUME_ID = 0x434F5750  # "COWP"

_ROOT_SECTOR = _RESERVED_SECTORS + _FAT_COUNT * _FAT_SECTORS
_DATA_SECTOR = _ROOT_SECTOR + _ROOT_ENTRIES * 32 // _SECTOR_BYTES
_CLUSTER_BYTES = _CLUSTER_SECTORS * _SECTOR_BYTES
_CLUSTER_FIRST = 2  # The first two entries of a FAT are not clusters.
_CLUSTER_COUNT = (_TOTAL_SECTORS - _DATA_SECTOR) // _CLUSTER_SECTORS
_END_OF_CHAIN = 0xFFFF

_ATTR_VOLUME_ID = 0x08
_ATTR_ARCHIVE = 0x20
_DATE = (2024 - 1980) << 9 | 1 << 5 | 1  # 1 January 2024, always: the image must not depend on the clock.
_TIME = 12 << 11  # 12:00:00

_PAGE_BYTES = 4096
_ZERO_PAGE = bytes(_PAGE_BYTES)

_BOOT_SECTOR = struct.Struct("<3s8sHBHBHHBHHHIIBBBI11s8s448sH")
_DIRECTORY_ENTRY = struct.Struct("<11sBBBHHHHHHHI")

# The number of clusters alone decides how wide the entries of a FAT are.
assert 4085 <= _CLUSTER_COUNT < 65525, f"{_CLUSTER_COUNT} clusters are not FAT16"
assert (_CLUSTER_COUNT + _CLUSTER_FIRST) * 2 <= _FAT_SECTORS * _SECTOR_BYTES, f"no FAT for {_CLUSTER_COUNT} clusters"


class DemoBase:
    """The demonstration disk."""

    cache_mode: Final[CacheMode] = "ignore"
    extents_may_wait: Final = False
    size: Final = _TOTAL_SECTORS * _SECTOR_BYTES
    description: Final = f"demonstration disk, FAT16, {format_size(_TOTAL_SECTORS * _SECTOR_BYTES)}"

    def __init__(self) -> None:
        self._pages = _pages()

    def pread(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < offset + length <= self.size, f"{offset}+{length} is not within {self.size} bytes"
        end = offset + length
        pieces = []
        for page in range(offset // _PAGE_BYTES, -(-end // _PAGE_BYTES)):
            first = max(offset - page * _PAGE_BYTES, 0)
            last = min(end - page * _PAGE_BYTES, _PAGE_BYTES)
            pieces.append(self._pages.get(page, _ZERO_PAGE)[first:last])
        return b"".join(pieces)

    def is_ready(self, offset: int, length: int) -> bool:
        return True

    def pread_at_once(self, offset: int, length: int) -> bytes | None:
        return self.pread(offset, length) if self.is_ready(offset, length) else None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Holes wherever a page of 4 KiB is not kept, for it would be all zero."""
        return coalesce(self._page_extents(offset, offset + length))

    def _page_extents(self, offset: int, end: int) -> Iterator[Extent]:
        for page in range(offset // _PAGE_BYTES, -(-end // _PAGE_BYTES)):
            first = max(offset, page * _PAGE_BYTES)
            last = min(end, (page + 1) * _PAGE_BYTES)
            empty = page not in self._pages
            yield Extent(last - first, hole=empty, zero=empty)

    def prefetch(self, offset: int, length: int) -> None:
        pass

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        pass


@cache
def _pages() -> dict[int, bytes]:
    """The pages of the image that are not all zero, by number."""
    pages: dict[int, bytearray] = {}
    for sector, data in _pieces():
        for at in range(0, len(data), _SECTOR_BYTES):  # A sector never crosses a page.
            page, within = divmod(sector * _SECTOR_BYTES + at, _PAGE_BYTES)
            piece = data[at : at + _SECTOR_BYTES]
            pages.setdefault(page, bytearray(_PAGE_BYTES))[within : within + len(piece)] = piece
    return {page: bytes(data) for page, data in pages.items() if any(data)}


def _pieces() -> Iterator[tuple[int, bytes]]:
    """Everything on the disk that is not zero: the sector it begins at, and its bytes."""
    fat = [0xFF00 | _MEDIA, _END_OF_CHAIN]
    root = [_directory_entry(VOLUME_LABEL, _ATTR_VOLUME_ID, cluster=0, size=0)]
    yield 0, _boot_sector()
    for name, text in FILES:
        data = text.replace("\n", "\r\n").encode("ascii")
        first = len(fat)
        count = -(-len(data) // _CLUSTER_BYTES)
        fat += [*range(first + 1, first + count), _END_OF_CHAIN]
        root.append(_directory_entry(name, _ATTR_ARCHIVE, cluster=first, size=len(data)))
        yield _DATA_SECTOR + (first - _CLUSTER_FIRST) * _CLUSTER_SECTORS, data
    for copy in range(_FAT_COUNT):
        yield _RESERVED_SECTORS + copy * _FAT_SECTORS, struct.pack(f"<{len(fat)}H", *fat)
    yield _ROOT_SECTOR, b"".join(root)


def _boot_sector() -> bytes:
    return _BOOT_SECTOR.pack(
        b"\xeb\x3c\x90",  # BS_jmpBoot
        b"COWPROOF",  # BS_OEMName
        _SECTOR_BYTES,
        _CLUSTER_SECTORS,
        _RESERVED_SECTORS,
        _FAT_COUNT,
        _ROOT_ENTRIES,
        _TOTAL_SECTORS,
        _MEDIA,
        _FAT_SECTORS,
        32,  # BPB_SecPerTrk
        64,  # BPB_NumHeads
        0,  # BPB_HiddSec
        0,  # BPB_TotSec32: the 16-bit field says it.
        0x80,  # BS_DrvNum
        0,  # BS_Reserved1
        0x29,  # BS_BootSig: the three fields that follow are there.
        _VOLUME_ID,
        VOLUME_LABEL,
        b"FAT16   ",  # BS_FilSysType
        b"\xcd\x18\xf4\xeb\xfd",  # int 18h (nothing to boot here), then halt for ever.
        0xAA55,
    )


def _directory_entry(name: bytes, attributes: int, cluster: int, size: int) -> bytes:
    return _DIRECTORY_ENTRY.pack(
        name,
        attributes,
        0,  # DIR_NTRes
        0,  # DIR_CrtTimeTenth
        _TIME,
        _DATE,
        _DATE,  # DIR_LstAccDate
        0,  # DIR_FstClusHI: FAT32 only.
        _TIME,
        _DATE,
        cluster,
        size,
    )
