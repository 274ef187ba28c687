"""How much room there is for an overlay that reserves all its space: asked before any of it is taken.

Allocating until it fails is no way to find out: a disk would be full meanwhile, for everybody; and of memory the kernel
does not refuse too much, but kills whom it likes.

Source:  proc(5), MemAvailable; the kernel's cgroup-v2 and cgroup-v1/memory; statvfs(3).
Units:   bytes. None stands for a limit that is unknown or not there.
Omits:   swap, which is not what somebody wants who asks for memory; quotas, which allocating finds out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


class CgroupFiles(NamedTuple):
    """Where one version of cgroups tells of memory, and what its parts are called there."""

    folder: str
    limit: str
    usage: str
    cache: tuple[str, ...]  # in memory.stat: what the group is charged for, and what would make way


V2 = CgroupFiles("", "memory.max", "memory.current", ("inactive_file", "active_file"))
V1 = CgroupFiles(
    "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)


def disk_bytes(fd: int) -> int | None:
    """What is free on the file system of an open file, for users that are not root."""
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize if found.f_blocks else None  # of no blocks at all: it does not tell


def memory_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """What this process can still get: of the machine's memory, and of every group it is in."""
    limits = [_machine_bytes(proc), *(_group_bytes(folder, files) for folder, files in _groups(proc, cgroups))]
    return min((limit for limit in limits if limit is not None), default=None)


def _machine_bytes(proc: Path) -> int | None:
    found = re.search(r"^MemAvailable: *([0-9]+) kB$", _text(proc / "meminfo"), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[Path, CgroupFiles]]:
    """The groups of this process, each with those around it.

    A container may see the path that its group has outside, and as the root what is its own group: of the folders
    above one that is not there, some are.
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        files = V2 if number == "0" else V1 if "memory" in controllers.split(",") else None
        if files is not None:
            inner = PurePosixPath(path.lstrip("/"))
            for group in (inner, *inner.parents):
                yield cgroups / files.folder / group, files


def _group_bytes(folder: Path, files: CgroupFiles) -> int | None:
    limit = _text(folder / files.limit).strip()
    usage = _text(folder / files.usage).strip()
    if not limit.isdecimal() or not usage.isdecimal():  # "max", or there is no such group
        return None
    stat = dict(re.findall(r"^(\w+) ([0-9]+)$", _text(folder / "memory.stat"), re.MULTILINE))
    return max(0, int(limit) - int(usage) + sum(int(stat.get(name, 0)) for name in files.cache))


def _text(path: Path) -> str:
    """What a file says; nothing, if it is not there or not for us."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
