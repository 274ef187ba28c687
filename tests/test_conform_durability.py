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
from check.conform.trace import is_opened_synced, seen, traced
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


NBD_SERVER = """\
printf '[generic]\\nunixsock = %s\\n[disk]\\nexportname = %s\\nflush = true\\nfua = true\\n' "$unixsocket" "$base" \
  > "$TMPDIR/config"; exec nbd-server -C "$TMPDIR/config" -p "$pidfile"
"""


def test_a_server_in_the_background_is_killed_by_its_number():
    need("nbd-server", "nbd-server")
    with started(NBD_SERVER, Target("disk")) as subject:
        assert verdicts(subject)["durability/flush"] is Verdict.PASS


# What is seen of a server's system calls.

WRITE = "1 write(9</d>, .., 5) = 5"
SYSTEM_CALLS = [  # (claim, what strace says, the files that are synced, those that are not)
    ("nothing is written", [], set(), set()),
    ("written, and no more", [WRITE], set(), {"/d"}),
    ("written and synced", ["1 pwrite64(9</d>, .., 5, 0) = 5", "2 fdatasync(8</d>) = 0"], {"/d"}, set()),
    ("synced and written", ["1 fsync(9</d>) = 0", WRITE], set(), {"/d"}),
    ("another is synced", [WRITE, "1 fsync(7</e>) = 0"], set(), {"/d"}),
    ("the sync fails", [WRITE, "1 fsync(9</d>) = -1 EIO (Input/output error)"], set(), {"/d"}),
    ("the sync is still going on", [WRITE, "1 fsync(9</d> <unfinished ...>"], set(), {"/d"}),
    ("the sync takes long", [WRITE, "1 fsync(9</d> <unfinished ...>", "1 <... fsync resumed>) = 0"], {"/d"}, set()),
    ("another call ends", [WRITE, "1 fsync(9</d> <unfinished ...>", "2 <... write resumed>) = 5"], set(), {"/d"}),
    (
        "more is written while it is synced",
        [WRITE, "1 fsync(9</d> <unfinished ...>", "2 write(9</d>, .., 5) = 5", "1 <... fsync resumed>) = 0"],
        *(set(), {"/d"}),
    ),
    ("all is synced", [WRITE, "1 sync() = 0"], {"/d"}, set()),
    ("its file system is synced", [WRITE, "1 syncfs(3</>) = 0"], {"/d"}, set()),
    ("written to be synced at once", ["1 pwritev2(9</d>, [], 1, 0, RWF_HIPRI|RWF_DSYNC) = 5"], {"/d"}, set()),
    ("written to be quick at once", ["1 pwritev2(9</d>, [], 1, 0, RWF_HIPRI) = 5"], set(), {"/d"}),
    ("copied from another file", ["1 copy_file_range(3</e>, [0], 9</d>, [0], 5, 0) = 5"], set(), {"/d"}),
    ("sent from another file", ["1 sendfile(9</d>, 3</e>, NULL, 5) = 5"], set(), {"/d"}),
    ("zeroed", ["1 fallocate(9</d>, 0x10, 0, 5) = 0"], set(), {"/d"}),
    (
        "written to sockets and pipes",
        ["1 write(8<socket:[7]>, .., 9) = 9", "1 write(5<pipe:[8]>, .., 1) = 1"],
        *[set()] * 2,
    ),
    ("written to nowhere", ["1 write(1</dev/null>, .., 9) = 9"], set(), set()),
    ("written to memory", ["1 pwrite64(9</memfd:cow> (deleted), .., 9, 0) = 9"], set(), set()),
    ("a log beside the disk", ["1 write(4</log>, .., 9) = 9", WRITE, "1 fsync(9</d>) = 0"], {"/d"}, {"/log"}),
    ("a file that is gone", ["1 write(9</#7> (deleted), .., 5) = 5", "1 fsync(9</#7> (deleted)) = 0"], {"/#7"}, set()),
    ("signals, ends and nonsense", ["1 +++ exited with 0 +++", "", "strace: what"], set(), set()),
]


@pytest.mark.parametrize(("claim", "lines", "synced", "unsynced"), SYSTEM_CALLS, ids=[case[0] for case in SYSTEM_CALLS])
def test_what_reaches_the_disk_is_read_off_the_calls(claim, lines, synced, unsynced):
    found = seen(lines)
    assert (found.synced, found.unsynced) == (synced, unsynced)


def test_a_server_that_maps_its_disk_is_seen_to_sync_and_to_write_nothing():
    found = seen(["1 msync(0x7f0000000000, 4096, MS_SYNC) = 0"])
    assert (found.written, found.has_synced) == ({}, True)


@pytest.mark.parametrize(("flags", "expected"), [(0, False), (os.O_DSYNC, True), (os.O_SYNC, True)])
def test_a_file_may_be_opened_so_that_each_write_is_synced(flags, expected, tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY | flags)
    try:
        assert is_opened_synced(os.getpid(), descriptor) is expected
    finally:
        os.close(descriptor)
    assert not is_opened_synced(os.getpid(), descriptor)


def test_without_strace_or_its_leave_nobody_is_judged(tmp_path, monkeypatch):
    need("strace", "strace")
    with pytest.raises(NotApplicable, match=r"strace does not see the server: .*No such process"):
        with traced([2**22 - 1], tmp_path):
            pass
    monkeypatch.setenv("PATH", str(tmp_path))
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
