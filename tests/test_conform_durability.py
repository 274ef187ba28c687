"""The kit on what has to outlive a server: it is killed, started again, and asked."""

import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conform_servers import failed
from servers import nbdkit_serving, need

from check.conform.rule import RULES, NotApplicable, Verdict
from check.conform.run import chosen, run
from check.conform.subject import Settings, started
from check.conform.trace import Seen, Trace, in_hex, may_sync_unseen, seen, traced, who_has
from impl.client.uri import Target

TESTS = Path(__file__).parent
DURABILITY = chosen(["durability"])
CLAIMED = frozenset({"persistent"})


def command(fault):
    """How a server with a fault is started."""
    script = shlex.join([sys.executable, str(TESTS / "persistent_server.py")])
    return f"PYTHONPATH={shlex.quote(str(TESTS.parent))} exec {script} $unixsocket $overlay {shlex.quote(fault)}"


def verdicts(subject):
    """What comes of each rule."""
    return {result.rule.name: result.verdict for result in run(DURABILITY, lambda: subject, lambda _: None)}


def test_a_server_that_saves_what_it_should_passes():
    need("strace", "strace")
    with started(command("none"), settings=Settings(claims=CLAIMED)) as subject:
        assert set(verdicts(subject).values()) == {Verdict.PASS}


FAULTS = {
    "ignores flushes": {"durability/flush", "durability/multi-conn"},
    "ignores FUA": {"durability/fua"},
    "flushes its own": {"durability/multi-conn"},
    "does not sync flushes": {"durability/flush-sync"},
    "does not sync FUA": {"durability/fua-sync"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_forgets_is_found_out_by_what_it_forgets(fault):
    need("strace", "strace")
    with started(command(fault)) as subject:
        assert set(failed(subject, DURABILITY)) == FAULTS[fault]


def test_whoever_keeps_nothing_breaks_only_what_is_claimed():
    need("nbdkit", "nbdkit")
    with started("exec nbdkit -f -U $unixsocket memory 1M") as subject:
        assert set(verdicts(subject).values()) == {Verdict.NOT_APPLICABLE}
    with started(command("keeps nothing"), settings=Settings(claims=CLAIMED)) as subject:
        assert "durability/persistent" in failed(subject, [RULES["durability/persistent"]])


HONEST = {  # how a server may see to it that what it saves reaches the disk, and what can be said of it
    "keeps a file that syncs": Verdict.NOT_APPLICABLE,
    "opens a file that syncs": Verdict.NOT_APPLICABLE,
    "syncs what has a new name": Verdict.PASS,
    "maps its disk": Verdict.NOT_APPLICABLE,
    "makes a note behind it": Verdict.PASS,
}


@pytest.mark.parametrize("way", HONEST)
def test_nobody_is_blamed_who_syncs_in_another_way(way):
    need("strace", "strace")
    with started(command(way)) as subject:
        found = verdicts(subject)
    assert [found["durability/flush-sync"], found["durability/fua-sync"]] == [HONEST[way]] * 2
    assert Verdict.FAIL not in found.values()


def test_a_server_that_leaves_nothing_in_its_environment_is_found_all_the_same():
    need("strace", "strace")
    faulty = command("does not sync FUA").replace("exec ", "exec env -u unixsocket ")
    with started(faulty) as subject:
        assert set(failed(subject, [RULES["durability/fua-sync"]])) == {"durability/fua-sync"}


def test_whoever_cannot_be_found_is_not_judged(tmp_path):
    with pytest.raises(NotApplicable, match="processes are not found"):
        with traced([], tmp_path):
            pass


def test_nobody_is_blamed_for_a_file_that_is_no_disk_of_theirs(short_path):
    """nbdkit's cache writes to a file of its own, and passes on what it is asked to flush."""
    need("strace", "strace")
    upstream = short_path / "s"
    with nbdkit_serving(upstream):
        proxy = f"exec nbdkit -f -U $unixsocket --filter=cache nbd socket={upstream} cache=writethrough"
        with started(proxy) as subject:
            found = verdicts(subject)
    assert found["durability/flush"] is Verdict.PASS
    assert [found["durability/flush-sync"], found["durability/fua-sync"]] == [Verdict.NOT_APPLICABLE] * 2


NBD_SERVER = """\
printf '[generic]\\nunixsock = %s\\n[disk]\\nexportname = %s\\nflush = true\\nfua = true\\n' "$unixsocket" "$base" \
  > "$TMPDIR/config"; exec nbd-server -C "$TMPDIR/config" -p "$pidfile"
"""


def test_a_server_in_the_background_is_killed_by_its_number():
    need("nbd-server", "nbd-server")
    with started(NBD_SERVER, Target("disk")) as subject:
        assert verdicts(subject)["durability/flush"] is Verdict.PASS


# What is seen of a server's system calls.

MARK = b"markmark"
DATA, HALF = f'"{in_hex(MARK * 2)}"', f'"{in_hex(MARK)}"'
DISK, OTHER, SOCKET, MEMORY = (f"9<{in_hex(path)}>" for path in (b"/d", b"/e", b"socket:[7]", b"/memfd:x"))
GONE = (f"9<{in_hex(b'/d (deleted)')}>", f"{DISK}(deleted)")
WRITE = f"1 pwrite64({DISK}, {DATA}, 16, 0) = 16"
BEGIN = f"1 fsync({DISK} <unfinished ...>"
SYNCED, UNSYNCED, UNKNOWN = Seen.SYNCED, Seen.UNSYNCED, Seen.UNKNOWN
SYSTEM_CALLS = [  # (claim, what strace says, what it comes to)
    ("nothing is written", [], UNKNOWN),
    ("written, and no more", [WRITE], UNSYNCED),
    ("written by and by", [f"1 write({DISK}, {DATA}, 16 <unfinished ...>", "1 <... write resumed>) = 16"], UNSYNCED),
    ("written by half", [f"1 write({DISK}, {HALF}, 8) = 8"], UNKNOWN),
    ("written in halves", [f"1 write({DISK}, {HALF}, 8) = 8"] * 2, UNSYNCED),
    ("still being written", [f"1 write({DISK}, {DATA}, 16 <unfinished ...>"], UNKNOWN),
    ("not written for want of room", [f"1 write({DISK}, {DATA}, 16) = -1 ENOSPC (No space left on device)"], UNKNOWN),
    ("written and synced", [WRITE, f"2 fdatasync({DISK}) = 0"], SYNCED),
    ("synced by another name", [WRITE, f"1 fsync({OTHER}) = 0"], SYNCED),
    ("synced and written", [f"1 fsync({DISK}) = 0", WRITE], UNKNOWN),
    ("half of it behind the sync", [f"1 write({DISK}, {HALF}, 8) = 8", "1 sync() = 0"] * 2, SYNCED),
    ("the sync fails", [WRITE, f"1 fsync({DISK}) = -1 EIO (Input/output error)"], UNKNOWN),
    ("the sync is still going on", [WRITE, BEGIN], UNKNOWN),
    ("the sync takes long", [WRITE, BEGIN, "1 <... fsync resumed>) = 0"], SYNCED),
    ("another thread's call ends", [WRITE, BEGIN, "2 <... write resumed>) = 5"], UNKNOWN),
    ("the sync began before", [BEGIN.replace("1 ", "2 ", 1), WRITE, "2 <... fsync resumed>) = 0"], UNKNOWN),
    ("all is synced", [WRITE, "1 sync() = 0"], SYNCED),
    ("its file system is synced", [WRITE, f"1 syncfs({OTHER}) = 0"], SYNCED),
    ("memory is synced", [WRITE, "1 msync(0x7f0000000000, 4096, MS_SYNC) = 0"], SYNCED),
    ("memory will be synced", [WRITE, "1 msync(0x7f0000000000, 4096, MS_ASYNC) = 0"], UNSYNCED),
    ("a range is flushed", [WRITE, f"1 sync_file_range({DISK}, 0, 16, 7) = 0"], UNSYNCED),
    ("written to be synced at once", [f"1 pwritev2({DISK}, [{DATA}], 1, 0, RWF_HIPRI|RWF_DSYNC) = 16"], SYNCED),
    ("so in halves", [f"1 pwritev2({DISK}, [{HALF}], 1, 0, RWF_SYNC) = 8"] * 2, SYNCED),
    ("written to be quick", [f"1 pwritev2({DISK}, [{DATA}], 1, 0, RWF_HIPRI) = 16"], UNSYNCED),
    ("a file is opened so", [f'1 openat(AT_FDCWD, "", O_RDWR|O_DSYNC) = {OTHER}', WRITE], UNKNOWN),
    ("a file is opened otherwise", [f'1 openat(AT_FDCWD, "", O_RDWR) = {DISK}', WRITE], UNSYNCED),
    ("synced by others", [WRITE, "1 io_submit(0x7f0000000000, 1, [{}]) = 1"], UNKNOWN),
    ("a ring is entered", [WRITE, "1 io_uring_enter(5, 1, 0, 0, NULL, 8) = 1"], UNKNOWN),
    ("a disk is flushed", [WRITE, f"1 ioctl({DISK}, BLKFLSBUF, 0) = 0"], UNKNOWN),
    ("something else is asked of it", [WRITE, f"1 ioctl({DISK}, BLKGETSIZE64, [16]) = 0"], UNSYNCED),
    ("written to a socket", [f"1 write({SOCKET}, {DATA}, 16) = 16"], UNKNOWN),
    ("written to memory", [f"1 write({MEMORY}, {DATA}, 16) = 16"], UNKNOWN),
    ("written to a file without a name", [f"1 write({GONE[0]}, {DATA}, 16) = 16"], UNKNOWN),
    ("the same, as strace says it", [f"1 write({GONE[1]}, {DATA}, 16) = 16"], UNKNOWN),
    ("a log", [f'1 write({OTHER}, "\\x6c", 1) = 1'], UNKNOWN),
    ("a note behind the sync", [WRITE, f"1 fsync({DISK}) = 0", f'1 write({DISK}, "\\x6c", 1) = 1'], SYNCED),
    ("signals, ends and nonsense", ["1 +++ exited with 0 +++", "", "strace: what"], UNKNOWN),
]


@pytest.mark.parametrize(("claim", "lines", "expected"), SYSTEM_CALLS, ids=[case[0] for case in SYSTEM_CALLS])
def test_what_reaches_the_disk_is_read_off_the_calls(claim, lines, expected):
    assert seen(lines, MARK, 16) is expected


@pytest.mark.parametrize(("flags", "expected"), [(0, False), (os.O_DSYNC, True), (os.O_SYNC, True)])
def test_a_file_may_be_open_so_that_each_write_is_synced(flags, expected, tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY | flags)
    try:
        assert may_sync_unseen(os.getpid()) is expected
    finally:
        os.close(descriptor)
    assert not may_sync_unseen(os.getpid())


def test_who_has_a_file_open_is_found(tmp_path):
    path = tmp_path / "file"
    assert who_has(path) == []
    with path.open("w"):
        assert who_has(path) == [os.getpid()]


def test_a_file_that_others_have_open_may_be_synced_by_them(tmp_path):
    path = tmp_path / "file"
    trace = Trace(SimpleNamespace(pid=2**22 - 1), tmp_path / "calls")
    path.write_bytes(b"")
    assert trace.doubts(path, []) == []
    with path.open("w"):
        (doubt,) = trace.doubts(path, [])
    assert "strace does not see" in doubt


def test_without_strace_or_its_leave_nobody_is_judged(tmp_path, monkeypatch):
    need("strace", "strace")
    with pytest.raises(NotApplicable, match=r"strace does not see the server: .*No such process"):
        with traced([2**22 - 1], tmp_path):
            pass
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "strace").write_text("no program", encoding="utf-8")
    (programs / "strace").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(NotApplicable, match="strace cannot be run: Exec format error"):
        with traced([1], tmp_path):
            pass
    (programs / "strace").unlink()
    with pytest.raises(NotApplicable, match="install the Debian package strace"):
        with traced([1], tmp_path):
            pass


def test_of_other_peoples_servers_it_finds_those_that_do_not_sync(tmp_path):
    need("qemu-nbd", "qemu-utils")
    need("strace", "strace")
    expected = {"writeback": set(), "writethrough": set(), "unsafe": {"durability/flush-sync", "durability/fua-sync"}}
    for cache, fails in expected.items():
        with started(f"exec qemu-nbd -t -e 64 -f raw --cache={cache} -k $unixsocket $base") as subject:
            assert set(failed(subject, DURABILITY)) == fails, cache
