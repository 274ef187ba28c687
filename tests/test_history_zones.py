"""Zones and zero epochs, beside the search and beside every small history.  Source: model/zones.py, model/wgl.py.

Every decision is replayed by the verifier, so what is compared here is a verdict with a proof.
"""

import os

import pytest
from history_cases import every_history, histories, interval_orders, judge
from hypothesis import HealthCheck, given, settings

from model.linearizability import Verdict, decide

MANY = settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))

# Up to how many requests every history is made; 6 takes a quarter of an hour or so: see the Makefile's `histories`.
REQUESTS_MAX = int(os.environ.get("HISTORIES_REQUESTS_MAX", "5"))
# Reads of the base are as reads of a write that came first, so the largest sizes are made without.
WITH_BASE_MAX = 4


@MANY
@given(histories(1, 8))
def test_one_granule_is_decided_as_the_search_does(history):
    assert decide(history, "sector").verdict == judge(history, "sector")


@MANY
@given(histories(3, 7))
def test_several_granules_are_decided_apart_at_level_sector(history):
    assert decide(history, "sector").verdict == judge(history, "sector")


@pytest.mark.parametrize(("count", "orders"), [(1, 1), (2, 2), (3, 5), (4, 15), (5, 53)])
def test_there_are_as_many_interval_orders_as_fishburn_counted(count, orders):
    assert sum(1 for _ in interval_orders(count)) == orders


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("base_is_zero", [False, True])
@pytest.mark.parametrize("count", range(1, REQUESTS_MAX + 1))
def test_every_history_of_a_few_requests_is_decided_as_the_search_does(count, base_is_zero):
    kinds = "0BRWZ" if count <= WITH_BASE_MAX else "0RWZ"
    decided = {Verdict.LINEARIZABLE: 0, Verdict.NOT_LINEARIZABLE: 0}
    for history in every_history(count, kinds, base_is_zero=base_is_zero):
        verdict = decide(history, "sector").verdict
        assert verdict == judge(history, "sector"), list(history)
        decided[verdict] += 1
    assert min(decided.values()) > 0 or count == 1
    print(count, base_is_zero, {verdict.value: number for verdict, number in decided.items()})
