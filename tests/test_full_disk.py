"""What happens when the overlay's disk is full, and that trims give space back.

Source:  NBD protocol, "Error values"; promise P7; docs of --overlay-reserve.
Units:   the full disk holds 8 MiB, the device 64 MiB, a block 64 KiB.
"""

import errno
import os
import subprocess

import pytest
from servers import BLOCK, KIB, MIB, ROOT, SERVER, START_LIMIT_S, eventually

from impl.base.pattern import pattern
from impl.client import NbdError, connect

pytestmark = pytest.mark.timeout(120)

BASE = "pattern:64M"
BLOCK_COUNT = 64 * MIB // BLOCK
STOPPED, COULD_NOT_SERVE = 0, 1


def base_block(block):
    return pattern(0, block * BLOCK, BLOCK)


def own_block(block):
    """What the tests write: another disk's pattern, so that a mixture is seen."""
    return pattern(1, block * BLOCK, BLOCK)


def fill(client, write, count=BLOCK_COUNT):
    """Call write(block) for one block after the other until the disk is full; the number of those that succeeded."""
    for block in range(count):
        try:
            write(block)
        except NbdError as error:
            assert error.errno == errno.ENOSPC, error
            return block
    raise AssertionError(f"{count} blocks were written to a disk of 8 MiB")


def test_a_full_disk_is_told_and_what_was_acknowledged_stays(serve, small_disk):
    server = serve(BASE, env={"TMPDIR": str(small_disk)})
    with connect(server.uri) as client:
        written = fill(client, lambda block: client.pwrite(block * BLOCK, own_block(block)))
        assert 100 < written <= 128
        for block in range(written):
            assert client.pread(block * BLOCK, BLOCK) == own_block(block)
        for block in range(written, BLOCK_COUNT):
            assert client.pread(block * BLOCK, BLOCK) == base_block(block)
        # Blocks that have their space can be written still, whole and in part.
        for block in range(written):
            client.pwrite(block * BLOCK + 100, b"mine")
            client.pwrite(block * BLOCK, base_block(block))
        client.flush()
    with connect(server.uri) as other:
        assert other.pread(0, written * BLOCK) == pattern(0, 0, written * BLOCK)
    assert server.stop() == STOPPED


REQUESTS = {
    "a write of a block": lambda client, at: client.pwrite(at, b"\xee" * BLOCK),
    "a write of part of a block": lambda client, at: client.pwrite(at + 100, b"\xee" * 100),
    "a write across blocks": lambda client, at: client.pwrite(at + 100, b"\xee" * 4 * BLOCK),
    "zeroes with space": lambda client, at: client.zero(at, 8 * BLOCK, no_hole=True),
    "zeroes of part of a block": lambda client, at: client.zero(at + 100, 100),
    "a trim of part of a block": lambda client, at: client.trim(at + 100, 100),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_that_finds_the_disk_full_has_changed_nothing_or_whole_blocks(serve, small_disk, what):
    """Whether it succeeds, too: then it has changed all of it. And once there is space, it does succeed."""
    server = serve(BASE, env={"TMPDIR": str(small_disk)})
    with connect(server.uri) as client:
        full = fill(client, lambda block: client.pwrite(block * BLOCK, own_block(block)))
        at = (full + 10) * BLOCK
        before = client.pread(at, 8 * BLOCK)
        assert before == pattern(0, at, 8 * BLOCK)
        with pytest.raises(NbdError) as failed:
            REQUESTS[what](client, at)
        assert failed.value.errno == errno.ENOSPC
        after_failure = client.pread(at, 8 * BLOCK)
        client.trim(0, 32 * BLOCK)
        REQUESTS[what](client, at)
        after_success = client.pread(at, 8 * BLOCK)
        assert after_success != before
        for start in range(0, 8 * BLOCK, BLOCK):
            found = after_failure[start : start + BLOCK]
            assert found in (before[start : start + BLOCK], after_success[start : start + BLOCK])
        assert client.pread(32 * BLOCK, (full - 32) * BLOCK) == pattern(1, 32 * BLOCK, (full - 32) * BLOCK)
    assert server.stop() == STOPPED


def test_a_trim_gives_a_full_disk_its_space_back(serve, small_disk):
    server = serve(BASE, env={"TMPDIR": str(small_disk)})
    with connect(server.uri) as client:
        full = fill(client, lambda block: client.pwrite(block * BLOCK, own_block(block)))
        for _ in range(3):
            client.trim(0, full * BLOCK)
            assert server.overlay_bytes() == 0
            assert client.pread(0, full * BLOCK) == bytes(full * BLOCK)
            assert fill(client, lambda block: client.pwrite(block * BLOCK, own_block(block))) == full
        client.zero(0, 16 * BLOCK)
        for block in range(200, 216):
            client.pwrite(block * BLOCK, own_block(block))
        assert client.pread(200 * BLOCK, 16 * BLOCK) == pattern(1, 200 * BLOCK, 16 * BLOCK)
        assert client.pread(16 * BLOCK, (full - 16) * BLOCK) == pattern(1, 16 * BLOCK, (full - 16) * BLOCK)
    assert server.stop() == STOPPED


def test_what_a_failed_request_took_of_a_full_disk_is_given_back(serve, small_disk):
    """A write of 4 MiB that fails half way leaves room for smaller ones."""
    server = serve(BASE, env={"TMPDIR": str(small_disk)})
    with connect(server.uri) as client:
        for block in range(96):
            client.pwrite(block * BLOCK, own_block(block))
        before = server.overlay_bytes()
        for _ in range(5):
            with pytest.raises(NbdError):
                client.pwrite(128 * BLOCK, b"x" * 4 * MIB)
            assert server.overlay_bytes() == before
        for block in range(200, 216):
            client.pwrite(block * BLOCK, own_block(block))
    assert server.stop() == STOPPED


@pytest.mark.parametrize("options", [["--cow-on-read", "on"], ["--cow-on-cache"]], ids=["read", "cache"])
def test_a_full_disk_does_not_keep_anybody_from_reading(serve, small_disk, options):
    """Who reads asked for no copy; who asked for one, with a cache request, may be told that there is no room."""
    server = serve(BASE, *options, env={"TMPDIR": str(small_disk)})
    with connect(server.uri) as client:
        for start in range(0, 64 * MIB, 4 * MIB):
            if "--cow-on-cache" in options:
                try:
                    client.cache(start, 4 * MIB)
                except NbdError as error:
                    assert error.errno == errno.ENOSPC, error
            assert client.pread(start, 4 * MIB) == pattern(0, start, 4 * MIB)
    assert server.stop() == STOPPED
    assert server.stderr.count("\n") < 60


def test_a_reserve_that_the_disk_does_not_have_is_refused_at_the_start(small_disk, short_path):
    command = [*SERVER, "-U", short_path / "s", "--overlay-reserve", BASE]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(small_disk)},
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (COULD_NOT_SERVE, 1), done.stderr
    assert f"cannot reserve 64M in {small_disk}: No space left" in done.stderr
    assert os.listdir(short_path) == ["disk"]
    assert os.listdir(small_disk) == []


def test_a_reserve_that_the_disk_has_is_never_short(serve, small_disk):
    """NBD: a write to what is reported as no hole must not fail for want of space. Trims keep what is reserved."""
    server = serve("pattern:6M", "--overlay-reserve", env={"TMPDIR": str(small_disk)})
    assert server.overlay_bytes() >= 6 * MIB
    rest = small_disk / "rest"
    with rest.open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(BLOCK))
    with connect(server.uri) as client:
        for _ in range(2):
            for start in range(0, 6 * MIB, BLOCK):
                client.pwrite(start, pattern(1, start, BLOCK))
            assert client.pread(0, 6 * MIB) == pattern(1, 0, 6 * MIB)
            client.trim(0, 6 * MIB)
            assert client.pread(0, 6 * MIB) == bytes(6 * MIB)
    assert server.stop() == STOPPED


# On whatever disk the tests run


@pytest.mark.parametrize("give_back", ["trim", "zero"])
def test_the_space_of_whole_blocks_is_given_back(serve, give_back):
    server = serve(BASE)
    with connect(server.uri) as client:
        client.pwrite(MIB, pattern(1, MIB, 8 * MIB))
        client.pwrite(32 * MIB, b"kept")
        assert server.overlay_bytes() >= 8 * MIB
        getattr(client, give_back)(MIB, 8 * MIB)
        # What a file system notes down of a hole is its own; it is not much.
        eventually(lambda: server.overlay_bytes() < BLOCK + 128 * KIB, "the space has been given back")
        assert client.pread(MIB, 8 * MIB) == bytes(8 * MIB)
        assert client.pread(32 * MIB, 4) == b"kept"
        client.zero(MIB, 8 * MIB, no_hole=True)
        assert server.overlay_bytes() >= 8 * MIB
    assert server.stop() == STOPPED
