"""The recorder: what it writes is a history of what was asked and told, whatever the server does.

Against a real server; short runs, for what is claimed here is in each of them.
"""

import errno
import json
from collections import Counter

import pytest
from servers import KIB

from check.history.format import load
from check.history.record import NoSpace, Recipe, is_no_space, record
from impl.base.pattern import pattern
from impl.client import NbdError, connect
from impl.errors import StartError, UsageError
from impl.history_tags import GRANULE
from model.history import OK, PENDING

BASE = "pattern:4M?seed=3"


def recorded(uri, path, **recipe):
    record(Recipe(uri, **{"seconds": 0.2, "quiet_s": 0.1, "clients": 2, "size": 1 << 20, **recipe}), path)
    return load(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "seen.jsonl"


def owners(history):
    return {who for runs in history.value if isinstance(runs, tuple) for who, _ in runs}


def test_all_that_is_asked_is_answered_and_every_write_has_a_name_of_its_own(serve, path):
    history = recorded(serve(BASE).uri, path, base=BASE)
    assert set(history.outcome) <= {OK, "ENOTSUP"}
    assert len(set(zip(history.client, history.id, strict=True))) == len(history)
    assert len(set(history.id)) == len(history)
    written = {value for value in history.value if isinstance(value, str)}
    assert owners(history) <= written | {"base", "zero"}
    assert "base" in owners(history)
    assert owners(history) & written
    assert len(set(history.client)) == 4


def test_what_was_touched_is_read_when_nothing_else_runs(serve, path):
    """Behind the last change there is a read of every block that was touched."""
    history = recorded(serve(BASE).uri, path, base=BASE, seconds=0.1)
    last_change = max(ret for op, ret in zip(history.op, history.ret, strict=True) if op != "read")
    touched, read = set(), set()
    for operation in history:
        blocks = range(operation.offset // (64 * KIB), -(-(operation.offset + operation.length) // (64 * KIB)))
        if operation.op in ("write", "zero", "trim"):
            touched.update(blocks)
        elif operation.op == "read" and operation.call > last_change and operation.length == 64 * KIB:
            read.update(blocks)
    assert touched
    assert touched <= read


def test_the_header_says_what_the_server_is_and_how_many_events_there_are(serve, path):
    recorded(serve(BASE).uri, path, base=BASE, level="block", trim_reads_zero=False)
    header, *events = path.read_text(encoding="utf-8").splitlines()
    told = json.loads(header)
    assert (told["size"], told["level"], told["trim_reads_zero"]) == (4 << 20, "block", False)
    assert told["base_is_zero"] is False
    assert told["events"] == len(events)


def test_a_base_that_nobody_names_is_looked_at_first(serve, path):
    history = recorded(serve(BASE).uri, path)
    assert "base" in owners(history)
    assert "?" not in owners(history)


def test_a_base_that_is_zero_is_said_to_be(serve, path):
    history = recorded(serve("memory:4M").uri, path)
    assert history.base_is_zero
    assert "base" not in owners(history)
    assert "zero" in owners(history)


def test_zeroes_of_a_base_that_is_not_zero_are_written_over_first(serve, path, base_with_holes):
    """For a zero that is read could not be told from one that was written."""
    server = serve(base_with_holes)
    history = recorded(server.uri, path, size=4 << 20)
    assert not history.base_is_zero
    covered = bytearray((4 << 20) // GRANULE)
    for operation in history:
        if operation.client == "c4":
            assert operation.op == "write"
            first, last = operation.offset // GRANULE, (operation.offset + operation.length) // GRANULE
            covered[first:last] = b"\1" * (last - first)
    data = base_with_holes.read_bytes()
    zero = [data[at : at + GRANULE] == bytes(GRANULE) for at in range(0, len(data), GRANULE)]
    assert [bool(one) for one in covered] == zero


def test_stamps_of_an_older_run_are_what_was_there_before(serve, path):
    uri = serve(BASE).uri
    recorded(uri, path, base=BASE)
    history = recorded(uri, path)
    assert "base" in owners(history)
    assert "?" not in owners(history)


def test_a_base_that_is_not_the_one_is_seen_at_once(serve, path):
    history = recorded(serve(BASE).uri, path, base="pattern:4M?seed=4")
    assert "?" in owners(history)
    assert "neither the base's bytes nor any write's" in path.read_text(encoding="utf-8")


def test_requests_of_connections_that_are_cut_stay_without_an_answer(serve, path):
    history = recorded(serve(f"{BASE}&latency=5ms").uri, path, base=BASE, cuts_per_s=50, seconds=0.5)
    outcomes = Counter(history.outcome)
    assert outcomes[PENDING] > 0
    assert outcomes[OK] > 0
    assert any("." in client for client in history.client)
    for client, outcome in zip(history.client, history.outcome, strict=True):
        assert outcome != PENDING or client.count(".") <= 1


def test_one_seed_asks_each_connection_for_the_same_again(serve, path):
    first = recorded(serve(BASE).uri, path, base=BASE, seed=7, moment_s=100)
    second = recorded(serve(BASE).uri, path, base=BASE, seed=7, moment_s=100)
    for client in set(first.client):
        asked = [
            [(one.op, one.offset, one.length, one.flags) for one in history if one.client == client][:10]
            for history in (first, second)
        ]
        assert len(asked[0]) == 10
        assert asked[0] == asked[1]


def test_a_device_that_is_smaller_than_what_is_asked_for_is_used_whole(serve, path):
    history = recorded(serve("pattern:100K").uri, path, size=1 << 20)
    assert history.size == 100 * KIB
    assert len(history)


def test_a_server_that_is_not_there_is_said_not_to_be(path):
    with pytest.raises(StartError, match="cannot connect"):
        recorded("nbd+unix:///?socket=/nowhere", path)


def test_a_server_that_lets_nobody_write_shows_nothing(serve, path):
    with pytest.raises(StartError, match="cannot be written to"):
        recorded(serve(BASE, "-r").uri, path)


def test_a_base_that_is_too_small_is_refused(serve, path):
    with pytest.raises(UsageError, match="has 65536 bytes: expected at least 1048576"):
        recorded(serve(BASE).uri, path, base="pattern:64K")


def test_no_room_for_the_history_is_told_from_no_room_at_the_server(serve):
    with pytest.raises(NoSpace, match="/dev/full: cannot record: No space left on device"):
        recorded(serve(BASE).uri, "/dev/full", base=BASE)
    assert is_no_space(OSError(errno.ENOSPC, "ours"))
    assert is_no_space(OSError(errno.EDQUOT, "ours"))
    assert not is_no_space(NbdError(errno.ENOSPC, "the server's"))
    assert not is_no_space(ConnectionResetError(errno.ECONNRESET, "gone"))
    assert not is_no_space(StartError("no space"))


def test_a_server_that_leaves_ends_the_recording(serve, path):
    server = serve(BASE)
    seen = []

    def progress(seconds, requests):
        if requests and not seen:
            seen.append(requests)
            server.kill()

    with pytest.raises(StartError, match=r"cannot connect|client"):
        record(Recipe(server.uri, seconds=30, quiet_s=0.1, clients=2, size=1 << 20, base=BASE), path, progress)
    assert seen


def test_what_the_device_holds_in_the_end_is_what_the_last_reads_saw(serve, path):
    """An independent look: the bytes themselves, by another client, against the stamps that were told."""
    server = serve(BASE)
    history = recorded(server.uri, path, base=BASE, mix={"read": 50, "write": 50})
    with connect(server.uri) as client:
        data = client.pread(0, 1 << 20)
    base = pattern(3, 0, 1 << 20)
    untouched = set(range((1 << 20) // GRANULE))
    for operation in history:
        if operation.op == "write":
            untouched -= set(range(operation.offset // GRANULE, (operation.offset + operation.length) // GRANULE))
    for granule in range((1 << 20) // GRANULE):
        at = granule * GRANULE
        assert (data[at : at + GRANULE] == base[at : at + GRANULE]) == (granule in untouched)
