"""Which files a server writes to, and which of them it has reach the disk: as strace(1) shows its system calls.

A power failure cannot be had for the asking. But what a process has not synced by any call the kernel need not have
written, and a call can be seen. What is written through memory that is mapped, or through io_uring, cannot.

Source:  fsync(2), msync(2), syncfs(2); pwritev2(2) for RWF_DSYNC; open(2) for O_DSYNC; strace(1). sync_file_range(2) is
         no such call: it "does not flush disk write caches", and says so under "Warning".
Units:   seconds.
Errors:  NotApplicable where strace is missing, or may not look.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from check.conform.rule import NotApplicable

ATTACH_LIMIT_S = 5.0
POLL_S = 0.005

# Which of the files among its arguments a call writes to.
WRITES = {
    **dict.fromkeys(("write", "writev", "pwrite64", "pwritev", "pwritev2", "fallocate", "ftruncate", "sendfile"), 0),
    **dict.fromkeys(("copy_file_range", "splice"), 1),
}
SYNCS_ONE = ("fsync", "fdatasync")
SYNCS_ALL = ("sync", "syncfs", "msync")
AT_ONCE = re.compile(r"\bRWF_D?SYNC\b")
CALLS = (*WRITES, *SYNCS_ONE, *SYNCS_ALL)

LINE = re.compile(r"(?P<thread>\d+)\s+(?:(?P<call>\w+)\((?P<given>.*)|<\.\.\. \w+ resumed>(?P<rest>.*))$")
UNFINISHED = "<unfinished ...>"
DONE = re.compile(r"\) += \d+")
FILE = re.compile(r"(\d+)<(/[^>]*)>")
NO_DISK = ("/dev/", "/proc/", "/sys/", "/memfd:")


@dataclass
class Seen:
    """What was written to, and what of it a crash could still undo.

    written:  each file, with a thread that wrote to it and the number of its descriptor there
    unsynced: those that were written to after they were last synced
    """

    written: dict[str, tuple[int, int]] = field(default_factory=dict)
    unsynced: set[str] = field(default_factory=set)
    has_synced: bool = False

    @property
    def synced(self) -> set[str]:
        """The files of which all is on the disk."""
        return set(self.written) - self.unsynced


def seen(lines: Iterable[str]) -> Seen:
    """What the lines come to that `strace -f -y` writes. A sync covers what was written before it began."""
    found = Seen()
    covered: dict[str, set[str]] = {}  # by the thread that is in a call which syncs: what it will have covered
    for line in lines:
        match = LINE.match(line)
        if match is None:
            continue
        thread, call, given = match["thread"], match["call"], match["given"]
        if call is not None:
            covered.pop(thread, None)
            files = [(int(number), path) for number, path in FILE.findall(given) if not path.startswith(NO_DISK)]
            if call in WRITES and len(files) > WRITES[call]:
                number, path = files[WRITES[call]]
                found.written[path] = int(thread), number
                found.unsynced.add(path)
                for others in covered.values():
                    others.discard(path)
                if AT_ONCE.search(given):
                    covered[thread] = {path}
            elif call in SYNCS_ALL:
                covered[thread] = set(found.unsynced)
            elif call in SYNCS_ONE:
                covered[thread] = {path for _, path in files}
        told = given if call is not None else match["rest"]
        if thread in covered and not told.endswith(UNFINISHED):
            paths = covered.pop(thread)
            if DONE.search(told):
                found.unsynced -= paths
                found.has_synced = True
    return found


@contextmanager
def traced(processes: Sequence[int], folder: Path) -> Iterator[Path]:
    """The file to which their calls are written, each before it returns, from here on."""
    strace = shutil.which("strace")
    if strace is None:
        raise NotApplicable("strace is missing, which sees what is synced: install the Debian package strace")
    path, said = folder / "calls", folder / "strace"
    attach = [option for process in processes for option in ("-p", str(process))]
    calls = ",".join(f"?{call}" for call in CALLS)
    with said.open("wb") as words:
        tracer = subprocess.Popen(
            [strace, "-f", "-y", "-s", "0", "-e", "signal=none", "-e", f"trace={calls}", "-o", str(path), *attach],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
        )
    try:
        _wait_until_attached(tracer, len(processes), said)
        yield path
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
        if len(re.findall(r"Process \d+ attached", words)) >= count:
            return
        if tracer.poll() is not None or time.monotonic() > ends_s:
            why = words.strip().splitlines()[-1:] or ["it says nothing"]
            raise NotApplicable(f"strace does not see the server: {why[0]}")
        time.sleep(POLL_S)


def is_opened_synced(thread: int, descriptor: int) -> bool:
    """Whether all that is written there is synced at once: O_DSYNC, of which O_SYNC is more (proc(5), fdinfo)."""
    try:
        told = Path(f"/proc/{thread}/fdinfo/{descriptor}").read_text(encoding="ascii")
    except OSError:
        return False
    flags = re.search(r"^flags:\s+([0-7]+)$", told, re.MULTILINE)
    return flags is not None and bool(int(flags[1], 8) & os.O_DSYNC)
