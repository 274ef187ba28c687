"""Whether what a server writes to its disk is synced before its reply: as strace(1) shows its system calls.

A power failure cannot be had for the asking. But what a process has not synced by any call the kernel need not have
written, and calls can be seen. This accuses, and so only where nothing else can be: data with a mark that nobody else
writes are all seen to be written by calls; from the request to the reply nothing whatever is synced; and no doubt is
left (`Trace.doubts`). What goes through mapped memory, io_uring or a pipe, or is compressed, is not judged.

Source:  fsync(2), msync(2), syncfs(2); pwritev2(2) for RWF_DSYNC; open(2) for O_DSYNC; proc(5); strace(1).
         sync_file_range(2) is no such call: under "Warning", it does not flush what the disk keeps to itself.
Units:   seconds.
Errors:  NotApplicable where strace is missing, may not look, or has ended; NoRoom.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from check.conform.room import kept_in
from check.conform.rule import NotApplicable

ATTACH_LIMIT_S = 15.0
POLL_S = 0.005
# As much of what is written is shown: more than a request with a mark has, with what a server may put before it.
SHOWN_BYTES = 128 << 10


class Seen(Enum):
    """What was seen from a request to its reply."""

    SYNCED = "all is written, and then synced"
    UNSYNCED = "all is written, and nothing is synced"
    UNKNOWN = "it may have been"


ALWAYS = re.compile("")
WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
SYNCS = {  # a call, and how it has to be called to be one that syncs
    **dict.fromkeys(("fsync", "fdatasync", "sync", "syncfs"), ALWAYS),
    "msync": re.compile(r"\bMS_SYNC\b"),
    "pwritev2": re.compile(r"\bRWF_D?SYNC\b"),
}
UNCLEAR = {  # calls that may have something synced which is not seen
    **dict.fromkeys(("open", "openat", "openat2"), re.compile(r"\bO_D?SYNC\b")),
    **dict.fromkeys(("io_submit", "io_uring_setup", "io_uring_enter"), ALWAYS),
    "ioctl": re.compile(r"\b(BLKFLSBUF|SG_IO|FS_IOC_\w*SET\w*)\b"),
}
CALLS = tuple(dict.fromkeys((*WRITES, *SYNCS, *UNCLEAR)))

LINE = re.compile(r"(?P<thread>\d+)\s+(?:(?P<call>\w+)\((?P<given>.*)|<\.\.\. \w+ resumed>(?P<rest>.*))$")
UNFINISHED = "<unfinished ...>"
DONE = re.compile(r"\) += (\d+)")
FILE = re.compile(r"^\d+<((?:\\x[0-9a-f]{2})+)>(?! *\(deleted\))")  # as the first argument
GONE = " (deleted)"  # a file without a name: nothing of it outlives the server
NO_DISK = ("/memfd:", "/dev/shm/", "/dev/null", "/dev/zero")


def in_hex(data: bytes) -> str:
    """As `strace -xx` shows it."""
    return "".join(f"\\x{byte:02x}" for byte in data)


def is_file(given: str) -> bool:
    """Whether a call's first argument is a file that may be on a disk, and not, say, a socket."""
    match = FILE.match(given)
    path = os.fsdecode(bytes.fromhex(match[1].replace("\\x", ""))) if match else ""
    return path.startswith("/") and not path.startswith(NO_DISK) and not path.endswith(GONE)


def seen(lines: Iterable[str], mark: bytes, length: int) -> Seen:
    """What lines of `strace -f -y -xx` come to, from a request to write `length` bytes made of a mark to the reply."""
    shown, written, is_clear = in_hex(mark), 0, True
    writing: set[str] = set()  # threads that write some of it
    syncing: dict[str, bool] = {}  # threads in a call that syncs: whether all was written when it began
    for line in lines:
        match = LINE.match(line)
        if match is None:
            continue
        thread, call, given = match["thread"], match["call"], match["given"]
        if call is not None:
            writing.discard(thread)
            syncing.pop(thread, None)
            if call in WRITES and shown in given and is_file(given):
                writing.add(thread)
            if call in SYNCS and SYNCS[call].search(given):
                is_clear = False
                syncing[thread] = written >= length or thread in writing
            if call in UNCLEAR and UNCLEAR[call].search(given):
                is_clear = False
        told = given if call is not None else match["rest"]
        done = None if told.endswith(UNFINISHED) else DONE.search(told)
        if done is not None and thread in writing:
            writing.discard(thread)
            written += int(done[1])
        if done is not None and syncing.pop(thread, False) and written >= length:
            return Seen.SYNCED
    return Seen.UNSYNCED if written >= length and is_clear else Seen.UNKNOWN


class Trace:
    """What is seen of a server from when it was attached to."""

    def __init__(self, tracer: subprocess.Popen[bytes], path: Path) -> None:
        self._tracer = tracer
        self._path = path
        self._read_bytes = 0

    def since_last(self, mark: bytes, length: int) -> Seen:
        """As `seen`, of all that was said until now, when a reply has just come, but not before the last look."""
        with kept_in(self._path.parent):
            size = self._path.stat().st_size
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                lines = file.read(size - self._read_bytes).decode("ascii", "replace").splitlines()
        self._read_bytes = size
        if self._tracer.poll() is not None:
            raise NotApplicable("strace has ended, so nobody has seen what is synced")
        return seen(lines, mark, length)

    def doubts(self, file: Path, processes: Iterable[int]) -> list[str]:
        """Why it may be on the disk for all that: each of them has to be ruled out before somebody is accused."""
        found = []
        if any(may_sync_unseen(process) for process in processes):
            found.append("it has an io_uring, or a file open with O_DSYNC")
        if any(not self._sees(process) for process in who_has(file)):
            found.append("a process has the file open that strace does not see")
        if os.statvfs(file).f_flag & os.ST_SYNCHRONOUS:
            found.append("the file system syncs all by itself")
        return found

    def _sees(self, process: int) -> bool:
        with suppress(OSError):
            status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
            return f"\nTracerPid:\t{self._tracer.pid}\n" in status
        return True  # it has just ended


@contextmanager
def traced(processes: Sequence[int], folder: Path) -> Iterator[Trace]:
    """Look at processes, their threads, and the children that they have from here on."""
    if not processes:
        raise NotApplicable("the server's processes are not found: it does not leave $unixsocket in their environment")
    strace = shutil.which("strace")
    if strace is None:
        raise NotApplicable("strace is missing, which sees what is synced: install the Debian package strace")
    path, said = folder / "calls", folder / "strace"
    attach = [option for process in processes for option in ("-p", str(process))]
    calls = ",".join(f"?{call}" for call in CALLS)
    how = ["-f", "-y", "-xx", "-s", str(SHOWN_BYTES), "-e", "signal=none", "-e", f"trace={calls}", "-o", str(path)]
    with kept_in(folder):
        words = said.open("wb")
    with words:
        try:
            tracer = subprocess.Popen(
                [strace, *how, *attach], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words
            )
        except OSError as error:
            raise NotApplicable(f"{strace} cannot be run: {error.strerror}") from None
    try:
        _wait_until_attached(tracer, len(processes), said)
        yield Trace(tracer, path)
    finally:
        tracer.terminate()  # it lets go of them
        try:
            tracer.wait(ATTACH_LIMIT_S)
        except subprocess.TimeoutExpired:
            tracer.kill()
            tracer.wait()


def _wait_until_attached(tracer: subprocess.Popen[bytes], count: int, said: Path) -> None:
    ends_s = time.monotonic() + ATTACH_LIMIT_S
    while True:
        with kept_in(said.parent):
            words = said.read_text(encoding="utf-8", errors="replace")
        has_ended = tracer.poll() is not None
        if len(re.findall(r"Process \d+ attached", words)) >= count and not has_ended:
            return
        if has_ended or time.monotonic() > ends_s:
            why = words.strip().splitlines()[-1:] or ["it says nothing"]
            raise NotApplicable(f"strace does not see the server: {why[0]}")
        time.sleep(POLL_S)


def may_sync_unseen(process: int) -> bool:
    """Whether it has an io_uring, or a file that is open with O_DSYNC, of which O_SYNC is more (proc(5), fdinfo)."""
    with suppress(OSError):
        for entry in Path(f"/proc/{process}/fdinfo").iterdir():
            with suppress(OSError):
                flags = re.search(r"^flags:\s+([0-7]+)$", entry.read_text(errors="replace"), re.MULTILINE)
                if flags is not None and int(flags[1], 8) & os.O_DSYNC:
                    return True
                if "io_uring" in os.readlink(f"/proc/{process}/fd/{entry.name}"):
                    return True
    return False


def who_has(file: Path) -> list[int]:
    """The processes that have a file open, as far as we may know."""
    found, name = [], str(file.resolve())
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if any(os.readlink(link) == name for link in _links(entry / "fd")):
                    found.append(int(entry.name))
    return found


def _links(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from folder.iterdir()
