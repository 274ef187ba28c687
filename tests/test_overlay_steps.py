"""The overlay's requests cut in two, for a server that must not wait in one thread for both the base and a range.

Source: impl/overlay/overlay.py: `missing`, `fetch_blocks`, `copied`, `note`, `cache_noted`.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from check.subjects import Setup, assemble
from impl.overlay.overlay import FromBase
from impl.overlay.parking import AtOnce
from model.block import CacheMode

BLOCK = 4096
BASE = bytes(1 + index % 251 for index in range(4 * BLOCK + 100))
PART = b"\xf2" * 50
NEW = b"\xf1" * BLOCK


@contextmanager
def assembled(**options):
    parts = assemble(Setup(BASE, BLOCK, **options))
    try:
        yield parts.overlay, parts.base
    finally:
        parts.file.close()


def fetch(overlay, offset, length):
    return overlay.fetch_blocks(overlay.missing(overlay.partial_blocks(offset, length)))


MEANWHILE = {
    "nothing": (lambda overlay: None, BASE[BLOCK : 2 * BLOCK]),
    "a write of the whole": (lambda overlay: overlay.write(BLOCK, NEW), NEW),
    "a trim": (lambda overlay: overlay.trim(BLOCK, BLOCK), bytes(BLOCK)),
}
CHANGES = {
    "write": (lambda overlay, fetched: overlay.write(BLOCK + 9, PART, fetched), PART),
    "zero": (lambda overlay, fetched: overlay.zero(BLOCK + 9, len(PART), fetched=fetched), bytes(len(PART))),
    "trim": (lambda overlay, fetched: overlay.trim(BLOCK + 9, len(PART), fetched), bytes(len(PART))),
}


@pytest.mark.parametrize(("meanwhile", "block"), MEANWHILE.values(), ids=MEANWHILE)
@pytest.mark.parametrize(("change", "part"), CHANGES.values(), ids=CHANGES)
def test_what_was_fetched_before_is_right_however_long_ago_and_is_not_fetched_again(meanwhile, block, change, part):
    with assembled() as (overlay, base):
        fetched = fetch(overlay, BLOCK + 9, len(PART))
        meanwhile(overlay)
        del base.reads[:]
        change(overlay, fetched)
        assert base.reads == []
        assert overlay.pread(BLOCK, BLOCK) == block[:9] + part + block[9 + len(part) :]


def test_what_covers_whole_blocks_needs_nothing_of_the_base_and_copies_nothing():
    with assembled() as (overlay, _):
        for offset, length in ((0, BLOCK), (BLOCK, 3 * BLOCK), (4 * BLOCK, 100), (0, len(BASE))):
            assert list(overlay.partial_blocks(offset, length)) == []


@pytest.mark.parametrize(
    ("offset", "length", "copied"),
    [(1, 1, BLOCK), (1, BLOCK, 2 * BLOCK), (1, 3 * BLOCK, 2 * BLOCK), (4 * BLOCK + 1, 1, 100), (BLOCK, 1, BLOCK)],
)
def test_what_a_change_of_parts_fetches_is_the_blocks_they_are_parts_of(offset, length, copied):
    with assembled() as (overlay, _):
        assert sum(map(len, fetch(overlay, offset, length).values())) == copied


def test_blocks_that_have_been_changed_are_not_fetched():
    with assembled() as (overlay, _):
        overlay.write(0, NEW)
        overlay.trim(2 * BLOCK, BLOCK)
        assert list(overlay.missing((0, 1, 2, 3))) == [1, 3]


def test_a_small_part_of_what_was_copied_on_read_does_not_keep_all_of_it_in_memory():
    with assembled(copy_on_read=True) as (overlay, _):
        for offset, length in ((BLOCK + 5, 1), (5, BLOCK // 2 - 1), (0, 3 * BLOCK), (BLOCK - 1, BLOCK)):
            (part,) = overlay.copied([FromBase(offset, length)])
            assert bytes(part) == BASE[offset : offset + length]
            assert len(part.obj if isinstance(part, memoryview) else part) <= 2 * length


def test_a_copy_is_not_kept_where_somebody_changes_the_block_and_waiting_is_not_wanted():
    with assembled(copy_on_read=True) as (overlay, _):
        hurried = replace(overlay, ranges=AtOnce(overlay.ranges))
        with overlay.ranges.exclusive(1, 1):
            assert b"".join(hurried.copied([FromBase(0, 2 * BLOCK)])) == BASE[: 2 * BLOCK]
            assert overlay.states.get(0, 2) == bytes(2)
        hurried.copied([FromBase(0, 2 * BLOCK)])
        assert overlay.states.get(0, 2) == bytes([1, 1])


@pytest.mark.parametrize("mode", [CacheMode.READ, CacheMode.COW])
def test_a_cache_ends_between_two_chunks_once_it_is_not_wanted(mode, monkeypatch):
    monkeypatch.setattr("impl.overlay.overlay.CACHE_CHUNK_BYTES", BLOCK)
    with assembled(cache_mode=mode) as (overlay, base):
        overlay.cache_noted(*overlay.note(0, len(BASE)), lambda: len(base.reads) < 2)
        assert base.reads == [(0, BLOCK), (BLOCK, BLOCK)]


def test_a_cache_ends_between_two_runs_of_blocks_once_it_is_not_wanted():
    with assembled(cache_mode=CacheMode.PASSTHROUGH) as (overlay, base):
        overlay.write(BLOCK, NEW)
        asked = []
        base.prefetch = lambda offset, length: asked.append(offset)
        overlay.cache_noted(*overlay.note(0, len(BASE)), lambda: not asked)
        assert asked == [0]
