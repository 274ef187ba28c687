"""One try of a race against a server: two connections, a request on each, and what came of it.

Units:   milliseconds since A's request was sent, as the clients saw them; seconds where a name says so.
Errors:  StartError, one line, when the server refuses a request, drops a connection or takes too long: then nothing
         has been shown of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from check.live.programs import (
    BLOCK_BYTES,
    GAP_MS,
    ZEROING,
    Action,
    Race,
    Request,
    Source,
    base_block,
    device_before,
    left_by_b,
    request_of,
)
from check.live.servers import Open
from check.live.verdict import Verdict, allowed_contents, judge
from impl.client import Client, connect
from impl.errors import StartError
from model.device import Read, Trim, Write, Zero

REPLY_LIMIT_S = 20.0

Progress = Callable[[int], None]  # told the number of each try, from 1, before it begins


@dataclass(frozen=True, slots=True)
class Event:
    """What a client did or learned, and when."""

    at_ms: float
    connection: str
    what: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One try.

    have_met:              B's request was sent before A's was answered
    b_was_first:           B's was answered before A's
    base, found, allowed:  contents of the block: below the overlay, afterwards, and what they may be
    """

    events: list[Event]
    have_met: bool
    b_was_first: bool
    base: bytes
    found: bytes
    allowed: list[bytes]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Trial:
    """All tries of one race against one server.

    met, b_was_first:  in how many tries
    outcome:           the try that decides, or where none does the one that tells most
    commands:          how to start such a server
    """

    tries: int
    met: int
    b_was_first: int
    verdict: Verdict
    outcome: Outcome
    commands: tuple[str, ...]


@dataclass(slots=True)
class Clock:
    """Events on one time line; both connections write on it from several threads."""

    start_s: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, connection: str, what: str) -> float:
        """Write down what happens now; the time."""
        with self.lock:
            at_ms = 1000 * (time.monotonic() - self.start_s)
            self.events.append(Event(at_ms, connection, what))
        return at_ms


class Sent:
    """A request on its way."""

    def __init__(
        self, client: Client, connection: str, action: Action, request: Request, at: int, clock: Clock
    ) -> None:
        self.what = f"{connection}'s {action}"
        self.answered_at_ms: float | None = None
        self._answered = threading.Event()
        self._future: Future[bytes] | Future[None]
        self.sent_at_ms = clock.note(connection, str(action))

        def answered(future: Future[bytes] | Future[None]) -> None:
            self.answered_at_ms = clock.note(connection, "answered" if future.exception() is None else "failed")
            self._answered.set()

        self._future = send(client, request, at)
        self._future.add_done_callback(answered)

    def is_answered(self) -> bool:
        """Whether it has been."""
        return self._answered.is_set()

    def wait(self) -> float:
        """When it was answered. It has to be answered in time, and without an error."""
        if not self._answered.wait(REPLY_LIMIT_S):
            raise StartError(f"{self.what} was not answered within {REPLY_LIMIT_S:.0f} s")
        error = self._future.exception()
        if error is not None:
            raise StartError(f"{self.what} failed: {error}")
        assert self.answered_at_ms is not None
        return self.answered_at_ms


def send(client: Client, request: Request, at: int) -> Future[bytes] | Future[None]:
    """Send a request for the block that begins `at` bytes into the export."""
    if isinstance(request, Write):
        return client.pwrite_async(at + request.offset, request.data)
    if isinstance(request, Read):
        return client.pread_async(at + request.offset, request.length)
    if isinstance(request, Zero):
        return client.zero_async(at + request.offset, request.length, no_hole=request.no_hole)
    if isinstance(request, Trim):
        return client.trim_async(at + request.offset, request.length)
    return client.cache_async(at + request.offset, request.length)


def play(race: Race, a_client: Client, b_client: Client, block: int, gap_ms: float = GAP_MS) -> Outcome:
    """One try, on a block that no request has touched yet; B sends its request `gap_ms` after A."""
    base, at = base_block(block), block * BLOCK_BYTES
    a_request, b_request = request_of(race.a, base, Source.A), request_of(race.b, base, Source.B)
    clock = Clock()
    a = Sent(a_client, "A", race.a, a_request, at, clock)
    time.sleep(gap_ms / 1000)
    b = Sent(b_client, "B", race.b, b_request, at, clock)
    b_answered_at_ms = b.wait()
    if not a.is_answered():
        look(race, b_client, base, at, clock)
    a_answered_at_ms = a.wait()
    have_met = a_answered_at_ms > b.sent_at_ms
    found = read_block(b_client, at, clock)
    allowed = allowed_contents(device_before(race, base), a_request, b_request, have_met=have_met)
    return Outcome(
        events=clock.events,
        have_met=have_met,
        b_was_first=b_answered_at_ms < a_answered_at_ms,
        base=base,
        found=found,
        allowed=allowed,
        verdict=judge(found, allowed),
    )


def look(race: Race, client: Client, base: bytes, at: int, clock: Clock) -> None:
    """B reads back what it did, while A still waits. This is for people to see, and nothing is concluded from it."""
    expected = left_by_b(race, base)
    in_words = "zeroes" if race.b.verb in ZEROING else "what B wrote"
    clock.note("B", f"READ {race.b.offset}+{race.b.length}")
    is_there = client.pread(at + race.b.offset, race.b.length) == expected
    clock.note("B", f"answered: {in_words}" if is_there else f"answered: not {in_words}")


def read_block(client: Client, at: int, clock: Clock) -> bytes:
    """The whole block, after both requests."""
    clock.note("B", f"READ 0+{BLOCK_BYTES}")
    found = client.pread(at, BLOCK_BYTES)
    clock.note("B", "answered: see below")
    return found


@contextmanager
def two_connections(uri: str) -> Iterator[tuple[Client, Client]]:
    """To one server."""
    with ExitStack() as stack:
        yield (
            stack.enter_context(connect(uri, timeout_s=REPLY_LIMIT_S)),
            stack.enter_context(connect(uri, timeout_s=REPLY_LIMIT_S)),
        )


def try_out(race: Race, open_server: Open, tries: int, folder: Path, progress: Progress) -> Trial:
    """Play a race until a write is lost, or `tries` times, each on a block of its own."""
    with open_server(race, tries, folder) as server:
        try:
            with two_connections(server.uri) as (a_client, b_client):
                outcomes = list(_tries(race, a_client, b_client, tries, progress))
        except OSError as error:
            raise StartError(f"{server.shown[-1]}: {error}") from None
    return conclude(outcomes, server.shown)


def _tries(race: Race, a_client: Client, b_client: Client, tries: int, progress: Progress) -> Iterator[Outcome]:
    """Outcomes, the first that is not right being the last."""
    for block in range(tries):
        progress(block + 1)
        outcome = play(race, a_client, b_client, block)
        yield outcome
        if outcome.verdict is not Verdict.HOLDS:
            return


def conclude(outcomes: Sequence[Outcome], commands: tuple[str, ...]) -> Trial:
    """What the tries show together. That nothing went wrong says something only if the requests have met."""
    met = [outcome for outcome in outcomes if outcome.have_met]
    b_was_first = [outcome for outcome in outcomes if outcome.b_was_first]
    last = outcomes[-1]
    verdict = last.verdict if met or last.verdict is not Verdict.HOLDS else Verdict.UNKNOWN
    tells_most = [*met[:1], *b_was_first[:1]]
    shown = tells_most[-1] if verdict is Verdict.HOLDS else last
    return Trial(len(outcomes), len(met), len(b_was_first), verdict, shown, commands)
