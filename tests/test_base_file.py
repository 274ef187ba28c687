"""Files and block devices as a base.  What every base must do is in test_base_suite.py."""

import errno
import os
import socket
import subprocess

import pytest
from servers import need, refuse

from impl.base.file import FileBase
from impl.base.pattern import pattern
from impl.errors import StartError
from impl.extents import Extent

DATA_AT = 1024 * 1024
SPARSE_SIZE = 4 * 1024 * 1024


@pytest.fixture
def disk(tmp_path):
    """A file of 100,001 bytes of pattern 0."""
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(0, 0, 100_001))
    return path


@pytest.fixture
def base(disk):
    base = FileBase(disk)
    yield base
    base.close()


@pytest.fixture
def sparse(tmp_path):
    """A file with 64 KiB of data at DATA_AT, and a hole before and after it."""
    path = tmp_path / "sparse.img"
    with open(path, "wb") as file:
        file.seek(DATA_AT)
        file.write(b"\xff" * 65536)
        file.truncate(SPARSE_SIZE)
    fd = os.open(path, os.O_RDONLY)
    try:
        if os.lseek(fd, 0, os.SEEK_DATA) != DATA_AT:
            refuse(f"{tmp_path} is on a file system without holes: set TMPDIR to a folder on ext4, xfs, btrfs or tmpfs")
    finally:
        os.close(fd)
    base = FileBase(path)
    yield base
    base.close()


# What is served, and what is not.


def test_a_file_is_served_as_long_as_it_is(base):
    assert base.size == 100_001
    assert base.description == "disk.img, 100001"
    assert base.cache_mode == "passthrough"


def test_the_descriptor_cannot_write_and_is_not_inherited(base):
    with pytest.raises(OSError) as refusal:
        os.write(base.fileno(), b"x")
    assert refusal.value.errno == errno.EBADF
    assert not os.get_inheritable(base.fileno())
    assert os.get_blocking(base.fileno())


def test_clients_are_told_the_name_of_the_file_but_not_where_it_is(tmp_path):
    path = os.fsencode(tmp_path) + b"/two\nlines \xff.img"
    with open(path, "wb") as file:
        file.write(b"x")
    base = FileBase(os.fsdecode(path))
    assert base.description == "two?lines ?.img, 1"
    base.close()


def refusal(path):
    with pytest.raises(StartError) as error:
        FileBase(path)
    message = str(error.value)
    assert repr(os.fspath(path)) in message
    assert "\n" not in message
    return message


def test_a_missing_file_is_refused(tmp_path):
    assert "No such file or directory" in refusal(tmp_path / "absent\n.img")


def test_a_name_no_file_can_have_is_refused():
    assert "null byte" in refusal("a\0b")


def test_a_directory_is_refused(tmp_path):
    assert "it is a directory, expected a regular file or a block device" in refusal(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    assert "it is empty, expected at least 1 byte" in refusal(tmp_path / "empty")


def test_a_named_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "it is a named pipe" in refusal(tmp_path / "pipe")


def test_a_named_pipe_put_there_at_the_last_moment_is_refused_without_waiting_too(tmp_path, disk, monkeypatch):
    as_it_was = os.stat(disk)
    os.mkfifo(tmp_path / "pipe")
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda name: as_it_was)
        message = refusal(tmp_path / "pipe")
    assert "it is a named pipe" in message


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # The path of a socket may not be long.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert "it is a socket" in refusal("socket")


def test_a_character_device_is_refused():
    assert "it is a character device" in refusal("/dev/null")


def test_a_file_that_may_not_be_read_is_refused(disk):
    disk.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything.
    try:
        assert "Permission denied" in refusal(disk)
    finally:
        os.seteuid(user)


def test_a_refused_file_leaves_no_descriptor_behind(tmp_path):
    (tmp_path / "empty").touch()
    before = os.listdir("/proc/self/fd")
    refusal(tmp_path / "empty")
    assert os.listdir("/proc/self/fd") == before


def test_closing_twice_does_not_close_what_got_the_number_since(disk):
    base = FileBase(disk)
    number = base.fileno()
    base.close()
    reused = os.open(disk, os.O_RDONLY)
    assert reused == number
    base.close()
    os.close(reused)


def test_a_block_device_is_served(disk):
    losetup = need("losetup", package="mount")
    os.truncate(disk, 64 * 1024)
    attached = subprocess.run(
        [losetup, "--read-only", "--find", "--show", disk], capture_output=True, text=True, check=False
    )
    if attached.returncode != 0:
        refuse(f"no loop device can be made: run the tests as root, where that is allowed ({attached.stderr.strip()})")
    device = attached.stdout.strip()
    try:
        base = FileBase(device)
        assert base.size == 64 * 1024
        assert base.pread(1, 65534) == pattern(0, 1, 65534)
        assert list(base.extents(0, 65536)) == [Extent(65536, hole=False, zero=False)]
        base.close()
    finally:
        subprocess.run([losetup, "--detach", device], check=True)


# Reading.


def test_short_reads_of_the_kernel_are_continued(base, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 999), offset))
    assert base.pread(3, 99_998) == pattern(0, 3, 99_998)


def test_a_file_that_became_shorter_is_an_io_error_that_says_so(base, disk):
    os.truncate(disk, 5000)
    assert base.pread(4000, 1000) == pattern(0, 4000, 1000)
    with pytest.raises(OSError, match="ends at byte 5000, expected 100001") as error:
        base.pread(4000, 1001)
    assert error.value.errno == errno.EIO
    with pytest.raises(OSError, match="became shorter"):
        base.pread(100_000, 1)


def test_reading_past_the_end_is_a_bug_of_the_caller(base):
    with pytest.raises(AssertionError):
        base.pread(100_000, 2)


# Extents.


def test_holes_are_found(sparse):
    assert list(sparse.extents(0, SPARSE_SIZE)) == [
        Extent(DATA_AT, hole=True, zero=True),
        Extent(65536, hole=False, zero=False),
        Extent(SPARSE_SIZE - DATA_AT - 65536, hole=True, zero=True),
    ]


def test_extents_are_cut_to_the_range_asked_for(sparse):
    assert list(sparse.extents(DATA_AT - 10, 11)) == [Extent(10, True, True), Extent(1, False, False)]
    assert list(sparse.extents(DATA_AT + 5, 7)) == [Extent(7, False, False)]
    assert list(sparse.extents(SPARSE_SIZE - 1, 1)) == [Extent(1, True, True)]


def test_extents_are_looked_up_only_as_far_as_they_are_asked_for(sparse, monkeypatch):
    calls = []
    lseek = os.lseek
    monkeypatch.setattr(os, "lseek", lambda *arguments: calls.append(arguments) or lseek(*arguments))
    extents = sparse.extents(0, SPARSE_SIZE)
    assert calls == []
    next(extents)
    assert len(calls) == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO], ids=errno.errorcode.get)
def test_where_the_file_system_does_not_know_everything_is_data(sparse, monkeypatch, code):
    def cannot(fd, offset, whence):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "lseek", cannot)
    assert list(sparse.extents(100, 2000)) == [Extent(2000, hole=False, zero=False)]


def test_what_was_cut_off_is_not_reported_as_zeroes(sparse, tmp_path):
    """A read of it fails; a client that skips zeroes must not take the loss for a hole."""
    os.truncate(tmp_path / "sparse.img", 2 * DATA_AT)
    assert list(sparse.extents(2 * DATA_AT - 8, 16)) == [Extent(16, hole=False, zero=False)]
    assert list(sparse.extents(2 * DATA_AT - 8, 8)) == [Extent(8, hole=True, zero=True)]


# Hints.


@pytest.mark.parametrize(
    ("offset", "length", "probes"),
    [
        (0, 1, [0]),
        (10, 4000, [10, 4009]),
        (4095, 2, [4095, 4096]),
        (0, 131072, [0, 131071]),
        (0, 131073, [0, 65536, 131072]),
    ],
)
def test_readiness_is_asked_of_both_ends_and_of_the_middle_of_a_long_range(base, monkeypatch, offset, length, probes):
    asked = []

    def preadv(fd, buffers, offset, flags):
        asked.append(offset)
        assert flags == os.RWF_NOWAIT
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    assert base.is_ready(offset, length)
    assert sorted(asked) == probes


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO], ids=errno.errorcode.get)
def test_a_range_whose_last_page_would_wait_or_cannot_say_is_not_ready(base, monkeypatch, code):
    def preadv(fd, buffers, offset, flags):
        if offset >= 65535:
            raise OSError(code, os.strerror(code))
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    assert base.is_ready(0, 65535)
    assert not base.is_ready(0, 65536)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO], ids=errno.errorcode.get)
def test_what_would_wait_or_fails_is_not_read_at_once(base, monkeypatch, code):
    def preadv(fd, buffers, offset, flags):
        assert flags == os.RWF_NOWAIT
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", preadv)
    assert base.pread_at_once(0, 4096) is None


def test_what_is_in_memory_in_part_only_is_not_read_at_once(base, monkeypatch):
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset, flags: 4095)
    assert base.pread_at_once(0, 4096) is None


def test_prefetch_covers_the_range_in_windows_that_the_kernel_honours(base, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: asked.append((offset, length)))
    base.prefetch(1000, 300_000)
    assert asked == [(1000, 131072), (132072, 131072), (263144, 37856)]


def test_prefetch_of_a_huge_range_is_bounded(base, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: asked.append(length))
    base.prefetch(0, 2**62)
    assert sum(asked) == 32 * 1024 * 1024
