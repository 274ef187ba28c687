"""How much room there is for a reserve, and that nothing is taken to find out.

Source:  proc(5), MemAvailable; the kernel's cgroup-v2 and cgroup-v1/memory; promise P7.
Units:   MiB in the tables, bytes in the files.
"""

import os
from dataclasses import dataclass, field

import pytest

from impl.errors import StartError
from impl.overlay import room, store

MIB = 1 << 20
MACHINE = 1000  # what the machine has


@dataclass
class Case:
    """What /proc/self/cgroup says, what the groups' folders hold, and what then can be had."""

    groups: str
    files: dict = field(default_factory=dict)
    found: int | None = MACHINE


def v2(limit, usage=0, cache=0):
    stat = f"anon {usage}\ninactive_file {cache // 2}\nactive_file {cache - cache // 2}\n"
    return {"memory.max": limit, "memory.current": usage, "memory.stat": stat}


def v1(limit, usage=0, cache=0):
    stat = f"cache {cache}\ntotal_inactive_file {cache}\ntotal_active_file 0\n"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": usage, "memory.stat": stat}


CASES = {
    "no groups": Case(""),
    "a group without a limit": Case("0::/user", {"user": v2("max", 5 * MIB)}),
    "a group with one": Case("0::/user", {"user": v2(300 * MIB, 100 * MIB)}, 200),
    "what can be evicted is free": Case("0::/user", {"user": v2(300 * MIB, 100 * MIB, 60 * MIB)}, 260),
    "a limit above the machine's": Case("0::/user", {"user": v2(4000 * MIB)}),
    "a limit that has been passed": Case("0::/user", {"user": v2(300 * MIB, 400 * MIB)}, 0),
    "the group around it": Case("0::/a/b", {"a": v2(300 * MIB), "a/b": v2("max")}, 300),
    "in a container that sees its own group as the root": Case("0::/", {"": v2(300 * MIB)}, 300),
    "in a container that sees its path outside": Case("0::/host/path", {"": v2(300 * MIB)}, 300),
    "version 1": Case("4:memory:/a\n0::/", {"memory/a": v1(300 * MIB, 100 * MIB, 60 * MIB)}, 260),
    "version 1, with another controller": Case("4:cpu,memory:/a", {"memory/a": v1(300 * MIB)}, 300),
    "version 1, without a limit": Case("4:memory:/a", {"memory/a": v1((1 << 63) - 4096)}),
    "version 1, a group of something else": Case("4:cpu:/a", {"memory/a": v1(300 * MIB)}),
    "a path with a colon": Case("0::/a:b", {"a:b": v2(300 * MIB)}, 300),
}


@pytest.mark.parametrize("what", CASES)
def test_memory_is_what_the_machine_and_every_group_leave(tmp_path, what):
    case = CASES[what]
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 9999999 kB\nMemFree: 5 kB\nMemAvailable:   {MACHINE * 1024} kB\n")
    (proc / "self" / "cgroup").write_text(case.groups + "\n")
    for folder, files in case.files.items():
        (cgroups / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (cgroups / folder / name).write_text(f"{content}\n")
    assert room.memory_bytes(proc, cgroups) == case.found * MIB


def test_where_nothing_tells_there_is_no_limit(tmp_path):
    assert room.memory_bytes(tmp_path, tmp_path) is None


def test_this_machine_has_some_memory_and_some_disk(tmp_path):
    assert room.memory_bytes() > MIB
    with (tmp_path / "file").open("wb") as file:
        assert room.disk_bytes(file.fileno()) > MIB


@pytest.mark.parametrize(("make", "ask"), [(store.memory_store, "memory_bytes"), (store.temporary_store, "disk_bytes")])
def test_a_reserve_that_does_not_fit_takes_nothing(monkeypatch, make, ask):
    """Not even for a moment: whoever else uses the disk, or the memory, would be without."""

    def never(*_):
        raise AssertionError("it allocates")

    monkeypatch.setattr(room, ask, lambda *_: 20 * MIB)
    monkeypatch.setattr(os, "posix_fallocate", never)
    with pytest.raises(StartError, match=r"cannot reserve 21M in .*room for 20M\); leave out --overlay-reserve, or"):
        make(21 * MIB, True)
    with pytest.raises(AssertionError, match="it allocates"):
        make(20 * MIB, True)


def test_what_is_not_reserved_may_be_larger(monkeypatch):
    monkeypatch.setattr(room, "memory_bytes", lambda: MIB)
    store.memory_store(2 * MIB).close()
