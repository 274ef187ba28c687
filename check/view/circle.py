"""Requests that each have to take effect before the next, all around: why a few of them have no order.

What has to be first follows from real time, from who wrote what was read, and from values: of two values of one byte,
all requests of the one come before the write of the other if the one was there, for sure, before the other was last
asked for.

Source:  Gibbons and Korach, "Testing shared memories", 1997: clusters, and which must precede which.
Shapes:  a circle is edges, the last leading to where the first begins. Of all there are, one of the shortest.
Omits:   zeroes, which have many writers, and requests that may or may not have happened: no edge is claimed for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from check.view.finding import Edge, Range
from model.history import BASE, OK, TORN, ZERO, History

Edges = dict[tuple[int, int], str]


@dataclass(frozen=True, slots=True)
class Cluster:
    """The requests that wrote or read one value of one byte. The base's writer is nobody, before all else."""

    name: str
    write: int | None
    reads: tuple[int, ...]

    def first_response(self, history: History) -> int:
        """When it was there, for sure."""
        if self.name == BASE:
            return min(history.call) - 1
        return min(history.ret[each] for each in self._all())

    def last_call(self, history: History) -> int:
        """When it was still there, for sure."""
        return max(history.call[each] for each in self._all())

    def _all(self) -> tuple[int, ...]:
        return self.reads if self.write is None else (*self.reads, self.write)


def clusters_at(history: History, requests: Sequence[int], byte: int) -> list[Cluster]:
    """The values of one byte, of what was answered, and of what others have read."""
    writes: dict[str, int] = {}
    reads: dict[str, list[int]] = {}
    for index in requests:
        name = value_at(history, index, byte)
        if name in (None, ZERO, TORN):
            continue
        assert name is not None
        if history.op[index] == "write":
            writes[name] = index
        else:
            reads.setdefault(name, []).append(index)
    names = dict.fromkeys([*writes, *reads])
    found = [Cluster(name, writes.get(name), tuple(reads.get(name, ()))) for name in names]
    return [each for each in found if each.write is not None or each.name == BASE]


def value_at(history: History, index: int, byte: int) -> str | None:
    """What a request wrote or read at a byte; None for neither."""
    at, value = history.offset[index], history.value[index]
    if not at <= byte < at + history.length[index]:
        return None
    if history.op[index] == "write":
        return value if isinstance(value, str) else None
    if history.op[index] != "read" or history.outcome[index] != OK or not isinstance(value, tuple):
        return None
    for name, length in value:
        at += length
        if byte < at:
            return name
    return None


def circle(history: History, requests: Sequence[int], where: Range) -> tuple[Edge, ...]:
    """Edges all around, if there are any."""
    edges = _real_time(history, requests)
    for byte in _borders(history, requests, where):
        for pair, why in _of_values(history, clusters_at(history, requests, byte)):
            edges.setdefault(pair, why)
    return _shortest(requests, edges)


def _real_time(history: History, requests: Sequence[int]) -> Edges:
    return {
        (one, other): "it was answered before the other was invoked"
        for one in requests
        for other in requests
        if history.outcome[one] == OK and history.ret[one] < history.call[other]
    }


def _of_values(history: History, clusters: Sequence[Cluster]) -> Iterator[tuple[tuple[int, int], str]]:
    for cluster in clusters:
        if cluster.write is not None:
            for read in cluster.reads:
                yield (cluster.write, read), f"the other returned {cluster.name}"
    for one in clusters:
        for other in clusters:
            if one is other or other.write is None or one.first_response(history) >= other.last_call(history):
                continue
            for read in one.reads:
                yield (read, other.write), f"it returned {one.name}, which the other overwrites"
            if one.write is not None and not one.reads:
                yield (one.write, other.write), f"{other.name} was there later than {one.name}"


def _borders(history: History, requests: Sequence[int], where: Range) -> list[int]:
    """One byte of each stretch on which all requests say one thing."""
    found = {where.offset}
    for index in requests:
        at, value = history.offset[index], history.value[index]
        found |= {at, at + history.length[index]}
        if isinstance(value, tuple):
            for _, length in value:
                at += length
                found.add(at)
    return sorted(each for each in found if where.offset <= each < where.end)


def _shortest(requests: Sequence[int], edges: Edges) -> tuple[Edge, ...]:
    """The shortest way from any request back to it."""
    ways = [way for start in requests if (way := _way_back(start, requests, edges))]
    best = min(ways, key=len, default=())
    return tuple(Edge(one, other, edges[one, other]) for one, other in pairwise(best))


def _way_back(start: int, requests: Sequence[int], edges: Edges) -> tuple[int, ...]:
    """Breadth first."""
    ways: dict[int, tuple[int, ...]] = {start: (start,)}
    for each in (todo := [start]):
        for other in requests:
            if (each, other) not in edges:
                continue
            if other == start:
                return (*ways[each], start)
            if other not in ways:
                ways[other] = (*ways[each], other)
                todo.append(other)
    return ()
