"""The benchmark: what it counts, what it says of it, and that every server found can be measured. Nothing of how fast.

Source:  proc(5), fio(1), docs/benchmarks.md.
"""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from servers import ROOT, need

from bench import clients, command, growth, measure, servers, wanted
from bench.clients import ClientError, Load, Outcome, fio_command, parse_fio
from bench.command import bench, chosen, duration, settings_of
from bench.measure import Process, cpu_of_tree_s, parse_anonymous, parse_busy_s, parse_stat, tree
from bench.own_client import CannotError, percentile
from bench.page import page
from bench.report import aligned, number, row_lines, summary
from bench.results import FIGURES, GIB, MIB, Results, RowResult, Sample, ServerResult, load, ratio, save, spread
from bench.rows import BASES, PREPARATIONS, ROWS, Row
from bench.run import Run, Settings, fits, is_noisy, reason_against
from bench.servers import COPY_ON_READ, SERVERS, TLS
from bench.wanted import ahead, best, marks
from check.live import certificates
from impl.client.uri import parse
from impl.errors import UsageError
from impl.tls import client_context, server_context

TICKS = measure.TICKS_PER_S
HOSTILE = "</script><script>document.title='taken'</script><img src=http://example.com/x>"


def server_named(name):
    return next(server for server in SERVERS if server.name == name)


def row_named(name):
    return next(row for row in ROWS if row.name == name)


# What the kernel says of processes

STATS = [  # (line of /proc/PID/stat, what it says): fields 3, 4, and 14 to 17
    ("7 (nbdkit) S 1 7 7 0 -1 4194560 100 0 0 0 11 22 33 44 20 0 1", Process(7, 1, 33, 77)),
    ("8 (a (b) c) d) R 7 8 8 0 -1 0 1 2 3 4 5 6 0 0 20 0 1", Process(8, 7, 11, 0)),
    ("9 () Z 8 9 9 0 -1 0 1 2 3 4 1 0 2 0 20 0 1", Process(9, 8, 1, 2)),
]


@pytest.mark.parametrize(("line", "process"), STATS)
def test_a_process_is_read_whatever_its_name(line, process):
    assert parse_stat(line) == process


FAMILY = {
    process.pid: process
    for process in [Process(1, 0, 900, 900), Process(2, 1, 10, 5), Process(3, 2, 20, 0), Process(4, 3, 1, 7)]
}
TREES = [(2, [2, 3, 4], 43), (3, [3, 4], 28), (4, [4], 8), (5, [], 0)]


@pytest.mark.parametrize(("root", "pids", "ticks"), TREES)
def test_a_server_is_charged_for_its_children_and_for_those_that_have_ended(root, pids, ticks):
    assert tree(FAMILY, root) == pids
    assert cpu_of_tree_s(FAMILY, root, lambda process: process.own_ticks / TICKS) == pytest.approx(ticks / TICKS)


BURNER = """
import os, sys, time
if (child := os.fork()) == 0:
    while time.process_time() < 0.2:
        pass
    os._exit(0)
os.waitpid(child, 0)
print("burnt", flush=True)
sys.stdin.read()
"""


def test_a_child_that_has_ended_counts_as_it_does_for_the_kernel():
    with subprocess.Popen([sys.executable, "-c", BURNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"burnt\n"
        used_s = measure.cpu_s([process.pid])
        process.communicate()
    assert used_s >= 0.2 - 2 / TICKS


def test_anonymous_memory_is_the_sum_and_no_other_line():
    text = "00400000-7fff rollup\nRss:  900 kB\nAnonymous:          12 kB\nAnonHugePages:  4 kB\n"
    assert parse_anonymous(text) == 12 << 10
    assert parse_anonymous("Rss: 900 kB\n") == 0


def test_this_process_has_memory_and_has_taken_time():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert measure.memory_bytes(process.pid) > 0
        process.communicate(b"\n")


def test_a_machine_is_busy_when_it_is_neither_idle_nor_waiting():
    text = "cpu  1 2 4 1000 2000 8 16 32 64 128\ncpu0 9 9 9 9 9 9 9 9 9 9\n"
    assert parse_busy_s(text) == pytest.approx((1 + 2 + 4 + 8 + 16 + 32) / TICKS)


NOISE = [(0.0, 1.0, False), (0.4, 1.0, False), (0.5, 1.0, True), (0.04, 0.001, False), (0.2, 0.1, True)]


@pytest.mark.parametrize(("other_s", "wall_s", "noisy"), NOISE)
def test_a_round_is_noisy_if_others_took_a_fifth_of_two_processors(other_s, wall_s, noisy):
    assert is_noisy(other_s, wall_s, processors=2) is noisy


# What clients say

FIO = {"runtime": 500, "total_ios": 2000, "io_bytes": 8192000, "clat_ns": {}}
PERCENTILES = {"percentile": {"50.000000": 25_000, "99.000000": 1_000_000}}


def fio_output(**changes):
    return "fio: connected to NBD server\n" + json.dumps({"jobs": [{"error": 0, "mixed": {**FIO, **changes}}]})


def test_what_fio_reports_is_read_behind_its_messages():
    assert parse_fio(fio_output(clat_ns=PERCENTILES)) == Outcome(0.5, 2000, 8192000, 25e-6, 1e-3)
    assert parse_fio(fio_output()) == Outcome(0.5, 2000, 8192000)


FIO_FAILURES = ["", "no", "{}", '{"jobs": []}', fio_output(total_ios=0), fio_output(runtime=0), fio_output()[:-9]]


@pytest.mark.parametrize("output", [*FIO_FAILURES, fio_output().replace('"error": 0', '"error": 5')])
def test_a_run_of_fio_that_did_nothing_is_no_measurement(output):
    with pytest.raises(ClientError, match="fio"):
        parse_fio(output)


LOADS = [  # (load, what the command has, what it has not)
    (Load("randread", 4096, 32, 4), ["--runtime=500ms", "--time_based", "--numjobs=4"], ["--number_ios"]),
    (Load("randwrite", 4096, connections=4, requests=100), ["--number_ios=25", "--norandommap"], ["--time_based"]),
    (Load("randwrite", 4096, each_block_bytes=65536), ["--blockalign=65536", "--bs=4096"], ["--number_ios"]),
    (
        Load("randrw", 65536, connections=4, once=True),
        ["--size=268435456", "--offset_increment=268435456"],
        ["--norandommap", "--time_based", "--runtime"],
    ),
]


@pytest.mark.parametrize(("load_", "has", "has_not"), LOADS)
def test_a_load_is_told_to_fio(load_, has, has_not):
    told = fio_command("URI", load_, 0.5, GIB)
    assert set(has) <= set(told)
    assert not [option for option in told for prefix in has_not if option.startswith(prefix)]


PERCENTILES_OF_100 = [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)]


@pytest.mark.parametrize(("part", "value"), PERCENTILES_OF_100)
def test_a_percentile_is_a_value_that_was_seen(part, value):
    assert percentile(list(range(1, 101)), part) == value
    assert percentile([7], part) == 7
    assert percentile([], part) is None


ENDS = [  # (command, what is raised)
    ([sys.executable, "-c", "import sys; sys.exit('no such disk')"], ClientError),
    ([*clients.OWN, "nbd+unix:///?socket=/nonexistent", "trim"], ClientError),
]


@pytest.mark.parametrize(("told", "error"), ENDS)
def test_a_client_that_fails_says_why_in_one_line(told, error):
    with pytest.raises(error, match=r"ended with status 1: .+") as raised:
        clients.run(told)
    assert "\n" not in str(raised.value)


def test_a_client_is_charged_for_its_children():
    assert clients.run([sys.executable, "-c", BURNER]).cpu_s >= 0.2


MIB_EXTENTS = [(("mix",), 16), (("mix", "zero"), 1), (("mix", "trim"), 1), ((), 1)]


@pytest.mark.parametrize(("tasks", "extents"), MIB_EXTENTS)
def test_our_own_client_does_what_it_is_asked(tasks, extents, serve):
    server = serve("memory:16M")
    for task in tasks:
        assert clients.own(server.uri, task).requests in (1, 8)
    assert clients.own(server.uri, "status").requests == extents


def test_our_own_client_counts_connections(serve):
    done = clients.own(serve("memory:1M").uri, "connect", 2, 0.1)
    assert done.requests >= 2
    assert done.p50_s <= done.p99_s


def test_what_a_server_does_not_offer_is_told_from_a_failure(serve):
    with pytest.raises(CannotError, match="does not offer to write zeroes"):
        clients.own(serve("memory:1M", "--readonly").uri, "zero")


# Figures

FIGURES_OF_A_SAMPLE = [("throughput", 512.0), ("rate", 1000.0), ("time", 2000.0), ("memory", 3.0)]
COSTS = [("throughput", 0.5), ("rate", 25.0), ("time", 0.5), ("memory", 0.5)]
SAMPLE = Sample(2.0, requests=2000, bytes=GIB, server_s=0.5, memory_bytes=3 * MIB)


@pytest.mark.parametrize(("figure", "value"), FIGURES_OF_A_SAMPLE)
def test_a_figure_is_of_a_second_a_mebibyte_or_a_whole_row(figure, value):
    assert FIGURES[figure].value(SAMPLE) == pytest.approx(value)


@pytest.mark.parametrize(("figure", "cost"), COSTS)
def test_processor_time_is_of_a_gibibyte_100000_requests_or_a_whole_row(figure, cost):
    assert FIGURES[figure].server_cost(SAMPLE) == pytest.approx(cost)
    assert FIGURES[figure].client_cost(replace(SAMPLE, client_s=1.0)) == pytest.approx(2 * cost)
    assert FIGURES["rate"].server_cost(replace(SAMPLE, requests=0)) == 0


SPREADS = [([3.0], 3, 3, 3, False), ([1.0, 9.0, 2.0], 2, 1, 9, True), ([10.0, 11.0, 12.0, 9.0], 10.5, 9, 12, False)]


@pytest.mark.parametrize(("values", "median", "least", "most", "is_wide"), SPREADS)
def test_rounds_are_told_by_median_least_and_most(values, median, least, most, is_wide):
    found = spread(values)
    assert (found.median, found.least, found.most, found.is_wide) == (median, least, most, is_wide)


RATIOS = [(30, 10, True, 3.0), (30, 10, False, 1 / 3), (10, 20, False, 2.0), (1, 0, True, None), (0, 1, False, None)]


@pytest.mark.parametrize(("ours", "theirs", "more_is_better", "found"), RATIOS)
def test_a_ratio_above_one_means_that_we_are_ahead(ours, theirs, more_is_better, found):
    assert ratio(ours, theirs, more_is_better) == (found if found is None else pytest.approx(found))


# The tables

ASKED_ROWS = {  # by what was asked for: the patterns that have to fit a row each
    "bulk": [f"{what}-c{c}" for what in ("read-base", "read-allocated", "read-mixed") for c in (1, 4)],
    "bulk writes": [f"write-{overlay}-c{c}" for overlay in ("fresh", "allocated") for c in (1, 4)],
    "random": [
        f"{length}-{kind}-d{depth}-c{connections}-{overlay}"
        for length in ("4k", "64k")
        for kind in ("read", "write", "mix")
        for depth in (1, 32)
        for connections in (1, 4)
        for overlay in ("fresh", "allocated")
    ],
    "slow": [f"slow{ms}-{what}-d{depth}" for ms in (1, 10) for what in ("read", "parts") for depth in (16, 64)],
    "memory": [f"memory-{when}-{size}" for when in ("idle", "load") for size in ("1t", "8t")],
    "whole disk": ["trim", "zero", "block-status"],
    "connections": ["connect-c1", "connect-c4", "start"],
    "beside": ["4k-read-d1-idle64", "4k-read-d32-idle64"],
    "copy-on-read": ["4k-read-d32-copy", "slow1-read-d32-copy"],
    "with TLS": ["tls-read-base-c1", "tls-read-base-c4", "tls-write-fresh-c4"],
}
NAMES = [row.name for row in ROWS]


def test_the_rows_are_those_that_were_asked_for():
    assert sorted(NAMES) == sorted(name for names in ASKED_ROWS.values() for name in names)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_row_names_only_what_there_is(row):
    assert row.figure in FIGURES
    assert row.base in BASES
    assert row.prepared in PREPARATIONS
    assert row.needs in {*clients.PACKAGES, "own"}
    known = {*wanted.NBDKIT, *wanted.QEMU_NBD_EXCEPT, *wanted.MEMORY_MAX_MIB}
    assert row.wanted in known or "mix" in row.wanted or not row.wanted


@pytest.mark.parametrize("row", [row for row in ROWS if "write" in row.name], ids=lambda row: row.name)
def test_a_row_that_would_fill_its_overlay_has_one_of_its_own_in_every_round(row):
    assert row.anew == (row.prepared == "fresh")


def test_everything_that_is_asked_of_a_row_is_asked_of_one_that_there_is():
    named = {row.wanted for row in ROWS}
    assert {*wanted.NBDKIT, *wanted.QEMU_NBD_EXCEPT, *wanted.MEMORY_MAX_MIB} <= named


def test_what_servers_lack_and_what_settings_are_for_are_traits_that_rows_have():
    traits = frozenset().union(*(row.all_traits for row in (*ROWS, *growth.ROWS)))
    for server in SERVERS:
        assert {*server.lacks, *server.remarks, *server.only} <= traits
    assert len({server.name for server in SERVERS}) == len(SERVERS)
    assert {server.setting_of for server in SERVERS} <= {"", *(server.name for server in SERVERS)}


FITTING = [  # (server, row, whether it is shown there)
    ("cowproof", "start", True),
    ("cowproof-t16", "slow10-read-d64", True),
    ("cowproof-t16", "read-base-c1", False),
    ("cowproof-memory", "write-fresh-c4", True),
    ("cowproof-memory", "memory-idle-1t", False),
    ("nbdkit-t64", "block-status", False),
    ("nbdkit-t64", "read-base-c1", True),
]


@pytest.mark.parametrize(("server", "row", "is_shown"), FITTING)
def test_a_setting_is_shown_where_it_makes_a_difference(server, row, is_shown):
    assert fits(server_named(server), row_named(row)) is is_shown


REFUSALS = [  # (row, whether nbd-server -c is asked to do it)
    ("read-base-c1", True),
    ("read-base-c4", False),
    ("4k-write-d32-c1-fresh", True),
    ("4k-write-d32-c1-allocated", False),
    ("slow10-read-d16", False),
    ("4k-read-d32-copy", False),
    ("memory-idle-1t", True),
    ("memory-idle-8t", False),
    ("memory-load-1t", False),
    ("trim", False),
]


@pytest.mark.parametrize(("row", "is_asked"), REFUSALS)
def test_a_server_is_not_asked_for_what_it_cannot_do(row, is_asked, monkeypatch):
    monkeypatch.setattr(servers, "path_of", lambda program: program)
    assert (not reason_against(server_named("nbd-server"), row_named(row))) is is_asked


def test_a_server_that_is_not_installed_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(servers, "path_of", lambda program: None)
    reason = reason_against(server_named("qemu-nbd"), row_named("slow1-read-d16"))
    assert "qemu-nbd and qemu-img and nbdkit are not installed" in reason
    assert "qemu-utils nbdkit" in reason
    assert not reason_against(server_named("cowproof"), row_named("slow1-read-d16"))


PLACE = servers.Place(ROOT, servers.Base(ROOT / "base", GIB, 10), COPY_ON_READ)


@pytest.mark.parametrize("name", ["cowproof", "nbdkit", "qemu-nbd", "qemu-nbd-uring"])
def test_every_server_that_copies_on_read_is_told_to(name, monkeypatch):
    monkeypatch.setattr(servers, "find", lambda program: program)
    told = " ".join(server_named(name).command(PLACE))
    without = " ".join(server_named(name).command(replace(PLACE, mode="")))
    assert "on-read" in told
    assert "on-read" not in without
    assert ("io_uring" in told) == ("uring" in name)


@pytest.mark.parametrize("name", ["cowproof", "nbdkit", "qemu-nbd", "qemu-nbd-uring"])
def test_every_server_that_is_to_encrypt_has_the_certificates_of_the_run(name, monkeypatch, tmp_path):
    monkeypatch.setattr(servers, "find", lambda program: program)
    monkeypatch.setattr(certificates, "_make", lambda folder: None)
    place = servers.Place(tmp_path / "place", servers.Base(ROOT / "base", GIB), TLS)
    told = " ".join(server_named(name).command(place))
    assert str(tmp_path / "certificates") in told
    assert "tls" not in " ".join(server_named(name).command(replace(place, mode="")))
    target = parse(server_named(name).uri(place))
    assert (target.tls.certificates, target.tls.hostname) == (str(tmp_path / "certificates"), "localhost")
    assert parse(server_named(name).uri(replace(place, mode=""))).tls is None


def test_without_openssl_a_row_with_tls_says_what_to_install(monkeypatch):
    monkeypatch.setattr(servers, "path_of", lambda program: None if program == "openssl" else program)
    assert "apt-get install openssl" in reason_against(server_named("cowproof"), row_named("tls-read-base-c1"))
    assert reason_against(server_named("nbd-server"), row_named("tls-read-base-c1"))
    assert not reason_against(server_named("cowproof"), row_named("read-base-c1"))


def test_certificates_are_made_once_and_are_of_use(tmp_path):
    need("openssl", "openssl")
    folder = certificates.folder_in(tmp_path)
    server_context(str(folder), verify_peer=True)
    client_context(str(folder))
    made = (folder / "server-cert.pem").read_bytes()
    assert certificates.folder_in(tmp_path) == folder
    assert (folder / "server-cert.pem").read_bytes() == made


# Turns


class Scripted(Run):
    """A run whose samples are written down; it notes who was asked."""

    def __init__(self, samples, settings):
        self.samples, self.asked, self.told = samples, [], []
        super().__init__(ROOT, settings, self.told.append)

    def _sample(self, row, server):
        self.asked.append(server.name)
        found = self.samples[server.name].pop(0)
        if isinstance(found, Exception):
            raise found
        return found


ANYONE = SimpleNamespace(shown="", needs=str, lacks={}, remarks={}, programs=(), only=frozenset(), setting_of="")
A, B = SimpleNamespace(**{**vars(ANYONE), "name": "a"}), SimpleNamespace(**{**vars(ANYONE), "name": "b"})
ROW = Row("row", "", "rate", lambda task: Outcome(1.0), anew=True)


def quiet(wall_s):
    return Sample(wall_s, requests=1)


def noisy(other_s):
    return Sample(1.0, requests=1, other_s=other_s, noisy=True)


def test_servers_take_turns_and_the_first_round_does_not_count():
    scripted = Scripted({"a": [quiet(9), quiet(1), quiet(2)], "b": [quiet(8), quiet(3), quiet(4)]}, Settings(rounds=2))
    found = scripted.row(ROW, [A, B])
    assert scripted.asked == ["a", "b", "a", "b", "a", "b"]
    assert [[sample.wall_s for sample in server.samples] for server in found.servers] == [[1, 2], [3, 4]]
    assert [progress.is_first for progress in scripted.told] == [True] + [False] * 5


REPEATS = [  # (samples after the warm-up, those asked for, what counts)
    ([quiet(1)], 1, quiet(1)),
    ([noisy(3), quiet(1)], 2, quiet(1)),
    ([noisy(3), noisy(1), noisy(2)], 3, noisy(1)),
]


@pytest.mark.parametrize(("samples", "asked", "counts"), REPEATS)
def test_a_disturbed_round_is_repeated_up_to_a_bound(samples, asked, counts):
    scripted = Scripted({"a": [noisy(9), *samples]}, Settings(rounds=1, repeats=2))
    assert scripted.row(ROW, [A]).servers[0].samples == [counts]
    assert len(scripted.asked) == 1 + asked


@pytest.mark.parametrize("error", [CannotError("it has none"), ClientError("it has none")])
def test_a_server_that_cannot_is_shown_with_why_and_not_asked_again(error):
    scripted = Scripted({"a": [quiet(1), error], "b": [quiet(1)] * 4}, Settings(rounds=3))
    found = scripted.row(ROW, [A, B])
    assert (found.servers[0].cannot, found.servers[0].samples) == ("it has none", [])
    assert len(found.servers[1].samples) == 3
    assert scripted.asked == ["a", "b", "a", "b", "b", "b"]


# What is said of it


def result(name, *values, cannot="", **more):
    """A server with a rate in each round."""
    return ServerResult(name, name, [Sample(1.0, requests=value, **more) for value in values], cannot)


def row_of(*results, figure="rate", asked="4k read, depth 32"):
    return RowResult("row", "a row", figure, asked, list(results))


MARKS = [  # (ours, nbdkit, with 64 threads, qemu-nbd, what is said of nbdkit and of qemu-nbd)
    (2000, 1000, 500, 1000, ["met: 2 times nbdkit, found 2.00", "met: 1.2 times qemu-nbd, found 2.00"]),
    (
        1500,
        1000,
        500,
        1500,
        ["missed by 25%: 2 times nbdkit, found 1.50", "missed by 17%: 1.2 times qemu-nbd, found 1.00"],
    ),
    (2000, 500, 2000, 100, ["missed by 50%: 2 times nbdkit-t64, found 1.00", "met: 1.2 times qemu-nbd, found 20.00"]),
]


@pytest.mark.parametrize(("ours", "nbdkit", "many", "qemu_nbd", "said"), MARKS)
def test_a_row_says_what_of_it_was_met_against_the_best_of_a_peers_settings(ours, nbdkit, many, qemu_nbd, said):
    others = [result("nbdkit", nbdkit), result("nbdkit-t64", many), result("qemu-nbd", qemu_nbd)]
    assert list(map(str, marks(row_of(result("cowproof", ours), *others)))) == said


def test_where_less_is_better_the_best_is_the_least():
    row = RowResult("row", "", "time", "trim", [ServerResult(name, "", [Sample(wall_s)]) for name, wall_s in WALLS])
    assert best(row, "nbdkit").name == "nbdkit-t64"
    assert [mark.met for mark in marks(row)] == [False]


WALLS = [("cowproof", 1.0), ("nbdkit", 3.0), ("nbdkit-t64", 2.0)]


def test_processor_time_has_to_be_below_every_peers():
    servers_ = [
        result("cowproof", 10**5, server_s=1.0),
        result("nbdkit", 10**4, server_s=0.2),
        result("qemu-nbd", 10**4, server_s=0.09),
    ]
    said = [str(mark) for mark in marks(row_of(*servers_)) if "CPU" in str(mark)]
    assert said == [
        "met: CPU s/100k below nbdkit's 2, found 1",
        "missed by 11%: CPU s/100k below qemu-nbd's 0.9, found 1",
    ]


MEMORY = [(30, "met"), (44, "missed by 10%")]


@pytest.mark.parametrize(("mib", "verdict"), MEMORY)
def test_memory_has_a_limit_of_its_own_and_is_compared_with_nobody(mib, verdict):
    servers_ = [result("cowproof", 1, memory_bytes=mib * MIB), result("qemu-nbd", 1, memory_bytes=MIB)]
    said = list(map(str, marks(row_of(*servers_, figure="memory", asked="memory, idle"))))
    assert said == [f"{verdict}: under 40 MiB, found {mib}.0"]


def test_who_is_ahead_is_told_whatever_was_asked():
    row = row_of(result("cowproof", 100), result("nbdkit", 150), result("qemu-nbd", 50), asked="")
    assert ahead(row) == ["ahead: nbdkit, 1.50 times"]
    assert "  ahead: nbdkit, 1.50 times" in row_lines(row)
    assert "  row: ahead: nbdkit, 1.50 times" in summary([row])


def test_nothing_is_asked_or_said_where_we_were_not_measured():
    row = row_of(result("cowproof", cannot="it broke"), result("nbdkit", 1))
    assert (marks(row), ahead(row)) == ([], [])
    assert "  cowproof: not measured: it broke" in row_lines(row)


def test_rounds_that_differ_or_were_disturbed_make_a_row_noisy():
    disturbed = ServerResult("nbdkit", "", [Sample(1.0, requests=1, noisy=True), Sample(1.0, requests=1)])
    row = row_of(result("cowproof", 100, 100, 140), disturbed)
    assert row.noise() == [
        "rounds differ: cowproof by 40% of its median",
        "rounds beside other work: 1 of nbdkit's 2",
    ]
    assert row_of(result("cowproof", 100, 110)).noise() == []


NUMBERS = [
    (1234567.0, "1,234,567"),
    (99.96, "100.0"),
    (12.34, "12.3"),
    (1.234, "1.23"),
    (0.1234, "0.123"),
    (0.0, "0.000"),
]


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_a_number_has_the_digits_that_anyone_would_compare(value, text):
    assert number(value) == text


def test_a_table_has_no_empty_column():
    assert aligned([["", "x", "y"], ["a", "", "10"], ["bb", "", "5"]]) == ["     y", "a   10", "bb   5"]


DURATIONS = [(5, "5 s"), (89, "89 s"), (90, "2 minutes"), (3600, "60 minutes"), (5400, "1.5 hours")]


@pytest.mark.parametrize(("seconds", "text"), DURATIONS)
def test_time_that_is_left_is_told_roughly(seconds, text):
    assert duration(seconds) == text


# What is kept

RESULTS = Results(
    {"processors": "2 processors"},
    ["nbdkit 1.32.5"],
    {"rounds": 2, "size": "1G", "seconds": 2.0},
    [
        row_of(result("cowproof", 200, 220, p50_s=1e-5, p99_s=2e-3, client_s=1.0), result("nbdkit", 100, 90)),
        row_of(result("cowproof", 1), result("nbd-server", cannot=HOSTILE), asked=""),
    ],
)


def test_results_are_the_same_after_they_were_kept(tmp_path):
    save(RESULTS, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == RESULTS


BAD_FILES = ["", "[]", "{}", '{"format": "cowproof bench 1"}', '{"format": "other", "rows": []}', '{"format": 1']


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_file_that_is_none_of_ours_is_refused(text, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="is not what"):
        load(path)


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]


def test_the_page_has_a_plot_for_each_row_and_needs_nothing_but_itself():
    found = Elements(page(RESULTS))
    assert found.tags.count("svg") == len(RESULTS.rows)
    assert not {"script", "img", "link", "iframe", "object"} & set(found.tags)
    assert all(value.startswith("#") for _, name, value in found.attributes if name in ("src", "href"))
    assert ("meta", "name", "viewport") in found.attributes
    assert "prefers-color-scheme: dark" in page(RESULTS)


# The command


def called(*arguments):
    return CliRunner().invoke(bench, arguments)


CHOICES = [
    ("trim,zero", ["trim", "zero"]),
    ("zero, trim", ["trim", "zero"]),
    ("slow10-parts-*", ["slow10-parts-d16", "slow10-parts-d64"]),
    ("*", NAMES),
]


@pytest.mark.parametrize(("patterns", "names"), CHOICES)
def test_rows_are_chosen_by_patterns_in_their_own_order(patterns, names):
    assert [row.name for row in chosen(ROWS, patterns, "row")] == names


@pytest.mark.parametrize("patterns", ["", "no-such", "trim,no-such", "trim,"])
def test_a_pattern_that_fits_nothing_is_refused(patterns):
    with pytest.raises(UsageError, match="--list shows them"):
        chosen(ROWS, patterns, "row")


def test_quick_gives_way_to_what_is_asked_for():
    assert settings_of(True, None, None, None, None) == command.QUICK
    assert settings_of(True, 7, "64M", None, 1) == replace(command.QUICK, rounds=7, size_bytes=64 << 20, repeats=1)
    assert settings_of(False, None, None, None, None) == Settings()


@pytest.mark.parametrize("size", ["1M", "17M", "0", "many"])
def test_a_size_that_rows_could_not_use_is_refused(size):
    with pytest.raises(UsageError):
        settings_of(False, None, size, None, None)


def test_the_list_names_every_row_and_every_server():
    shown = called("--list").output
    assert all(f"  {name} " in shown for name in [*NAMES, *(server.name for server in SERVERS)])


def test_the_quick_rows_are_few_and_of_several_kinds():
    shown = called("--list", "--quick").output
    assert "6 rows" in shown
    assert "4 servers" in shown


@pytest.mark.parametrize(("row", "package"), [("read-base-c1", "libnbd-bin"), ("4k-read-d1-c1-fresh", "fio")])
def test_a_client_that_is_not_installed_is_named_with_its_package(row, package, monkeypatch):
    monkeypatch.setattr(command, "path_of", lambda program: None)
    done = called("--rows", row)
    assert f"sudo apt-get install {package}" in str(done.exception)


ERRORS = [  # (arguments, exit status, what the one line names)
    (["--rows", "no-such"], 2, "no row is named 'no-such'"),
    (["--servers", "no-such"], 2, "no server is named 'no-such'"),
    (["--size", "1M"], 2, "multiple of 16M"),
    (["--rounds", "0"], 2, "--rounds"),
    (["--show", "/nonexistent"], 2, "/nonexistent"),
    (["--json", "/nonexistent/run.json"], 1, "/nonexistent/run.json"),
    (["--directory", "/nonexistent"], 1, "/nonexistent"),
]


@pytest.mark.parametrize(("arguments", "status", "names"), ERRORS)
def test_what_is_wrong_is_one_line_and_an_exit_status(arguments, status, names):
    told = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert names in done.stderr


def test_a_run_that_was_kept_is_shown_again(tmp_path):
    kept, shown = tmp_path / "run.json", tmp_path / "run.html"
    save(RESULTS, kept)
    done = called("--show", str(kept), "--html", str(shown))
    assert "row: a row" in done.output
    assert shown.read_text(encoding="utf-8") == page(RESULTS)


# All of it


@pytest.mark.parametrize("row", ["read-base-c1", "4k-write-d1-c1-fresh", "start"])
def test_every_server_that_is_found_can_be_measured(row, tmp_path, short_path, monkeypatch):
    need("nbdcopy", "libnbd-bin")
    need("fio", "fio")
    monkeypatch.setenv("CC", "/no/such/compiler")  # compiling takes longer than all else: see test_compiled.py
    kept = tmp_path / "run.json"
    told = ["--rows", row, "--rounds", "1", "--size", "16M", "--seconds", "0.1", "--repeats", "0", "--json", kept]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *map(str, told), "--directory", str(short_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = load(kept).rows
    for server in found.servers:
        assert len(server.samples) == (not servers.absent(server_named(server.name))), server.cannot
    assert all(server.samples[0].memory_bytes > 0 for server in found.servers if server.samples)
    assert not list(short_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_early_shows_what_it_has_and_leaves_nothing(number, short_path):
    told = ["--rows", "start", "--servers", "cowproof", "--rounds", "1000", "--size", "16M", "--directory", short_path]
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *map(str, told)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr.readline() == b"start\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"")
    assert b"Ratio: " in output
    assert not list(short_path.iterdir())
