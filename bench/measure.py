"""What processes took: processor time and memory, of a server with all its threads and children, and of the machine.

Source:  proc(5): /proc/PID/stat (utime, stime, cutime, cstime), /proc/PID/smaps_rollup (Anonymous), /proc/stat.
         clock_gettime(2) and the kernel's CPUCLOCK_SCHED, for a process's own time to the nanosecond.
Units:   seconds of processor time; that of children that have ended comes in steps of a clock tick. Memory in bytes.
Errors:  a process that has gone counts as nothing: whoever reaped it has its time in cutime and cstime.
Omits:   memory that is no process's own: the page cache, and files that are mapped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CPUCLOCK_SCHED = 2
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """A line of /proc/PID/stat. `reaped_ticks`: of children that have ended, and of theirs."""

    pid: int
    parent: int
    own_ticks: int
    reaped_ticks: int


def parse_stat(text: str) -> Process:
    """The name is in parentheses and may hold any character, so fields are counted from the last one."""
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(")")[2].split()
    user, system, reaped_user, reaped_system = (int(field) for field in fields[11:15])
    return Process(int(pid), int(fields[1]), user + system, reaped_user + reaped_system)


def processes() -> dict[int, Process]:
    """All that there are."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                process = parse_stat((folder / "stat").read_text(encoding="utf-8", errors="replace"))
            except OSError:
                continue  # it has gone since it was listed
            found[process.pid] = process
    return found


def tree(among: Mapping[int, Process], root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for process in among.values():
        children.setdefault(process.parent, []).append(process.pid)
    found = [root] if root in among else []
    for pid in found:
        found += children.get(pid, [])
    return found


def own_s(process: Process) -> float:
    """Of all its threads, those that have ended among them."""
    try:
        return time.clock_gettime(~process.pid << 3 | CPUCLOCK_SCHED)
    except OSError:  # it has gone, or it is a zombie
        return process.own_ticks / TICKS_PER_S


def cpu_of_tree_s(among: Mapping[int, Process], root: int, own_s: Callable[[Process], float] = own_s) -> float:
    """Of a process, all its threads, its descendants, and those of them that have ended."""
    return sum(own_s(among[pid]) + among[pid].reaped_ticks / TICKS_PER_S for pid in tree(among, root))


def cpu_s(roots: Iterable[int]) -> float:
    """Of some processes with all that belongs to them, until now."""
    among = processes()
    return sum(cpu_of_tree_s(among, root) for root in roots)


def parse_anonymous(text: str) -> int:
    """The bytes of `Anonymous:` in a smaps_rollup."""
    for line in text.splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    return 0


def memory_bytes(root: int) -> int:
    """Resident memory that belongs to no file, of a process and its descendants."""
    total = 0
    for pid in tree(processes(), root):
        try:
            total += parse_anonymous((PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii"))
        except OSError:
            continue  # it has gone
    return total


def parse_busy_s(text: str) -> float:
    """Of /proc/stat: time in which a processor did anything for anybody, or was taken from this machine."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    fields = dict(zip(names, (int(field) for field in text.splitlines()[0].split()[1:9]), strict=False))
    return sum(ticks for name, ticks in fields.items() if name not in ("idle", "iowait")) / TICKS_PER_S


def busy_s() -> float:
    """Of all processors together, since the machine started."""
    return parse_busy_s((PROC / "stat").read_text(encoding="ascii"))
