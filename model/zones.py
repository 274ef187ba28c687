"""Whether one cell's history is linearizable, in O(n log n): zones, and epochs for the one value that repeats.

**Clusters.** Every value but ZERO has one write, so what a read returned says whose write it saw. A value's *cluster*
is its write and all reads of it. Operations take effect at points of time, each between its invocation and its
response, equal points in any order we like; so a precedes b for certain only if a returned before b was invoked. No
other operation comes between a write and the last read of its value: in every linearization a cluster is one block. Let

    f = the earliest response in the cluster        s = the latest invocation in it

The block has a point at or before f, and one at or after s. If f < s, the *forward zone* [f, s] therefore belongs to
the cluster alone, within its ends; and it is enough: every operation of the cluster can have its point in [f, s], the
write at f, if no read returned before the write was invoked. If f >= s, all operations of the cluster share the times
[s, f], and the whole block fits on any one point of them: a *backward zone*. So there is a linearization exactly when

1. what is read has been written, and no read of it returned before that write was invoked;
2. no two forward zones overlap by more than an end;
3. no backward zone lies strictly inside a forward one.

In words of two clusters: never are both f(A) < s(B) and f(B) < s(A). Forward zones in the order of f, backward ones at
their s, or at the end of the forward zone they begin in, are a linearization. (Gibbons and Korach, 1997.)

The base is a write before all time. If the base is zero, that is a zero write.

**Zero epochs.** Which zero write a zero read saw is not known; it does not matter either. Say that the cell is *zero*
from a zero write until the next cluster. A zero read needs a point at which the cell is zero; a zero write makes it
zero at one point of its own choice; a cluster needs a point at which it ends that, or, with a forward zone, a span in
which it is not zero. The argument:

- *Clusters shrink.* A block may be replaced by its forward zone, or by one point of its backward zone that it covered:
  that only makes the cell zero for longer elsewhere. So forward zones are barriers, known beforehand. A zero operation
  strictly inside one is a violation. Of any other, the part of its interval inside is of no use: if it ends there, its
  end is moved to the barrier's beginning; where it begins there does not matter, since nothing is chosen until the
  barrier ends. All that is left to choose are points between barriers.
- *Zero is never worse.* With the same clusters still to be placed, the same zero writes still unspent and the same
  reads unsatisfied, whatever can follow when the cell is not zero can follow when it is: clusters need nothing of it.
- *Delay is never worse.* Take time as it goes. A cluster that waits does no harm while the cell is zero; when it must
  be placed (its f has come), the cell stops being zero anyway, and all that wait are placed with it, for nothing. While
  the cell is not zero, placing is free at any time; we do it just before the cell becomes zero. Likewise a zero write
  is worth the most at the last moment at which a read needs it: it then serves every read that waits, and the clusters
  that wait are placed just before it. Had it been spent earlier, the cell would be zero now at best, with the same
  reads satisfied; and it is so now, with fewer clusters to come.
- *A zero write at its own end is spent* in any case, for it must happen (or may, if it is optional; one that lies
  strictly inside a forward zone has not happened, then): then the cell is
  zero, which is never worse, and clusters that wait go before it, for nothing.
- *The one that ends first is spent first.* Of two zero writes that are there now, a solution that spends the later one
  now and the other afterwards works with the two exchanged: the later one is still there then.

So the sweep below makes, at each event, a choice that some solution makes if there is one. It fails when a zero read
ends, the cell is not zero, and no zero write is there: then there is none. Where ends fall on one time: intervals begin
before others end; a cluster that must be placed goes before a zero write that is spent for nothing, and that goes
before reads that end; barriers begin last. The tests compare it with every history of a few operations on a grid.

Source:  Gibbons and Korach, "Testing Shared Memories", SIAM J. Comput. 26(4), 1997, for zones. The epochs are ours.
Shapes:  an order is the parts of the cell in an order that is a linearization; optional parts may be missing. A
         Refutation names parts, and is to be checked by `model/certificate.py`.
Omits:   more than one value that repeats.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import compress
from operator import lt

from model.cells import Cell, Cut, pick
from model.history import BASE, NEVER

# When the base was written.
ALWAYS = -NEVER

NOBODY = -1  # The base's write has no part.


@dataclass(slots=True)
class Clusters:
    """The clusters of one cell, by number. `number_of` goes beside the cell's reads."""

    write: list[int]
    f: list[int]
    s: list[int]
    number_of: list[int]
    read_count: list[int]


@dataclass(frozen=True, slots=True)
class Refutation:
    """Parts whose operations have no order, and why. `sides` are the two clusters, or all there is.

    cells: (first, behind the last) of those to look at, if not the whole group
    """

    reason: str
    sides: tuple[tuple[int, ...], ...]
    parts: tuple[int, ...]
    cells: tuple[int, int] | None = None


def decide_cell(cell: Cell, cut: Cut, base_is_zero: bool) -> list[int] | Refutation:
    """An order of the parts of this cell, or why there is none."""
    clusters = cluster(cell, cut, base_is_zero)
    if isinstance(clusters, Refutation):
        return clusters
    if cell.zero_reads:
        return _with_epochs(cell, cut, clusters, base_is_zero)
    # Without anybody to read them, zero writes are clusters like those of any value that nobody read.
    zeroes = [part for part in cell.zero_writes if part not in cut.optional] if cut.optional else cell.zero_writes
    write, f, s = clusters.write + zeroes, clusters.f, clusters.s
    if zeroes:
        f, s = f + [cut.ret[part] for part in zeroes], s + [cut.call[part] for part in zeroes]
    placed = _place(f, s)
    if isinstance(placed, tuple):
        return _pair_refutation(cell, cut, clusters, write, placed)
    counts = clusters.read_count + [0] * len(zeroes)
    return _spell(cell, clusters, placed, write, counts)


def cluster(cell: Cell, cut: Cut, base_is_zero: bool) -> Clusters | Refutation:
    """Clusters with their f and s. Optional writes that nobody read are left out."""
    call, ret, names, optional = cut.call, cut.ret, cut.names, cut.optional
    writes = cell.writes
    if optional and not optional.isdisjoint(writes):
        wanted = set(cell.read_values)
        writes = [part for part in writes if part not in optional or names[part] in wanted]
    write = list(writes)
    number = {name: at for at, name in enumerate(pick(names, writes))}
    began = pick(call, writes)
    f, s = list(pick(ret, writes)), list(began)
    if not base_is_zero:
        number[BASE] = len(write)
        write.append(NOBODY)
        f.append(ALWAYS)
        s.append(ALWAYS)
    counts = [0] * len(write)
    number_of = [number.get(value, NOBODY) for value in cell.read_values]
    if NOBODY in number_of:
        part = cell.reads[number_of.index(NOBODY)]
        return Refutation("nobody", ((part,),), (part,))
    for at, called, returned in zip(number_of, pick(call, cell.reads), pick(ret, cell.reads), strict=True):
        counts[at] += 1
        if returned < f[at]:  # noqa: PLR1730 - a call of min or max for each read is half of this function's time
            f[at] = returned
        if called > s[at]:  # noqa: PLR1730
            s[at] = called
    for at in compress(range(len(began)), map(lt, f, began)):
        early = min(_reads_of(cell, number_of, at), key=ret.__getitem__)
        return Refutation("future", ((write[at],), (early,)), (write[at], early))
    if not base_is_zero and not counts[-1]:
        write.pop()
        f.pop()
        s.pop()
        counts.pop()
    return Clusters(write, f, s, number_of, counts)


def _reads_of(cell: Cell, number_of: Sequence[int], at: int) -> list[int]:
    return [part for part, number in zip(cell.reads, number_of, strict=True) if number == at]


def _place(f: list[int], s: list[int]) -> list[int] | tuple[int, int]:
    """The clusters in an order that is a linearization, or two that each have to precede the other."""
    forward = sorted([at for at, (begin, end) in enumerate(zip(f, s, strict=True)) if begin < end], key=f.__getitem__)
    begins = [f[at] for at in forward]
    ends = [s[at] for at in forward]
    for at in range(1, len(forward)):
        if begins[at] < ends[at - 1]:
            return forward[at - 1], forward[at]
    keys = []
    for at, (begin, end) in enumerate(zip(f, s, strict=True)):
        if begin < end:
            keys.append(2 * begin + 1)  # A forward zone comes behind the points at its beginning.
            continue
        point = end
        if begins:
            around = bisect_left(begins, point) - 1
            if around >= 0 and ends[around] > point:
                point = ends[around]
                if point > begin:
                    return forward[around], at
        keys.append(2 * point)
    return sorted(range(len(f)), key=keys.__getitem__)


def _spell(cell: Cell, clusters: Clusters, placed: list[int], write: list[int], counts: list[int]) -> list[int]:
    """The order of parts: each cluster's write, then its reads by invocation."""
    spelled = [NOBODY] * (len(write) + len(cell.reads))
    behind = [0] * len(write)
    at = 0
    for number in placed:
        spelled[at] = write[number]
        at += 1
        behind[number] = at
        at += counts[number]
    for part, number in zip(cell.reads, clusters.number_of, strict=True):
        at = behind[number]
        spelled[at] = part
        behind[number] = at + 1
    if NOBODY in write:
        spelled.remove(NOBODY)
    return spelled


def witnesses(cell: Cell, cut: Cut, clusters: Clusters, at: int) -> tuple[int, ...]:
    """Those of a cluster that say when it is: its write, the one that returned first, the one invoked last.

    Of a write that may be left out, a read says that it was not.
    """
    reads = _reads_of(cell, clusters.number_of, at)
    write = clusters.write[at]
    if write == NOBODY:
        return (max(reads, key=cut.call.__getitem__),)
    members = [write, *reads]
    named = [write, min(members, key=cut.ret.__getitem__), max(members, key=cut.call.__getitem__)]
    if write in cut.optional:
        named.append(reads[0])
    return tuple(dict.fromkeys(named))


def _pair_refutation(cell: Cell, cut: Cut, clusters: Clusters, write: list[int], pair: tuple[int, int]) -> Refutation:
    one, other = (witnesses(cell, cut, clusters, at) if at < len(clusters.write) else (write[at],) for at in pair)
    sides = fewest(cell, cut, (one, other))
    return Refutation("pair", sides, tuple(part for side in sides for part in side))


def fewest(cell: Cell, cut: Cut, sides: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Two sides without the reads that are not needed for each to have to precede the other."""
    one, other = sides
    bases = {part for part, value in zip(cell.reads, cell.read_values, strict=True) if value == BASE}
    values = {*one, *other}.intersection(cell.reads)
    for read in [part for part in (*one, *other) if part in values]:
        first, second = (tuple(part for part in side if part != read) for side in (one, other))
        if _must_precede(cut, bases, first, second) and _must_precede(cut, bases, second, first):
            one, other = first, second
    return one, other


def _must_precede(cut: Cut, bases: Set[int], one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether the first response of one side comes before the last invocation of the other, if both have happened."""
    if cut.optional.issuperset(one) or cut.optional.issuperset(other):
        return False
    return not bases.isdisjoint(one) or min(cut.ret[part] for part in one) < max(cut.call[part] for part in other)


# Epochs. Events at one time come in this order.
_ARRIVE, _PLACE, _EXPIRE, _NEED, _BARRIER = range(5)


@dataclass(slots=True)
class Items:
    """What the sweep is about: clusters by f and s, zero writes and zero reads by invocation and response.

    optional: beside `writes`, whether it may be left out
    """

    f: list[int]
    s: list[int]
    writes: list[tuple[int, int]]
    optional: list[bool]
    reads: list[tuple[int, int]]
    zero_at_first: bool


# What a sweep puts in order: (which list of Items, place in it).
CLUSTER, ZERO_WRITE, ZERO_READ = "cluster", "zero write", "zero read"
Step = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a sweep could not go on: two clusters, a zero operation inside a cluster, or a read that found no zero."""

    clusters: tuple[int, ...]
    zero: Step | None = None
    starved: bool = False


def sweep(items: Items) -> list[Step] | Failure:
    """Clusters, zero writes and zero reads in an order that is a linearization, or where there is none."""
    placed = _place(items.f, items.s)
    if isinstance(placed, tuple):
        return Failure(placed)
    forward = [at for at in placed if items.f[at] < items.s[at]]
    begins, ends = [items.f[at] for at in forward], [items.s[at] for at in forward]
    events: list[tuple[int, int, str, int]] = []

    def add(kind: str, at: int, call: int, ret: int, last: int) -> int | None:
        """The events of one item, with its end moved out of barriers; the barrier that it lies inside of, if any."""
        around = bisect_left(begins, call) - 1
        if around >= 0 and ret < ends[around]:
            return forward[around]
        around = bisect_left(begins, ret) - 1
        if around >= 0 and ret < ends[around]:
            ret = begins[around]
        events.append((call, _ARRIVE, kind, at))
        events.append((ret, last, kind, at))
        return None

    for at in placed:
        if items.f[at] >= items.s[at]:
            add(CLUSTER, at, items.s[at], items.f[at], _PLACE)
    for kind, zeroes, last in ((ZERO_WRITE, items.writes, _EXPIRE), (ZERO_READ, items.reads, _NEED)):
        for at, (call, ret) in enumerate(zeroes):
            inside = add(kind, at, call, ret, last)
            if inside is not None and not (kind == ZERO_WRITE and items.optional[at]):
                return Failure((inside,), (kind, at))
    events.extend((begin, _BARRIER, CLUSTER, at) for begin, at in zip(begins, forward, strict=True))
    events.sort()
    return _run(items, events)


def _run(items: Items, events: list[tuple[int, int, str, int]]) -> list[Step] | Failure:
    """The sweep itself, event by event."""
    steps: list[Step] = []
    is_zero = items.zero_at_first
    clusters: dict[int, None] = {}
    reads: dict[int, None] = {}
    unspent: list[tuple[int, int]] = []
    spent = [False] * len(items.writes)

    def place_clusters() -> None:
        steps.extend((CLUSTER, at) for at in clusters)
        clusters.clear()

    def spend(at: int) -> None:
        place_clusters()
        spent[at] = True
        steps.append((ZERO_WRITE, at))
        steps.extend((ZERO_READ, read) for read in reads)
        reads.clear()

    for _, event, kind, at in events:
        if event == _ARRIVE:
            if kind == CLUSTER:
                clusters[at] = None
            elif kind == ZERO_WRITE:
                heappush(unspent, (items.writes[at][1], at))
            elif is_zero:
                steps.append((ZERO_READ, at))
            else:
                reads[at] = None
        elif event == _PLACE:
            if at in clusters:
                place_clusters()
                is_zero = False
        elif event == _EXPIRE:
            if not spent[at]:
                spend(at)
                is_zero = True
        elif event == _NEED:
            if at in reads:
                while unspent and spent[unspent[0][1]]:
                    heappop(unspent)
                if not unspent:
                    return Failure((), (ZERO_READ, at), starved=True)
                spend(heappop(unspent)[1])
                is_zero = True
        else:
            place_clusters()
            steps.append((CLUSTER, at))
            is_zero = False
    return steps


def _with_epochs(cell: Cell, cut: Cut, clusters: Clusters, base_is_zero: bool) -> list[int] | Refutation:
    """Zones and epochs for a cell on which zeroes were read."""
    items = Items(
        clusters.f,
        clusters.s,
        [(cut.call[part], cut.ret[part]) for part in cell.zero_writes],
        [part in cut.optional for part in cell.zero_writes],
        [(cut.call[part], cut.ret[part]) for part in cell.zero_reads],
        base_is_zero,
    )
    swept = sweep(items)
    if isinstance(swept, Failure):
        return _epoch_refutation(cell, cut, clusters, items, swept)
    reads: list[list[int]] = [[] for _ in clusters.write]
    for part, number in zip(cell.reads, clusters.number_of, strict=True):
        reads[number].append(part)
    order: list[int] = []
    for kind, at in swept:
        if kind == ZERO_WRITE:
            order.append(cell.zero_writes[at])
        elif kind == ZERO_READ:
            order.append(cell.zero_reads[at])
        else:
            if clusters.write[at] != NOBODY:
                order.append(clusters.write[at])
            order.extend(reads[at])
    return order


def _epoch_refutation(cell: Cell, cut: Cut, clusters: Clusters, items: Items, failure: Failure) -> Refutation:
    sides: Sequence[tuple[int, ...]] = [witnesses(cell, cut, clusters, at) for at in failure.clusters]
    if not failure.starved:
        if failure.zero is not None:
            kind, at = failure.zero
            sides = [*sides, (cell.zero_writes[at] if kind == ZERO_WRITE else cell.zero_reads[at],)]
        sides = fewest(cell, cut, sides)
        return Refutation("pair", tuple(sides), tuple(part for side in sides for part in side))
    assert failure.zero is not None
    named = _core(items, failure.zero[1])
    first, last = _span(items, named)
    parts = [part for part in cell.zero_writes if cut.call[part] <= last and cut.ret[part] >= first]
    for kind, at in named:
        if kind == CLUSTER:
            parts.extend(witnesses(cell, cut, clusters, at))
        else:
            parts.append(cell.zero_reads[at])
    return Refutation("starved", ((cell.zero_reads[failure.zero[1]],),), tuple(dict.fromkeys(parts)))


# The smallest thing that is wrong.

_ALL_AT_ONCE = 64  # Up to so many, each is tried by itself; of more, halves and quarters go first.
_WORK_MAX = 2_000_000  # When so many clusters, reads and writes have been looked at, what is left is few enough.


def _core(items: Items, starved: int) -> list[Step]:
    """Few clusters and reads that fail by themselves, with the zero writes that matter to them.

    They fail with the cell zero at the beginning, unless no zero write was left out before them; see
    `model/certificate.py` for why that proves it.
    """
    last = items.reads[starved][1]
    candidates: list[tuple[int, Step]] = [
        (min(f, s), (CLUSTER, at)) for at, (f, s) in enumerate(zip(items.f, items.s, strict=True)) if min(f, s) <= last
    ]
    candidates.extend((call, (ZERO_READ, at)) for at, (call, _) in enumerate(items.reads) if call <= last)
    named = [step for _, step in sorted(candidates)]
    many = 4
    while many < len(named) and not _fails(items, named[-many:], last):
        many *= 2
    named = named[-many:]
    items, work = _only_what_matters(items, named), 0
    size = max(len(named) // 2, 1) if len(named) > _ALL_AT_ONCE else 1
    while True:
        at = 0
        while at < len(named):
            fewer = named[:at] + named[at + size :]
            work += len(fewer) + len(items.writes)
            if work > _WORK_MAX:
                return named
            if _fails(items, fewer, last):
                named = fewer
            else:
                at += size
        if size == 1:
            return named
        size = max(size // 2, 1)


def _only_what_matters(items: Items, named: list[Step]) -> Items:
    """Without the zero writes that come before or behind all that is named; of fewer, more do."""
    first, _ = _span(items, named)
    kept = _zero_writes_that_matter(items, named)
    return replace(
        items,
        writes=[items.writes[at] for at in kept],
        optional=[items.optional[at] for at in kept],
        zero_at_first=items.zero_at_first or any(ret < first for _, ret in items.writes),
    )


def _zero_writes_that_matter(items: Items, named: list[Step]) -> list[int]:
    """Those that may serve one of the named reads, and do not certainly come before everything named."""
    first, last = _span(items, named)
    return [at for at, (call, ret) in enumerate(items.writes) if call <= last and ret >= first]


def _span(items: Items, named: list[Step]) -> tuple[int, int]:
    reads = [items.reads[at] for kind, at in named if kind == ZERO_READ]
    clusters = [min(items.f[at], items.s[at]) for kind, at in named if kind == CLUSTER]
    return min([call for call, _ in reads] + clusters), max(ret for _, ret in reads)


def _fails(items: Items, named: list[Step], last: int) -> bool:
    """Whether the named clusters and reads have no order, whatever came before them."""
    if not any(kind == ZERO_READ for kind, _ in named):
        return False
    first, _ = _span(items, named)
    clusters = [at for kind, at in named if kind == CLUSTER]
    left_out = any(ret < first for _, ret in items.writes)
    writes = _zero_writes_that_matter(items, named)
    few = Items(
        [items.f[at] for at in clusters],
        [items.s[at] for at in clusters],
        [items.writes[at] for at in writes],
        [items.optional[at] for at in writes],
        [items.reads[at] for kind, at in named if kind == ZERO_READ],
        items.zero_at_first or left_out,
    )
    return isinstance(sweep(few), Failure)
