"""Whole bounds: every program within them is explored, and the shipped overlay holds.

These are the bounds of `make test`; `make explore` goes through larger ones.
"""

import json
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from itertools import combinations_with_replacement

import pytest
from servers import ROOT

from check.explore.bounds import (
    ALL_MODES,
    MENU,
    MENU_OF_THREE,
    MENU_WITHIN,
    PLAIN_MENU,
    Bound,
    Slices,
    Tally,
    explore_all,
    explore_slice,
    multiset,
)
from check.explore.campaign import COMPLETE, Campaign, Record, run, verdict_of
from check.explore.judge import LEVELS
from check.explore.programs import format_program, make_program, parse_program
from check.explore.replay import parse_replay, play
from check.explore.search import Machine, Question, Verdict, search_all
from check.explore.subjects import (
    BITMAP_LOCK,
    GLOBAL_LOCK,
    OVERLAY,
    OVERLAY_SERVED,
    OVERLAY_WITH_LOCK,
    RANGE_LOCK,
    Modes,
    overlay_kind,
)
from impl.errors import UsageError
from impl.overlay.overlay import Overlay

ODD_SIZE = (64 << 10) + 1024
THREE_BLOCKS = 192 << 10


def holds(subject, bound, every=1, level="request"):
    tally = explore_all(subject, bound, level, every)
    assert tally.verdict is Verdict.HOLDS, f"{tally.why}: {tally.replay}"
    assert every > 1 or tally.programs == bound.count()
    return tally


@pytest.mark.parametrize("faults", [0, 1])
@pytest.mark.parametrize("subject", [OVERLAY, OVERLAY_SERVED], ids=lambda kind: kind.name)
def test_two_clients_with_any_request_each(subject, faults):
    """Served, without failures too: what is left to a worker goes other ways then."""
    holds(subject, Bound((1, 1), faults=faults))


@pytest.mark.parametrize("subject", [OVERLAY, OVERLAY_SERVED], ids=lambda kind: kind.name)
def test_two_clients_on_a_device_whose_last_block_is_short(subject):
    holds(subject, Bound((1, 1), size=ODD_SIZE, faults=1))


def test_two_clients_inside_one_block():
    holds(OVERLAY, Bound((1, 1), MENU_WITHIN, faults=1, size=64 << 10))


class TailLost(Overlay):
    """Forgets what is behind a write that begins and ends inside a block."""

    __slots__ = ()

    def _kept_part(self, block, fetched, from_, to):
        kept = super()._kept_part(block, fetched, from_, to)
        return bytes(len(kept)) if from_ < 0 else kept


class SkipForgotten(Overlay):
    """Gives the beginning of what was fetched, wherever the read begins."""

    __slots__ = ()

    def _cut_out(self, part, first, data):
        return bytes(data[: part.length])


class StatusOfWholeBlocks(Overlay):
    """Says of a part of a block how long the block is."""

    __slots__ = ()

    def extents(self, offset, length):
        start = offset - offset % self.block_size
        return super().extents(start, length + offset - start)


@pytest.mark.parametrize("mutant", [TailLost, SkipForgotten, StatusOfWholeBlocks])
def test_what_is_wrong_inside_a_block_only_is_found_there(mutant):
    tally = explore_all(overlay_kind("mutant", "", mutant), Bound((1,), MENU_WITHIN, size=64 << 10))
    assert tally.verdict is Verdict.VIOLATED


def test_two_clients_on_a_device_of_three_blocks():
    holds(OVERLAY, Bound((1, 1), MENU_OF_THREE, size=THREE_BLOCKS))


def test_three_clients_with_any_request_each_on_blocks_that_show_the_base():
    holds(OVERLAY, Bound((1, 1, 1), initial=("NN",)))


def test_two_clients_with_two_requests_each_a_sample():
    """One program of 400; all of them are explored by `make explore`."""
    assert holds(OVERLAY, Bound((2, 2), initial=("NA", "TN")), every=400).programs >= 300


def test_two_clients_with_the_range_lock_down_to_mutex_and_condition():
    bound = Bound((1, 1), ("read 0+128K", "write 0+32K", "write 32K+64K", "trim 0+64K"), initial=("NN", "AT"))
    holds(OVERLAY_WITH_LOCK, bound)


def test_three_clients_with_the_range_lock_down_to_mutex_and_condition():
    bound = Bound(
        (1, 1, 1), ("read 0+64K", "write 0+32K", "trim 0+64K"), initial=("A",), modes=(Modes(),), size=64 << 10
    )
    holds(OVERLAY_WITH_LOCK, bound)


def test_the_range_lock_as_it_is_written_down_holds_as_well():
    holds(RANGE_LOCK, Bound((1, 1), PLAIN_MENU, faults=1))


def test_the_global_lock_holds_block_by_block_and_not_for_whole_requests():
    bound = Bound((1, 1), PLAIN_MENU, initial=("NN", "AA", "TN"))
    holds(GLOBAL_LOCK, bound, level="block")
    assert explore_all(GLOBAL_LOCK, bound, "request").verdict is Verdict.VIOLATED


@pytest.mark.parametrize("level", LEVELS)
def test_the_patch_holds_at_no_level(level):
    tally = explore_all(BITMAP_LOCK, Bound((1, 1), PLAIN_MENU, modes=(Modes(),)), level)
    assert tally.verdict is Verdict.VIOLATED
    assert tally.replay.startswith(f"bitmap-lock:{level}:")


def test_the_programs_of_a_bound_are_all_there_are():
    bound = Bound((2, 1), ("read 0+64K", "write 0+64K"))
    assert len(bound.programs()) == len(set(bound.programs())) == 4 * 2


@pytest.mark.parametrize(("count", "size"), [(1, 3), (5, 1), (5, 2), (4, 3), (3, 4)])
def test_programs_are_numbered_as_multisets_are_in_order(count, size):
    expected = [list(each) for each in combinations_with_replacement(range(count), size)]
    assert [multiset(index, count, size) for index in range(len(expected))] == expected


def test_a_bound_too_large_to_be_listed_is_numbered_all_the_same():
    programs = Bound((3, 3)).programs()
    assert len(programs) == 19**3 * (19**3 + 1) // 2
    first, last = programs[0], programs[len(programs) - 1]
    assert format_program(first) == " | ".join(["read 0+32K ; read 0+32K ; read 0+32K"] * 2)
    assert format_program(last) == " | ".join(["flush ; flush ; flush"] * 2)
    with pytest.raises(IndexError):
        programs[len(programs)]


def test_clients_of_one_length_are_alike():
    assert len(Bound((1, 1), ("read 0+64K", "write 0+64K")).programs()) == 3


def test_a_disk_begins_in_every_state_that_it_can_have():
    assert len(Bound((1,)).disks()) == 9
    assert len(set(Bound((1,), MENU_OF_THREE, size=THREE_BLOCKS).disks())) == 27


def test_a_program_is_explored_in_each_mode_that_it_asks_about_and_no_other():
    bound = Bound((1, 1), ("read 0+64K", "cache 0+64K", "trim 0+64K"), initial=("N",), size=64 << 10)
    # Of reads and caches both: once. Of one of the two: 2 modes each for 2 programs. Of neither: once.
    assert bound.count() == 4 + 2 * 2 + 2 * 2 + 1
    assert explore_all(OVERLAY, bound).programs == bound.count()


@pytest.mark.parametrize("text", [text for text in MENU if not text.startswith(("read", "cache"))])
def test_what_neither_reads_nor_caches_does_the_same_in_all_modes(text):
    """That is why it is explored in one."""
    program = make_program(parse_program(text), "NT", size=128 << 10)
    ways = {modes: tuple(way_of(Machine(Question(OVERLAY, program, modes=modes, faults=1)))) for modes in ALL_MODES}
    assert len(set(ways.values())) == 1


def way_of(machine):
    """All that the code does, after all that its operations can come to."""
    assert search_all(machine).verdict is Verdict.HOLDS
    learner = machine.learner
    return zip(learner.place, learner.op, learner.end, strict=True)


def test_a_mode_that_is_the_only_one_is_not_left_out():
    bound = Bound((1,), ("trim 0+64K",), initial=("N",), modes=(Modes(True, True),), size=64 << 10)
    assert bound.count() == 1


@pytest.mark.parametrize("every", [1, 3])
def test_slices_make_up_the_whole(every):
    bound = Bound((1, 1), ("read 0+64K", "write 0+32K", "trim 0+128K"), initial=("NN", "NA"))
    whole = explore_all(OVERLAY, bound, every=every)
    cut = sum((explore_slice(OVERLAY, bound, part) for part in Slices(bound, 2, every)), Tally())
    assert cut == whole


# Campaigns

SMALL = Campaign("overlay", (1,), faults=1)


def test_a_campaign_that_is_stopped_goes_on_where_it_was(tmp_path):
    path = tmp_path / "state"
    first = Record(SMALL, path)
    run(SMALL, first, 1, 0, lambda _: None)
    assert 0 < len(first.done) < len(SMALL.slices())
    again = Record(SMALL, path)
    assert again.done == first.done
    total = run(SMALL, again, 1, None, lambda _: None)
    assert len(again.done) == len(SMALL.slices())
    assert total == explore_all(OVERLAY, SMALL.bound())


def test_a_line_that_was_half_written_is_done_again(tmp_path):
    path = tmp_path / "state"
    run(SMALL, Record(SMALL, path), 1, 0, lambda _: None)
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:20])
    assert len(Record(SMALL, path).done) == 1
    assert path.read_text() == whole


def test_the_state_of_another_campaign_is_refused(tmp_path):
    path = tmp_path / "state"
    Record(SMALL, path)
    with pytest.raises(UsageError, match="another campaign"):
        Record(Campaign("overlay", (1,), faults=0), path)


def test_the_state_of_a_campaign_on_other_code_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "state"
    Record(SMALL, path)
    monkeypatch.setattr("check.explore.campaign.digest_of_code", lambda: "other")
    with pytest.raises(UsageError, match="on other code"):
        Record(SMALL, path)


def test_a_campaign_stops_at_what_is_wrong(tmp_path):
    campaign = Campaign("bitmap-lock", (1, 1))
    total = run(campaign, Record(campaign, tmp_path / "state"), 1, None, lambda _: None)
    assert total.verdict is Verdict.VIOLATED
    lines = [json.loads(line) for line in (tmp_path / "state").read_text().splitlines()]
    assert lines[-1]["replay"] == total.replay


@pytest.mark.parametrize(("every", "done", "word"), [(1, 36, COMPLETE), (1, 35, "not complete"), (2, 36, "a sample")])
def test_a_campaign_is_complete_when_all_is_done_that_there_is(every, done, word):
    campaign = Campaign("overlay", (1,), every=every)
    record = Record(campaign, None)
    for number in range(done):
        record.add(number, Tally(programs=1))
    assert len(campaign.slices()) == 36
    assert verdict_of(campaign, record).startswith(word)


def campaign_command(*arguments):
    command = [sys.executable, "-m", "check.explore.campaign", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--shape", "1"], 0, "holds, complete"),
        (["--shape", "1", "--every", "3"], 3, "a sample, nothing found"),
        (["--shape", "1,1", "--seconds", "0"], 3, "not complete, nothing found so far"),
        (["--subject", "bitmap-lock", "--shape", "1,1"], 1, "replay: cowproof explore --replay"),
        (["--shape", "9"], 2, "expected one to four numbers"),
    ],
)
def test_the_command_says_what_it_has_found_out(arguments, status, said):
    done = campaign_command(*arguments, "--jobs", "1")
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout + done.stderr


# Lines of a state that cannot be taken for one.
BROKEN = {
    "no JSON": "{",
    "nothing": "",
    "a list": "[]",
    "another slice": '{"slice": 36, "programs": 1, "verdict": "holds"}',
    "no slice": '{"programs": 1, "verdict": "holds"}',
    "no verdict that there is": '{"slice": 0, "verdict": "fine"}',
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_line_that_is_none_of_a_state_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "state"
    record = Record(SMALL, path)
    record.add(0, Tally(programs=1))
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UsageError, match="line 3"):
        Record(SMALL, path)


def test_a_state_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be written"):
        Record(SMALL, tmp_path / "nowhere" / "state")


def test_a_violation_is_not_hidden_by_what_was_found_before_and_ends_the_campaign():
    record = Record(SMALL, None)
    record.add(0, Tally(verdict=Verdict.INCONCLUSIVE))
    record.add(1, Tally(verdict=Verdict.VIOLATED, why="this"))
    assert (record.total().verdict, record.total().why) == (Verdict.VIOLATED, "this")
    run(SMALL, record, 1, None, lambda _: pytest.fail("there is nothing left to do"))


def test_a_campaign_on_several_processors_comes_to_the_same(tmp_path):
    campaign = Campaign("overlay", (1,), blocks=1)
    several, one = Record(campaign, tmp_path / "state"), Record(campaign, None)
    assert run(campaign, several, 2, None, lambda _: None) == run(campaign, one, 1, None, lambda _: None)
    assert set(several.done) == set(range(len(campaign.slices())))


def test_a_replay_names_the_program_that_was_wrong():
    tally = explore_all(BITMAP_LOCK, Bound((1, 1), PLAIN_MENU, modes=(Modes(),)), "sector")
    question, moves = parse_replay(tally.replay)
    assert play(Machine(question), moves).wrong == tally.why


def test_a_process_that_is_killed_leaves_a_campaign_that_is_not_complete(monkeypatch, capsys):
    def killed(*_, **__):
        raise BrokenProcessPool

    monkeypatch.setattr("check.explore.campaign.wait", killed)
    campaign = Campaign("overlay", (1,), blocks=1)
    record = Record(campaign, None)
    run(campaign, record, 2, None, lambda _: None)
    assert verdict_of(campaign, record).startswith("not complete")
    assert "was killed" in capsys.readouterr().err
