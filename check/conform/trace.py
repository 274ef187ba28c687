"""Whether what a server writes to a file reaches the disk before its reply: as strace(1) shows its system calls.

A power failure cannot be had for the asking. But what a process has not synced by any call the kernel need not have
written, and calls can be seen. Only what is recognised counts, for a server has other files, and this accuses: data
with a mark that nobody else writes, of which all has to be seen as it is written. What goes through memory that is
mapped, through io_uring, a pipe, or compressed, is not seen, and then nothing is said.

Source:  fsync(2), msync(2), syncfs(2); pwritev2(2) for RWF_DSYNC; open(2) for O_DSYNC; strace(1). sync_file_range(2) is
         no such call: under "Warning", it does not flush what the disk keeps to itself.
Units:   seconds.
Errors:  NotApplicable where strace is missing, may not look, or has ended.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from check.conform.room import kept_in
from check.conform.rule import NotApplicable

ATTACH_LIMIT_S = 15.0
POLL_S = 0.005
# As much of what is written is shown: more than a request with a mark has, with what a server may put before it.
SHOWN_BYTES = 128 << 10

WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
OPENS = ("open", "openat", "openat2", "creat")
SYNCS = {  # the call, and how it has to be called to be one
    **dict.fromkeys(("fsync", "fdatasync", "sync", "syncfs"), re.compile("")),
    "msync": re.compile(r"\bMS_SYNC\b"),
}
AT_ONCE = re.compile(r"\bRWF_D?SYNC\b")
OPENED_SO = re.compile(r"\bO_D?SYNC\b")
CALLS = (*WRITES, *OPENS, *SYNCS)

LINE = re.compile(r"(?P<thread>\d+)\s+(?:(?P<call>\w+)\((?P<given>.*)|<\.\.\. \w+ resumed>(?P<rest>.*))$")
UNFINISHED = "<unfinished ...>"
DONE = re.compile(r"\) += \d+")
FILE = re.compile(r"^(\d+)<((?:\\x[0-9a-f]{2})+)>")  # as the first argument
GONE = " (deleted)"  # proc(5), of a file that has no name any more
NO_DISK = ("/memfd:", "/dev/shm/", "/dev/null", "/dev/zero")


def in_hex(data: bytes) -> str:
    """As `strace -xx` shows it."""
    return "".join(f"\\x{byte:02x}" for byte in data)


class File(NamedTuple):
    """A file that a process has open."""

    descriptor: int
    path: str


def file_of(given: str) -> File | None:
    """What a call's first argument is, if it is a file that may be on a disk, and not, say, a socket."""
    match = FILE.match(given)
    if match is None:
        return None
    path = os.fsdecode(bytes.fromhex(match[2].replace("\\x", ""))).removesuffix(GONE)
    return File(int(match[1]), path) if path.startswith("/") and not path.startswith(NO_DISK) else None


def unsynced(lines: Iterable[str], mark: bytes, length: int, opened: Iterable[File] = ()) -> str | None:
    """Where `length` bytes made of a mark were written to a file, and not synced. Nothing if they were: "".

    lines:   as `strace -f -y -xx` writes them, up to a reply
    opened:  the files that are open so that all writes are synced
    None:    the bytes were not all seen to be written, or to a file that may be such a one by another name or number
    """
    shown, known = in_hex(mark), set(opened)
    written, path = 0, ""
    opening: set[str] = set()  # threads that open such a file
    syncing: dict[str, bool] = {}  # threads that are in a call which syncs: whether that covers all that was written
    for line in lines:
        match = LINE.match(line)
        if match is None:
            continue
        thread, call, given = match["thread"], match["call"], match["given"]
        if call is not None:
            syncing.pop(thread, None)
            opening.discard(thread)
            if call in OPENS and OPENED_SO.search(given):
                opening.add(thread)
            elif call in WRITES and shown in given and (to := file_of(given)):
                written, path = written + given.count(shown) * len(mark), to.path
                if to in known or AT_ONCE.search(given):
                    syncing[thread] = written >= length
            elif call in SYNCS and SYNCS[call].search(given):
                syncing[thread] = written >= length
        told = given if call is not None else match["rest"]
        if told.endswith(UNFINISHED):
            continue
        if thread in opening:
            opening.discard(thread)
            if file := file_of(told.rpartition(" = ")[2]):
                known.add(file)
        if thread in syncing and syncing.pop(thread) and DONE.search(told):
            return ""
    return path if written >= length and not known else None


class Trace:
    """What is seen of a server from when it was attached to."""

    def __init__(self, tracer: subprocess.Popen[bytes], path: Path, opened: frozenset[File]) -> None:
        self._tracer = tracer
        self._path = path
        self._opened = opened

    def unsynced(self, mark: bytes, length: int) -> str | None:
        """As the function of this name, of all that was said until now, when a reply has just come."""
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            lines = file.read(size).decode("ascii", "replace").splitlines()
        if self._tracer.poll() is not None:
            raise NotApplicable("strace has ended, so nobody has seen what is synced")
        return unsynced(lines, mark, length, self._opened)


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
        yield Trace(tracer, path, opened_synced(processes))
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
        words = said.read_text(encoding="utf-8", errors="replace")
        has_ended = tracer.poll() is not None
        if len(re.findall(r"Process \d+ attached", words)) >= count and not has_ended:
            return
        if has_ended or time.monotonic() > ends_s:
            why = words.strip().splitlines()[-1:] or ["it says nothing"]
            raise NotApplicable(f"strace does not see the server: {why[0]}")
        time.sleep(POLL_S)


def opened_synced(processes: Iterable[int]) -> frozenset[File]:
    """The files that are open with O_DSYNC, of which O_SYNC is more (proc(5), fdinfo)."""
    found: set[File] = set()
    for process in processes:
        with suppress(OSError):
            for entry in Path(f"/proc/{process}/fdinfo").iterdir():
                with suppress(OSError):
                    told = entry.read_text(encoding="ascii")
                    flags = re.search(r"^flags:\s+([0-7]+)$", told, re.MULTILINE)
                    if flags is not None and int(flags[1], 8) & os.O_DSYNC:
                        path = os.readlink(f"/proc/{process}/fd/{entry.name}").removesuffix(GONE)
                        found.add(File(int(entry.name), path))
    return frozenset(found)
