"""What is asked of cowproof, row by row, and whether it was met.

A ratio says how many times better our median is, ours with the settings it has by default; a peer's is the best of
its settings. Rows that the first table does not name are not compared with nbdkit.

Units:   ratios; memory in MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.results import MIB, RowResult, ServerResult
from bench.servers import SERVERS

OURS = "cowproof"
PEERS = ("nbdkit", "qemu-nbd", "nbd-server")
# Every peer's settings.
SETTINGS = {peer: [server.name for server in SERVERS if peer in (server.name, server.setting_of)] for peer in PEERS}

NBDKIT: dict[str, float] = {
    "bulk read": 1.5,
    "bulk read, allocated": 1.1,
    "bulk write, fresh": 1.3,
    "4k read, depth 1": 1.5,
    "4k read, depth 32": 2.0,
    "4k write, allocated": 2.0,
    "4k write, fresh": 1.2,
    "64k, 1 connection": 1.0,
    "64k, 4 connections": 1.1,
    "slow reads": 1.0,
    "slow parts": 10.0,
    "trim": 5.0,
}
QEMU_NBD = 1.2
QEMU_NBD_EXCEPT: dict[str, float] = {"block status": 1.0}
MEMORY_MAX_MIB: dict[str, float] = {"memory, idle": 40.0, "memory, after load": 100.0}
# Below this, the server's time is a few ticks of the clock that it is read from.
CPU_MIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing asked of a row. `miss`: 0 if it was met, else the part of it that is missing."""

    asked: str
    found: str
    miss: float

    @property
    def met(self) -> bool:
        """Whether it was."""
        return self.miss <= 0

    def __str__(self) -> str:
        verdict = "met" if self.met else f"missed by {self.miss:.0%}"
        return f"{verdict}: {self.asked}, found {self.found}"


def best(row: RowResult, peer: str) -> ServerResult | None:
    """The one of a peer's settings that did best here."""
    found = [server for name in SETTINGS[peer] if (server := row.server(name)) is not None]
    if not found:
        return None
    return (max if row.shape.more_is_better else min)(found, key=lambda server: _median(row, server))


def _median(row: RowResult, server: ServerResult) -> float:
    value = row.value(server)
    assert value is not None, server
    return value.median


def marks(row: RowResult) -> list[Mark]:
    """All that is asked of a row, as far as it was measured."""
    ours = row.server(OURS)
    return [] if ours is None else [*_ratio_marks(row, ours), *_cpu_marks(row, ours), *_memory_marks(row, ours)]


def _ratio_marks(row: RowResult, ours: ServerResult) -> Iterator[Mark]:
    asked = {"nbdkit": NBDKIT.get(row.wanted)}
    if row.figure != "memory":
        asked["qemu-nbd"] = QEMU_NBD_EXCEPT.get(row.wanted, QEMU_NBD)
    for peer, least in asked.items():
        theirs = best(row, peer)
        found = None if theirs is None else row.ratio(ours, theirs)
        if least is not None and found is not None and theirs is not None:
            yield Mark(f"{least:g} times {theirs.name}", f"{found:.2f}", _short_of(found, least))


def _cpu_marks(row: RowResult, ours: ServerResult) -> Iterator[Mark]:
    if row.figure not in ("throughput", "rate"):
        return
    mine = row.cost(ours)
    for theirs in row.servers:
        other = row.cost(theirs)
        if theirs.name.startswith(OURS) or mine is None or other is None or not _is_measurable(theirs):
            continue
        found = f"{mine.median:.3g}"
        miss = max(0.0, _part(mine.median - other.median, other.median))
        yield Mark(f"{row.shape.cost_unit} below {theirs.name}'s {other.median:.3g}", found, miss)


def _is_measurable(server: ServerResult) -> bool:
    return min(sample.server_s for sample in server.samples) >= CPU_MIN_S


def _memory_marks(row: RowResult, ours: ServerResult) -> Iterator[Mark]:
    most = MEMORY_MAX_MIB.get(row.wanted)
    if most is not None:
        found = max(sample.memory_bytes for sample in ours.samples) / MIB
        yield Mark(f"under {most:g} MiB", f"{found:.1f}", max(0.0, _part(found - most, most)))


def _short_of(found: float, least: float) -> float:
    return max(0.0, _part(least - found, least))


def _part(difference: float, whole: float) -> float:
    return difference / whole if whole else 0.0


def ahead(row: RowResult) -> list[str]:
    """The peers that did better than we, and how much: it has to be said whatever was asked."""
    ours = row.server(OURS)
    if ours is None:
        return []
    told = []
    for peer in SETTINGS:
        theirs = best(row, peer)
        found = None if theirs is None else row.ratio(ours, theirs)
        if theirs is not None and found is not None and found < 1:
            told.append(f"ahead: {theirs.name}, {1 / found:.2f} times" if found else f"ahead: {theirs.name}")
    return told
