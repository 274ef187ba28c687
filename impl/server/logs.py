"""What the server says on standard error, and how often."""

from __future__ import annotations

import logging
import sys
import time

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
BURST = 20
REFILL_PER_S = 2.0


class Flood(logging.Filter):
    """Lets a burst through, then a few a second, and says how many it kept back: a client cannot fill a disk."""

    def __init__(self) -> None:
        super().__init__()
        self._left = float(BURST)
        self._at_s = time.monotonic()
        self._kept_back = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Called with the handler's lock held, so one at a time."""
        now_s = time.monotonic()
        self._left = min(BURST, self._left + (now_s - self._at_s) * REFILL_PER_S)
        self._at_s = now_s
        if self._left < 1:
            self._kept_back += 1
            return False
        self._left -= 1
        if self._kept_back:
            record.msg = f"{record.getMessage()} ({self._kept_back} messages before this one were not shown)"
            record.args = ()
            self._kept_back = 0
        return True


class FloodHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Applies the filter under the handler's lock."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._flood = Flood()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, unless the filter keeps it back."""
        if self._flood.filter(record):
            super().emit(record)


def set_up(verbosity: int) -> None:
    """Log warnings, or with -v what clients do, or with -vv each request, too, to standard error."""
    handler = logging.StreamHandler(sys.stderr) if verbosity else FloodHandler()
    handler.setFormatter(logging.Formatter("cowproof: %(message)s"))
    logger = logging.getLogger("cowproof")
    logger.handlers[:] = [handler]
    logger.setLevel(LEVELS[min(verbosity, len(LEVELS) - 1)])
    logger.propagate = False
