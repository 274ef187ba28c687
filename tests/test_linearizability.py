"""Many clients on real connections: what they saw is linearizable, request by request; of servers that are wrong, not.

Each run takes --lin-seconds N (1.5 if not said), in several processes of clients. What must be found is looked for in
several runs, one after the other, until it is.

Source:  promises P1, P2, P5, P7; DESIGN of the histories: docs/linearizability.md.
"""

import sys
from collections import Counter

import pytest
from servers import MIB, ROOT, refuse

from check.history.format import load
from check.history.peers import PEERS, serving
from check.history.record import Recipe, record
from check.history.show import verdict_lines
from impl.errors import StartError
from model.budget import Budget
from model.history import OK, PENDING
from model.linearizability import decide
from model.wgl import Verdict

pytestmark = [pytest.mark.linearizability, pytest.mark.timeout(0)]

BASE = "pattern:64M?seed=3"
SLOW = f"{BASE}&latency=2ms&jitter=20ms"
# What clients ask for has to share blocks, or there is nothing to go wrong.
BLOCKS = ("--cow-block-size", "64K")
MUTANT = [sys.executable, str(ROOT / "tests" / "mutant_server.py")]
# Requests in flight on each of six connections.
DEPTH = 4
RUNS_MAX = 10
BUDGET = Budget(seconds=30)


@pytest.fixture
def recorded(request, tmp_path):
    """recorded(uri, ...): the history of one run, and where it is kept."""
    seconds = request.config.getoption("lin_seconds")

    def run(uri, **recipe):
        path = tmp_path / "seen.jsonl"
        record(Recipe(uri, **{"seconds": seconds, "base": BASE, "depth": DEPTH, **recipe}), path)
        return load(path)

    return run


def seen_in(history):
    """How often reads saw the base, zeroes, and writes."""
    named = Counter()
    for runs in history.value:
        if isinstance(runs, tuple):
            named.update(who if who in ("base", "zero", "?") else "a write" for who, _ in runs)
    return named


def check(history, level="request"):
    """It is linearizable, and it is not empty."""
    decision = decide(history, level, BUDGET)
    assert decision.verdict is Verdict.LINEARIZABLE, "\n".join(verdict_lines(history, decision))
    seen = seen_in(history)
    assert min(seen["base"], seen["zero"], seen["a write"]) > 0
    assert {"read", "write", "zero", "trim", "cache", "flush", "status"} <= set(history.op)
    assert any(first < second for first, second in zip(history.ret, history.call[1:], strict=False))


RUNS = {
    "a slow base": ((), {}),
    "copy-on-read": (("--cow-on-read", "on"), {}),
    "copy-on-cache": (
        ("--cow-on-cache",),
        {"mix": {"read": 60, "write": 20, "cache": 15, "zero": 2, "trim": 1, "flush": 1, "status": 1}},
    ),
    "an overlay in memory": (("--overlay", "memory"), {"moment_s": 0.02}),
    "small blocks": (("--cow-block-size", "4K", "--cow-on-read", "on"), {"block_size": 4096, "moment_s": 0.01}),
    "one block for all": ((), {"size": 65536}),
    "large requests, for which sessions move, and small ones": (
        ("--cow-block-size", "256K"),
        {"block_size": 256 << 10, "size": 4 * MIB, "moment_s": 0.2},
    ),
    "small blocks under large requests": (("--cow-block-size", "4K", "--cow-on-read", "on"), {}),
}


@pytest.mark.parametrize(("options", "recipe"), RUNS.values(), ids=RUNS)
def test_what_clients_see_is_linearizable(serve, recorded, options, recipe):
    server = serve(SLOW, *BLOCKS, *options)
    check(recorded(server.uri, **recipe))
    assert server.stop() == 0


def test_what_clients_see_of_a_fast_base_over_tcp_is_linearizable(serve, recorded, tmp_path):
    server = serve(BASE, *BLOCKS, "--cow-on-read", "on", tcp=True)
    check(recorded(server.uri))


def test_connections_that_are_cut_take_nothing_with_them(serve, recorded):
    """What was in flight may have happened, or not, or happen later still, as a whole."""
    server = serve(SLOW, *BLOCKS, "--cow-on-read", "on")
    history = recorded(server.uri, cuts_per_s=20)
    check(history)
    assert PENDING in history.outcome
    assert any("." in client for client in history.client)
    assert server.stop() == 0


def test_a_full_disk_harms_nothing_that_was_acknowledged(serve, recorded, small_disk):
    server = serve(SLOW, *BLOCKS, "--cow-on-read", "on", env={"TMPDIR": str(small_disk)})
    history = recorded(server.uri, size=32 * MIB, moment_s=0.01)
    check(history)
    assert "ENOSPC" in history.outcome
    assert server.stop() == 0


def test_what_the_server_records_is_what_its_clients_saw(serve, recorded, tmp_path):
    path = tmp_path / "served.jsonl"
    server = serve(SLOW, *BLOCKS, "--cow-on-read", "on", "--record", str(path))
    seen = recorded(server.uri)
    assert server.stop() == 0
    served = load(path)
    check(seen)
    check(served)
    written = {
        value
        for value, outcome in zip(seen.value, seen.outcome, strict=True)
        if isinstance(value, str) and outcome == OK
    }
    assert written <= {value for value in served.value if isinstance(value, str)}


# Large requests take a while to be copied, and what is not locked meanwhile is torn.
LARGE_BLOCKS = ("--overlay", "memory", "--cow-block-size", "1M")
LARGE = {
    "size": 32 * MIB,
    "block_size": MIB,
    "mix": {"read": 50, "write": 50},
    "moment_s": 0.1,
    "connections": 1,
    "depth": 1,
}

# What must be found. A server that is wrong in one way, and what shows it.

WRONG = {
    "NoSecondLookAtWrites": ((), {}),
    "NoSecondLookAtCopies": (("--cow-on-read", "on"), {}),
    "CopiesOverTrims": (("--cow-on-read", "on"), {"mix": {"read": 60, "trim": 30, "write": 10}}),
    "SecondLookMissesTrims": ((), {"mix": {"read": 50, "trim": 30, "write": 20}}),
    "write whole: NoLock": (LARGE_BLOCKS, LARGE),
    "look: NoLock": (LARGE_BLOCKS, LARGE),
}


def found(history, level):
    """The lines that show why it is not linearizable; None if it is, or more are named than anybody follows."""
    decision = decide(history, level, BUDGET)
    if decision.verdict is not Verdict.NOT_LINEARIZABLE:
        return None
    assert decision.certificate.operations
    return verdict_lines(history, decision) if len(decision.certificate.operations) <= 8 else None


def found_in_some(record_one, level="request"):
    """What the first run shows that shows anything."""
    for _ in range(RUNS_MAX):
        shown = found(record_one(), level)
        if shown is not None:
            print("\n".join(shown))  # for people: pytest -rP
            return shown
    raise AssertionError(f"nothing was found in {RUNS_MAX} runs")


@pytest.mark.parametrize("mutant", WRONG)
def test_a_server_with_something_wrong_is_found_out(serve, recorded, mutant):
    options, recipe = WRONG[mutant]

    def run():
        server = serve(BASE if recipe is LARGE else SLOW, *BLOCKS, *options, server=[*MUTANT, mutant])
        try:
            return recorded(server.uri, **recipe)
        finally:
            server.kill()

    shown = found_in_some(run)
    assert "no order" in "\n".join(shown) or "no place in any order" in "\n".join(shown)


def test_nbdkit_that_copies_on_read_is_found_out(recorded, short_path):
    """In every sector by itself: a write that was acknowledged is gone."""

    def run():
        try:
            with serving(PEERS["nbdkit cow-on-read"], SLOW, short_path) as uri:
                return recorded(uri)
        except StartError as error:
            refuse(str(error))

    shown = found_in_some(run, "sector")
    assert "no order" in "\n".join(shown) or "no place in any order" in "\n".join(shown)
