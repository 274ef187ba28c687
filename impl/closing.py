"""Closes several things at a time, none of which is to keep the others from being closed.

Units:   seconds; None waits for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress


def close_all(closers: Iterable[Callable[[], None]], limit_s: float | None = None) -> None:
    """Call each on a thread of its own, and wait for them; those that take longer go on without us."""
    threads = [threading.Thread(target=close, daemon=True) for close in closers]
    ends_s = None if limit_s is None else time.monotonic() + limit_s
    for thread in threads:
        with suppress(RuntimeError):  # the system has no more threads, and what is open goes with the process
            thread.start()
    for thread in threads:
        if thread.ident is not None:
            thread.join(None if ends_s is None else max(0.0, ends_s - time.monotonic()))
