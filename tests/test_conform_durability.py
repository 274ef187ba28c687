"""The kit on what has to outlive a server: it is killed, started again, and asked."""

import os
import shlex
import sys
from pathlib import Path

import pytest
from conform_servers import failed
from servers import need

from check.conform.rule import RULES, NotApplicable, Verdict
from check.conform.run import chosen, run
from check.conform.subject import Settings, started
from check.conform.trace import File, in_hex, opened_synced, traced, unsynced
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
    "keeps a file that syncs": Verdict.PASS,
    "opens a file that syncs": Verdict.PASS,
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


def test_a_server_that_cannot_be_found_is_not_judged():
    need("strace", "strace")
    with started(command("none").replace("exec ", "exec env -u unixsocket ")) as subject:
        (result,) = run([RULES["durability/flush-sync"]], lambda: subject, lambda _: None)
    assert (result.verdict, "processes are not found" in result.detail) == (Verdict.NOT_APPLICABLE, True)


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
DATA = f'"{in_hex(MARK * 2)}"'
DISK, OTHER, SOCKET = (f"9<{in_hex(path)}>" for path in (b"/d", b"/e", b"socket:[7]"))
GONE, MEMORY = (f"9<{in_hex(path)}>" for path in (b"/d (deleted)", b"/memfd:x (deleted)"))
WRITE = f"1 pwrite64({DISK}, {DATA}, 16, 0) = 16"
BEGIN = f"1 fsync({DISK} <unfinished ...>"
NO_DISK = [f"1 write({SOCKET}, {DATA}, 16) = 16", f"1 write({MEMORY}, {DATA}, 16) = 16"]
SYSTEM_CALLS = [  # (claim, what strace says, where it is written and not synced; "": synced; None: nobody can tell)
    ("nothing is written", [], None),
    ("written, and no more", [WRITE], "/d"),
    ("written and synced", [WRITE, f"2 fdatasync({DISK}) = 0"], ""),
    ("synced and written", [f"1 fsync({DISK}) = 0", WRITE], "/d"),
    ("synced by another name", [WRITE, f"1 fsync({OTHER}) = 0"], ""),
    ("the sync fails", [WRITE, f"1 fsync({DISK}) = -1 EIO (Input/output error)"], "/d"),
    ("the sync is still going on", [WRITE, BEGIN], "/d"),
    ("the sync takes long", [WRITE, BEGIN, "1 <... fsync resumed>) = 0"], ""),
    ("another thread's call ends", [WRITE, BEGIN, "2 <... write resumed>) = 5"], "/d"),
    ("the sync began before", [BEGIN.replace("1 ", "2 ", 1), WRITE, "2 <... fsync resumed>) = 0"], "/d"),
    ("all is synced", [WRITE, "1 sync() = 0"], ""),
    ("its file system is synced", [WRITE, f"1 syncfs({OTHER}) = 0"], ""),
    ("memory is synced", [WRITE, "1 msync(0x7f0000000000, 4096, MS_SYNC) = 0"], ""),
    ("memory will be synced", [WRITE, "1 msync(0x7f0000000000, 4096, MS_ASYNC) = 0"], "/d"),
    ("a range is flushed", [WRITE, f"1 sync_file_range({DISK}, 0, 16, 7) = 0"], "/d"),
    ("written to be synced at once", [f"1 pwritev2({DISK}, [{DATA}], 1, 0, RWF_HIPRI|RWF_DSYNC) = 16"], ""),
    ("written to be quick", [f"1 pwritev2({DISK}, [{DATA}], 1, 0, RWF_HIPRI) = 16"], "/d"),
    ("a file that is opened so", [f'1 openat(AT_FDCWD, "", O_RDWR|O_DSYNC) = {DISK}', WRITE], ""),
    ("so, by and by", ["1 open( O_SYNC <unfinished ...>", f"1 <... open resumed>) = {DISK}", WRITE], ""),
    ("one that may have a new name", [f'1 openat(AT_FDCWD, "", O_RDWR|O_DSYNC) = {OTHER}', WRITE], None),
    ("a file that is opened otherwise", [f'1 openat(AT_FDCWD, "", O_RDWR) = {DISK}', WRITE], "/d"),
    ("half of it", [f'1 write({DISK}, "{in_hex(MARK)}", 8) = 8'], None),
    ("a half and a half", [f'1 write({DISK}, "{in_hex(MARK)}", 8) = 8'] * 2, "/d"),
    ("halves, each of them synced", [f'1 write({DISK}, "{in_hex(MARK)}", 8) = 8', "1 sync() = 0"] * 2, ""),
    ("a half behind the sync", [f'1 write({DISK}, "{in_hex(MARK)}", 8) = 8', "1 sync() = 0", WRITE], "/d"),
    ("written to what is no disk", NO_DISK, None),
    ("a log, and notes about it", [f'1 write({OTHER}, "\\x6c", 1) = 1', f'1 write({DISK}, "\\x6c", 1) = 1'], None),
    ("a note behind the sync", [WRITE, f"1 fsync({DISK}) = 0", f'1 write({DISK}, "\\x6c", 1) = 1'], ""),
    ("a file that is gone", [WRITE.replace(DISK, GONE)], "/d"),
    ("signals, ends and nonsense", ["1 +++ exited with 0 +++", "", "strace: what"], None),
]


@pytest.mark.parametrize(("claim", "lines", "expected"), SYSTEM_CALLS, ids=[case[0] for case in SYSTEM_CALLS])
def test_what_reaches_the_disk_is_read_off_the_calls(claim, lines, expected):
    assert unsynced(lines, MARK, 16) == expected


def test_in_a_file_that_was_open_so_before_all_is_synced_at_once():
    assert unsynced([WRITE], MARK, 16, {File(9, "/d")}) == ""
    assert unsynced([WRITE], MARK, 16, {File(9, "/e")}) is None, "which may have been the name of this one"
    assert unsynced([WRITE], MARK, 16, {File(8, "/d")}) is None, "of which this may be a copy"


@pytest.mark.parametrize(("flags", "expected"), [(0, False), (os.O_DSYNC, True), (os.O_SYNC, True)])
def test_a_file_may_be_open_so_that_each_write_is_synced(flags, expected, tmp_path):
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | flags)
    try:
        file = File(descriptor, str(path))
        assert (file in opened_synced([os.getpid()])) is expected
        path.unlink()
        assert (file in opened_synced([os.getpid()])) is expected
    finally:
        os.close(descriptor)
    assert file not in opened_synced([os.getpid()])


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
