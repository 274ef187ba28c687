"""A subject for `bench.pipelines`, and no server for anybody else: ours, with one lock over the whole device.

    python -m bench.global_lock_server -U SOCKET BASE

Sessions, wire, store and state map are the shipped ones, and so is what is done to a block. Only the locking differs:
every request takes one lock over everything, alone, and holds it while it reads the base, as nbdkit's cow filter did
before its finer locks. What that costs is the difference between this and `cowproof serve`.

That a request has the lock across its base read follows from where the read is: `look` gives a server no parts that
are yet to be fetched, and `partial_blocks` nothing to be fetched beforehand, so that all is fetched by the overlay.

Source:  the mail in which the patch is reviewed, which tells what was before it; `specs/subjects/global_lock.py`.
Locks:   the RangeLock of the product, asked for one and the same range each time: first come, first served.
Omits:   that nbdkit gave its lock back between the blocks of a request, and read the base block by block. A request is
         one turn here, and its read of the base one wait, so that nothing but the lock is slower than in the product.
         Cache requests do nothing; overlays are temporary; and there is no place to listen but a Unix socket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import click

from impl.base.interface import Base
from impl.base.open import open_base
from impl.extents import Extent
from impl.overlay.overlay import Fetched, FromBase, Overlay, Segment
from impl.overlay.rangelock import Held, RangeLock
from impl.overlay.store import Buffer
from impl.server import captive, listeners, logs, memory, standard
from impl.server.command import (
    COULD_NOT_SERVE,
    DEFAULT_BLOCK_SIZE,
    DEFAULT_THREADS,
    STOPPED,
    THREADS_MAX,
    block_size,
    fail_in_one_line,
    leave,
)
from impl.server.export import Export, ExportOptions, make_export
from impl.server.server import Server

WHAT = "not cowproof, but a subject of its benchmark: one lock over everything, held while the base is read"
EVERYTHING = (0, 0)  # any range will do, if it is always the same

HELP = f"""Serve BASE over NBD, with locks as nobody should have them.

This is {WHAT}. `python -m bench.pipelines` starts it beside the product; for anything else, there is
`cowproof serve`.
"""


class OneLock:
    """Every range is everything, and everybody wants it alone."""

    def __init__(self, lock: RangeLock) -> None:
        self._lock = lock

    def shared(self, first: int, last: int) -> Held:
        """Nobody shares."""
        return self._lock.exclusive(*EVERYTHING)

    def exclusive(self, first: int, last: int) -> Held:
        """As a RangeLock's."""
        return self._lock.exclusive(*EVERYTHING)

    def at_once(self, first: int, last: int, exclusive: bool) -> Held | None:
        """As a RangeLock's."""
        return self._lock.at_once(*EVERYTHING, True)

    def ask(self, first: int, last: int, exclusive: bool, when_held: Callable[[Held], None]) -> None:
        """As a RangeLock's."""
        self._lock.ask(*EVERYTHING, True, when_held)


class _HeldAlready:
    """For what runs under the lock."""

    def shared(self, first: int, last: int) -> Held:
        """It is held."""
        return self

    def exclusive(self, first: int, last: int) -> Held:
        """It is held."""
        return self

    def __enter__(self) -> object:
        return self

    def __exit__(self, *_: object) -> None:
        return


HELD_ALREADY = _HeldAlready()


class GlobalLockOverlay(Overlay):
    """The device: each method takes the lock, and has the shipped overlay do all of it meanwhile, base read and all."""

    __slots__ = ()

    def _taken(self) -> Held:
        return self.ranges.exclusive(*EVERYTHING)

    def _shipped(self) -> Overlay:
        """The shipped overlay, of the same device, for the one who has the lock."""
        return Overlay(
            self.base, self.store, self.states, HELD_ALREADY, self.block_size, self.cache_mode, self.copy_on_read
        )

    def is_untouched(self, offset: int, length: int) -> bool:
        """Nobody looks without the lock."""
        return False

    def look_under_lock(self, offset: int, length: int) -> list[Segment]:
        """All of it, with nothing left to fetch; kept, where that is wanted."""
        with self._taken():
            shipped = self._shipped()
            found = shipped.read(offset, length)
            return [shipped.fetch(part) if isinstance(part, FromBase) else part for part in found]

    def write(self, offset: int, data: Buffer, fetched: Fetched | None = None) -> None:
        """What it needs of the base is fetched under the lock, whatever was fetched before."""
        with self._taken():
            self._shipped().write(offset, data)

    def zero(
        self, offset: int, length: int, no_hole: bool = False, fast: bool = False, fetched: Fetched | None = None
    ) -> None:
        """As a write; a trim is one, too."""
        with self._taken():
            self._shipped().zero(offset, length, no_hole, fast)

    def extents_noted(self, offset: int, length: int, first: int, states: bytes) -> Iterator[Extent]:
        """The base's under the lock, too."""
        with self._taken():
            return iter(list(self._shipped().extents_noted(offset, length, first, states)))

    def partial_blocks(self, offset: int, length: int) -> tuple[int, ...]:
        """None that a server should fetch beforehand: that would be without the lock."""
        return ()


def global_lock_export(base: Base, options: ExportOptions, lock: RangeLock | None = None) -> Export:
    """An export as the product has it, with another overlay, and a description that says so."""
    export = make_export(base, options)
    shipped = export.overlay
    overlay = GlobalLockOverlay(
        base=shipped.base,
        store=shipped.store,
        states=shipped.states,
        ranges=OneLock(RangeLock() if lock is None else lock),
        block_size=shipped.block_size,
        cache_mode="ignore",
        copy_on_read=shipped.copy_on_read,
    )
    return replace(export, overlay=overlay, info=replace(export.info, description=WHAT))


@click.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("base")
@click.option("-U", "--unix", "path", required=True, metavar="PATH", help="Listen on a Unix socket.")
@click.option("-t", "--threads", type=click.IntRange(1, THREADS_MAX), default=DEFAULT_THREADS, show_default=True)
@click.option("--cow-block-size", type=block_size, metavar="SIZE", default=DEFAULT_BLOCK_SIZE, show_default=True)
@click.option("--cow-on-read", type=click.Choice(["off", "on"]), default="off", show_default=True)
@click.option("--exit-with-parent", is_flag=True, help="Stop when the process that started this one has gone.")
def command(base: str, path: str, threads: int, cow_block_size: int, cow_on_read: str, exit_with_parent: bool) -> None:
    """Serve until told to stop."""
    logs.set_up(0)
    memory.keep_large_buffers()
    if exit_with_parent:
        captive.exit_with_parent()
    keeps = cow_on_read == "on"
    options = ExportOptions(block_size=cow_block_size, copy_on_read=lambda: keeps)
    export = global_lock_export(open_base(base), options)
    server = Server({"": export}, "", threads)
    server.stop_on_signals(on_second=lambda: None)
    listener = listeners.listen_unix(path)
    try:
        standard.say(f"This is {WHAT}. It serves {base} at {listeners.uri_of(listener, '')}")
        is_clean = server.run([listener])
    finally:
        listener.close()
    leave(STOPPED if is_clean else COULD_NOT_SERVE)


if __name__ == "__main__":
    fail_in_one_line(command, None, "python -m bench.global_lock_server")
