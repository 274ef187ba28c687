"""The state map and the stores, and how much the overlay asks of its base at a time."""

import errno
import os
from dataclasses import replace

import pytest

from check.subjects import Setup, assemble
from impl.base.pattern import pattern
from impl.errors import StartError
from impl.overlay import store as stores
from impl.overlay.statemap import ALLOCATED, NOT_ALLOCATED, TRIMMED, Run, StateMap, runs
from impl.overlay.store import FileStore, memory_store, temporary_store
from model.block import CacheMode

KIB, MIB = 1 << 10, 1 << 20
MAKERS = {"temporary": temporary_store, "memory": memory_store}


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_new_map_says_that_nothing_is_allocated():
    assert StateMap(10).get(0, 10) == bytes([NOT_ALLOCATED] * 10)


def test_a_fill_changes_its_range_and_no_other():
    states = StateMap(100)
    states.fill(3, 7, ALLOCATED)
    states.fill(6, 7, TRIMMED)
    assert states.get(2, 9) == bytes([0, 1, 1, 1, 2, 0, 0])


def test_a_fill_longer_than_a_chunk_is_whole(monkeypatch):
    monkeypatch.setattr("impl.overlay.statemap.FILL_CHUNK_BLOCKS", 4)
    states = StateMap(100)
    states.fill(1, 12, TRIMMED)
    assert states.get(0, 14) == bytes([0, *[2] * 11, 0, 0])


def test_the_map_of_an_8_tib_device_costs_nothing_until_it_is_used():
    before = resident_bytes()
    states = StateMap((8 << 40) // (64 << 10))
    states.fill(1 << 26, (1 << 26) + 1, ALLOCATED)
    assert states.get((1 << 26) - 1, (1 << 26) + 2) == bytes([0, 1, 0])
    assert resident_bytes() - before < MIB


def test_a_map_that_no_address_space_can_hold_is_refused_in_one_line():
    with pytest.raises(StartError, match="larger --cow-block-size"):
        StateMap(1 << 50)


RUNS = [
    ([0, 0, 0], [(5, 8, 0)]),
    ([1], [(5, 6, 1)]),
    ([0, 1, 1, 2, 2, 2, 0], [(5, 6, 0), (6, 8, 1), (8, 11, 2), (11, 12, 0)]),
    ([10 % 3, 2, 1], [(5, 6, 1), (6, 7, 2), (7, 8, 1)]),
]


@pytest.mark.parametrize(("states", "expected"), RUNS)
def test_runs_are_the_longest_stretches_of_one_state(states, expected):
    assert list(runs(bytes(states), 5)) == [Run(*run) for run in expected]


@pytest.fixture(params=MAKERS)
def store(request):
    made = MAKERS[request.param](64 * MIB)
    yield made
    made.close()


def test_what_is_written_is_read(store):
    store.pwrite(12345, [b"one", bytearray(b"two"), memoryview(b"three")])
    assert store.pread(12340, 16) == bytes(5) + b"onetwothree"


def test_more_buffers_than_one_call_takes_are_all_written(store, monkeypatch):
    """A short write is carried on from where it ended."""
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real(fd, [buffers[0][:2]], offset))
    store.pwrite(7, [b"abc", b"def"])
    assert store.pread(7, 6) == b"abcdef"


def test_a_read_that_comes_in_parts_is_whole(store, monkeypatch):
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 3), offset))
    store.pwrite(7, [b"abcdefgh"])
    assert store.pread(6, 10) == b"\0abcdefgh\0"


@pytest.mark.parametrize("there", [0, 1, 10])
def test_a_store_that_has_become_shorter_is_an_error_and_not_zeroes(there):
    fd = os.memfd_create("shorter")
    store = FileStore(fd, 20)
    store.pwrite(0, [b"\xff" * 20])
    os.ftruncate(fd, there)
    with pytest.raises(OSError, match=f"overlay ends at {there}, expected 20") as failed:
        store.pread(0, 20)
    assert failed.value.errno == errno.EIO
    store.close()


def test_holes_give_the_space_back(store):
    store.pwrite(0, [b"\xff" * (8 * MIB)])
    taken = store.allocated_bytes()
    assert taken >= 8 * MIB
    store.punch_hole(0, 8 * MIB)
    assert store.allocated_bytes() <= taken - 8 * MIB + 64 * 1024


@pytest.mark.parametrize("length", [1, 4096, 128 << 10, (128 << 10) + 1, 3 * MIB])
def test_written_zeroes_are_zeroes_and_have_their_space(store, length):
    store.pwrite(0, [b"\xff" * (4 * MIB)])
    store.punch_hole(0, 4 * MIB)
    store.pwrite(5000 + length, [b"behind"])
    store.write_zeroes(5000, length)
    assert store.pread(5000, length) == bytes(length)
    assert store.pread(5000 + length, 6) == b"behind"
    assert store.allocated_bytes() >= length


def test_where_the_file_system_cannot_zero_a_range_zeroes_are_written(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(stores, "fallocate", refuse)
    store.pwrite(0, [b"\xff" * (3 * MIB)])
    store.write_zeroes(100, 2 * MIB)
    assert store.pread(99, 2 * MIB + 2) == b"\xff" + bytes(2 * MIB) + b"\xff"


def test_where_the_file_system_cannot_punch_nothing_is_lost(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(stores, "fallocate", refuse)
    store.pwrite(0, [b"\xff" * 4096])
    store.punch_hole(4096, 4096)
    assert store.pread(0, 4096) == b"\xff" * 4096


def test_another_error_while_punching_is_told(store, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(stores, "fallocate", fail)
    with pytest.raises(OSError, match="broken"):
        store.punch_hole(0, 4096)


def test_a_reserved_store_has_all_its_space_and_keeps_it():
    store = temporary_store(4 * MIB, reserve=True)
    assert store.allocated_bytes() >= 4 * MIB
    store.punch_hole(0, 4 * MIB)
    assert store.allocated_bytes() >= 4 * MIB
    store.close()


# A cache request may cover the whole device: it is read by chunks, and no more than one is held at a time.

CHUNKS = [  # block size, the largest read of the base
    (4 * KIB, MIB),
    (64 * KIB, MIB),
    (192 * KIB, 5 * 192 * KIB),
    (MIB, MIB),
    (2 * MIB, 2 * MIB),
]


@pytest.mark.parametrize("mode", [CacheMode.READ, CacheMode.COW])
@pytest.mark.parametrize(("block_size", "largest"), CHUNKS)
def test_a_cache_request_reads_the_base_by_chunks_of_whole_blocks(block_size, largest, mode):
    size = 6 * MIB + 12345
    parts = assemble(Setup(pattern(1, 0, size), block_size, cache_mode=mode))
    parts.overlay.cache(0, size)
    starts, lengths = zip(*parts.base.reads, strict=True)
    assert max(lengths) == largest
    assert starts == tuple(range(0, size, largest))
    assert sum(lengths) == size
    parts.file.close()


class Told:
    """A base or a store that remembers what it is told."""

    def __init__(self, part):
        self.part = part
        self.told = []

    def __getattr__(self, name):
        return getattr(self.part, name)

    def prefetch(self, offset, length):
        self.told.append((offset, length))

    def sync(self):
        self.told.append("sync")


def told(parts):
    """An overlay like that of `parts`, whose base and store remember."""
    return replace(parts.overlay, base=Told(parts.base), store=Told(parts.store))


@pytest.mark.parametrize("mode", CacheMode)
def test_a_cache_request_tells_the_store_of_what_it_holds_and_the_base_only_to_pass_it_through(mode):
    parts = assemble(Setup(pattern(1, 0, 4 * 4096 + 100), 4096, cache_mode=mode))
    overlay = told(parts)
    overlay.write(4096, bytes(4096))
    overlay.trim(2 * 4096, 4096)
    overlay.cache(1, overlay.size - 1)
    assert overlay.store.told == [(4096, 4096)]
    passed = [(0, 4096), (3 * 4096, 4096 + 100)]
    assert overlay.base.told == (passed if mode is CacheMode.PASSTHROUGH else [])
    assert parts.base.reads == (passed if mode in (CacheMode.READ, CacheMode.COW) else [])
    parts.file.close()


def test_a_flush_reaches_the_store():
    parts = assemble(Setup(b"base"))
    overlay = told(parts)
    overlay.flush()
    assert overlay.store.told == ["sync"]
    parts.file.close()


@pytest.mark.parametrize("request_", [lambda it: it.write(5, b"x"), lambda it: it.zero(5, 1)], ids=["write", "zero"])
def test_a_block_changed_in_its_middle_is_read_from_the_base_once_and_then_never_again(request_):
    parts = assemble(Setup(pattern(1, 0, 3 * 4096), 4096))
    request_(parts.overlay)
    assert parts.base.reads == [(0, 4096)]
    request_(parts.overlay)
    assert parts.base.reads == [(0, 4096)]
    parts.file.close()


def test_a_temporary_store_leaves_no_name_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store = temporary_store(MIB)
    assert list(tmp_path.iterdir()) == []
    store.close()


def test_a_directory_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(StartError, match=r"nowhere: No such file.*TMPDIR"):
        temporary_store(MIB)


def test_a_store_larger_than_a_file_can_be_is_refused_in_one_line():
    with pytest.raises(StartError, match="cannot make a sparse overlay of"):
        temporary_store((1 << 63) - 1)
