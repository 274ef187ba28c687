"""Whole bounds: every program within them is explored, and the shipped overlay holds.

These are the bounds of `make test`; `make explore` goes through larger ones.
"""

import json

import pytest

from check.explore.bounds import MENU, PLAIN_MENU, Bound, Tally, explore_all, explore_slice, slices
from check.explore.campaign import Campaign, Record, run
from check.explore.judge import LEVELS
from check.explore.search import Verdict
from check.explore.subjects import (
    BITMAP_LOCK,
    GLOBAL_LOCK,
    OVERLAY,
    OVERLAY_PARKING,
    OVERLAY_WITH_LOCK,
    RANGE_LOCK,
    Modes,
)
from impl.errors import UsageError

ODD_SIZE = (64 << 10) + 1024
MODES = (Modes(), Modes(True, True))

PAIRS = len(MENU) * (len(MENU) + 1) // 2
TRIPLES = len(MENU) * (len(MENU) + 1) * (len(MENU) + 2) // 6


def holds(tally, programs):
    assert tally.verdict is Verdict.HOLDS, f"{tally.why}: {tally.replay}"
    assert tally.programs == programs


def test_two_clients_with_any_request_each():
    holds(explore_all(OVERLAY, Bound((1, 1))), PAIRS * 9 * 2)


def test_two_clients_with_any_request_each_and_one_operation_that_fails():
    holds(explore_all(OVERLAY, Bound((1, 1), faults=1)), PAIRS * 9 * 2)


def test_two_clients_on_a_device_whose_last_block_is_short():
    bound = Bound((1, 1), size=ODD_SIZE, faults=1)
    count = len(bound.asks())
    holds(explore_all(OVERLAY, bound), count * (count + 1) // 2 * 9 * 2)


@pytest.mark.parametrize("size", [128 << 10, ODD_SIZE])
def test_two_clients_as_the_server_has_them_which_wait_for_no_range(size):
    bound = Bound((1, 1), size=size, faults=1)
    count = len(bound.asks())
    holds(explore_all(OVERLAY_PARKING, bound), count * (count + 1) // 2 * 9 * 2)


def test_three_clients_with_any_request_each_on_blocks_that_show_the_base():
    holds(explore_all(OVERLAY, Bound((1, 1, 1), initial=("NN",), modes=(Modes(True, True),))), TRIPLES)


def test_two_clients_with_two_requests_each_a_sample():
    """One program of 400; all of them are explored by `make explore`."""
    tally = explore_all(OVERLAY, Bound((2, 2), initial=("NA", "TN"), modes=MODES), every=400)
    holds(tally, tally.programs)
    assert tally.programs >= 300


def test_two_clients_with_the_range_lock_down_to_mutex_and_condition():
    bound = Bound((1, 1), ("read 0+128K", "write 0+32K", "write 32K+64K", "trim 0+64K"), initial=("NN", "AT"))
    holds(explore_all(OVERLAY_WITH_LOCK, bound), 10 * 2 * 2)


def test_three_clients_with_the_range_lock_down_to_mutex_and_condition():
    bound = Bound(
        (1, 1, 1), ("read 0+64K", "write 0+32K", "trim 0+64K"), initial=("A",), modes=(Modes(),), size=64 << 10
    )
    holds(explore_all(OVERLAY_WITH_LOCK, bound), 10)


def test_the_range_lock_as_it_is_written_down_holds_as_well():
    pairs = len(PLAIN_MENU) * (len(PLAIN_MENU) + 1) // 2
    holds(explore_all(RANGE_LOCK, Bound((1, 1), PLAIN_MENU, faults=1)), pairs * 9 * 2)


def test_the_global_lock_holds_block_by_block_and_not_for_whole_requests():
    bound = Bound((1, 1), PLAIN_MENU, initial=("NN", "AA", "TN"))
    pairs = len(PLAIN_MENU) * (len(PLAIN_MENU) + 1) // 2
    holds(explore_all(GLOBAL_LOCK, bound, "block"), pairs * 3 * 2)
    assert explore_all(GLOBAL_LOCK, bound, "request").verdict is Verdict.VIOLATED


@pytest.mark.parametrize("level", LEVELS)
def test_the_patch_holds_at_no_level(level):
    tally = explore_all(BITMAP_LOCK, Bound((1, 1), PLAIN_MENU, modes=(Modes(),)), level)
    assert tally.verdict is Verdict.VIOLATED
    assert tally.replay.startswith(f"bitmap-lock:{level}:")


def test_the_programs_of_a_bound_are_all_there_are():
    bound = Bound((2, 1), ("read 0+64K", "write 0+64K"))
    assert bound.count() == 4 * 2
    assert len(set(bound.programs())) == 8


def test_clients_of_one_length_are_alike():
    assert Bound((1, 1), ("read 0+64K", "write 0+64K")).count() == 3


@pytest.mark.parametrize("every", [1, 3])
def test_slices_make_up_the_whole(every):
    bound = Bound((1, 1), ("read 0+64K", "write 0+32K", "trim 0+128K"), initial=("NN", "NA"))
    whole = explore_all(OVERLAY, bound, every=every)
    cut = sum((explore_slice(OVERLAY, bound, part) for part in slices(bound, 2, every)), Tally())
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


def test_a_campaign_stops_at_what_is_wrong(tmp_path):
    campaign = Campaign("bitmap-lock", (1, 1))
    total = run(campaign, Record(campaign, tmp_path / "state"), 1, None, lambda _: None)
    assert total.verdict is Verdict.VIOLATED
    lines = [json.loads(line) for line in (tmp_path / "state").read_text().splitlines()]
    assert lines[-1]["replay"] == total.replay
