"""Workers: as many threads as are needed, and no more than were asked for.

Source: impl/server/workers.py.
"""

import errno
import threading

import pytest

from impl.server.workers import Workers

WAIT_S = 20


class Task:
    """Something that is begun, and goes on until it is told to end."""

    def __init__(self):
        self.begun, self.end, self.thread = threading.Event(), threading.Event(), None

    def __call__(self):
        self.thread = threading.current_thread()
        self.begun.set()
        assert self.end.wait(WAIT_S)


def submit(workers, count):
    tasks = [Task() for _ in range(count)]
    for task in tasks:
        workers.submit(task)
    return tasks


def test_as_many_run_at_once_as_there_are_threads_and_the_next_when_one_has_ended():
    workers = Workers(3, "worker")
    tasks = submit(workers, 5)
    for task in tasks[:3]:
        assert task.begun.wait(WAIT_S)
    assert len(workers._threads) == 3
    assert not tasks[3].begun.is_set()
    tasks[1].end.set()
    assert tasks[3].begun.wait(WAIT_S)
    assert tasks[3].thread is tasks[1].thread
    assert not tasks[4].begun.is_set()
    for task in tasks:
        task.end.set()
    workers.join()
    assert tasks[4].begun.is_set()


def test_no_thread_is_started_while_one_has_nothing_to_do():
    workers = Workers(8, "worker")
    for _ in range(20):
        (task,) = submit(workers, 1)
        task.end.set()
        assert task.begun.wait(WAIT_S)
        while not workers._idle:  # the thread is on its way back
            pass
    assert len(workers._threads) == 1
    workers.join()


def test_tasks_are_begun_in_order():
    workers, seen = Workers(1, "worker"), []
    for number in range(100):
        workers.submit(lambda number=number: seen.append(number))
    workers.join()
    assert seen == list(range(100))


def no_thread(*_, **__):
    raise RuntimeError("can't start new thread")


def test_without_a_thread_it_says_so_and_with_one_it_makes_do(monkeypatch):
    workers = Workers(3, "worker")
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(OSError, match="no more threads") as failed:
            workers.submit(lambda: None)
        assert failed.value.errno == errno.EAGAIN
    (first,) = submit(workers, 1)
    assert first.begun.wait(WAIT_S)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    (second,) = submit(workers, 1)
    first.end.set()
    second.end.set()
    assert second.begun.wait(WAIT_S)
    assert second.thread is first.thread
    workers.join()


def test_nothing_that_was_submitted_is_left_undone_by_the_end():
    workers = Workers(2, "worker")
    tasks = submit(workers, 10)
    for task in tasks:
        task.end.set()
    workers.join()
    assert all(task.begun.is_set() for task in tasks)
    assert not any(thread.is_alive() for thread in workers._threads)
