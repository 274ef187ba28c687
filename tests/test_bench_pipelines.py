"""The pipelines: the subject has one lock, what a guest writes, what is said of a run. Nothing of how fast.

The base stops where the test wants it to, so no interleaving is awaited: that reads of the base can be at the same time
is seen by their being so, and that they cannot by others who are known to wait.

Source:  bench/pipelines.py, bench/guest.py, bench/global_lock_server.py; the mail that is reviewed, for its times.
"""

import json
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count

import pytest
from click.testing import CliRunner
from servers import ROOT, need

from bench import guest, pipelines, results
from bench.clients import ClientError, Outcome
from bench.global_lock_server import WHAT, GlobalLockOverlay, global_lock_export
from bench.pipelines import (
    OURS,
    PIPELINES,
    SERIAL,
    Disk,
    Found,
    all_turns,
    check_copy,
    failures,
    latency_of,
    lines_of,
    mail_ratio,
    make_disk,
    size_of,
    table,
    total,
    turn,
)
from bench.results import Sample
from bench.servers import COPY_ON_READ, Base, Place, Server, started
from check.serving import serve_export
from impl.base.memory import BytesBase
from impl.client import Extent, connect, export_info
from impl.errors import StartError, UsageError
from impl.overlay.overlay import Overlay
from impl.overlay.rangelock import RangeLock
from impl.server.export import ExportOptions, make_export

pytestmark = pytest.mark.timeout(120)

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 4 * KIB
CLIENTS = 4
WAIT_S = 20.0
BYTES = bytes(1 + at % 251 for at in range(16 * BLOCK))


def pipeline_named(name):
    return next(pipeline for pipeline in PIPELINES if pipeline.name == name)


# The subject


class SlowBase(BytesBase):
    """Nothing of it is ever ready; each read waits until all may go on, and they are counted while they are inside."""

    def __init__(self, data):
        super().__init__(data)
        self.has_begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()

    def is_ready(self, offset, length):
        return False

    def fileno(self):
        return None

    def pread(self, offset, length):
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        self.has_begun.release()
        assert self.may_end.wait(WAIT_S), "nobody lets it go on"
        with self._lock:
            self._inside -= 1
        return super().pread(offset, length)


class CountedLock(RangeLock):
    """It tells when somebody leaves word, and so has to wait."""

    def __init__(self):
        super().__init__()
        self.somebody_waits = threading.Semaphore(0)

    def ask(self, first, last, exclusive, when_held):
        super().ask(first, last, exclusive, when_held)
        self.somebody_waits.release()


@contextmanager
def served(export, path, connections):
    serving = serve_export(export, str(path / "s"))
    try:
        with ExitStack() as stack:
            yield [stack.enter_context(connect(serving.uri, timeout_s=WAIT_S)) for _ in range(connections)]
    finally:
        serving.stop()


def of_the_product(base, **options):
    return make_export(base, ExportOptions(block_size=BLOCK, **options))


def of_the_subject(base, lock=None, **options):
    return global_lock_export(base, ExportOptions(block_size=BLOCK, **options), lock)


REQUESTS = {  # each of another block, of which it needs what the base has
    "read": lambda client, block: client.pread_async(block * BLOCK, BLOCK),
    "write": lambda client, block: client.pwrite_async(block * BLOCK + 100, b"new"),
    "trim": lambda client, block: client.trim_async(block * BLOCK + 100, 200),
    "zero": lambda client, block: client.zero_async(block * BLOCK + 100, 200),
}


@pytest.mark.parametrize("connections", [1, CLIENTS])
@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("copies", [False, True])
def test_the_product_reads_the_base_for_many_at_once(request_, connections, copies, short_path):
    base = SlowBase(BYTES)
    with served(of_the_product(base, copy_on_read=lambda: copies), short_path, connections) as clients:
        sent = [REQUESTS[request_](clients[block % connections], block) for block in range(CLIENTS)]
        assert all(base.has_begun.acquire(timeout=WAIT_S) for _ in sent)
        base.may_end.set()
        for future in sent:
            future.result(WAIT_S)
    assert base.most == CLIENTS


class LooksOnly(GlobalLockOverlay):
    """What the base has is left for a server to fetch, once the lock has been given back."""

    __slots__ = ()
    look_under_lock = Overlay.look_under_lock


class FetchesFirst(GlobalLockOverlay):
    """What the base has is fetched before the lock is taken."""

    __slots__ = ()
    partial_blocks = Overlay.partial_blocks


LETTING_GO = [(LooksOnly, "read"), (FetchesFirst, "write"), (FetchesFirst, "trim"), (FetchesFirst, "zero")]


@pytest.mark.parametrize("connections", [1, CLIENTS])
@pytest.mark.parametrize(("broken", "request_"), LETTING_GO)
def test_a_subject_that_does_not_hold_its_lock_across_the_read_is_found_out(broken, request_, connections, short_path):
    base = SlowBase(BYTES)
    export = of_the_subject(base)
    shipped = {name: getattr(export.overlay, name) for name in Overlay.__slots__}
    with served(replace(export, overlay=broken(**shipped)), short_path, connections) as clients:
        sent = [REQUESTS[request_](clients[block % connections], block) for block in range(CLIENTS)]
        assert all(base.has_begun.acquire(timeout=WAIT_S) for _ in sent)
        base.may_end.set()
        for future in sent:
            future.result(WAIT_S)
    assert base.most == CLIENTS


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("copies", [False, True])
def test_the_subject_reads_the_base_for_one_while_all_others_wait(request_, copies, short_path):
    base, lock = SlowBase(BYTES), CountedLock()
    with served(of_the_subject(base, lock, copy_on_read=lambda: copies), short_path, CLIENTS) as clients:
        sent = [REQUESTS[request_](client, block) for block, client in enumerate(clients)]
        assert base.has_begun.acquire(timeout=WAIT_S)
        assert all(lock.somebody_waits.acquire(timeout=WAIT_S) for _ in sent[1:])
        assert base.most == 1
        base.may_end.set()
        for future in sent:
            future.result(WAIT_S)
    assert base.most == 1


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_subject_does_so_on_one_connection_too(request_, short_path):
    base = SlowBase(BYTES)
    with served(of_the_subject(base), short_path, 1) as (client,):
        sent = [REQUESTS[request_](client, block) for block in range(CLIENTS)]
        assert base.has_begun.acquire(timeout=WAIT_S)
        base.may_end.set()
        for future in sent:
            future.result(WAIT_S)
    assert base.most == 1


def test_a_read_of_what_the_overlay_holds_waits_behind_a_read_of_the_base_in_the_subject(short_path):
    base, lock = SlowBase(BYTES), CountedLock()
    with served(of_the_subject(base, lock), short_path, 2) as (one, other):
        one.pwrite(0, bytes(BLOCK))
        slow = one.pread_async(BLOCK, BLOCK)
        assert base.has_begun.acquire(timeout=WAIT_S)
        quick = other.pread_async(0, BLOCK)
        assert lock.somebody_waits.acquire(timeout=WAIT_S)
        assert not quick.done()
        base.may_end.set()
        assert (slow.result(WAIT_S), quick.result(WAIT_S)) == (BYTES[BLOCK : 2 * BLOCK], bytes(BLOCK))


def disk_after(client, start, end, seed):
    """What a client expects in its part of the disk, after requests of all kinds, each answer compared on its way."""
    rng = random.Random(seed)
    disk = bytearray(BYTES)
    for step in range(150):
        offset = rng.randrange(start, end)
        length = rng.randint(1, min(3 * BLOCK, end - offset))
        data = rng.randbytes(length)
        what = rng.choice(["read", "read", "write", "write", "zero", "trim", "flush"])
        if what == "read":
            assert client.pread(offset, length) == disk[offset : offset + length], (seed, step)
        elif what == "write":
            client.pwrite(offset, data)
            disk[offset : offset + length] = data
        elif what == "flush":
            client.flush()
        else:
            client.zero(offset, length) if what == "zero" else client.trim(offset, length)
            disk[offset : offset + length] = bytes(length)
    return bytes(disk[start:end])


@pytest.mark.parametrize("copies", [False, True])
def test_what_the_subject_holds_is_right(copies, short_path):
    part = len(BYTES) // CLIENTS
    base = SlowBase(BYTES)
    base.may_end.set()
    export = of_the_subject(base, copy_on_read=lambda: copies)
    with served(export, short_path, CLIENTS) as clients, ThreadPoolExecutor(CLIENTS) as pool:
        # Parts begin in the middle of a block, so that clients meet there.
        bounds = [0, *(part * at + BLOCK // 2 for at in range(1, CLIENTS)), len(BYTES)]
        expected = pool.map(disk_after, clients, bounds, bounds[1:], range(CLIENTS))
        assert b"".join(expected) == clients[0].pread(0, len(BYTES))


def test_the_subject_tells_what_it_holds_by_extents(short_path):
    base = SlowBase(BYTES)
    base.may_end.set()
    with served(of_the_subject(base), short_path, 1) as (client,):
        client.trim(BLOCK, 2 * BLOCK)
        found = client.block_status(0, 4 * BLOCK)
    data, hole = {"hole": False, "zero": False}, {"hole": True, "zero": True}
    assert found == [Extent(BLOCK, **data), Extent(2 * BLOCK, **hole), Extent(BLOCK, **data)]


def test_the_subject_is_not_to_be_mistaken_for_the_product(short_path):
    base = Base(short_path / "none", MIB, 1)
    with started(pipeline_named("global-lock").server, base, "", short_path) as running:
        (log,) = short_path.glob("*/log")
        assert f"This is {WHAT}" in log.read_text(encoding="utf-8")
        assert export_info(running.uri).description == WHAT
    assert "not cowproof" in WHAT


def test_the_product_has_no_option_for_one_lock():
    shown = subprocess.run(
        [sys.executable, "-m", "impl.server", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "lock" not in shown.replace("block", "")
    assert not issubclass(type(of_the_product(BytesBase(BYTES)).overlay), GlobalLockOverlay)
    assert type(of_the_product(BytesBase(BYTES)).overlay) is Overlay


SUBJECT_ERRORS = [  # (arguments, what the one line names)
    ([], "BASE"),
    (["memory:1M"], "--unix"),
    (["-U", "s", "memory:0"], "memory:"),
    (["-U", "s", "--cow-block-size", "5", "memory:1M"], "block size"),
]


@pytest.mark.parametrize(("arguments", "names"), SUBJECT_ERRORS)
def test_wrong_usage_of_the_subject_is_one_line(arguments, names):
    told = [sys.executable, "-m", "bench.global_lock_server", *arguments]
    done = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert names in done.stderr


# The guest


@pytest.mark.parametrize("size_mib", [16, 32, 256])
def test_a_guest_writes_parts_of_one_block_in_eight_and_of_a_quarter_of_these_again(size_mib):
    writes = list(guest.plan(size_mib * MIB))
    at = [offset // guest.BLOCK_BYTES for offset, _ in writes]
    blocks = size_mib * MIB // guest.BLOCK_BYTES // 8
    assert Counter(Counter(at).values()) == {1: blocks - blocks // 4, 2: blocks // 4}
    for (offset, data), block in zip(writes, at, strict=True):
        assert 0 < len(data) <= guest.LENGTH_MAX_BYTES
        assert offset % 512 == len(data) % 512 == 0
        assert (offset + len(data) - 1) // guest.BLOCK_BYTES == block
    assert any(offset % 4096 for offset, _ in writes)


@pytest.mark.parametrize("size_mib", [16, 32, 256])
def test_a_guest_has_no_two_writes_of_a_block_in_flight(size_mib):
    seen = {}
    for index, (offset, _) in enumerate(guest.plan(size_mib * MIB)):
        block = offset // guest.BLOCK_BYTES
        assert index - seen.get(block, -guest.IN_FLIGHT) >= guest.IN_FLIGHT
        seen[block] = index


def test_a_guest_writes_the_same_each_time():
    assert list(guest.plan(16 * MIB)) == list(guest.plan(16 * MIB))


def test_a_guest_writes_its_plan_and_says_how_long_it_took(serve):
    server = serve("memory:16M")
    outcome = pipelines.modify(server.uri, 16 * MIB)
    expected = bytearray(16 * MIB)
    for offset, data in guest.plan(16 * MIB):
        expected[offset : offset + len(data)] = data
    with connect(server.uri) as client:
        assert client.pread(0, 16 * MIB) == expected
    assert outcome.requests == len(list(guest.plan(16 * MIB)))
    assert outcome.wall_s > 0 < outcome.client_s


def test_a_guest_whose_server_is_not_there_says_so_in_one_line(short_path):
    with pytest.raises(ClientError, match=r"^[^\n]*nbd\+unix[^\n]*$"):
        pipelines.modify(f"nbd+unix:///?socket={short_path}/none", 16 * MIB)


# What has been copied


def test_a_disk_is_the_pattern_and_what_has_to_come_out_is_that_with_a_guests_writes(tmp_path):
    disk = make_disk(tmp_path, 16 * MIB, 1)
    base, expected = bytearray(disk.base.path.read_bytes()), disk.expected.read_bytes()
    assert base != expected
    for offset, data in guest.plan(16 * MIB):
        base[offset : offset + len(data)] = data
    assert base == expected


COPIES = [  # (what was copied where b"abcdef" should be, where it differs)
    (b"abcdef", None),
    (b"abcdeF", 5),
    (b"Xbcdef", 0),
    (b"abcde", 5),
    (b"abcdefg", 6),
    (b"", 0),
]


@pytest.mark.parametrize(("copied", "at"), COPIES)
def test_a_copy_is_refused_unless_every_byte_is_as_it_should_be(copied, at, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "CHUNK_BYTES", 4)
    disk = Disk(Base(tmp_path / "base", 6, 1), tmp_path / "expected", tmp_path / "copy")
    disk.expected.write_bytes(b"abcdef")
    disk.output.write_bytes(copied)
    if at is None:
        check_copy(disk)
        return
    with pytest.raises(ClientError, match=f"differs at byte {at}$"):
        check_copy(disk)


def test_a_pipeline_that_copies_wrong_bytes_is_no_measurement(short_path):
    disk = make_disk(short_path, 16 * MIB, 1)

    def untouched(running, disk):
        disk.output.write_bytes(disk.base.path.read_bytes())
        return Outcome(1.0)

    wrong = pipelines.Pipeline(OURS, pipeline_named(OURS).server, "", untouched)
    with pytest.raises(ClientError, match="the copy is wrong"):
        turn(wrong, disk, "", short_path)


# Turns


NAMES = ("a", "b", "c")
SCRIPTED = [pipelines.Pipeline(name, Server(name, (), "", lambda place: []), "", None) for name in NAMES]


def sample_of(wall_s, **more):
    return {stage: Sample(wall_s, **more) for stage in pipelines.STAGES}


def test_pipelines_take_turns_and_the_first_round_does_not_count():
    seconds = count()
    asked = []

    def take(pipeline):
        asked.append(pipeline.name)
        return sample_of(next(seconds))

    *_, found = all_turns(SCRIPTED, 2, take, lambda *_: None)
    assert asked == [*NAMES] * 3
    assert [[round_["whole"].wall_s for round_ in one.rounds] for one in found] == [[3, 6], [4, 7], [5, 8]]


@pytest.mark.parametrize("error", [ClientError("it broke"), StartError("it broke")])
def test_a_pipeline_that_fails_is_shown_with_why_and_not_asked_again(error):
    asked = []

    def take(pipeline):
        asked.append(pipeline.name)
        if pipeline.name == "b" and len(asked) > len(NAMES):
            raise error
        return sample_of(1.0)

    *_, found = all_turns(SCRIPTED, 2, take, lambda *_: None)
    assert asked == [*NAMES, *NAMES, "a", "c"]
    assert [(one.name, len(one.rounds), one.cannot) for one in found] == [
        ("a", 2, ""),
        ("b", 0, "it broke"),
        ("c", 2, ""),
    ]
    assert "b: not measured: it broke" in lines_of(found)


def test_what_is_not_installed_is_not_asked(monkeypatch):
    monkeypatch.setattr("bench.servers.path_of", lambda program: None)
    *_, found = all_turns(PIPELINES, 1, lambda pipeline: sample_of(1.0), lambda *_: None)
    missing = {one.name: one.cannot for one in found if one.cannot}
    assert set(missing) == {"nbdkit", "qemu-img", SERIAL}
    assert all("sudo apt-get install" in why for why in missing.values())


def test_a_whole_is_the_sum_of_its_stages():
    whole = total(Sample(1.0, server_s=0.25, client_s=2.0, noisy=True), Sample(2.0, server_s=0.5, other_s=3.0))
    assert whole == Sample(3.0, server_s=0.75, client_s=2.0, other_s=3.0, noisy=True)


def test_the_serial_one_is_nbdkit_with_one_request_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setattr("bench.servers.find", lambda program: program)
    place = Place(tmp_path, Base(tmp_path / "base", MIB, 7), COPY_ON_READ)
    told = pipeline_named(SERIAL).server.command(place)
    without = [part for part in told if part not in ("--filter=noparallel", "serialize=all-requests")]
    assert without == pipeline_named("nbdkit").server.command(place)
    assert len(told) - len(without) == 2
    assert told.index("--filter=noparallel") < told.index("--filter=cow")


@pytest.mark.parametrize("name", ["global-lock", OURS, "nbdkit", SERIAL])
def test_those_that_copy_on_read_are_told_to(name, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.servers.find", lambda program: program)
    base = Base(tmp_path / "base", MIB, 7)
    server = pipeline_named(name).server
    plain = server.command(Place(tmp_path, base))
    assert set(plain) < set(server.command(Place(tmp_path, base, COPY_ON_READ)))
    assert any("7ms" in part for part in plain)


# What is said


def found_of(name, *walls_s, mail_s=None, **more):
    rounds = [sample_of(wall_s, **more) for wall_s in walls_s]
    return Found(name, name, rounds, "" if rounds else "no reason", mail_s)


RUN = [
    found_of("global-lock", 8.0, 10.0, 12.0, mail_s=231.086, server_s=3.0),
    found_of("cowproof", 2.0, 2.0, 2.0, server_s=1.0, client_s=0.5),
    found_of("nbdkit", 4.0, 4.0, 4.0, mail_s=121.091),
    found_of("qemu-img", 1.0, 1.0, 1.0, mail_s=142.368),
    found_of("nbdkit-serial", 12.0, 12.0, 12.0, mail_s=231.086),
]


def test_the_mails_times_are_told_as_ratios_to_the_one_with_one_lock():
    assert [round(mail_ratio(seconds), 2) for seconds in pipelines.MAIL_S.values()] == [1.0, 1.91, 1.62]
    assert mail_ratio(None) is None


def test_a_table_has_medians_ratios_to_the_one_lock_the_mails_and_processor_time():
    assert [[cells[0], cells[3], *cells[4:8], *cells[8:]] for cells in table(RUN)[1:]] == [
        ["global-lock", "10.0", "8.00", "12.0", "1.00", "1.00", "3.00", "0.000"],
        ["cowproof", "2.00", "2.00", "2.00", "5.00", "", "1.00", "0.500"],
        ["nbdkit", "4.00", "4.00", "4.00", "2.50", "1.91", "0.000", "0.000"],
        ["qemu-img", "1.00", "1.00", "1.00", "10.00", "1.62", "0.000", "0.000"],
        ["nbdkit-serial", "12.0", "12.0", "12.0", "0.83", "1.00", "0.000", "0.000"],
    ]


def test_who_is_ahead_is_told():
    said = lines_of(RUN)
    assert "cowproof is 5.00 times as fast as global-lock" in said
    assert "cowproof is 2.00 times as fast as nbdkit" in said
    assert "qemu-img is ahead in whole: 2.00 times as fast as cowproof" in said
    assert "nbdkit is 3.00 times as fast as nbdkit-serial; in the mail, it is 1.91 times" in said
    assert "qemu-img is 12.00 times as fast as nbdkit-serial; in the mail, it is 1.62 times" in said


def test_who_is_ahead_in_one_stage_only_is_told_too():
    rounds = [{**sample_of(4.0), "copy": Sample(1.0)}]
    said = lines_of([RUN[1], Found("nbdkit", "", rounds)])
    assert "cowproof is 2.00 times as fast as nbdkit" in said
    assert "nbdkit is ahead in copy: 2.00 times as fast as cowproof" in said
    assert not any("ahead in whole" in line for line in said)


def test_rounds_that_differ_or_were_disturbed_are_told():
    said = lines_of([*RUN[:1], found_of("cowproof", 1.0, 1.0, noisy=True)])
    assert "noisy: rounds differ: global-lock's by 40%" in said
    assert "noisy: rounds beside other work: 2 of cowproof's 2" in said


@pytest.mark.parametrize("found", [RUN[1:2], [found_of("global-lock"), RUN[1]], [RUN[0], found_of("cowproof")]])
def test_what_was_not_measured_is_compared_with_nothing(found):
    assert not [line for line in lines_of(found) if line.startswith("cowproof is ") or "is ahead" in line]


def test_a_run_of_which_nothing_is_left_says_so():
    assert lines_of([]) == ["Nothing was measured."]


FAILED = [  # (names of what failed, whether the run did)
    (["nbdkit", "qemu-img", "nbdkit-serial"], False),
    (["cowproof"], True),
    (["global-lock"], True),
]


@pytest.mark.parametrize(("names", "failed"), FAILED)
def test_a_run_fails_if_one_of_ours_does(names, failed):
    assert bool(failures([found_of(name) for name in names])) is failed


# The command


@pytest.mark.parametrize(("text", "milliseconds"), [("1ms", 1), ("5ms", 5), ("1s", 1000), ("0.02s", 20), ("2000us", 2)])
def test_a_latency_is_whole_milliseconds(text, milliseconds):
    assert latency_of(text) == milliseconds


@pytest.mark.parametrize("text", ["0ms", "0.5ms", "2s", "1500us", "5"])
def test_a_latency_that_a_base_could_not_be_told_is_refused(text):
    with pytest.raises(UsageError, match="--latency"):
        latency_of(text)


@pytest.mark.parametrize("text", ["0", "1M", "17M", "-16M"])
def test_a_size_that_a_disk_cannot_have_is_refused(text):
    with pytest.raises(UsageError, match="--size"):
        size_of(text)


ERRORS = [  # (arguments, exit status, what the one line names)
    (["--pipelines", "no-such"], 2, "none is named 'no-such': expected some of global-lock, cowproof, nbdkit"),
    (["--size", "1M"], 2, "multiple of 16M"),
    (["--latency", "fast"], 2, "--latency"),
    (["--rounds", "0"], 2, "--rounds"),
    (["--json", "/nonexistent/run.json"], 1, "/nonexistent/run.json"),
    (["--directory", "/nonexistent"], 1, "/nonexistent"),
]


@pytest.mark.parametrize(("arguments", "status", "names"), ERRORS)
def test_what_is_wrong_is_one_line_and_an_exit_status(arguments, status, names):
    told = [sys.executable, "-m", "bench.pipelines", *arguments]
    done = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert names in done.stderr


def test_the_copying_client_is_named_with_its_package_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(pipelines, "path_of", lambda program: None)
    done = CliRunner().invoke(pipelines.pipelines, [])
    assert "sudo apt-get install libnbd-bin" in str(done.exception)


def test_the_help_names_every_pipeline():
    shown = CliRunner().invoke(pipelines.pipelines, ["--help"]).output
    assert all(f"  {pipeline.name} " in shown for pipeline in PIPELINES)


@pytest.mark.parametrize("mode", [[], ["--copy-on-read"]])
def test_every_pipeline_that_is_found_copies_what_it_should(mode, tmp_path, short_path):
    need("nbdcopy", "libnbd-bin")
    kept = tmp_path / "run.json"
    told = ["--rounds", "1", "--size", "16M", "--latency", "1ms", "--json", kept, "--directory", short_path, *mode]
    done = subprocess.run(
        [sys.executable, "-m", "bench.pipelines", *map(str, told)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text(encoding="utf-8"))
    assert found["format"] == pipelines.FORMAT
    for one in found["pipelines"]:
        assert not (mode and one["mail_s"]), "the mail has no run with copy-on-read"
        installed = not pipelines.reason_against(pipeline_named(one["name"]))
        assert len(one["rounds"]) == installed, one["cannot"]
        assert all(round_["copy"]["bytes"] == 16 * MIB for round_ in one["rounds"])
    assert not list(short_path.iterdir())


def test_what_is_kept_is_not_taken_for_a_run_of_the_other_benchmark(tmp_path):
    kept = tmp_path / "run.json"
    pipelines.write(kept, {}, RUN)
    with pytest.raises(UsageError):
        results.load(kept)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_early_shows_what_it_has_and_leaves_nothing(number, short_path):
    need("nbdcopy", "libnbd-bin")
    told = ["--pipelines", OURS, "--rounds", "1000", "--size", "16M", "--latency", "1ms", "--directory", short_path]
    with subprocess.Popen(
        [sys.executable, "-m", "bench.pipelines", *map(str, told)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        lines = iter(process.stderr.readline, b"")
        assert any(line.startswith(b"round 2") for line in lines)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Ratio: " in output
    assert not list(short_path.iterdir())
