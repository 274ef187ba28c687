"""The demonstration disk is a file system that other people's tools accept.

Source:  Microsoft, "FAT: General Overview of On-Disk Format" 1.03. The reader below knows nothing of impl/base/demo.py.
"""

import struct
import subprocess
from itertools import pairwise

import pytest
from servers import need

from impl.base.demo import NUMBERS, PROMISES, README, DemoBase

TEXTS = {"README.TXT": README, "PROMISES.TXT": PROMISES, "NUMBERS.TXT": NUMBERS}


def on_disk(text):
    return text.replace("\n", "\r\n").encode("ascii")


class Fat16:
    """The least of a FAT16 reader: the volume label, the files of the root directory, and which clusters are used."""

    def __init__(self, base):
        boot = base.pread(0, 512)
        assert boot[510:] == b"\x55\xaa"
        (sector, cluster_sectors, reserved, fats, entries, total, media, fat_sectors) = struct.unpack_from(
            "<HBHBHHBH", boot, 11
        )
        assert total * sector == base.size
        root = (reserved + fats * fat_sectors) * sector
        data = root + entries * 32
        self.clusters = (base.size - data) // (cluster_sectors * sector)
        assert 4085 <= self.clusters < 65525
        copies = {base.pread((reserved + n * fat_sectors) * sector, fat_sectors * sector) for n in range(fats)}
        assert len(copies) == 1
        fat = [entry for (entry,) in struct.iter_unpack("<H", copies.pop())]
        assert fat[:2] == [0xFF00 | media, 0xFFFF]
        self.allocated = {number for number, entry in enumerate(fat) if entry and number >= 2}
        self.reached = []
        self.files = {}
        for entry in (base.pread(root + at, 32) for at in range(0, entries * 32, 32)):
            if entry[0] == 0:
                break
            cluster, size = struct.unpack_from("<HI", entry, 26)
            if entry[11] == 0x08:
                self.label = entry[:11].decode()
                continue
            content = b""
            while cluster < 0xFFF8:
                self.reached.append(cluster)
                at = data + (cluster - 2) * cluster_sectors * sector
                content += base.pread(at, cluster_sectors * sector)
                cluster = fat[cluster]
            assert 0 <= len(content) - size < cluster_sectors * sector
            assert not any(content[size:])
            self.files[f"{entry[:8].decode().rstrip()}.{entry[8:11].decode().rstrip()}"] = content[:size]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "demo.img"
    base = DemoBase()
    path.write_bytes(base.pread(0, base.size))
    return path


def run(tool, package, *arguments):
    return subprocess.run([need(tool, package), *arguments], capture_output=True, check=False, timeout=60)


def test_the_disk_is_a_fat16_file_system_with_its_label_and_its_files():
    disk = Fat16(DemoBase())
    assert disk.label == "COWPROOF   "
    assert disk.files == {name: on_disk(text) for name, text in TEXTS.items()}


def test_each_cluster_in_use_belongs_to_one_file():
    disk = Fat16(DemoBase())
    assert sorted(disk.reached) == sorted(disk.allocated)
    assert len(set(disk.reached)) == len(disk.reached)
    assert max(disk.reached) < disk.clusters + 2


def test_fsck_finds_nothing_to_repair(image):
    result = run("fsck.fat", "dosfstools", "-n", str(image))
    assert result.returncode == 0, result.stdout
    assert b"3 files" in result.stdout or b"4 files" in result.stdout  # Some versions count the label.


def test_mtools_lists_the_files(image):
    listing = run("mdir", "mtools", "-i", str(image), "::").stdout.decode()
    assert "COWPROOF" in listing
    for name, text in TEXTS.items():
        line = next(line for line in listing.splitlines() if line.startswith(name.partition(".")[0]))
        assert line.split()[:4] == [*name.split("."), str(len(on_disk(text))), "2024-01-01"]


@pytest.mark.parametrize("name", TEXTS)
def test_mtools_reads_the_files(image, name):
    assert run("mcopy", "mtools", "-i", str(image), f"::{name}", "-").stdout == on_disk(TEXTS[name])


def test_the_readme_says_what_to_try():
    for command in ("nbdcopy nbd://", "qemu-io -f raw", "mount /dev/nbd0"):
        assert command in README
    assert "never changed" in README
    assert README.isascii()


def test_the_part_that_the_readme_offers_for_writing_is_free():
    extents = list(DemoBase().extents(8 * 2**20, 64 * 1024))
    assert [(extent.hole, extent.zero) for extent in extents] == [(True, True)]


def test_the_longest_file_spans_several_overlay_blocks_of_4_kib():
    assert len(on_disk(NUMBERS)) > 2 * 4096


def test_only_what_holds_something_is_kept_in_memory():
    base = DemoBase()
    extents = list(base.extents(0, base.size))
    assert sum(extent.length for extent in extents if not extent.hole) <= 64 * 1024
    assert all(extent.length % 4096 == 0 for extent in extents)
    assert all(before.hole != after.hole for before, after in pairwise(extents))
