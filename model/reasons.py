"""Why a handful of requests has no order, in sentences that can be followed one by one.

Each sentence says of two requests which comes before the other, and because of what: real time, who read what, or
sentences before it. They end where a request would have to come before itself, or where zeroes were read that nobody
can have written. Where that is not enough, two writes are taken in either order, and each leads to such an end.

This proves nothing that `model/certificate.py` has not found by trying all orders; it is for people. So it may give up.

Source:  Tan, Zhao, Mu and Walfish, "Cobra: making transactional key-value stores verifiably serializable", 2020, for
         what follows from whom. Of what follows at once, what takes the fewest rounds is looked for, as people do.
Shapes:  operations are the certificate's, by place in a list; a cell, by place too.
Omits:   conflicts in which more than CASES_MAX pairs of writes would have to be taken in either order at once, and
         those that take more than WORK_MAX to think about, or have more than PARTS_MAX operations: then there is no
         explanation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise, product

from model.certificate import Part
from model.history import BASE, ZERO

CASES_MAX = 2
PARTS_MAX = 40
# How often it is asked whether one operation is known to come before another: a second or two.
WORK_MAX = 1_000_000
INDENT = "  "

AT_FIRST = -1  # Whose zeroes were read, if nobody wrote them.

_Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Reasons:
    """Lines, indented where they hold in one of several cases only; none if there is no explanation.

    circle: operations that would each have to come before the next, and why; none if they are not the same in all cases
    """

    lines: tuple[str, ...] = ()
    circle: tuple[tuple[int, int, str], ...] = ()


class _GaveUp(Exception):
    """It takes too long to find the reason."""


@dataclass(frozen=True, slots=True)
class _Because:
    """Why one operation comes before another; and the sentences that this rests on."""

    words: str
    rests_on: tuple[_Pair, ...] = ()


@dataclass(frozen=True, slots=True)
class _End:
    """A contradiction: sentences that it rests on, and what they come to."""

    words: str
    rests_on: tuple[_Pair, ...]
    is_circle: bool = True


def why_no_order(
    parts: Sequence[Part], at_first: Sequence[str], names: Sequence[str], bytes_of: Sequence[int]
) -> Reasons:
    """Why there is no order, if that can be said. `bytes_of`: where each cell begins."""
    if len(parts) > PARTS_MAX:
        return Reasons()
    conflict = _Conflict(parts, at_first, names, bytes_of)
    try:
        for cases in range(CASES_MAX + 1):
            found = _explained(conflict, _Known(conflict), cases)
            if found.lines:
                return found
    except _GaveUp:
        pass
    return Reasons()


class _Conflict:
    """What does not change while it is thought about."""

    def __init__(
        self, parts: Sequence[Part], at_first: Sequence[str], names: Sequence[str], bytes_of: Sequence[int]
    ) -> None:
        self.parts, self.at_first, self.names, self._bytes_of = parts, at_first, names, bytes_of
        self.work = 0
        self.writers: dict[int, list[int]] = {}
        self.zero_writers: dict[int, list[int]] = {}
        self.reads: list[tuple[int, int, str]] = []
        self.happened = {at for at, part in enumerate(parts) if not part.optional}
        write_of: dict[tuple[int, str], int] = {}
        for at, part in enumerate(parts):
            for cell, value in part.values.items():
                if part.is_read:
                    self.reads.append((at, cell, value))
                elif value == ZERO:
                    self.zero_writers.setdefault(cell, []).append(at)
                else:
                    self.writers.setdefault(cell, []).append(at)
                    write_of[cell, value] = at
        # Of each read on each cell, who wrote what it returned, where that is known.
        self.source = {
            (at, cell): AT_FIRST if value == BASE else write_of[cell, value]
            for at, cell, value in self.reads
            if value != ZERO
        }
        self.happened.update(source for source in self.source.values() if source != AT_FIRST)

    def returned(self, read: int, cell: int) -> str:
        """'r8 returned w3 at 512'."""
        return f"{self.names[read]} returned {self.parts[read].values[cell]} at {self._bytes_of[cell]}"


@dataclass(slots=True)
class _Known:
    """What is known to come before what, and which zeroes each read of zeroes saw."""

    conflict: _Conflict
    before: dict[_Pair, _Because] = field(default_factory=dict)
    source: dict[_Pair, int] = field(default_factory=dict)
    # Of each read of zeroes on each cell whose writer was found out, what that rests on.
    found_out: dict[_Pair, tuple[_Pair, ...]] = field(default_factory=dict)
    happened: set[int] = field(default_factory=set)
    after: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.before:
            return
        conflict = self.conflict
        self.source, self.happened = dict(conflict.source), set(conflict.happened)
        for one, other in product(sorted(self.happened), repeat=2):
            if conflict.parts[one].ret < conflict.parts[other].call:
                self.add((one, other), _Because(f"it was answered before {conflict.names[other]} was sent"))
        for (read, cell), write in self.source.items():
            if write != AT_FIRST:
                self.add((write, read), _Because(conflict.returned(read, cell)))

    def copy(self) -> _Known:
        """To suppose something more."""
        after = {one: list(others) for one, others in self.after.items()}
        found_out = dict(self.found_out)
        return _Known(self.conflict, dict(self.before), dict(self.source), found_out, set(self.happened), after)

    def add(self, pair: _Pair, because: _Because) -> None:
        """Take in a sentence, if nobody has said the same."""
        if pair not in self.before:
            self.before[pair] = because
            self.after.setdefault(pair[0], []).append(pair[1])

    def way(self, one: int, other: int) -> tuple[_Pair, ...]:
        """The fewest sentences that say that one comes before the other; none if it is not known to."""
        self.conflict.work += 1
        if self.conflict.work > WORK_MAX:
            raise _GaveUp
        came: dict[int, int] = {}
        for at in (todo := [one]):
            for then in self.after.get(at, ()):
                if then not in came:
                    came[then] = at
                    todo.append(then)
                    if then == other:
                        steps = [other]
                        while len(steps) == 1 or steps[-1] != one:
                            steps.append(came[steps[-1]])
                        return tuple(pairwise(steps[::-1]))
        return ()


def _explained(conflict: _Conflict, known: _Known, cases: int) -> Reasons:
    """The way from what is known to an end; none if there is none with so many pairs taken in either order."""
    end = _follow(conflict, known)
    if end is not None:
        return _told(conflict, known, end)
    if not cases:
        return Reasons()
    ways = [_in_each_case(conflict, known, suppositions, cases - 1) for suppositions in _choices(conflict, known)]
    shortest: list[str] = min(filter(None, ways), key=len, default=[])
    return Reasons(tuple(shortest))


def _in_each_case(
    conflict: _Conflict, known: _Known, suppositions: Sequence[tuple[str, _Pair, _Pair | None]], cases: int
) -> list[str]:
    """The lines of all cases; none if one of them leads nowhere."""
    lines: list[str] = []
    for words, pair, source in suppositions:
        supposed = known.copy()
        if source is not None:
            supposed.source[source] = pair[0]
            supposed.happened.add(pair[0])
            _in_time(conflict, supposed, pair[0])
        supposed.add(pair, _Because(""))
        of_case = _explained(conflict, supposed, cases)
        if not of_case.lines:
            return []
        lines += [f"{words}:", *(INDENT + line for line in of_case.lines)]
    return lines


def _choices(conflict: _Conflict, known: _Known) -> Iterator[list[tuple[str, _Pair, _Pair | None]]]:
    """What can be one way or another: two writes of a cell; or whose zeroes were read."""
    names = conflict.names
    pairs: dict[_Pair, None] = {}
    for cell in range(len(conflict.at_first)):
        there = [*conflict.writers.get(cell, ()), *conflict.zero_writers.get(cell, ())]
        pairs.update(dict.fromkeys(combinations(sorted(at for at in there if at in known.happened), 2)))
    for one, other in pairs:
        if not known.way(one, other) and not known.way(other, one):
            yield [
                (f"If {names[one]} comes before {names[other]}", (one, other), None),
                (f"If {names[other]} comes before {names[one]}", (other, one), None),
            ]
    for read, cell, value in conflict.reads:
        if value == ZERO and (read, cell) not in known.source:
            left = [source for source, why_not in _zeroes(conflict, known, read, cell) if why_not is None]
            if AT_FIRST not in left:
                yield [
                    (f"If {conflict.returned(read, cell)} because of {names[write]}", (write, read), (read, cell))
                    for write in left
                ]


def _follow(conflict: _Conflict, known: _Known) -> _End | None:
    """Take in all that follows, round by round, until there is an end, or nothing more follows."""
    while True:
        sentences = len(known.before)
        end = _around(conflict, known) or _no_zeroes(conflict, known)
        if end is not None:
            return end
        for pair, because in list(_what_follows(conflict, known)):
            known.add(pair, because)
        if len(known.before) == sentences:
            return None


def _around(conflict: _Conflict, known: _Known) -> _End | None:
    """The shortest way from an operation back to it."""
    ways = [way for at in range(len(conflict.parts)) if (way := known.way(at, at))]
    if not ways:
        return None
    way = min(ways, key=len)
    names = [conflict.names[one] for one, _ in way]
    if len(names) == 2:
        return _End(f"so {names[0]} and {names[1]} would each have to come before the other", way)
    return _End(f"so each of {', '.join(names)} would have to come before the next, and the last before the first", way)


def _no_zeroes(conflict: _Conflict, known: _Known) -> _End | None:
    """A read of zeroes that nobody can have written; and who wrote what was read, where only one can."""
    for read, cell, value in conflict.reads:
        if value != ZERO or (read, cell) in known.source:
            continue
        sources = list(_zeroes(conflict, known, read, cell))
        left = [source for source, why_not in sources if why_not is None]
        ruled_out = tuple(pair for _, why_not in sources for pair in why_not or ())
        if not left:
            said = conflict.returned(read, cell)
            writers = [conflict.names[source] for source, _ in sources if source != AT_FIRST]
            who = f"that cannot be of {' or '.join(writers)}" if writers else "nobody wrote zeroes there"
            return _End(f"but {said}, and {who}", ruled_out, is_circle=False)
        if len(left) == 1:
            known.source[read, cell] = left[0]
            known.found_out[read, cell] = ruled_out
            if left[0] != AT_FIRST:
                known.found_out[read, cell] = ((left[0], read),)
                known.happened.add(left[0])
                words = f"{conflict.returned(read, cell)}, and nobody else can have written it"
                known.add((left[0], read), _Because(words, ruled_out))
                _in_time(conflict, known, left[0])
    return None


def _in_time(conflict: _Conflict, known: _Known, happened: int) -> None:
    """What real time says of an operation that is known to have happened only now."""
    parts, names = conflict.parts, conflict.names
    for other in sorted(known.happened):
        for one, then in ((happened, other), (other, happened)):
            if parts[one].ret < parts[then].call:
                known.add((one, then), _Because(f"it was answered before {names[then]} was sent"))


def _zeroes(conflict: _Conflict, known: _Known, read: int, cell: int) -> Iterator[tuple[int, tuple[_Pair, ...] | None]]:
    """Whose zeroes a read may have seen; each with the sentences that say that it did not, or None if it may have."""
    others = [write for write in conflict.writers.get(cell, ()) if write in known.happened]
    if conflict.at_first[cell] == ZERO:
        yield AT_FIRST, next((way for write in others if (way := known.way(write, read))), None)
    for zero in conflict.zero_writers.get(cell, ()):
        late = known.way(read, zero)
        parts = conflict.parts
        if not late and parts[read].ret < parts[zero].call:
            yield zero, ()
            continue
        over = (
            (*first, *then)
            for write in others
            if (first := known.way(zero, write)) and (then := known.way(write, read))
        )
        yield zero, late or next(over, None)


def _what_follows(conflict: _Conflict, known: _Known) -> Iterator[tuple[_Pair, _Because]]:
    """Of a read and another write there: it comes before the write that was read, or after the read."""
    for (read, cell), source in list(known.source.items()):
        said, found_out = conflict.returned(read, cell), known.found_out.get((read, cell), ())
        others = list(conflict.writers.get(cell, ()))
        if conflict.parts[read].values[cell] != ZERO:
            others += conflict.zero_writers.get(cell, ())
        for other in others:
            if other == source or other not in known.happened:
                continue
            if not known.way(read, other):
                since = known.way(source, other) if source != AT_FIRST else ()
                if since or source == AT_FIRST:
                    yield (
                        (read, other),
                        _Because(f"{said}, which {conflict.names[other]} overwrites", (*found_out, *since)),
                    )
            if source != AT_FIRST and not known.way(other, source):
                until = known.way(other, read)
                if until:
                    yield (other, source), _Because(f"{said}, not {conflict.names[other]}", (*found_out, *until))


def _told(conflict: _Conflict, known: _Known, end: _End) -> Reasons:
    """The sentences that an end rests on, each after those that it rests on itself; what was supposed is not told."""
    lines: list[str] = []
    told: set[_Pair] = set()

    def tell(pair: _Pair) -> None:
        if pair in told:
            return
        told.add(pair)
        because = known.before[pair]
        for other in because.rests_on:
            tell(other)
        if because.words:
            one, other_one = (conflict.names[at] for at in pair)
            lines.append(f"{one} before {other_one}: {because.words}")

    for pair in end.rests_on:
        tell(pair)
    circle = tuple((*pair, known.before[pair].words) for pair in end.rests_on) if end.is_circle else ()
    return Reasons((*lines, end.words), circle)
