"""Rules of requests that are in flight together: no write is lost, and what clients see has an order.

Pairs of requests for one block are tried in every combination, the first over a slow part of the disk, so that the
second comes while it is under way; afterwards each byte has to be what one of the two orders leaves there. Who reads
the disk below, and stores it later over what was written meanwhile, is found out by this.

The levels are not in the protocol, which promises nothing of requests that overlap. What a server is said to keep is
held against what clients saw who read and write the same few blocks, by `cowproof history`.

Shapes:  pairs are about blocks of 64 KiB, the default of the copy-on-write servers that we know.
Units:   milliseconds and seconds, where names say so.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from check.conform.disk import Disk
from check.conform.room import NoRoom, kept_in, temporary_folder
from check.conform.rule import Failure, Need, NotApplicable, NotOffered, add
from check.conform.subject import Subject
from check.history.format import load
from check.history.record import NoSpace, Recipe, record
from check.history.show import verdict_lines
from check.live.play import REPLY_LIMIT_S, Outcome, play, send
from check.live.programs import BLOCK_BYTES, Action, Race, Source, base_block, request_of
from check.live.show import columns, whose
from check.live.verdict import lost_byte_count
from impl.client import Client, connect
from impl.errors import StartError
from model.budget import Budget
from model.history import Level
from model.linearizability import decide
from model.wgl import Verdict

TRIES, TRIES_QUICK = 8, 2
LATENCY_MS, JITTER_MS, GAP_MS = 30, 60, 8
CLAIM_ZERO_TRIM = "zero-trim"
PART, OTHER_PART = (4096, 512), (32768, 4096)

FIRST = {
    "write": Action("WRITE", *PART),
    "read": Action("READ", *PART),
    "cache": Action("CACHE"),
    "zero": Action("ZERO", *PART),
    "trim": Action("TRIM", *PART),
}
SECOND = [Action("WRITE"), Action("WRITE", *OTHER_PART), Action("ZERO"), Action("ZERO", *OTHER_PART), Action("TRIM")]
OFFERS: dict[str, Callable[[Client], bool]] = {
    "WRITE": lambda client: not client.read_only,
    "READ": lambda _: True,
    "ZERO": lambda client: client.can_zero,
    "TRIM": lambda client: client.can_trim,
    "CACHE": lambda client: client.can_cache,
}
SAYS = {
    "write": "A write of a part of a block undoes nothing that is done meanwhile",
    "read": "A read undoes nothing that is done meanwhile, be there a copy made or not",
    "cache": "A cache undoes nothing that is done meanwhile",
    "zero": "Zeroes for a part of a block undo nothing that is done meanwhile",
    "trim": "A trim of a part of a block undoes nothing that is done meanwhile",
}


@dataclass(frozen=True)
class Found:
    """What came of a pair."""

    race: Race
    met: bool
    lost: Outcome | None


Lost = Callable[[Race, Outcome], int]


def check_pairs(subject: Subject, first: Sequence[Action], second: Sequence[Action], lost: Lost) -> None:
    """Try each of some actions together with each of others. `lost` counts the bytes that should not be as they are."""
    subject.needs_its_disk()
    tries = TRIES_QUICK if subject.settings.quick else TRIES
    races = [Race("", "", a, b, "", "") for a in first for b in second]
    disk = Disk((len(races) * tries + 1) * BLOCK_BYTES, True, LATENCY_MS, JITTER_MS)
    with subject.fresh(disk) as server:
        _is_whole(server, disk)
        possible = [action for action in dict.fromkeys([*first, *second]) if _works(server, action)]
        found = list(_play_all(server, races, tries, lost, possible))
    if not found:
        raise NotOffered("the server has no such requests, or nothing that would change anything")
    losses = [_told(pair) for pair in found if pair.lost is not None]
    if losses:
        raise Failure("\n".join(losses))
    if not subject.has_slow_disks and not any(pair.met for pair in found):
        raise NotApplicable("requests were never in flight together: have it serve $baseuri, which is slow")


def _is_whole(server: Subject, disk: Disk) -> None:
    with server.client() as client:
        if client.size != disk.size:
            raise NotApplicable(f"the device has {client.size} bytes, its base {disk.size}")


def _works(server: Subject, action: Action) -> bool:
    """Whether a request succeeds by itself, on the last block; what becomes of it otherwise is for other rules."""
    with server.client() as client:
        if not OFFERS[action.verb](client) or (action.offset | action.length) % client.block_min:
            return False
        at = client.size // BLOCK_BYTES * BLOCK_BYTES - BLOCK_BYTES
        try:
            send(client, request_of(action, base_block(0), Source.A), at).result(REPLY_LIMIT_S)
        except OSError:
            return False
    return True


def _play_all(
    server: Subject, races: Sequence[Race], tries: int, lost: Lost, possible: Sequence[Action]
) -> Iterator[Found]:
    gap_ms = GAP_MS if server.has_slow_disks else 0
    try:
        with ExitStack() as stack:
            a = stack.enter_context(connect(server.target.uri, timeout_s=REPLY_LIMIT_S))
            # Without multi-conn, what is done on one need not be seen on another, and there need not be one.
            b = stack.enter_context(connect(server.target.uri, timeout_s=REPLY_LIMIT_S)) if a.can_multi_conn else a
            for number, race in enumerate(races):
                if race.a in possible and race.b in possible:
                    server.settings.say(f"{race.a} beside {race.b}")
                    yield _play_until_lost(race, (a, b), range(number * tries, (number + 1) * tries), gap_ms, lost)
    except (StartError, OSError) as error:
        raise Failure(str(error)) from None


def _play_until_lost(
    race: Race, clients: tuple[Client, Client], blocks: Sequence[int], gap_ms: float, lost: Lost
) -> Found:
    met = False
    for block in blocks:
        outcome = play(race, *clients, block, gap_ms)
        met |= outcome.have_met
        if lost(race, outcome):
            return Found(race, met, outcome)
    return Found(race, met, None)


def lost_but_for_trimmed(race: Race, outcome: Outcome) -> int:
    """Bytes that no order explains. Those that were trimmed may be anything ("NBD_CMD_TRIM")."""
    contents = [outcome.found, *outcome.allowed]
    for action in (race.a, race.b):
        if action.verb == "TRIM":
            end = action.offset + action.length
            contents = [data[: action.offset] + bytes(action.length) + data[end:] for data in contents]
    return lost_byte_count(contents[0], contents[1:])


def lost_all_told(_: Race, outcome: Outcome) -> int:
    """Bytes that no order explains, if what is trimmed reads as zeroes."""
    return lost_byte_count(outcome.found, outcome.allowed)


def _told(pair: Found) -> str:
    outcome = pair.lost
    assert outcome is not None
    lines = [
        f"{pair.race.a} beside {pair.race.b}, both answered: {lost_all_told(pair.race, outcome)} bytes are what no "
        "order leaves there",
        *columns(outcome.events),
        f"    read back  {whose(outcome.found, outcome)}",
        f"    expected   {' | '.join(whose(each, outcome) for each in outcome.allowed)}",
    ]
    return "\n".join(lines)


def check_zero_trim(subject: Subject) -> None:
    """Where trims read as zeroes at all, they do so whatever goes on beside them."""
    subject.needs_its_disk()
    with subject.fresh(Disk(BLOCK_BYTES, True)) as server, server.client() as client:
        if not OFFERS["TRIM"](client):
            raise NotOffered("no NBD_CMD_TRIM")
        client.trim(0, BLOCK_BYTES)
        if any(client.pread(0, BLOCK_BYTES)):
            if CLAIM_ZERO_TRIM in subject.settings.claims:
                raise Failure(f"a trim of [0, +{BLOCK_BYTES}) by itself does not read as zeroes")
            raise NotOffered("what is trimmed does not read as zeroes, and need not")
    firsts = [FIRST[verb] for verb in ("write", "read", "cache", "zero")]
    check_pairs(subject, firsts, [Action("TRIM")], lost_all_told)


# Levels.

LEVEL_DISK = Disk(4 << 20, True, 2, 20)
SECONDS, SECONDS_QUICK = 4.0, 1.0
BUDGET = Budget(seconds=20.0)
WHAT: dict[Level, str] = {
    "sector": "what lies in a sector of 512 bytes",
    "block": "what lies in a block",
    "request": "each of them",
}


def check_level(subject: Subject, level: Level) -> None:
    """Record clients that race, and look for an order."""
    if level not in subject.settings.claims:
        raise NotApplicable(f"not claimed: --claim {level}")
    subject.needs_its_disk()
    # The folder is the inner one: what is looked at when something fails still holds the history.
    with subject.fresh(LEVEL_DISK) as server, temporary_folder() as folder:
        path = folder / "history.jsonl"
        recipe = _recipe(server, level)
        server.settings.say(f"{recipe.clients} processes of clients for {recipe.seconds:g} s")
        try:
            record(recipe, path)
        except NoSpace as error:
            raise NoRoom(str(error)) from None
        except StartError as error:
            raise Failure(str(error)) from None
        history = load(path)
        decision = decide(history, level, BUDGET)
        if decision.verdict is Verdict.NOT_LINEARIZABLE:
            raise Failure("\n".join([*verdict_lines(history, decision), *_kept(subject, path, level)]))
        if decision.verdict is Verdict.UNKNOWN:
            raise NotApplicable(f"not decided within {BUDGET.seconds:g} s: {decision.why}")


def _recipe(server: Subject, level: Level) -> Recipe:
    with server.client() as client:
        if client.read_only:
            raise NotOffered("the export is read-only")
        is_shared = client.can_multi_conn
    recipe = Recipe(
        server.target.uri,
        seconds=SECONDS_QUICK if server.settings.quick else SECONDS,
        clients=2,
        size=LEVEL_DISK.size,
        block_size=BLOCK_BYTES,
        base=replace(LEVEL_DISK, latency_ms=0, jitter_ms=0).name,
        level=level,
        trim_reads_zero=False,
    )
    # Without multi-conn, connections need not see what others have written.
    return recipe if is_shared else replace(recipe, clients=1, connections=1, depth=16)


def _kept(subject: Subject, path: Path, level: Level) -> Iterator[str]:
    if subject.settings.keep is None:
        yield "(--keep FOLDER keeps the history, for `cowproof view`)"
        return
    kept = subject.settings.keep / f"{level}.jsonl"
    with kept_in(subject.settings.keep):
        shutil.copyfile(path, kept)
    yield f"kept as {kept}: cowproof view {kept}"


# "The server MUST write the data to disk, and then send the reply message": and then nobody may undo it.
WRITTEN = "NBD_CMD_WRITE; NBD_CMD_WRITE_ZEROES"

for _verb, _says in SAYS.items():
    _check = partial(check_pairs, first=[FIRST[_verb]], second=SECOND, lost=lost_but_for_trimmed)
    add(f"concurrency/{_verb}", Need.MUST, WRITTEN, _says, _check)
add(
    "concurrency/zero-trim",
    Need.CLAIM,
    "(none)",
    "Where what is trimmed reads as zeroes, it does so too when something else was under way",
    check_zero_trim,
)
for _level, _what in WHAT.items():
    _says = f"There is one order of all requests, in which {_what} takes effect at an instant"
    add(f"concurrency/{_level}", Need.CLAIM, "(none)", _says, partial(check_level, level=_level))
