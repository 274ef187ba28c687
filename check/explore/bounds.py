"""All programs within a bound, explored one after the other: what "holds" means when it is said without a program.

A bound is a shape (how many clients, how many requests each) and a menu of requests; its programs are all ways to fill
the shape from the menu, but for the names of the clients, on a disk of one to three blocks in every initial state, with
copy-on-read and copy-on-cache, both, either and neither. A mode that none of a program's requests asks about changes
nothing, so a program without reads is explored without copy-on-read only, and one without caches without
copy-on-cache. A bound is complete when all of them have been explored.

Shapes:  the programs of a bound are numbered, on each disk and in each mode alike; a `Slice` is some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import comb, prod
from typing import overload

from check.explore.judge import Level
from check.explore.programs import DEFAULT_BLOCK_SIZE, Ask, Asks, Disk, make_disk, on_disk, parse_program, scale_for
from check.explore.replay import format_replay
from check.explore.search import Machine, Question, Verdict, search_all
from check.explore.subjects import Kind, Modes

# Requests that cover half a block, a whole one, parts of two, and two whole ones; and one that some do not overlap.
MENU = (
    "read 0+32K",
    "read 0+128K",
    "write 0+32K",
    "write 32K+32K",
    "write 64K+32K",
    "write 0+64K",
    "write 32K+64K",
    "write 0+128K",
    "zero 0+32K",
    "zero 32K+64K",
    "zero 0+64K no-hole",
    "zero 32K+64K no-hole",
    "zero 0+32K fast",
    "trim 0+64K",
    "trim 32K+64K",
    "trim 0+128K",
    "cache 0+128K",
    "status 0+128K",
    "flush",
)
# On three blocks: what covers all of them, what has a whole block between two parts, and what is in the middle or on
# either side.
MENU_OF_THREE = (
    "read 0+192K",
    "read 64K+128K",
    "write 0+192K",
    "write 32K+128K",
    "write 32K+64K",
    "write 64K+64K",
    "write 96K+64K",
    "zero 32K+128K",
    "zero 32K+128K no-hole",
    "trim 0+192K",
    "trim 64K+64K",
    "cache 0+192K",
    "status 0+192K",
)
# On one block: what begins and ends inside it, in its middle or at its end, and what covers it.
MENU_WITHIN = (
    "read 16K+16K",
    "read 32K+32K",
    "write 16K+16K",
    "write 32K+32K",
    "write 0+64K",
    "zero 16K+16K",
    "zero 16K+16K no-hole",
    "zero 16K+16K fast",
    "trim 16K+16K",
    "trim 0+64K",
    "cache 16K+16K",
    "status 32K+32K",
)
MENUS = {1: MENU_WITHIN, 2: MENU, 3: MENU_OF_THREE}


def plain(menu: tuple[str, ...]) -> tuple[str, ...]:
    """What a subject knows that knows neither status nor flags."""
    unknown = ("status", "no-hole", "fast")
    return tuple(text for text in menu if not any(word in text for word in unknown))


PLAIN_MENU = plain(MENU)
ALL_MODES = tuple(Modes(*on) for on in product((False, True), repeat=2))
STATES_MAX = 2_000_000


@dataclass(frozen=True)
class Bound:
    """A shape, a number of requests for each client, filled from a menu.

    initial:  the states that the disk's blocks begin in; all there are by default.
    """

    shape: tuple[int, ...]
    menu: tuple[str, ...] = MENU
    initial: tuple[str, ...] = ()
    modes: tuple[Modes, ...] = ALL_MODES
    faults: int = 0
    size: int = 2 * DEFAULT_BLOCK_SIZE

    def disks(self) -> list[Disk]:
        """One for each initial state; all on one scale, so that what is learned on one program serves the others."""
        scale = scale_for((self.asks(),), DEFAULT_BLOCK_SIZE, self.size)
        every = ("".join(letters) for letters in product("NAT", repeat=len(scale.cuts)))
        return [make_disk(scale, letters) for letters in self.initial or every]

    def asks(self) -> tuple[Ask, ...]:
        """The menu, parsed; without what is beyond the device."""
        parsed = [parse_program(text)[0][0] for text in self.menu]
        return tuple(dict.fromkeys(_fitted(ask, self.size) for ask in parsed if ask.offset < self.size))

    def programs(self) -> Programs:
        """All ways to fill the shape. Clients of one length are alike, so their order does not matter."""
        return _programs(self.asks(), self.shape)

    def count(self) -> int:
        """How many programs there are in all, on each disk in each mode that makes a difference to them."""
        differ = sum(self.is_new(asks, modes) for asks in self.programs() for modes in self.modes)
        return differ * len(self.disks())

    def is_new(self, asks: Asks, modes: Modes) -> bool:
        """Whether a program is, in these modes, another one than in those before them."""
        seen = _as_seen(modes, asks)
        return next(each for each in self.modes if _as_seen(each, asks) == seen) == modes


class Programs(Sequence[Asks]):
    """All programs of a shape, by number; of a large bound they are too many to be made beforehand."""

    def __init__(self, menu: tuple[Ask, ...], shape: tuple[int, ...]) -> None:
        self._menu = menu
        lengths = dict.fromkeys(shape)
        self._groups = [(length, shape.count(length)) for length in lengths]
        self._counts = [comb(len(menu) ** length + clients - 1, clients) for length, clients in self._groups]

    def __len__(self) -> int:
        return prod(self._counts)

    @overload
    def __getitem__(self, index: int) -> Asks: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Asks]: ...

    def __getitem__(self, index: int | slice) -> Asks | Sequence[Asks]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._at(index)

    def _at(self, index: int) -> Asks:
        found: list[tuple[Ask, ...]] = []
        for (length, clients), count in reversed(list(zip(self._groups, self._counts, strict=True))):
            index, mine = divmod(index, count)
            found[:0] = [self._client(each, length) for each in multiset(mine, len(self._menu) ** length, clients)]
        return tuple(found)

    def _client(self, number: int, length: int) -> tuple[Ask, ...]:
        """One client's requests: a number with a digit for each."""
        digits = []
        for _ in range(length):
            number, digit = divmod(number, len(self._menu))
            digits.append(digit)
        return tuple(self._menu[digit] for digit in reversed(digits))


def multiset(index: int, count: int, size: int) -> list[int]:
    """The multiset of this number among all of `size` of the numbers below `count`, in lexicographic order."""
    found, low = [], 0
    for left in range(size - 1, -1, -1):
        while (beginning_so := comb(count - low + left - 1, left)) <= index:
            index -= beginning_so
            low += 1
        found.append(low)
    return found


@lru_cache(maxsize=8)
def _programs(menu: tuple[Ask, ...], shape: tuple[int, ...]) -> Programs:
    return Programs(menu, shape)


def _as_seen(modes: Modes, asks: Asks) -> Modes:
    """As much of the modes as a program asks about: the rest makes no difference to it."""
    verbs = {ask.verb for mine in asks for ask in mine}
    return Modes(modes.copy_on_read and "read" in verbs, modes.copy_on_cache and "cache" in verbs)


def _fitted(ask: Ask, size: int) -> Ask:
    """The request, cut off at the end of a device that is shorter."""
    return Ask(ask.verb, ask.offset, min(ask.length, size - ask.offset), ask.flags)


WORSE = (Verdict.HOLDS, Verdict.INCONCLUSIVE, Verdict.VIOLATED)


@dataclass(frozen=True)
class Tally:
    """What was looked at, added up; `replay` is empty as long as nothing is wrong."""

    programs: int = 0
    states: int = 0
    transitions: int = 0
    schedules: int = 0
    verdict: Verdict = Verdict.HOLDS
    replay: str = ""
    why: str = ""

    def __add__(self, other: Tally) -> Tally:
        worse = max(self, other, key=lambda tally: WORSE.index(tally.verdict))
        return Tally(
            self.programs + other.programs,
            self.states + other.states,
            self.transitions + other.transitions,
            self.schedules + other.schedules,
            worse.verdict,
            worse.replay,
            worse.why,
        )


@dataclass(frozen=True)
class Slice:
    """On one disk and in one mode, the programs from `start` on, one of `every`, before `stop`."""

    disk: Disk
    modes: Modes
    start: int
    stop: int
    every: int = 1


@dataclass(frozen=True)
class Slices(Sequence[Slice]):
    """The whole bound, or one program of `every`, cut into slices of about `length` programs, by number."""

    bound: Bound
    length: int
    every: int = 1

    @property
    def _starts(self) -> range:
        return range(0, len(self.bound.programs()), self.length * self.every)

    def __len__(self) -> int:
        return len(self.bound.disks()) * len(self.bound.modes) * len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Slice: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Slice]: ...

    def __getitem__(self, index: int | slice) -> Slice | Sequence[Slice]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        rest, at = divmod(index, len(self._starts))
        disk, modes = divmod(rest, len(self.bound.modes))
        start = self._starts[at]
        stop = start + self._starts.step
        return Slice(self.bound.disks()[disk], self.bound.modes[modes], start, stop, self.every)


def explore_all(kind: Kind, bound: Bound, level: Level = "request", every: int = 1) -> Tally:
    """Explore each program, or one of `every`; stops at the first that is wrong, or too big."""
    total = Tally()
    for part in Slices(bound, max(len(bound.programs()), 1), every):
        total += explore_slice(kind, bound, part, level)
        if total.verdict is not Verdict.HOLDS:
            break
    return total


def explore_slice(kind: Kind, bound: Bound, part: Slice, level: Level = "request") -> Tally:
    """Explore the programs of one slice, up to the first that is wrong, or too big."""
    total = Tally()
    machine: Machine | None = None
    programs = bound.programs()
    for number in range(part.start, min(part.stop, len(programs)), part.every):
        asks = programs[number]
        if not bound.is_new(asks, part.modes):
            continue
        program = on_disk(asks, part.disk)
        if machine is None:
            machine = Machine(Question(kind, program, level, part.modes, bound.faults))
        else:
            machine.turn_to(program)
        found = search_all(machine, STATES_MAX)
        moves = found.violation.moves if found.violation else ()
        replay = format_replay(machine.question, moves) if found.verdict is not Verdict.HOLDS else ""
        why = found.violation.what if found.violation else found.why
        total += Tally(1, found.states, found.transitions, found.schedules, found.verdict, replay, why)
        if total.verdict is not Verdict.HOLDS:
            break
    return total
