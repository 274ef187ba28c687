"""Whether requests that take effect at an instant on several cells have an order. Exact, within a budget.

No fast algorithm is known for this: it is like view-serializability, which is NP-complete. So there are three steps.

1. Each cell by itself must be linearizable (`model/zones.py`); what is not is refuted at once.
2. **Schedule.** Requests are put in order one by one. Which may come next is restricted to what no order can avoid:
   all that had returned before it was invoked is there; and on each of its cells, every cluster that zones put before
   its own is complete, and so is the cluster whose value the cell holds. A read that fits is taken at once, and so is
   a write that nobody reads over values that nobody has still to read: neither does harm. Of the other writes the most
   urgent is tried first: the one with the earliest time by which it, or something that has to follow it, must have
   happened. If nothing can come next, the last choice was wrong, and the next is tried. Configurations that led nowhere
   are remembered. If all choices have failed, there is no order: the search is exhaustive.
3. **Look closely.** In a long history exhausting all choices would take for ever, though what is wrong is most often in
   one place. So when the schedule is stuck, the requests around that place are looked at by themselves, in windows that
   grow: first by *implied orders*, to a fixpoint, and then, if the window is small, by the schedule.

**Implied orders** start with real time, and a write before its reads. On each cell, with the cluster of a write w and
any other operation x of that cell: if x comes before any of the cluster, it comes before w; if x comes after any of it,
it comes after all of it. What these imply together is implied by the history. If an operation has to come before
itself, there is no order. Sound, not complete.

What is refuted is made smaller, one request after another, as long as it is refuted still. Leaving out requests can
only make orders possible, as `model/certificate.py` argues; zero reads are left in a window only if it has all zero
writes that may matter to them, as counted there, or else are taken as reads of a value that comes from anywhere.

Source:  Papadimitriou, "The serializability of concurrent database updates", 1979, for the hardness.
Shapes:  as `model/zones.py`: an order of parts, or a Refutation; None if the budget was spent before either.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Set
from dataclasses import replace

from model.budget import Budget, Meter
from model.cells import Cell, Cut
from model.history import BASE, NEVER
from model.zones import NOBODY, Refutation, cluster, decide_cell

WINDOWS = (32, 96, 288)
# Up to so many requests a window is searched exhaustively, with so many steps.
SEARCHED_MAX = 48
SEARCHED = Budget(steps=20_000, seconds=5.0, entries=20_000)
# After so many steps back without getting further, look closely.
PATIENCE = 40
# How often intervals are made narrower by zones.
ROUNDS, ROUNDS_OF_MANY, MANY = 50, 4, 20_000
ROUNDS_OF_READS = 3


def decide_group(found: Cut, first: int, end: int, base_is_zero: bool, meter: Meter) -> list[int] | Refutation | None:
    """An order of the parts on the cells from first to end, or why there is none; None if the budget is spent."""
    for number in range(first, end):
        decided = decide_cell(found.cells[number], found, base_is_zero)
        if isinstance(decided, Refutation):
            return replace(decided, cells=(number, number + 1))
    cells = found.cells[first:end]
    group = Group(found, cells, base_is_zero)
    schedule = Schedule(group, meter)
    patience = PATIENCE
    schedule.exhausted = group.hopeless
    while True:
        order = None if group.hopeless else schedule.run(patience)
        if order is not None:
            return order
        if schedule.exhausted:
            few = Few(group, set(group.needed))
            cyclic = len(group.needed) <= WINDOWS[-1] and few.implies_a_cycle(few.droppable())
            return few.refutation(few.implies_a_cycle if cyclic else few.has_no_order)
        seen = _look_closely(schedule, patience > PATIENCE)
        if isinstance(seen, Refutation):
            return seen
        if meter.spent:
            return None
        patience = PATIENCE if seen else 4 * patience


class Group:
    """What is known of some parts on some cells, in columns by part and by cell.

    parts:    by invocation; `needed` those that must happen
    first:    by write, clusters that have to be complete before it, as reads say
    low, high: between which times a part must take effect, by its own interval and by zones
    hopeless: whether some part has no time left
    zero_at_first: places of cells that are taken to be zero, whatever the base is
    """

    def __init__(
        self, found: Cut, cells: list[Cell], base_is_zero: bool, zero_at_first: Set[int] = frozenset()
    ) -> None:
        self.found = found
        self.base_is_zero = base_is_zero
        self.zero_at_first = zero_at_first
        self.cells = cells
        self.zero_reads: dict[int, list[int]] = {}  # By read: its cells.
        self.zero_writes: dict[int, list[int]] = {}
        self.writes: dict[int, list[tuple[int, int]]] = {}  # By write: (cell, cluster).
        self.reads: dict[int, list[tuple[int, int]]] = {}
        # By cell, in the order of f: f of each cluster; and by cluster: place in that order, s, how many are in it.
        self.by_f: list[list[int]] = []
        self.place: list[list[int]] = []
        self.f: list[list[int]] = []
        self.s: list[list[int]] = []
        self.read_count: list[list[int]] = []
        self.zero_read_count: list[int] = []
        # By cell and cluster: its write and reads, without those that may be left out; and by cell, zero operations.
        self.members: list[list[list[int]]] = []
        self.writer: list[list[int]] = []
        self.zeroes: list[list[int]] = []
        for at, cell in enumerate(cells):
            self._add(at, cell)
        parts = {*self.writes, *self.reads, *self.zero_reads, *self.zero_writes}
        self.parts = sorted(parts, key=lambda part: (found.call[part], part))
        wanted = {part for part, on in self.writes.items() if any(self.read_count[at][k] for at, k in on)}
        self.needed = [part for part in self.parts if part not in found.optional or part in wanted]
        self._forget_what_may_be_left_out()
        self.first: dict[int, dict[tuple[int, int], None]] = {}
        self._see_what_reads_imply()
        self.low = {part: found.call[part] for part in self.parts}
        self.high = {part: found.ret[part] for part in self.parts}
        self.hopeless = self._tighten()
        self._sort()

    def _add(self, at: int, cell: Cell) -> None:
        found = self.found
        clusters = cluster(cell, found, self.base_is_zero)
        assert not isinstance(clusters, Refutation), "a cell that is refuted by itself"
        # A pending write that only other cells have read has happened here too.
        left_out = [part for part in cell.writes if part in found.optional and part not in set(clusters.write)]
        for part in left_out:
            clusters.write.append(part)
            clusters.f.append(NEVER)
            clusters.s.append(found.call[part])
            clusters.read_count.append(0)
        for number, part in enumerate(clusters.write):
            if part != NOBODY:
                self.writes.setdefault(part, []).append((at, number))
        for part, number in zip(cell.reads, clusters.number_of, strict=True):
            self.reads.setdefault(part, []).append((at, number))
        for part in cell.zero_reads:
            self.zero_reads.setdefault(part, []).append(at)
        for part in cell.zero_writes:
            self.zero_writes.setdefault(part, []).append(at)
        members: list[list[int]] = [[part] if part != NOBODY else [] for part in clusters.write]
        for part, number in zip(cell.reads, clusters.number_of, strict=True):
            members[number].append(part)
        self.members.append(members)
        self.writer.append(list(clusters.write))
        self.zeroes.append([*cell.zero_writes, *cell.zero_reads])
        self.f.append(clusters.f)
        self.s.append(clusters.s)
        self.read_count.append(clusters.read_count)
        self.zero_read_count.append(len(cell.zero_reads))

    def _forget_what_may_be_left_out(self) -> None:
        """Nothing follows from when something happened that perhaps did not."""
        needed = set(self.needed)
        if len(needed) < len(self.parts):
            for at, members in enumerate(self.members):
                self.members[at] = [[part for part in of if part in needed] for of in members]
                self.zeroes[at] = [part for part in self.zeroes[at] if part in needed]
                for number, of in enumerate(members):
                    if not self.members[at][number] and of:
                        self.f[at][number], self.s[at][number] = NEVER, -NEVER

    def _sort(self) -> None:
        for f in self.f:
            by_f = sorted(range(len(f)), key=f.__getitem__)
            place = [0] * len(by_f)
            for where, number in enumerate(by_f):
                place[number] = where
            self.by_f.append(by_f)
            self.place.append(place)

    def _see_what_reads_imply(self) -> None:
        """A read that saw v on one cell and w on another that v covers too: v came before w.

        So did everything that is known to have come before v, and covers that cell.
        """
        cluster_on = {part: dict(on) for part, on in self.writes.items()}
        seen: list[list[tuple[int, int, int]]] = []  # By read: (cell, cluster, write), if there is more than one write.
        for on in self.reads.values():
            whose = [(at, number, self._writer(at, number)) for at, number in on]
            if len({write for _, _, write in whose}) > 1:
                seen.append(whose)
        known: dict[int, dict[int, None]] = {}  # By write: those before it.
        for _ in range(ROUNDS_OF_READS):
            news = False
            for whose in seen:
                writes = dict.fromkeys(write for _, _, write in whose if write != NOBODY)
                earlier = dict(writes)
                for write in writes:
                    earlier.update(known.get(write, {}))
                for at, _, write in whose:
                    for other in earlier:
                        if write not in (other, NOBODY) and at in cluster_on[other]:
                            before = known.setdefault(write, {})
                            if other not in before:
                                before[other] = None
                                self.first.setdefault(write, {})[at, cluster_on[other][at]] = None
                                news = True
            if not news:
                break

    def learn(self, implied: Implied) -> bool:
        """Keep which writes come before which others on a cell, as a few requests imply; whether that was news."""
        news = False
        place = {part: at for at, part in enumerate(implied.by_call)}
        writers: dict[int, int] = {}
        for part, at in place.items():
            for cell, _ in self.writes.get(part, ()):
                writers[cell] = writers.get(cell, 0) | 1 << at
        for part, at in place.items():
            for on in self.writes.get(part, ()):
                rest = implied.after[at] & writers[on[0]]
                while rest:
                    bit = rest & -rest
                    rest ^= bit
                    known = self.first.setdefault(implied.by_call[bit.bit_length() - 1], {})
                    if on not in known:
                        known[on] = None
                        news = True
        return news

    def _writer(self, at: int, number: int) -> int:
        """The write of a cluster; NOBODY if it is the base's."""
        return self.writer[at][number]

    def _tighten(self) -> bool:
        """Move the ends of each part's interval to where zones leave it; whether any interval vanishes.

        A cluster that comes before another ends by the other's f, and the other begins after its s: that moves f and s
        on other cells that the same requests cover, and so on. A few rounds do; it need not be a fixpoint.
        """
        rounds = ROUNDS if len(self.parts) < MANY else ROUNDS_OF_MANY
        cells = set(range(len(self.cells)))
        for _ in range(rounds):
            moved: set[int] = set()
            for at in sorted(cells):
                moved.update(self._tighten_cell(at))
            moved.update(self._tighten_by_reads())
            if any(self.low[part] > self.high[part] for part in moved):
                return True
            cells = {at for part in moved for at in self._cells_of(part)}
            if not cells:
                break
        return False

    def _tighten_by_reads(self) -> list[int]:
        low, high, moved = self.low, self.high, []
        for part, clusters in self.first.items():
            for at, number in clusters:
                for other in self.members[at][number]:
                    if low[part] < low[other]:
                        low[part] = low[other]
                        moved.append(part)
                    if high[other] > high[part]:
                        high[other] = high[part]
                        moved.append(other)
        return moved

    def _cells_of(self, part: int) -> list[int]:
        pairs = (*self.writes.get(part, ()), *self.reads.get(part, ()))
        return [at for at, _ in pairs] + [*self.zero_reads.get(part, ()), *self.zero_writes.get(part, ())]

    def _tighten_cell(self, at: int) -> list[int]:
        """The same on one cell; the parts that moved."""
        low, high = self.low, self.high
        members = self.members[at]
        f, s = self.f[at], self.s[at]
        for number, of in enumerate(members):
            for part in of:
                if high[part] < f[number]:  # noqa: PLR1730 - as in zones.py
                    f[number] = high[part]
                if low[part] > s[number]:  # noqa: PLR1730
                    s[number] = low[part]
        # A zero operation is a cluster by itself here: what it says of other zero operations is true of any two.
        zeroes = self.zeroes[at]
        count = len(f)
        fs = f + [high[part] for part in zeroes]
        ss = s + [low[part] for part in zeroes]
        by_f = sorted(range(len(fs)), key=fs.__getitem__)
        by_s = sorted(range(len(ss)), key=ss.__getitem__, reverse=True)
        after = _bounds(by_f, by_s, fs, ss)
        # The same backwards in time.
        before = _bounds(by_s, by_f, [-time for time in ss], [-time for time in fs])
        moved = []
        for number in range(len(fs)):
            since, until = after[number], -before[number]
            if since <= -NEVER and until >= NEVER:
                continue
            for part in members[number] if number < count else (zeroes[number - count],):
                if low[part] < since:
                    low[part] = since
                    moved.append(part)
                if high[part] > until:
                    high[part] = until
                    moved.append(part)
        return moved


def _bounds(by_f: list[int], by_s: list[int], f: list[int], s: list[int]) -> list[int]:
    """For each cluster B the greatest s of any other, A, with f(A) < s(B). Both lists are sorted: f up, s down."""
    found = [-NEVER] * len(f)
    best = second = -NEVER
    whose = NOBODY
    where = 0
    for number in reversed(by_s):
        limit = s[number]
        while where < len(by_f) and f[by_f[where]] < limit:
            other = by_f[where]
            when = s[other]
            if when > best:
                best, second, whose = when, best, other
            elif when > second:
                second = when
            where += 1
        found[number] = second if whose == number else best
    return found


def _restricted(cell: Cell, only: set[int]) -> Cell:
    """A cell with some of its parts."""
    kept = [(part, value) for part, value in zip(cell.reads, cell.read_values, strict=True) if part in only]
    return Cell(
        [part for part in cell.writes if part in only],
        [part for part, _ in kept],
        [value for _, value in kept],
        [part for part in cell.zero_writes if part in only],
        [part for part in cell.zero_reads if part in only],
    )


ZEROED = -2  # What a cell holds after a zero write: no cluster.


class Schedule:
    """A depth-first search for an order of a group. `run` may be called again, to go on."""

    def __init__(self, group: Group, meter: Meter) -> None:
        self.group = group
        self.meter = meter
        self.exhausted = False
        self.call, self.ret = group.low, group.high
        self.needed_by_call = sorted(group.needed, key=lambda part: (group.low[part], part))
        self.needed_by_ret = sorted(group.needed, key=lambda part: (group.high[part], part))
        self.place_by_call = {part: at for at, part in enumerate(self.needed_by_call)}
        self.place_by_ret = {part: at for at, part in enumerate(self.needed_by_ret)}
        needed = set(group.needed)
        self.optional = [part for part in group.parts if part not in needed and part in group.zero_writes]
        self.done: set[int] = set()
        self.low_call = 0  # The first that is not taken, by invocation.
        self.low_ret = 0  # The same by response.
        self.entered = 0  # How many, by invocation, could be taken as far as time goes.
        self.optional_entered = 0
        self.ready: list[tuple[int, int]] = []  # Writes, by urgency.
        self.ready_unread: list[int] = []  # Of these, the ones whose value nobody reads.
        self.ready_reads: list[int] = []
        counts = group.read_count
        self.unread = {part for part, on in group.writes.items() if not any(counts[at][k] for at, k in on)}
        self.latest = -NEVER
        self.deepest = 0
        self.stuck_at = 0
        # By cell: which cluster it holds, how many reads are left of each, how far the order of clusters is complete.
        self.held = [self._first_held(at) for at in range(len(group.cells))]
        self.reads_left = [list(counts) for counts in group.read_count]
        self.unwritten = [[True] * len(counts) for counts in group.read_count]
        for at, held in enumerate(self.held):
            if held >= 0:
                self.unwritten[at][held] = False
        self.zero_reads_left = list(group.zero_read_count)
        self.complete_to = [0] * len(group.cells)
        self.order: list[int] = []
        self.undo: list[tuple[int, int, list[tuple[int, int]]]] = []
        self.choices: list[tuple[int, tuple[int, int]]] = []  # (length of the order, what was tried last).
        self.known: set[object] = set()
        # Optional writes that nobody needs are no clusters that anything has to wait for.
        self.ignored = [set() for _ in group.cells]  # type: list[set[int]]
        for part, on in group.writes.items():
            if part not in needed:
                for at, number in on:
                    self.ignored[at].add(number)

    def _first_held(self, at: int) -> int:
        """The base's cluster, if anybody reads it; the zeroes it is, or something nobody reads."""
        if self.group.base_is_zero or at in self.group.zero_at_first:
            return ZEROED
        f = self.group.f[at]
        return next((number for number, when in enumerate(f) if when == -NEVER), NOBODY)

    def run(self, patience: int) -> list[int] | None:
        """An order; None if there is none (`exhausted`), or `patience` or the budget has run out."""
        back = 0
        after: tuple[int, int] | None = None
        while True:
            self._take_what_is_harmless()
            if self.low_call >= len(self.needed_by_call):
                return self.order
            if not self.meter.step():
                return None
            is_old = len(self.order) <= self.deepest
            if not is_old:
                self.deepest, self.stuck_at = len(self.order), self.needed_by_ret[self.low_ret]
                back = 0
            # What is longer than all before it cannot have been seen.
            been_here = after is None and is_old and bool(self.known) and self._configuration() in self.known
            choice = None if been_here else self._next_choice(after)
            if choice is not None:
                self.choices.append((len(self.order), choice))
                self._take(choice[1])
                after = None
                continue
            back += 1
            if not self._go_back():
                self.exhausted = not self.meter.spent
                return None
            length, after = self.choices.pop()
            if back >= patience:
                # To go on from here, the choice that was left has to be found again.
                self.choices.append((length, after))
                self._take(after[1])
                return None

    def back_to_before(self, parts: set[int]) -> None:
        """Undo until none of these is taken."""
        taken = len(parts & self.done)
        length = len(self.order)
        while taken:
            length -= 1
            taken -= self.order[length] in parts
        while self.choices and self.choices[-1][0] >= length:
            self.choices.pop()
        while len(self.order) > length:
            self._put_back()

    def _go_back(self) -> bool:
        """Remember that this led nowhere, and undo the last choice; whether there was one."""
        if self.choices:
            self.known.add(self._configuration())
            if not self.meter.remember():
                return False
            length, _ = self.choices[-1]
            while len(self.order) > length:
                self._put_back()
            return True
        return False

    def _configuration(self) -> object:
        """All that matters for what can still come."""
        window = self.needed_by_call[self.low_call : self.entered]
        beyond = frozenset(part for part in window if part in self.done)
        used = frozenset(part for part in self.optional[: self.optional_entered] if part in self.done)
        live = tuple(
            (at, held)
            for at, held in enumerate(self.held)
            if (held >= 0 and self.reads_left[at][held]) or (held == ZEROED and self.zero_reads_left[at])
        )
        return self.low_call, beyond, used, live

    # What may come next.

    def _enter(self) -> None:
        """Let in what was invoked before the first of those left returned."""
        limit = self.ret[self.needed_by_ret[self.low_ret]] if self.low_ret < len(self.needed_by_ret) else NEVER
        while self.entered < len(self.needed_by_call):
            part = self.needed_by_call[self.entered]
            if self.call[part] > limit:
                break
            self.entered += 1
            self._come_in(part)
        while self.optional_entered < len(self.optional) and self.call[self.optional[self.optional_entered]] <= limit:
            part = self.optional[self.optional_entered]
            self.optional_entered += 1
            self._come_in(part)

    def _take_what_is_harmless(self) -> None:
        moved = True
        while moved:
            moved = False
            self._enter()
            for part in self.ready_reads:
                if part not in self.done and self._read_fits(part) and self._keeps_optional(part):
                    self._take(part)
                    moved = True
                    break
            if not moved:
                for part in self.ready_unread:
                    if self._is_harmless(part):
                        self._take(part)
                        moved = True
                        break

    def _read_fits(self, part: int) -> bool:
        held = self.held
        for at, number in self.group.reads.get(part, ()):
            if held[at] != number:
                return False
        for at in self.group.zero_reads.get(part, ()):
            if held[at] != ZEROED:
                return False
        return True

    def _keeps_optional(self, part: int) -> bool:
        """Whether nothing optional would come too late after this."""
        return not self.optional or not any(
            self.ret[other] < self.call[part]
            for other in self.optional[: self.optional_entered]
            if other not in self.done and self.ret[other] >= self.latest
        )

    def _is_harmless(self, part: int) -> bool:
        """Whether a write can be taken at once: nobody reads it, or what it overwrites."""
        for at, _ in self.group.writes[part]:
            held = self.held[at]
            if held >= 0:
                if self.reads_left[at][held]:
                    return False
            elif held == ZEROED and self.zero_reads_left[at]:
                return False
        return self._may_come(part) and self._keeps_optional(part)

    def _may_come(self, part: int) -> bool:
        """Whether a write may be next: all clusters before its own are complete, and so is what it overwrites."""
        if self.ret[part] < self.latest:
            return False
        for at, number in self.group.first.get(part, ()):
            if self.unwritten[at][number] or self.reads_left[at][number]:
                return False
        for at, number in self.group.writes.get(part, ()):
            held = self.held[at]
            if held >= 0 and self.reads_left[at][held]:
                return False
            if not self._complete_before(at, number):
                return False
        for at in self.group.zero_writes.get(part, ()):
            held = self.held[at]
            if held >= 0 and self.reads_left[at][held]:
                return False
        return not any(self._locks_up(part, at, number) for at, number in self.group.writes.get(part, ()))

    def _locks_up(self, part: int, at: int, number: int) -> bool:
        """Whether a write, taken now, could have neither its reads taken nor be overwritten.

        A read of it waits for another cell to be overwritten, which waits for a read, which waits for something to be
        written over this write.
        """
        group = self.group
        for read in group.members[at][number]:
            if read == part:
                continue
            for other, wanted in group.reads[read]:
                held = self.held[other]
                if other == at or held in (wanted, NOBODY, ZEROED) or not self.reads_left[other][held]:
                    continue
                for waits in group.members[other][held]:
                    if waits in self.done or waits not in group.reads:
                        continue
                    for there, cluster_there in group.reads[waits]:
                        if there == at and cluster_there != number and self.unwritten[at][cluster_there]:
                            return True
        return False

    def _complete_before(self, at: int, number: int) -> bool:
        """Whether all clusters of a cell that must come before this one are complete."""
        group = self.group
        by_f, f, s = group.by_f[at], group.f[at], group.s[at][number]
        where = self.complete_to[at]
        while where < len(by_f):
            other = by_f[where]
            if f[other] >= s:
                return True
            left = self.unwritten[at][other] or self.reads_left[at][other]
            if left and other != number and other not in self.ignored[at]:
                return False
            where += 1
        return True

    def _next_choice(self, after: tuple[int, int] | None) -> tuple[int, int] | None:
        group = self.group
        ready = self.ready
        if self.optional:
            # A read that fits is here only because something optional would come too late after it.
            reads = [(self.ret[part], part) for part in self.ready_reads if self._read_fits(part)]
            ready = sorted(ready + reads)
        for choice in ready[0 if after is None else bisect_right(ready, after) :]:
            part = choice[1]
            is_read = part in group.reads or part in group.zero_reads
            if is_read or (self._may_come(part) and not self._is_idle(part)):
                return choice
        return None

    def _is_idle(self, part: int) -> bool:
        """Whether an optional zero write would change nothing."""
        return (
            part in self.group.found.optional
            and part in self.optional
            and all(self.held[at] == ZEROED or not self.zero_reads_left[at] for at in self.group.zero_writes[part])
        )

    # Taking and putting back.

    def _take(self, part: int) -> None:
        group = self.group
        before: list[tuple[int, int]] = []
        self.undo.append((part, self.latest, before))
        self.order.append(part)
        self.done.add(part)
        self.latest = max(self.latest, self.call[part])
        if part in group.writes or part in group.zero_writes:
            self._leave(part)
            for at, number in group.writes.get(part, ()):
                before.append((at, self.held[at]))
                self.held[at] = number
                self.unwritten[at][number] = False
                if not self.reads_left[at][number]:
                    self._advance(at)
            for at in group.zero_writes.get(part, ()):
                before.append((at, self.held[at]))
                self.held[at] = ZEROED
        else:
            self.ready_reads.remove(part)
            for at, number in group.reads.get(part, ()):
                self.reads_left[at][number] -= 1
                if not self.reads_left[at][number]:
                    self._advance(at)
            for at in group.zero_reads.get(part, ()):
                self.zero_reads_left[at] -= 1
        self._move_marks()

    def _move_marks(self) -> None:
        while self.low_call < len(self.needed_by_call) and self.needed_by_call[self.low_call] in self.done:
            self.low_call += 1
        while self.low_ret < len(self.needed_by_ret) and self.needed_by_ret[self.low_ret] in self.done:
            self.low_ret += 1

    def _advance(self, at: int) -> None:
        by_f, unwritten, left = self.group.by_f[at], self.unwritten[at], self.reads_left[at]
        where = self.complete_to[at]
        while where < len(by_f):
            other = by_f[where]
            if (unwritten[other] or left[other]) and other not in self.ignored[at]:
                break
            where += 1
        self.complete_to[at] = where

    def _put_back(self) -> None:
        group = self.group
        part, self.latest, before = self.undo.pop()
        self.order.pop()
        self.done.remove(part)
        for at, number in group.writes.get(part, ()):
            self.unwritten[at][number] = True
            self.complete_to[at] = min(self.complete_to[at], group.place[at][number])
        for at, held in reversed(before):
            self.held[at] = held
        for at, number in group.reads.get(part, ()):
            self.reads_left[at][number] += 1
            self.complete_to[at] = min(self.complete_to[at], group.place[at][number])
        for at in group.zero_reads.get(part, ()):
            self.zero_reads_left[at] += 1
        self._move_marks_back(part)

    def _move_marks_back(self, part: int) -> None:
        """The marks stand where they stood; what had come in since is let in again when its time comes."""
        group = self.group
        self._come_in(part)
        if part not in group.found.optional or part not in self.optional:
            self.low_call = min(self.low_call, self.place_by_call[part])
            self.low_ret = min(self.low_ret, self.place_by_ret[part])
        limit = self.ret[self.needed_by_ret[self.low_ret]] if self.low_ret < len(self.needed_by_ret) else NEVER
        while self.entered and self.call[self.needed_by_call[self.entered - 1]] > limit:
            self.entered -= 1
            self._leave(self.needed_by_call[self.entered])
        while self.optional_entered and self.call[self.optional[self.optional_entered - 1]] > limit:
            self.optional_entered -= 1
            self._leave(self.optional[self.optional_entered])

    def _come_in(self, part: int) -> None:
        if part in self.group.writes or part in self.group.zero_writes:
            insort(self.ready, (self.ret[part], part))
            if part in self.unread:
                self.ready_unread.append(part)
        else:
            self.ready_reads.append(part)

    def _leave(self, part: int) -> None:
        if part in self.group.writes or part in self.group.zero_writes:
            del self.ready[bisect_left(self.ready, (self.ret[part], part))]
            if part in self.unread:
                self.ready_unread.remove(part)
        else:
            self.ready_reads.remove(part)


# Refutations of a few.


def _look_closely(schedule: Schedule, patient: bool) -> Refutation | bool:
    """Refute the requests around the place where a schedule was stuck, if they can be; or learn from them, if so."""
    group, parts = schedule.group, schedule.needed_by_call
    where = bisect_left(parts, group.low[schedule.stuck_at], key=group.low.__getitem__)
    for size in WINDOWS:
        window = {*parts[max(where - size, 0) : where + size // 2], schedule.stuck_at}
        few = Few(group, window)
        implied = few.implied(few.droppable())
        if implied.has_a_cycle():
            return few.refutation(few.implies_a_cycle)
        if patient and size <= SEARCHED_MAX and few.has_no_order(few.droppable()):
            return few.refutation(few.has_no_order)
        if group.learn(implied):
            schedule.back_to_before(window)
            return True
        if len(window) >= len(parts):
            break
    return False


class Few:
    """Some parts of a group, with the writes that their reads need, and all zero writes that may matter to them.

    What it is asked about are parts to drop, or to keep: reads, and writes. Writers of what is read are kept with the
    reads. Where something is searched, zero writes that may matter are there in any case; implied orders need none.
    """

    def __init__(self, group: Group, parts: set[int]) -> None:
        self.found, self.base_is_zero = group.found, group.base_is_zero
        self.writers: dict[int, set[int]] = {}
        for part in parts:
            writers = {group.writer[at][number] for at, number in group.reads.get(part, ())}
            self.writers[part] = writers - {NOBODY}
        everything = parts.union(*self.writers.values())
        cells: dict[int, Cell] = {}
        for part in sorted(everything, key=self.found.call.__getitem__):
            for at, _ in group.writes.get(part, ()):
                cells.setdefault(at, Cell()).writes.append(part)
            for at, number in group.reads.get(part, ()):
                cell = cells.setdefault(at, Cell())
                cell.reads.append(part)
                writer = group.writer[at][number]
                cell.read_values.append(BASE if writer == NOBODY else str(self.found.names[writer]))
            for at in group.zero_reads.get(part, ()):
                cells.setdefault(at, Cell()).zero_reads.append(part)
            for at in group.zero_writes.get(part, ()):
                cells.setdefault(at, Cell()).zero_writes.append(part)
        for at, cell in cells.items():
            if cell.zero_reads:
                cell.zero_writes = group.cells[at].zero_writes
        self.cells = [cells[at] for at in sorted(cells)]
        self.zeroed = {part for cell in self.cells for part in cell.zero_writes}
        self.asked = everything - self.zeroed

    def droppable(self) -> list[int]:
        """All of them, by invocation."""
        return sorted({*self.asked, *self.zeroed}, key=lambda part: (self.found.call[part], part))

    def closed(self, parts: Iterable[int]) -> set[int]:
        """With the writers of what is read."""
        there = set(parts)
        there.update(*[self.writers.get(part, ()) for part in there])
        return there

    def implies_a_cycle(self, parts: list[int]) -> bool:
        """Whether implied orders refute the parts."""
        return self.implied(parts).has_a_cycle()

    def implied(self, parts: list[int]) -> Implied:
        """What the parts imply."""
        there = self.closed(parts)
        read = set().union(*[self.writers.get(part, set()) for part in there])
        there = {part for part in there if part not in self.found.optional or part in read}
        return Implied(self.found, [_restricted(cell, there) for cell in self.cells])

    def has_no_order(self, parts: list[int]) -> bool:
        """Whether an exhaustive search refutes the parts."""
        there = self.closed(parts)
        cells, zero_at_first = [], set()
        for at, cell in enumerate(self.cells):
            few = _restricted(cell, there)
            if few.zero_reads:
                first, last = self._span(few)
                matters = [self.found.call[part] <= last and self.found.ret[part] >= first for part in cell.zero_writes]
                named = zip(cell.zero_writes, matters, strict=True)
                few.zero_writes = [part for part, does in named if does or part in there]
                if any(self.found.ret[part] < first for part in cell.zero_writes):
                    zero_at_first.add(at)
            cells.append(few)
        group = Group(self.found, cells, self.base_is_zero, zero_at_first)
        if group.hopeless:
            return True
        schedule = Schedule(group, Meter(SEARCHED))
        return schedule.run(SEARCHED.steps) is None and schedule.exhausted

    def _span(self, cell: Cell) -> tuple[int, int]:
        """Between which times zero writes matter to a cell; as in `model/certificate.py`."""
        call, ret, names = self.found.call, self.found.ret, self.found.names
        f: dict[object, int] = {names[part]: ret[part] for part in cell.writes}
        s: dict[object, int] = {names[part]: call[part] for part in cell.writes}
        for part, value in zip(cell.reads, cell.read_values, strict=True):
            f[value] = min(f.get(value, NEVER), ret[part])
            s[value] = max(s.get(value, -NEVER), call[part])
        times = [call[part] for part in cell.zero_reads] + list(f.values()) + list(s.values())
        return min(times), max(ret[part] for part in cell.zero_reads)

    def refutation(self, is_refuted: Callable[[list[int]], bool]) -> Refutation:
        """The fewest parts that are refuted still, by dropping what can be dropped: many at once, then one by one."""
        parts = self.droppable()
        size = max(len(parts) // 2, 1)
        while True:
            at = 0
            while at < len(parts):
                fewer = parts[:at] + parts[at + size :]
                if fewer and is_refuted(fewer):
                    parts = fewer
                else:
                    at += size
            if size == 1:
                break
            size = max(size // 2, 1)
        there = self.closed(parts)
        if is_refuted == self.has_no_order:
            there |= self._zero_writes_for(there)
        return Refutation("whole", (tuple(there),), tuple(sorted(there, key=self.found.call.__getitem__)))

    def _zero_writes_for(self, parts: set[int]) -> set[int]:
        needed: set[int] = set()
        for cell in self.cells:
            few = _restricted(cell, parts)
            if few.zero_reads:
                first, last = self._span(few)
                call, ret = self.found.call, self.found.ret
                needed.update(part for part in cell.zero_writes if call[part] <= last and ret[part] >= first)
        return needed


class Implied:
    """What must come before what, by the rules at the top. An order is kept as bits: who comes after each."""

    def __init__(self, found: Cut, cells: list[Cell]) -> None:
        parts = {part for cell in cells for part in (*cell.writes, *cell.reads, *cell.zero_writes, *cell.zero_reads)}
        by_call = sorted(parts, key=found.call.__getitem__)
        calls = [found.call[part] for part in by_call]
        place = {part: at for at, part in enumerate(by_call)}
        self.by_call = by_call
        everything = (1 << len(by_call)) - 1
        self.after = []
        for part in by_call:
            later = bisect_right(calls, found.ret[part])
            self.after.append(everything >> later << later)
        # (write, reads, everything else on the cell); the base has no write.
        self.clusters: list[tuple[int, list[int], int]] = []
        self.contradicts = False
        for cell in cells:
            reads: dict[object, list[int]] = {found.names[part]: [] for part in cell.writes}
            writes = {found.names[part]: place[part] for part in cell.writes}
            for part, value in zip(cell.reads, cell.read_values, strict=True):
                reads.setdefault(value, []).append(place[part])
            here = _bits(place[part] for part in (*cell.writes, *cell.reads, *cell.zero_writes, *cell.zero_reads))
            for name, of in reads.items():
                write = writes.get(name, NOBODY)
                others = here & ~_bits(of) & ~(1 << write if write != NOBODY else 0)
                if write != NOBODY:
                    self.after[write] |= _bits(of)
                else:
                    for read in of:
                        self.after[read] |= others
                self.clusters.append((write, of, others))

    def has_a_cycle(self) -> bool:
        """Whether anything would have to come before itself."""
        while True:
            self._close()
            if any(after >> at & 1 for at, after in enumerate(self.after)):
                return True
            if not self._imply():
                return False

    def _close(self) -> None:
        """What comes after what comes after comes after."""
        after = self.after
        for middle in range(len(after)):
            bit, beyond = 1 << middle, after[middle]
            for at, of in enumerate(after):
                if of & bit:
                    after[at] = of | beyond

    def _imply(self) -> bool:
        """Use the rules once; whether they said anything new."""
        after = self.after
        said = False
        for write, reads, others in self.clusters:
            if write == NOBODY or not others:
                continue
            members = _bits(reads) | 1 << write
            later = after[write] & others
            for read in reads:
                later |= after[read] & others
            for read in reads:
                if later & ~after[read]:
                    after[read] |= later
                    said = True
            rest = others & ~later
            while rest:
                bit = rest & -rest
                rest ^= bit
                other = bit.bit_length() - 1
                if after[other] & members and not after[other] >> write & 1:
                    after[other] |= 1 << write
                    said = True
        return said


def _bits(places: Iterable[int]) -> int:
    found = 0
    for at in places:
        found |= 1 << at
    return found
