"""The event loop: handlers, calls from other threads, timers, and its end.

Source: impl/server/loop.py; epoll(7).
"""

import os
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from impl.server.loop import READABLE, WRITABLE, Loop

WAIT_S = 20
CALLERS, CALLS = 8, 500


def run(loop):
    """Run a loop to its end, on a thread of its own: a loop that does not end fails the test instead of hanging it."""
    failures = []

    def target():
        try:
            loop.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive(), "the loop did not end"
    if failures:
        raise failures[0]
    return thread


@contextmanager
def readable():
    """A descriptor that is ready to be read, and stays so."""
    reader, writer = os.pipe()
    os.write(writer, b"x")
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


# Timers.


def test_timers_go_off_in_the_order_of_their_times_and_never_early():
    loop, start, seen = Loop(), time.monotonic(), []
    for delay_s in (0.03, 0.01, 0.02, 0.0):
        loop.call_later(delay_s, lambda delay_s=delay_s: seen.append((delay_s, time.monotonic() - start >= delay_s)))
    loop.call_later(0.04, loop.stop)
    run(loop)
    assert seen == [(0.0, True), (0.01, True), (0.02, True), (0.03, True)]


def test_timers_of_one_time_go_off_in_the_order_they_were_set(monkeypatch):
    monkeypatch.setattr("impl.server.loop.time.monotonic", lambda: 100.0)
    loop, seen = Loop(), []
    for number in range(20):
        loop.call_later(0.0, lambda number=number: seen.append(number))
    loop.call_later(0.0, loop.stop)
    run(loop)
    assert seen == list(range(20))


def test_a_timer_may_set_another():
    loop, seen = Loop(), []

    def again():
        seen.append(len(seen))
        loop.call_later(0.0, again if len(seen) < 5 else loop.stop)

    loop.call_later(0.0, again)
    run(loop)
    assert seen == [0, 1, 2, 3, 4]


def test_a_timer_goes_off_while_descriptors_keep_the_loop_busy():
    loop = Loop()
    with readable() as fd:
        loop.watch(fd, READABLE, lambda _: None)
        loop.call_later(0.01, loop.stop)
        run(loop)


def test_a_loop_that_was_stopped_calls_no_timer_any_more():
    loop, seen = Loop(), []
    loop.call_later(0.0, loop.stop)
    loop.call_later(0.0, lambda: seen.append("late"))
    run(loop)
    assert seen == []


# Calls from other threads.


def test_what_is_called_before_the_loop_runs_is_run_by_it():
    loop, threads = Loop(), []
    loop.call_soon(lambda: threads.append(threading.current_thread()))
    loop.call_soon(loop.stop)
    assert threads == []
    assert [run(loop)] == threads


def test_calls_of_many_threads_all_run_on_the_loops_thread_and_each_threads_in_order():
    loop, seen, ended = Loop(), [], []

    def end():
        ended.append(None)
        if len(ended) == CALLERS:
            loop.stop()

    def call(caller):
        for number in range(CALLS):
            loop.call_soon(lambda number=number: seen.append((caller, number, threading.current_thread())))
        loop.call_soon(end)

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for thread in callers:
        thread.start()
    own = run(loop)
    for thread in callers:
        thread.join(WAIT_S)
    assert len(seen) == CALLERS * CALLS
    assert {thread for _, _, thread in seen} == {own}
    for caller in range(CALLERS):
        assert [number for who, number, _ in seen if who == caller] == list(range(CALLS))


def test_a_call_wakes_a_loop_that_waits():
    loop, waiting = Loop(), threading.Event()
    loop.call_soon(waiting.set)

    def stop_it():
        assert waiting.wait(WAIT_S)
        loop.call_soon(loop.stop)

    thread = threading.Thread(target=stop_it)
    thread.start()
    run(loop)
    thread.join(WAIT_S)


def test_a_call_may_make_another():
    loop, seen = Loop(), []
    loop.call_soon(lambda: (seen.append(1), loop.call_soon(lambda: (seen.append(2), loop.stop()))))
    run(loop)
    assert seen == [1, 2]


def test_a_call_that_makes_itself_again_and_again_keeps_nobody_from_his_turn():
    """Neither a descriptor nor a timer."""
    loop, seen = Loop(), []

    def again():
        seen.append("call")
        assert len(seen) < 1000, f"nobody else has had a turn: {set(seen)}"
        loop.call_soon(again)

    def handler(_):
        seen.append("descriptor")
        if "timer" in seen:
            loop.stop()

    with readable() as fd:
        loop.watch(fd, READABLE, handler)
        loop.call_later(0, lambda: seen.append("timer"))
        loop.call_soon(again)
        run(loop)
    assert seen[:4] == ["descriptor", "call", "timer", "descriptor"]


def test_what_is_asked_for_by_a_call_that_is_made_is_not_left_lying():
    loop, seen = Loop(), []
    loop.call_soon(lambda: [loop.call_soon(lambda number=number: seen.append(number)) for number in range(3)])
    loop.call_later(0.01, loop.stop)
    run(loop)
    assert seen == [0, 1, 2]


# Its end.


def successors(wakeup):
    """Eventfds, among them one that has the number which the loop's own had."""
    made = []
    while wakeup not in made:
        made.append(os.eventfd(0, os.EFD_NONBLOCK))
        assert len(made) < 1000, "nobody gave the number back"
    return made


def assert_untouched_and_close(fds):
    try:
        for fd in fds:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(fd)
    finally:
        for fd in fds:
            os.close(fd)


def test_a_call_after_the_end_is_forgotten_and_writes_to_nobodys_descriptor():
    loop, seen = Loop(), []
    wakeup = loop._wakeup
    loop.call_soon(loop.stop)
    run(loop)
    others = successors(wakeup)
    loop.call_soon(lambda: seen.append("late"))
    assert_untouched_and_close(others)
    assert seen == []


def test_calls_that_race_with_the_end_write_to_nobodys_descriptor():
    for _ in range(30):
        loop, enough = Loop(), threading.Event()
        wakeup = loop._wakeup

        def call(loop=loop, enough=enough):
            while not enough.is_set():
                loop.call_soon(lambda: None)

        callers = [threading.Thread(target=call) for _ in range(3)]
        for thread in callers:
            thread.start()
        loop.call_soon(loop.stop)
        run(loop)
        others = successors(wakeup)
        enough.set()
        for thread in callers:
            thread.join(WAIT_S)
        assert_untouched_and_close(others)


class Forgetful(Loop):
    """A mutant that does not know that it has ended."""

    @property
    def _closed(self):
        return False

    @_closed.setter
    def _closed(self, _):
        pass


def test_a_loop_that_does_not_know_its_end_is_found_out():
    loop = Forgetful()
    wakeup = loop._wakeup
    loop.call_soon(loop.stop)
    run(loop)
    others = successors(wakeup)
    loop.call_soon(lambda: None)
    with pytest.raises(pytest.fail.Exception):
        assert_untouched_and_close(others)


def test_an_exception_of_a_handler_ends_the_loop_in_order():
    loop = Loop()
    wakeup = loop._wakeup

    def fail(_):
        raise ZeroDivisionError

    with readable() as fd:
        loop.watch(fd, READABLE, fail)
        with pytest.raises(ZeroDivisionError):
            run(loop)
    others = successors(wakeup)
    loop.call_soon(lambda: None)
    assert_untouched_and_close(others)


# Descriptors.


def test_a_handler_is_called_as_long_as_its_descriptor_is_ready():
    loop, seen = Loop(), []

    def handler(events):
        seen.append(events)
        if len(seen) == 3:
            loop.stop()

    with readable() as fd:
        loop.watch(fd, READABLE, handler)
        run(loop)
    assert seen == [READABLE] * 3


def test_a_handler_that_forgets_itself_is_called_no_more():
    loop, seen = Loop(), []
    with readable() as fd, readable() as other:

        def handler(_):
            seen.append("itself")
            loop.forget(fd)

        rounds = []

        def count(_):
            rounds.append(None)
            if len(rounds) == 10:
                loop.stop()

        loop.watch(fd, READABLE, handler)
        loop.watch(other, READABLE, count)
        run(loop)
    assert seen == ["itself"]


def test_a_handler_that_was_forgotten_in_the_same_round_is_not_called():
    loop, seen = Loop(), []
    with readable() as one, readable() as two:

        def forget_both(fd):
            seen.append(fd)
            loop.forget(one)
            loop.forget(two)
            loop.call_soon(loop.stop)

        loop.watch(one, READABLE, lambda _: forget_both(one))
        loop.watch(two, READABLE, lambda _: forget_both(two))
        run(loop)
    assert len(seen) == 1


def test_what_was_forgotten_may_be_watched_again():
    loop, seen = Loop(), []
    with readable() as fd:

        def first(_):
            seen.append("first")
            loop.forget(fd)
            loop.watch(fd, READABLE, second)

        def second(_):
            seen.append("second")
            loop.stop()

        loop.watch(fd, READABLE, first)
        run(loop)
    assert seen == ["first", "second"]


def test_what_is_waited_for_can_be_changed():
    loop, seen = Loop(), []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")

        def handler(events):
            seen.append(events)
            if events == READABLE:
                loop.change(ours.fileno(), WRITABLE)
            else:
                loop.stop()

        loop.watch(ours.fileno(), READABLE, handler)
        run(loop)
    assert seen == [READABLE, WRITABLE]


def test_a_hang_up_is_told_whatever_is_waited_for():
    loop, seen = Loop(), []
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()

        def handler(events):
            seen.append(events & ~(READABLE | WRITABLE))
            loop.stop()

        loop.watch(ours.fileno(), READABLE, handler)
        run(loop)
    assert seen[0]


# A thread that is kept by what it calls.


class Kept:
    """Keeps whoever calls it, until it is let go."""

    def __init__(self):
        self.entered, self.let_go = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self, *_):
        self.calls += 1
        self.entered.set()
        assert self.let_go.wait(WAIT_S)


@contextmanager
def running(loop):
    """A loop on a thread of its own, stopped at the end."""
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        ended = threading.Event()
        loop.call_soon(lambda: (loop.stop(), ended.set()))
        assert ended.wait(WAIT_S), "the loop did not end"


def answers(loop, owner=None):
    """Whether the loop makes a call soon enough."""
    made = threading.Event()
    loop.call_soon(made.set, owner)
    return made.wait(WAIT_S)


def keep(loop, how, kept):
    """Have a loop's thread kept by a call of `owner`, and wait until it is."""
    if how == "call":
        loop.call_soon(kept, "owner")
    elif how == "timer":
        loop.call_later(0, kept, "owner")
        loop.call_soon(lambda: None)
    else:
        loop.watch(how, READABLE, kept, "owner")
    assert kept.entered.wait(WAIT_S)


@pytest.mark.parametrize("how", ["call", "timer", "descriptor"])
def test_a_thread_that_is_kept_is_relieved_at_the_second_look_and_the_loop_goes_on(how):
    loop, kept = Loop(), Kept()
    with readable() as fd, running(loop) as first:
        keep(loop, fd if how == "descriptor" else how, kept)
        assert not loop.relieve(), "it has only just begun"
        assert loop.relieve()
        assert answers(loop)
        assert not loop.relieve(), "the one that serves now is not kept"
        if how == "descriptor":
            loop.forget(fd)
        kept.let_go.set()
        first.join(WAIT_S)
        assert not first.is_alive(), "two threads serve one loop"
        assert answers(loop)


def test_what_belongs_to_the_owner_of_a_kept_call_waits_until_it_has_returned():
    loop, kept, late, seen = Loop(), Kept(), threading.Event(), []
    with readable() as fd, running(loop) as first:
        loop.watch(fd, 0, seen.append, "owner")
        keep(loop, "call", kept)
        assert [loop.relieve(), loop.relieve()] == [False, True]
        loop.call_soon(lambda: seen.append("call"), "owner")
        loop.call_later(0, lambda: seen.append("timer"), "owner")
        loop.change(fd, READABLE)
        for _ in range(3):
            assert answers(loop, "another")
        assert seen == []
        kept.let_go.set()
        first.join(WAIT_S)
        loop.call_soon(late.set, "owner")
        assert late.wait(WAIT_S)
        assert answers(loop)
        loop.call_soon(lambda: loop.forget(fd))
        assert answers(loop)
    assert {"call", "timer", READABLE} == set(seen)


@pytest.mark.parametrize("how", ["call", "descriptor"])
def test_calls_that_wait_behind_a_kept_one_are_made_by_the_thread_that_relieves(how):
    """The thread that is kept had been told of them already, and nobody is told twice."""
    loop, kept, made = Loop(), Kept(), threading.Event()
    with readable() as fd:
        if how == "descriptor":
            loop.watch(fd, READABLE, kept, "owner")
        else:
            loop.call_soon(kept, "owner")
        loop.call_soon(made.set, "another")
        with running(loop):
            assert kept.entered.wait(WAIT_S)
            assert [loop.relieve(), loop.relieve()] == [False, True]
            assert made.wait(WAIT_S)
            if how == "descriptor":
                loop.forget(fd)
            kept.let_go.set()
            assert answers(loop, "owner")


def test_what_the_owner_of_a_kept_call_forgets_meanwhile_is_forgotten():
    loop, kept, seen = Loop(), Kept(), []
    with readable() as fd, running(loop) as first:
        loop.watch(fd, 0, seen.append, "owner")
        keep(loop, "call", kept)
        assert [loop.relieve(), loop.relieve()] == [False, True]
        loop.change(fd, READABLE)
        loop.forget(fd)
        loop.watch(fd, READABLE, lambda _: (seen.append("new"), loop.forget(fd)), "another")
        assert answers(loop)
        kept.let_go.set()
        first.join(WAIT_S)
        assert answers(loop)
    assert seen == ["new"]


@pytest.mark.parametrize("count", [1, 5])
def test_as_many_threads_as_are_kept_are_relieved(count):
    loop, all_kept = Loop(), [Kept() for _ in range(count)]
    with running(loop):
        for number, kept in enumerate(all_kept):
            loop.call_soon(kept, number)
            assert kept.entered.wait(WAIT_S)
            assert [loop.relieve(), loop.relieve()] == [False, True]
        assert answers(loop)
        for kept in all_kept:
            kept.let_go.set()
        for number in range(count):
            assert answers(loop, number)
    assert [kept.calls for kept in all_kept] == [1] * count


def test_nobody_is_relieved_who_waits_for_something_to_do_or_is_at_a_call_of_nobody():
    loop, kept = Loop(), Kept()
    with running(loop):
        assert answers(loop)
        assert [loop.relieve() for _ in range(5)] == [False] * 5
        loop.call_soon(kept)
        assert kept.entered.wait(WAIT_S)
        assert [loop.relieve() for _ in range(5)] == [False] * 5
        kept.let_go.set()


def test_a_thread_that_begins_one_call_after_the_other_is_not_relieved():
    loop, again = Loop(), threading.Semaphore(0)
    with running(loop):
        for _ in range(20):
            loop.call_soon(again.release, "owner")
            assert again.acquire(timeout=WAIT_S)
            assert not loop.relieve()


def test_a_loop_that_ends_while_a_thread_is_kept_is_not_ended_twice():
    loop, kept = Loop(), Kept()
    with running(loop) as first:
        keep(loop, "call", kept)
        assert [loop.relieve(), loop.relieve()] == [False, True]
    kept.let_go.set()
    first.join(WAIT_S)
    assert not first.is_alive()
    assert loop.call_soon(lambda: None) is False


# Looking for a while before it sleeps.


class Clock:
    """A clock that stands still but for what polls take."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class Polls:
    """In front of an epoll: each poll takes as long as it is told to, and finds what it is told to."""

    def __init__(self, clock, script):
        self._clock, self._script, self.timeouts = clock, script, []

    def poll(self, timeout):
        self.timeouts.append(timeout)
        took_s, found = self._script.pop(0)
        self._clock.now_s += took_s
        return found


EVENT = [(7, READABLE)]
# (how long each poll takes and what it finds, the timeouts it is to be called with)
SPINS = {
    "a long sleep, and so no looking": ([(1.0, EVENT), (1.0, EVENT)], [None, None]),
    "a short sleep, and then it looks": ([(20e-6, EVENT), (1e-6, []), (1e-6, EVENT)], [None, 0, 0]),
    "it looks in vain, and sleeps": ([(20e-6, EVENT), *[(10e-6, [])] * 5, (1.0, EVENT)], [None, *[0] * 5, None]),
    "in vain once, and not again": (
        [(20e-6, EVENT), *[(10e-6, [])] * 5, (1.0, EVENT), (1.0, EVENT)],
        [None, *[0] * 5, None, None],
    ),
}


@pytest.mark.parametrize(("script", "timeouts"), SPINS.values(), ids=SPINS)
def test_a_loop_looks_before_it_sleeps_as_long_as_sleeps_would_be_short(script, timeouts, monkeypatch):
    loop, clock = Loop(spin_s=45e-6), Clock()
    monkeypatch.setattr("impl.server.loop.time.monotonic", clock)
    polls = Polls(clock, list(script))
    epoll, loop._epoll = loop._epoll, polls
    found = [loop._wait() for took_s, ready in script if ready]
    assert found == [EVENT] * len(found)
    assert polls.timeouts == timeouts
    loop._epoll = epoll
    loop.close()


def test_a_loop_that_is_not_to_look_sleeps_at_once(monkeypatch):
    loop, clock = Loop(), Clock()
    polls = Polls(clock, [(1e-6, EVENT)] * 3)
    epoll, loop._epoll = loop._epoll, polls
    assert [loop._wait() for _ in range(3)] == [EVENT] * 3
    assert polls.timeouts == [None] * 3
    loop._epoll = epoll
    loop.close()


# Rest: whoever sees to it that no thread is kept need not look at a loop that has nothing to do.


def test_a_loop_that_has_called_nothing_since_the_last_look_rests_and_tells_when_it_works_again():
    told = []
    loop = Loop(on_work=lambda: told.append("work"))
    with running(loop):
        assert answers(loop)
        assert told == ["work"], "a loop rests until it is first given something"
        assert [loop.rests(), loop.rests(), loop.rests()] == [False, True, True]
        assert told == ["work"]
        assert answers(loop)
        assert told == ["work", "work"]
        assert answers(loop)
        assert told == ["work", "work"], "it is told once"
        assert [loop.rests(), loop.rests()] == [False, True]


def test_a_loop_whose_thread_is_kept_does_not_rest():
    loop, kept = Loop(on_work=lambda: None), Kept()
    with running(loop):
        keep(loop, "call", kept)
        assert [loop.rests() for _ in range(3)] == [False] * 3
        kept.let_go.set()
