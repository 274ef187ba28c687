"""Range locks without a thread that waits: had at once, or asked for.

Source: impl/overlay/rangelock.py (`at_once`, `ask`), impl/overlay/parking.py.
"""

import random
import threading
from dataclasses import replace

import pytest

from check.gates import Running, WatchedSync
from check.subjects import Setup, assemble
from impl.overlay.parking import AtOnce, Granted, WouldWait
from impl.overlay.rangelock import RangeLock

PAIRS = [  # (a range that is held, exclusively?, one that is wanted, exclusively?, is it to be had)
    ((0, 3), True, (3, 5), True, False),
    ((0, 3), True, (4, 5), True, True),
    ((0, 3), False, (3, 5), True, False),
    ((0, 3), True, (3, 3), False, False),
    ((0, 3), False, (0, 3), False, True),
    ((4, 4), True, (0, 9), False, False),
    ((1, 2), True, (0, 0), True, True),
]


def let_go(held):
    held.__exit__(None, None, None)


class Asked:
    """Ranges asked for, by name; `order` is who got his, in that order."""

    def __init__(self):
        self.sync = WatchedSync()
        self.lock = RangeLock(self.sync)
        self.order = []
        self._held = {}

    def ask(self, name, first, last, exclusive):
        """True if it was held before `ask` returned."""

        def when_held(held):
            assert name not in self._held, "told twice"
            self._held[name] = held
            self.order.append(name)

        self.lock.ask(first, last, exclusive, when_held)
        return name in self._held

    def go(self, name):
        let_go(self._held[name])


@pytest.mark.parametrize(("held", "held_alone", "wanted", "wanted_alone", "free"), PAIRS)
def test_what_is_free_is_had_at_once_and_what_is_not_is_told_when_it_is(held, held_alone, wanted, wanted_alone, free):
    asked = Asked()
    assert asked.ask("first", *held, held_alone)
    found = asked.lock.at_once(*wanted, wanted_alone)
    assert (found is not None) is free
    if found is not None:
        let_go(found)
    assert asked.ask("second", *wanted, wanted_alone) is free
    asked.go("first")
    assert asked.order == ["first", "second"]
    asked.go("second")
    assert asked.lock.at_once(0, 9, True) is not None, "all was given back"


def test_those_that_ask_are_told_in_the_order_they_came():
    asked = Asked()
    for name in ("a", "b", "c", "d"):
        asked.ask(name, 0, 9, True)
    for name in ("a", "b", "c"):
        assert asked.order[-1] == name
        asked.go(name)
    assert asked.order == ["a", "b", "c", "d"]


def test_nobody_has_at_once_what_another_waits_for():
    """Else a stream of readers could starve a writer."""
    asked = Asked()
    asked.ask("reader", 0, 9, False)
    asked.ask("writer", 5, 5, True)
    assert asked.lock.at_once(5, 6, False) is None
    assert asked.lock.at_once(0, 4, False) is not None


def test_readers_behind_a_writer_are_all_told_at_once_and_whoever_waits_for_two_for_the_second_only():
    asked = Asked()
    asked.ask("left", 0, 4, True)
    asked.ask("right", 5, 9, True)
    asked.ask("reader", 3, 4, False)
    asked.ask("reader of both", 3, 6, False)
    assert asked.order == ["left", "right"]
    asked.go("left")
    assert asked.order == ["left", "right", "reader"]
    asked.go("right")
    assert asked.order == ["left", "right", "reader", "reader of both"]


def test_threads_that_wait_and_requests_that_ask_stand_in_one_queue():
    asked, entered = Asked(), []
    asked.ask("first", 0, 9, True)

    def wait():
        with asked.lock.exclusive(0, 9):
            entered.append(list(asked.order))

    running = Running(wait)
    assert asked.sync.somebody_waits.wait(20)
    asked.ask("last", 0, 9, True)
    asked.go("first")
    running.join()
    assert entered == [["first"]]
    assert asked.order == ["first", "last"]


def test_one_who_is_told_may_give_back_and_ask_again_there_and_then():
    lock, told = RangeLock(), []

    def again(held):
        told.append(len(told))
        let_go(held)
        if len(told) < 5:
            lock.ask(0, 9, True, again)

    first = lock.at_once(0, 9, True)
    lock.ask(0, 9, True, again)
    let_go(first)
    assert told == [0, 1, 2, 3, 4]


def test_many_threads_that_ask_and_wait_over_few_blocks_never_break_the_rules():
    """Each block counts who is in: one writer alone, or readers. Whoever is told lets go from yet another thread."""
    lock = RangeLock()
    counting = threading.Lock()
    inside = [[0, 0] for _ in range(6)]
    problems, left, done = [], [8 * 100], threading.Event()

    def stay(held, first, last, exclusive):
        for block in range(first, last + 1):
            with counting:
                readers, writers = inside[block]
                if writers or (exclusive and readers):
                    problems.append((block, readers, writers))
                inside[block][exclusive] += 1
        for block in range(first, last + 1):
            with counting:
                inside[block][exclusive] -= 1
        let_go(held)
        with counting:
            left[0] -= 1
            if left[0] == 0:
                done.set()

    def visit(seed):
        source = random.Random(seed)
        for _ in range(100):
            first = source.randrange(6)
            range_ = (first, min(5, first + source.randrange(3)), source.random() < 0.5)
            if source.random() < 0.5:
                lock.ask(*range_, lambda held, range_=range_: Running(lambda: stay(held, *range_)))
            else:
                *blocks, exclusive = range_
                stay((lock.exclusive if exclusive else lock.shared)(*blocks), *range_)

    for running in [Running(lambda seed=seed: visit(seed)) for seed in range(8)]:
        running.join()
    assert done.wait(20)
    assert not problems
    assert lock.at_once(0, 5, True) is not None


# An overlay on such ranges.

BLOCK = 4096
BASE = bytes(1 + index % 251 for index in range(4 * BLOCK))
REQUESTS = [  # (name, request, what the request wants)
    ("look", lambda overlay: overlay.look(BLOCK, 10), (1, 1, False)),
    ("write", lambda overlay: overlay.write(0, b"x" * 2 * BLOCK), (0, 1, True)),
    ("write of a part", lambda overlay: overlay.write(BLOCK + 1, b"x"), (1, 1, True)),
    ("zero", lambda overlay: overlay.zero(BLOCK, 2 * BLOCK), (1, 2, True)),
    ("trim of a part", lambda overlay: overlay.trim(BLOCK, 10), (1, 1, True)),
    ("cache", lambda overlay: overlay.cache(0, 4 * BLOCK), (0, 3, False)),
    ("extents", lambda overlay: overlay.extents(BLOCK, 10), (1, 1, False)),
]


@pytest.mark.parametrize(("request_", "wanted"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS])
def test_a_request_that_would_wait_changes_nothing_and_is_repeated_once_its_range_is_granted(request_, wanted):
    parts = assemble(Setup(BASE, BLOCK))
    overlay, lock = parts.overlay, parts.overlay.ranges
    overlay.write(BLOCK, b"y" * BLOCK)  # what shows the base is looked at without waiting
    before = overlay.states.get(0, 4)
    try:
        holder = lock.at_once(1, 1, True)
        with pytest.raises(WouldWait) as raised:
            request_(replace(overlay, ranges=AtOnce(lock)))
        busy = raised.value
        assert (busy.first, busy.last, busy.exclusive) == wanted
        granted, told = Granted(lock, busy), []
        granted.ask(lambda: told.append(True))
        assert not told
        let_go(holder)
        assert told
        assert lock.at_once(1, 1, True) is None, "held, though nobody has begun"
        assert overlay.states.get(0, 4) == before
        request_(replace(overlay, ranges=granted))
        assert lock.at_once(0, 3, True) is not None, "the request has let go of it"
    finally:
        parts.file.close()


def test_what_was_granted_can_be_given_back_unused():
    lock = RangeLock()
    granted = Granted(lock, WouldWait(0, 3, True))
    granted.ask(lambda: None)
    assert lock.at_once(3, 3, False) is None
    granted.give_back()
    granted.give_back()
    assert lock.at_once(0, 3, True) is not None
