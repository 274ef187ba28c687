"""Range locks: who waits for whom, and who does not."""

import threading

import pytest

from check.gates import Running, WatchedSync
from impl.overlay.rangelock import RangeLock


class Bench:
    """A lock, and threads that come to it one after the other."""

    def __init__(self):
        self.sync = WatchedSync()
        self.lock = RangeLock(self.sync)
        self.order = []
        self._waiting = {}

    def hold(self, first, last, exclusive):
        return (self.lock.exclusive if exclusive else self.lock.shared)(first, last)

    def come(self, name, first, last, exclusive):
        """Start a thread that takes the range and stays until told; True if it had to wait."""
        leave = threading.Event()
        self.sync.somebody_waits.clear()

        def visit():
            with self.hold(first, last, exclusive):
                self.order.append(name)
                self.sync.somebody_waits.set()
                assert leave.wait(20)

        self._waiting[name] = Running(visit, also_set=self.sync.somebody_waits), leave
        assert self.sync.somebody_waits.wait(20)
        return name not in self.order

    def go(self, name):
        running, leave = self._waiting.pop(name)
        leave.set()
        running.join()


PAIRS = [  # (a range that is held, exclusively?, one that is wanted, exclusively?, does it wait)
    ((0, 3), True, (3, 5), True, True),
    ((0, 3), True, (4, 5), True, False),
    ((0, 3), False, (3, 5), True, True),
    ((0, 3), True, (3, 3), False, True),
    ((0, 3), False, (0, 3), False, False),
    ((4, 4), True, (0, 9), False, True),
    ((0, 9), True, (4, 4), True, True),
    ((1, 2), True, (0, 0), True, False),
]


@pytest.mark.parametrize(("held", "held_alone", "wanted", "wanted_alone", "waits"), PAIRS)
def test_a_request_waits_only_for_one_that_overlaps_and_is_not_shared_with_it(
    held, held_alone, wanted, wanted_alone, waits
):
    bench = Bench()
    bench.come("first", *held, held_alone)
    assert bench.come("second", *wanted, wanted_alone) is waits
    bench.go("first")
    bench.go("second")
    assert bench.order == ["first", "second"]


def test_those_that_overlap_are_served_in_the_order_they_came():
    bench = Bench()
    bench.come("first", 0, 9, True)
    for name in ("b", "c", "d"):
        assert bench.come(name, 0, 9, True)
    for name in ("first", "b", "c", "d"):
        bench.go(name)
    assert bench.order == ["first", "b", "c", "d"]


def test_a_stream_of_readers_does_not_starve_a_writer():
    bench = Bench()
    bench.come("reader", 0, 9, False)
    assert bench.come("writer", 5, 5, True)
    assert bench.come("late reader", 5, 6, False)
    assert not bench.come("reader elsewhere", 0, 4, False)
    bench.go("reader")
    bench.go("writer")
    bench.go("late reader")
    bench.go("reader elsewhere")
    assert bench.order == ["reader", "reader elsewhere", "writer", "late reader"]


def test_whoever_waits_for_several_waits_for_the_last_of_them():
    bench = Bench()
    bench.come("left", 0, 0, True)
    bench.come("right", 9, 9, True)
    assert bench.come("both", 0, 9, True)
    bench.go("left")
    assert bench.order == ["left", "right"]
    bench.go("right")
    bench.go("both")
    assert bench.order == ["left", "right", "both"]


def test_all_readers_behind_a_writer_go_at_once():
    bench = Bench()
    bench.come("writer", 0, 9, True)
    for name in ("a", "b", "c"):
        assert bench.come(name, 0, 9, False)
    bench.go("writer")
    for name in ("c", "a", "b"):  # none of them has to leave before another is in
        bench.go(name)
    assert sorted(bench.order) == ["a", "b", "c", "writer"]


def test_an_exception_inside_gives_the_range_back():
    lock = RangeLock()
    with pytest.raises(ValueError, match="inside"), lock.exclusive(0, 9):
        raise ValueError("inside")
    assert lock.at_once(0, 9, True) is not None


def test_many_threads_over_few_blocks_never_break_the_rules():
    """Each block counts who is in: one writer alone, or readers."""
    lock = RangeLock()
    inside = [[0, 0] for _ in range(6)]
    problems = []

    def visit(seed):
        for step in range(200):
            first = (seed * 7 + step * 5) % 6
            last = min(5, first + (seed + step) % 3)
            exclusive = (seed + step) % 2 == 0
            with (lock.exclusive if exclusive else lock.shared)(first, last):
                for block in range(first, last + 1):
                    readers, writers = inside[block]
                    if writers or (exclusive and readers):
                        problems.append((block, readers, writers))
                    inside[block][exclusive] += 1
                for block in range(first, last + 1):
                    inside[block][exclusive] -= 1

    for running in [Running(lambda seed=seed: visit(seed)) for seed in range(8)]:
        running.join()
    assert not problems
    assert lock.at_once(0, 5, True) is not None
