"""The search: what it finds, in how many steps, and that it finds nothing where there is nothing."""

import errno
import itertools
import re
import threading
from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest

from check.explore import world as physics
from check.explore.bounds import Bound, explore_all
from check.explore.judge import LEVELS
from check.explore.learn import Subject, Uncontrolled
from check.explore.mutants import LOCK_BOUNDS
from check.explore.programs import make_program, parse_program
from check.explore.races import COPYING, PAGES, RACES, with_shown
from check.explore.replay import format_moves, format_replay, parse_moves, parse_replay, play
from check.explore.seam import ExploredLock, ExploredRanges, ExploredStore, Stage
from check.explore.search import DONE, Machine, Question, Verdict, search
from check.explore.show import columns, ending
from check.explore.stateless import Disagreement, run_all
from check.explore.subjects import (
    GLOBAL_LOCK,
    KINDS,
    LOCK_ALONE,
    OVERLAY,
    OVERLAY_SERVED,
    OVERLAY_WITH_LOCK,
    PLAIN,
    RANGE_LOCK,
    Kind,
    lock_kind,
    overlay_kind,
    served_kind,
)
from check.explore.threads import play_on_threads
from check.explore.walk import walk
from check.live.programs import NAMES as LIVE_NAMES
from check.lock_mutants import LOCK_MUTANTS, ForgetsToWake, LooksOnce, NoMutex
from check.mutants import NoLock
from impl.errors import UsageError
from impl.overlay.overlay import FromBase, Overlay
from impl.overlay.parking import AtOnce, Granted, WouldWait
from impl.overlay.rangelock import RangeLock, _is_free, _Ticket
from model.device import Done, Flush


def ask(kind, text, initial="", level="request", modes=PLAIN, faults=0, size=None):
    return Question(kind, make_program(parse_program(text), initial, size=size), level, modes, faults)


# The races

BY_NAME = {race.name: race.question for race in RACES}
FIRST = BY_NAME["part-beside-whole"]
TORN = BY_NAME["torn-read"]
OF_THE_PATCH = [name for name, question in BY_NAME.items() if question.kind.name.startswith("bitmap")]


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.name)
def test_a_race_is_found_the_shortest_way_and_replays(race):
    found = search(race.question)
    assert found.verdict is Verdict.VIOLATED
    assert len(found.violation.moves) == race.steps
    question, moves = parse_replay(format_replay(race.question, found.violation.moves))
    assert (question, moves) == (race.question, found.violation.moves)
    machine = Machine(question)
    story = play(machine, moves)
    assert story.wrong == found.violation.what
    assert "client A" in columns(machine, story)
    assert story.wrong in ending(machine, story)


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.name)
def test_a_race_replays_on_real_threads(race):
    machine = Machine(race.question)
    moves = search(race.question).violation.moves
    world = play_on_threads(machine, moves)
    assert world == play(machine, moves).world


def test_a_schedule_with_a_failure_replays_on_real_threads():
    question = ask(OVERLAY, "write 0+512 | read 0+64K", faults=1)
    machine = Machine(question)
    moves = ((0, 0), (0, 1), (1, 0), (1, 0))
    assert machine.worlds[0].faults_left == 1
    assert play_on_threads(machine, moves).faults_left == 0


HEADINGS = ["The shortest way there", "In nbdkit", "To see it live", "What a fix must do"]


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.name)
def test_a_race_has_a_page_with_what_the_explorer_finds(race):
    """If not: python -m check.explore.races writes that part of it."""
    page = race.page.read_text(encoding="utf-8")
    assert page == with_shown(page, race)
    assert re.findall("^## (.*)$", page, re.MULTILINE) == HEADINGS


def test_every_page_is_of_a_race_and_the_index_leads_to_it():
    """Of one that the explorer finds, or of one that is only shown live, on a server that is not written down here."""
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    pages = {race.page.name for race in RACES} | {f"{name}.md" for name in LIVE_NAMES}
    assert {path.name for path in PAGES.glob("*.md")} == {"README.md", *pages}
    assert all(f"({page})" in index for page in pages)


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.name)
def test_a_race_is_found_within_ten_seconds_and_a_thousand_states(race):
    """Seconds are the machine's; states are ours. A tenth of a second does for 10,000 of them."""
    assert search(race.question, states_max=1000).verdict is Verdict.VIOLATED


@pytest.mark.parametrize("program", ["zero 0+512", "trim 64K+512", "zero 100+64K"])
def test_the_old_fault_is_in_zeroes_and_trims_of_a_tail(program):
    kind = BY_NAME["zeroed-tail"].kind
    assert search(ask(kind, program)).verdict is Verdict.VIOLATED
    assert search(ask(GLOBAL_LOCK, program, level="block")).verdict is Verdict.HOLDS


@pytest.mark.parametrize("name", OF_THE_PATCH)
@pytest.mark.parametrize("kind", [RANGE_LOCK, OVERLAY, OVERLAY_WITH_LOCK], ids=lambda kind: kind.name)
def test_what_loses_writes_in_the_patch_does_not_with_range_locks(name, kind):
    question = replace(BY_NAME[name], kind=kind, level="request")
    assert search(question).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    "program", ["write 0+512 | write 0+64K", "read 0+128K | write 0+128K", "cache 0+64K | write 0+512 | trim 0+64K"]
)
def test_the_global_lock_holds_block_by_block(program):
    assert search(ask(GLOBAL_LOCK, program, level="block", modes=COPYING)).verdict is Verdict.HOLDS


def test_without_the_old_fault_the_tail_is_zeroed_right():
    assert search(replace(BY_NAME["zeroed-tail"], kind=GLOBAL_LOCK)).verdict is Verdict.HOLDS


def test_a_torn_read_is_no_fault_of_a_disk_of_sectors():
    assert search(replace(TORN, level="sector")).verdict is Verdict.HOLDS


@pytest.mark.parametrize("level", LEVELS)
def test_a_coarser_level_asks_for_more(level):
    """What holds at a level holds at all finer ones; so the levels at which a race is found are the coarsest."""
    question = ask(GLOBAL_LOCK, "read 0+128K | write 0+128K", level=level)
    assert (search(question).verdict is Verdict.VIOLATED) == (level == "request")


def test_the_way_to_a_violation_is_as_long_as_the_search_is_deep():
    """It waits twice on a longer way, which comes to the same state."""
    question = ask(BY_NAME["zeroed-tail"].kind, "write 0+64K | zero 32K+64K", "TA", level="block", faults=1)
    found = search(question)
    assert len(found.violation.moves) in (found.depth, found.depth + 1)


def test_a_state_that_is_reached_in_several_numbers_of_steps_is_counted_once():
    question = ask(OVERLAY, "write 0+512 | write 0+64K", faults=1)
    machine = Machine(question)
    seen, left = {machine.first}, [machine.first]
    while left:
        state = left.pop()
        world, places, monitor = state
        for client, node in enumerate(places):
            for step in machine.steps(world, node) if node != DONE else ():
                after, _ = machine.judged(monitor, step.events)
                where = machine.after(client, node, step.node)
                new = (step.world, (*places[:client], where, *places[client + 1 :]), after)
                left += [] if new in seen else [new]
                seen.add(new)
    assert search(question).states == len(seen)


# How much there is

# Subject, program, initial states, modes, faults: states, transitions, schedules, depth.
COUNTS = [
    (OVERLAY, "write 0+512", "", PLAIN, 0, (8, 7, 1, 7)),
    (OVERLAY, "write 0+512 | write 64K+512", "", PLAIN, 0, (92, 156, 3432, 14)),
    (OVERLAY, "write 0+512 | write 0+64K", "", PLAIN, 0, (49, 61, 39, 12)),
    (OVERLAY, "write 0+512 | write 0+64K", "", PLAIN, 1, (183, 271, 399, 14)),
    (OVERLAY, "read 0+512 | write 0+64K", "", COPYING, 0, (41, 56, 39, 12)),
    (OVERLAY_WITH_LOCK, "write 0+512 | write 0+64K", "", PLAIN, 0, (167, 220, 884, 27)),
    (RANGE_LOCK, "write 0+512 | write 0+64K", "", PLAIN, 0, (55, 70, 60, 13)),
    (GLOBAL_LOCK, "write 0+512 | write 0+64K", "", PLAIN, 0, (22, 21, 2, 11)),
]


@pytest.mark.parametrize(("kind", "text", "initial", "modes", "faults", "counts"), COUNTS)
def test_the_states_are_as_many_as_there_are(kind, text, initial, modes, faults, counts):
    found = search(ask(kind, text, initial, modes=modes, faults=faults))
    assert (found.states, found.transitions, found.schedules, found.depth) == counts


def test_two_clients_that_share_nothing_have_as_many_schedules_as_their_steps_can_be_shuffled():
    """7 steps each: 14 over 7 are 3,432."""
    found = search(ask(OVERLAY, "write 0+512 | write 64K+512"))
    assert found.schedules == 3432


# What else can go wrong


def test_a_limit_is_no_verdict():
    found = search(FIRST, states_max=20)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "more than 20 states" in found.why


def crossed(stage, locks):
    """Two locks, taken in one order by those who flush and in the other by those who do not."""

    def execute(request):
        first, second = locks if isinstance(request, Flush) else reversed(locks)
        with first, second:
            return Done()

    return Subject(stage, execute)


def kind_of(make, **options):
    """A kind whose code is what `make` makes of a stage."""

    def make_it(disk, modes):
        stage = Stage()
        return make(stage), {}

    return Kind("made up", make_it, "", **options)


def test_a_deadlock_is_found():
    kind = kind_of(lambda stage: crossed(stage, [ExploredLock(stage, "one"), ExploredLock(stage, "other")]))
    found = search(ask(kind, "flush | cache 0+1"))
    assert found.verdict is Verdict.VIOLATED
    assert found.violation.what == "clients A, B wait for ever"


# The mutant, the program that shows it: with less, `if` for `while` cannot be told apart.
WRONG_LOCKS = [
    (ForgetsToWake, "write 0+64K | write 0+64K", "waits, though"),
    (LooksOnce, "read 0+64K | read 0+64K | write 0+64K", "explains"),
    (NoMutex, "write 0+64K | write 0+64K", ""),
]


@pytest.mark.parametrize(("mutant", "program", "what"), WRONG_LOCKS)
def test_a_range_lock_with_a_part_left_out_is_found_out(mutant, program, what):
    found = search(ask(overlay_kind("mutant", "", ranges_class=mutant), program, "A"))
    assert found.verdict is Verdict.VIOLATED
    assert what in found.violation.what


@pytest.mark.parametrize("bound", LOCK_BOUNDS.values(), ids=LOCK_BOUNDS)
def test_the_range_lock_by_itself_is_exclusive_fair_and_loses_nobody(bound):
    tally = explore_all(LOCK_ALONE, bound)
    assert tally.verdict is Verdict.HOLDS, tally.replay
    assert tally.programs == bound.count()


@pytest.mark.parametrize(("mutant", "what"), LOCK_MUTANTS.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_a_range_lock_that_is_none_is_found_out_by_itself(mutant, what):
    tally = explore_all(lock_kind("mutant", "", mutant), LOCK_BOUNDS["any three requests"])
    assert tally.verdict is Verdict.VIOLATED
    assert what in tally.why


# Who waits without a thread, behind the server's commands.


class NeverWaits(AtOnce):
    """Does without what it cannot have."""

    def shared(self, first, last):
        return self._lock.at_once(first, last, False) or nullcontext()

    def exclusive(self, first, last):
        return self._lock.at_once(first, last, True) or nullcontext()


class HoldsTwice(Granted):
    """Gives the range out, and remembers it as if it had not."""

    def _waited_for(self, first, last, exclusive):
        return self._held


class ForgetsWhatItWaitedFor(Granted):
    """Takes its range again, as if it had not been granted."""

    def _waited_for(self, first, last, exclusive):
        return None


@pytest.mark.parametrize("mutant", [NeverWaits, HoldsTwice, ForgetsWhatItWaitedFor])
def test_waiting_without_a_thread_that_goes_wrong_is_found(monkeypatch, mutant):
    bound = Bound((1, 1), ("write 0+128K", "read 0+64K"), initial=("AA",), modes=(PLAIN,))
    assert explore_all(OVERLAY_SERVED, bound).verdict is Verdict.HOLDS
    monkeypatch.setattr(f"impl.server.commands.{mutant.__base__.__name__}", mutant)
    assert explore_all(OVERLAY_SERVED, bound).verdict is Verdict.VIOLATED


def test_an_exception_is_found_and_where_it_was_raised():
    class Fails(Overlay):
        __slots__ = ()

        def trim(self, offset, length):
            raise ValueError("no such luck")

    found = search(ask(overlay_kind("mutant", "", Fails), "trim 0+64K | read 0+64K"))
    assert found.verdict is Verdict.VIOLATED
    assert "ValueError: no such luck" in found.violation.what
    assert "Fails.trim" in found.violation.what


def test_an_access_without_its_lock_is_found_even_where_it_does_no_harm():
    class Peeks(Overlay):
        __slots__ = ()

        def flush(self):
            self.store.pread(0, 1)

    found = search(ask(overlay_kind("mutant", "", Peeks), "flush"))
    assert found.violation.what == "a read of block 0 without its range lock"


def test_a_read_of_the_base_under_a_lock_is_found():
    class Holds(Overlay):
        __slots__ = ()

        def cache(self, offset, length):
            with self.ranges.shared(0, 0):
                self.base.pread(offset, length)

    found = search(ask(overlay_kind("mutant", "", Holds), "cache 0+64K"))
    assert found.violation.what == "a read of the base under a lock"


def test_a_wait_for_a_request_that_does_not_overlap_is_found():
    class WholeDevice(ExploredRanges):
        def _acquired(self, first, last, exclusive):
            return super()._acquired(0, 1 << 20, exclusive)

    question = ask(
        overlay_kind("mutant", "", ranges_class=lambda sync: WholeDevice(sync.stage)), "write 0+64K | write 64K+64K"
    )
    found = search(question)
    assert found.violation.what == "client B waits, though no request in flight overlaps its own"


def test_a_wait_of_those_who_only_look_for_each_other_is_found():
    class Alone(ExploredRanges):
        def shared(self, first, last):
            return self.exclusive(first, last)

    question = ask(
        overlay_kind("mutant", "", ranges_class=lambda sync: Alone(sync.stage)), "read 0+64K | status 0+64K", "A"
    )
    found = search(question)
    assert found.violation.what == "client B waits, though those in flight that overlap it only look, as it does"


def test_space_that_is_not_given_back_is_found():
    class Keeps(Overlay):
        __slots__ = ()

        def _punch(self, first, end):
            pass

    found = search(ask(overlay_kind("mutant", "", Keeps), "trim 0+64K", "A"))
    assert found.violation.what == "block 0 is TRIMMED, and has kept its space"


class Stale(Overlay):
    """Remembers states from one request to the next, where no operation shows it."""

    __slots__ = ()
    REMEMBERED = {}

    def look(self, offset, length):
        seen = self.REMEMBERED.setdefault(id(self.base), set())
        if offset in seen:
            return [FromBase(offset, length)]
        seen.add(offset)
        return super().look(offset, length)


def test_what_a_subject_remembers_between_requests_is_refused_by_the_search_too():
    with pytest.raises(Uncontrolled, match="after others"):
        search(ask(overlay_kind("mutant", "", Stale), "read 0+64K ; write 0+64K ; read 0+64K"))


class LetsGo(Overlay):
    """Writes with nothing held where it could see that the range was taken."""

    __slots__ = ()

    def write(self, offset, data, fetched=None):
        block = offset // self.block_size
        before = self.states.get(block, block + 1)
        try:
            super().write(offset, data, fetched)
        except WouldWait:
            if self.states.get(block, block + 1) != before:
                raise
            if before[0] != 1:
                raise
            self.store.pwrite(offset, [data])


def test_a_range_given_back_is_a_step_of_its_own_where_others_look_without_waiting():
    """Between the last change under the range and its end, another may come, and find it taken."""
    question = ask(served_kind("mutant", "", LetsGo), "write 0+64K | write 0+64K", "A")
    assert search(question).verdict is Verdict.VIOLATED
    assert question.kind.left_movers == OVERLAY.left_movers - {"release"}


def test_a_wait_for_nobody_is_shown_and_replayed_and_met_at_random():
    class WholeDevice(ExploredRanges):
        def _acquired(self, first, last, exclusive):
            return super()._acquired(0, 1 << 20, exclusive)

    kind = overlay_kind("mutant", "", ranges_class=lambda sync: WholeDevice(sync.stage))
    question = ask(kind, "write 0+64K | write 64K+64K")
    found = search(question)
    assert play(Machine(question), found.violation.moves).wrong == found.violation.what
    assert walk(question, 200).violation.what.endswith("waits, though no request in flight overlaps its own")


def test_an_errno_that_nothing_failed_with_is_found():
    class WrongErrno(Overlay):
        __slots__ = ()

        def fetch_blocks(self, blocks):
            try:
                return super().fetch_blocks(blocks)
            except OSError:
                raise OSError(errno.ENOSPC, "no room") from None

    found = search(ask(overlay_kind("mutant", "", WrongErrno), "write 0+512", faults=1))
    assert found.violation.what == "a request is told ENOSPC, though nothing has failed so"


def test_a_block_that_broke_under_a_write_may_hold_a_part_of_either_and_nothing_else():
    class Loses(Overlay):
        __slots__ = ()

        def _write_blocks(self, first, last, start, parts):
            try:
                super()._write_blocks(first, last, start, parts)
            except OSError:
                self.states.fill(first, last + 1, 2)
                raise

    question = ask(OVERLAY, "write 0+64K ; read 0+64K", "A", faults=1)
    assert search(question).verdict is Verdict.HOLDS
    assert search(replace(question, kind=overlay_kind("mutant", "", Loses))).verdict is Verdict.VIOLATED


class ForgetsWhy(RangeLock):
    """Takes it that it has its range when it wakes."""

    def _acquire(self, first, last, exclusive):
        with self._mutex:
            queue = self._queue.value
            wakeup = None if _is_free(queue, first, last, exclusive) else self._sync.condition(self._mutex)
            ticket = _Ticket(self, first, last, exclusive, wakeup)
            self._queue.value = (*queue, ticket)
            if wakeup is not None:
                wakeup.wait()
        return ticket


def test_who_wakes_without_reason_has_to_look_again():
    question = ask(lock_kind("mutant", "", ForgetsWhy), "write 0+64K | write 0+64K")
    assert search(question).verdict is Verdict.HOLDS
    assert search(replace(question, faults=1)).verdict is Verdict.VIOLATED
    assert search(replace(question, kind=LOCK_ALONE, faults=1)).verdict is Verdict.HOLDS


def test_an_error_without_an_errno_is_an_exception_like_any_other():
    class Vague(Overlay):
        __slots__ = ()

        def trim(self, offset, length):
            raise OSError("somehow")

    assert "without an errno" in search(ask(overlay_kind("mutant", "", Vague), "trim 0+64K")).violation.what


def test_what_is_cached_by_chunks_is_cached_right_when_a_chunk_is_small(monkeypatch):
    """What depends on numbers of bytes is out of reach on a small device, unless the number is small as well."""

    class SecondChunkWrong(Overlay):
        __slots__ = ()

        def _keep(self, first, data):
            super()._keep(first, memoryview(bytes(reversed(data))) if first else data)

    monkeypatch.setattr("impl.overlay.overlay.CACHE_CHUNK_BYTES", 2)
    question = ask(OVERLAY, "cache 0+128K ; read 0+128K | write 32K+64K", modes=COPYING)
    assert search(question).verdict is Verdict.HOLDS
    assert search(replace(question, kind=overlay_kind("mutant", "", SecondChunkWrong))).verdict is Verdict.VIOLATED


def test_threads_are_threads():
    names = set()

    def notes(stage):
        def execute(_):
            stage.perform("get", 0)
            names.add(threading.current_thread().name)
            return Done()

        return Subject(stage, execute)

    question = ask(kind_of(notes), "cache 0+1 | cache 0+1")
    machine = Machine(question)
    names.clear()
    play_on_threads(machine, ((0, 0), (1, 0)))
    assert {"request 0.0", "request 1.0"} <= names


def test_a_read_that_failed_and_has_kept_a_part_is_found():
    """It takes two parts that show the base, and something else between them."""

    class KeepsAsItFetches(Overlay):
        __slots__ = ()

        def _fetch_whole_blocks(self, part):
            first, data = super()._fetch_whole_blocks(part)
            self._keep(first, data)
            return first, data

        def _keep(self, first, data):
            with suppress(OSError):
                super()._keep(first, data)

    kind = overlay_kind("mutant", "", KeepsAsItFetches)
    question = ask(kind, "read 0+192K", "NTN", modes=COPYING, faults=1)
    assert search(question).violation.what == "a read that failed has changed the state of a block"
    assert search(replace(question, kind=OVERLAY)).verdict is Verdict.HOLDS


# A request, and what it is told that is not the fault of anything it needs.
NOT_ITS_FAULT = [
    ("read 0+64K", COPYING, errno.ENOSPC),
    ("write 0+64K", PLAIN, errno.EIO),
    ("trim 0+64K", PLAIN, errno.EIO),
    ("zero 0+64K", PLAIN, errno.ENOSPC),
    ("zero 0+512 fast", PLAIN, errno.EIO),
    ("status 0+64K", PLAIN, errno.EIO),
]


@pytest.mark.parametrize(("program", "modes", "told"), NOT_ITS_FAULT)
def test_a_request_that_fails_for_what_it_does_not_need_is_found(program, modes, told):
    """Where operations may fail, requests may: but each with the errno of something that it needs."""

    class Unlucky(Overlay):
        __slots__ = ()

        def _fail(self, *_, **__):
            raise OSError(told, "by bad luck")

        look = write = zero = trim = note = _fail

    question = ask(overlay_kind("mutant", "", Unlucky), program, modes=modes, faults=1)
    assert search(question).verdict is Verdict.VIOLATED
    assert search(replace(question, kind=OVERLAY)).verdict is Verdict.HOLDS


def test_code_that_does_not_depend_on_its_operations_alone_is_refused():
    coin = itertools.count()

    def flips(stage):
        def execute(_):
            stage.perform("get", next(coin) % 2)
            return Done()

        return Subject(stage, execute)

    with pytest.raises(Uncontrolled, match="uncontrolled nondeterminism"):
        search(ask(kind_of(flips), "read 0+128K"))


def test_state_that_no_operation_shows_is_refused():
    """By itself each request finds the list empty, and leaves it so; sharing it, one finds the other's entry."""

    def notices(stage):
        hidden = []

        def execute(_):
            hidden.append(1)
            try:
                for block in range(len(hidden)):
                    stage.perform("get", block)
            finally:
                hidden.pop()
            return Done()

        return Subject(stage, execute)

    with pytest.raises(Disagreement, match="state that no operation shows"):
        run_all(ask(kind_of(notices), "trim 0+64K | trim 64K+64K"))


# The parts of the explorer, one by one, are needed


def test_without_torn_storage_a_torn_read_is_not_found(monkeypatch):
    """The store's operations made whole: what is left has nothing to tear."""
    question = TORN

    def pread(self, offset, length):
        return bytes(self._stage.perform("reads", offset, length))

    def pwrite(self, offset, buffers):
        self._stage.perform("writes", offset, b"".join(buffers))

    whole = {
        "reads": lambda _, world, client, at, length: [(world.store[at : at + length], world)],
        "writes": lambda _, world, client, at, data: [
            (None, replace(world, store=world.store[:at] + data + world.store[at + len(data) :]))
        ],
    }
    monkeypatch.setattr(ExploredStore, "pread", pread)
    monkeypatch.setattr(ExploredStore, "pwrite", pwrite)
    monkeypatch.setattr(physics, "_EFFECTS", {**physics._EFFECTS, **whole})
    assert search(question).verdict is Verdict.HOLDS


def test_without_faults_an_ordering_that_only_faults_need_is_not_missed():
    class StatesFirst(Overlay):
        __slots__ = ()

        def _write_blocks(self, first, last, start, parts):
            self.states.fill(first, last + 1, 1)
            self.store.pwrite(start, parts)

    kind = overlay_kind("mutant", "", StatesFirst)
    assert search(ask(kind, "write 0+64K")).verdict is Verdict.HOLDS
    assert search(ask(kind, "write 0+64K", faults=1)).verdict is Verdict.VIOLATED


def test_without_eager_releases_there_are_more_states_and_no_other_verdict(monkeypatch):
    question = ask(OVERLAY, "write 0+512 | write 0+64K")
    few = search(question)
    monkeypatch.setattr("check.explore.subjects.LEFT_MOVERS", frozenset())
    many = search(question)
    assert many.states > few.states
    assert many.schedules > few.schedules
    assert many.verdict is few.verdict is Verdict.HOLDS


# Random ways


def test_random_ways_find_a_race_and_are_the_same_for_the_same_seed():
    question = BY_NAME["copy-on-read"]
    one, same = walk(question, 500, seed=3), walk(question, 500, seed=3)
    assert one.verdict is Verdict.VIOLATED
    assert one.violation == same.violation
    assert play(Machine(question), one.violation.moves).wrong == one.violation.what


def test_random_ways_differ_by_their_seed_and_meet_what_is_misused():
    question = BY_NAME["copy-on-read"]
    assert len({walk(question, 500, seed).violation.moves for seed in range(6)}) > 1
    careless = overlay_kind("mutant", "", fault=NoLock)
    assert "without its range lock" in walk(ask(careless, "write 0+64K"), 5).violation.what


def test_random_ways_that_find_nothing_show_nothing():
    assert walk(ask(OVERLAY, "write 0+512 | write 0+64K"), 50).verdict is Verdict.INCONCLUSIVE


# Schedules as text


@pytest.mark.parametrize(
    ("moves", "text"),
    [
        ((), ""),
        (((0, 0),), "A"),
        (((0, 0), (0, 0), (1, 0)), "A2B"),
        (((0, 1), (1, 0), (1, 2), (1, 2)), "A!1BB!2B!2"),
    ],
)
def test_moves_are_read_as_they_are_written(moves, text):
    assert format_moves(moves) == text
    assert parse_moves(text) == moves


GOOD = "bitmap-lock:sector:N:0::65536,65536:write 0+512 | write 0+64K:A5B2A3B2"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "has 8 fields"),
        (GOOD.replace("bitmap", "bitmop"), "subject"),
        (GOOD.replace("sector", "vector"), "level"),
        (GOOD.replace(":0:", ":x:"), "faults"),
        (GOOD.replace("A5B2", "A5b2"), "cannot be read at"),
        (GOOD.replace("65536,65536", "65536"), "sizes"),
        (GOOD.replace("65536,65536", "1,65536"), "too small"),
        (GOOD.replace(":0:", ":\u00b2:"), "faults"),
        (GOOD.replace(":0::", ":0:cow:"), "mode 'cow'"),
        (GOOD.replace("A5B2", "A99999999999"), "cannot be read at"),
    ],
)
def test_a_replay_that_cannot_be_read_is_refused(text, wrong):
    with pytest.raises(UsageError, match=wrong):
        parse_replay(text)


@pytest.mark.parametrize("moves", ["C", "A!9", "A99"])
def test_moves_that_cannot_be_made_are_refused(moves):
    question, _ = parse_replay(GOOD)
    with pytest.raises(UsageError, match="cannot move"):
        play(Machine(question), parse_moves(moves))


def test_a_replay_says_how_many_may_fail_and_how_large_all_is():
    question = ask(OVERLAY, "write 0+512", faults=1, size=70000)
    again, moves = parse_replay(format_replay(question, ((0, 0), (0, 1))))
    assert (again, moves) == (question, ((0, 0), (0, 1)))
    assert play(Machine(again), moves).wrong == ""


def test_a_replay_of_the_start_of_a_schedule_is_not_called_wrong():
    question, moves = parse_replay(GOOD)
    assert play(Machine(question), moves[:3]).wrong == ""


def test_every_subject_says_what_it_is():
    assert all(kind.meaning for kind in KINDS.values())


def test_a_subject_refuses_what_it_does_not_know():
    with pytest.raises(UsageError, match="knows neither"):
        search(ask(RANGE_LOCK, "status 0+64K"))
