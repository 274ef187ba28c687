"""How cost grows: the exponent and what is too fast, the series and their rows, text and plots. Nothing of how fast.

Source:  docs/benchmarks.md; a power law is a line on logarithmic axes.
"""

import math
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from servers import ROOT, need

from bench import clients, command, growth, run, servers
from bench.clients import Outcome
from bench.command import bench, growth_job
from bench.curves import Axis, curves, decades, widened
from bench.page import page
from bench.report import conclusion, growth_summary, series_lines, series_table, series_verdicts
from bench.results import GIB, KIB, Results, RowResult, Sample, Series, ServerResult, load, save
from bench.rows import BASES, PREPARATIONS, Row, Task
from bench.rows import ROWS as SERVERS_ROWS
from bench.run import make_sparse, observed, reason_against
from bench.servers import SERVERS, Base, Place
from bench.trend import LATE_TOLERANCE, TOLERANCE, slope, trend, trends
from impl.errors import UsageError

COUNTS = growth.COUNTS
HOSTILE = "</script><script>document.title='taken'</script><img src=http://example.com/x>"


def points(cost, counts=COUNTS):
    return [(count, cost(count)) for count in counts]


# The exponent

POWERS = [-1.0, -0.3, 0.0, 0.5, 1.0, 2.0]


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_the_exponent_of_a_power_is_that_power_in_whatever_unit(power, unit):
    assert slope(points(lambda count: unit * count**power)) == pytest.approx(power)


def test_the_exponent_of_two_points_is_that_of_the_line_between_them():
    assert slope([(1, 3.0), (4, 6.0)]) == pytest.approx(0.5)


NO_LINE = [[], [(1, 1.0)], [(2, 1.0), (2, 3.0)], [(0, 1.0), (4, 1.0)], [(1, 0.0), (4, 1.0)]]


@pytest.mark.parametrize("few", NO_LINE)
def test_points_that_determine_no_line_have_no_exponent(few):
    assert slope(few) is None


TOO_FAST = [  # (what grows, its cost, the bound that it breaks)
    ("with the logarithm", lambda n: 1 + math.log2(n), 0),
    ("with the root", lambda n: n**0.5, 0),
    ("in proportion", lambda n: n, 0),
    ("in proportion, beside much that stays", lambda n: 20 + n, 0),
    ("only at the end", lambda n: 1 if n < 128 else n / 64, 0),
    ("at the end, after it has fallen", lambda n: 10 / n if n < 64 else n / 64, 0),
    ("by one step in the middle", lambda n: 1 if n < 16 else 3, 0),
    ("by more than a request's share", lambda n: n * (1 + math.log2(n)), 1),
    ("with the square", lambda n: n**2, 1),
    ("with the square, at the end", lambda n: n + n**3 / 256**2 * 4, 1),
    ("beyond a bound between", lambda n: n**0.45, 0.3),
]


@pytest.mark.parametrize(("what", "cost", "bound"), TOO_FAST, ids=[what for what, *_ in TOO_FAST])
def test_what_grows_faster_than_expected_is_told(what, cost, bound):
    found = trend("cowproof", points(cost), bound)
    assert found.is_too_fast
    assert str(found).startswith("cowproof: grows faster than expected: exponent ")


AS_EXPECTED = [  # (what grows, its cost, a bound that it keeps)
    ("not at all", lambda n: 3.0, 0),
    ("not at all, up to a tenth", lambda n: 1.1 if n in (1, 4, 64, 256) else 1.0, 0),
    ("not at all, but for one point in the middle", lambda n: 2.0 if n == 16 else 1.0, 0),
    ("less: shared by all in flight", lambda n: 1 + 8 / n, 0),
    ("less, as a power", lambda n: n**-0.5, 0),
    ("in proportion", lambda n: n, 1),
    ("in proportion, beside much that stays", lambda n: 20 + n, 1),
    ("as a power within the bound", lambda n: n**0.3, 0.3),
]


@pytest.mark.parametrize(("what", "cost", "bound"), AS_EXPECTED, ids=[what for what, *_ in AS_EXPECTED])
def test_what_does_not_is_as_expected(what, cost, bound):
    found = trend("cowproof", points(cost), bound)
    assert not found.is_too_fast
    assert str(found).startswith("cowproof: as expected: exponent ")


@pytest.mark.parametrize("bound", [0.0, 0.3, 1.0])
def test_a_power_is_too_fast_from_the_tolerance_on(bound):
    assert TOLERANCE < LATE_TOLERANCE
    assert not trend("a", points(lambda n: n ** (bound + TOLERANCE - 0.01)), bound).is_too_fast
    assert trend("a", points(lambda n: n ** (bound + TOLERANCE + 0.01)), bound).is_too_fast


def test_the_order_of_points_makes_no_difference():
    found = points(lambda n: 10 / n if n < 64 else n / 64)
    assert trend("a", found[::-1], 0) == trend("a", found, 0)


UNKNOWN = [  # points of which nothing can be said, whatever they look like
    [],
    [(1, 1.0), (256, 1.0)],
    [(0, 1.0), (25, 1.0), (50, 1.0)],
    [(1, 1.0), (2, 0.0), (4, 1.0), (8, 1.0)],
]


@pytest.mark.parametrize("few", UNKNOWN)
def test_where_nothing_can_be_told_it_is_never_called_expected(few):
    found = trend("a", few, 0)
    assert not found.is_known
    assert "cannot be told" in str(found)
    assert "as expected" not in str(found)


def test_an_exponent_is_told_with_its_sign_and_without_a_negative_zero():
    assert "exponent 0.00, over the last 3 points 0.00; expected at most 0" in str(trend("a", points(lambda n: 7.0), 0))
    assert "exponent -1.00" in str(trend("a", points(lambda n: 1 / n), 0))
    assert "-0.00" not in str(trend("a", points(lambda n: n**-0.001), 0))


# The series

AXES = {  # by its series: the numbers
    "connections": [1, 2, 4, 8, 16, 32, 64, 128, 256],
    "shared": [1, 2, 4, 8, 16, 32, 64, 128, 256],
    "depth": [1, 2, 4, 8, 16, 32, 64, 128, 256],
    "size-read": [GIB, 16 * GIB, 128 * GIB, 1024 * GIB, 8192 * GIB],
    "size-write": [GIB, 16 * GIB, 128 * GIB, 1024 * GIB, 8192 * GIB],
    "fill-4k": [0, 25, 50, 75, 100],
    "fill-1m": [0, 25, 50, 75, 100],
    "block-read": [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB, 2048 * KIB],
    "block-part": [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB, 2048 * KIB],
}


def test_the_series_are_those_that_were_asked_for():
    assert {series.name: list(series.at.values()) for series in growth.SERIES} == AXES


def test_every_row_is_in_one_series_and_none_is_a_row_of_the_servers():
    names = [row.name for row in growth.ROWS]
    assert names == [name for series in growth.SERIES for name in series.at]
    assert len({*names, *(row.name for row in SERVERS_ROWS)}) == len(names) + len(SERVERS_ROWS)


@pytest.mark.parametrize("row", growth.ROWS, ids=lambda row: row.name)
def test_a_row_names_only_what_there_is_and_its_figure_has_a_cost(row):
    assert row.base in BASES
    assert row.prepared in PREPARATIONS
    assert (row.figure, row.needs, row.wanted) == ("rate", "fio", "")


@pytest.mark.parametrize("series", growth.SERIES, ids=lambda series: series.name)
def test_a_quick_series_still_has_an_exponent(series):
    quick = [series.at[row.name] for row in growth.ROWS if row.name in series.at and row.quick]
    assert len([at for at in quick if at > 0]) == 3
    assert {min(series.at.values()), max(series.at.values())} <= set(quick)


@pytest.mark.parametrize("series", growth.SERIES, ids=lambda series: series.name)
def test_a_series_says_what_is_expected_and_within_which_bound(series):
    assert series.expected.startswith("The cost ")
    assert series.expected.endswith(".")
    assert 0 <= series.bound <= 1


LOADS = [  # (row, what fio is told)
    ("connections-16", {"--iodepth=1", "--numjobs=16", "--rw=randread", "--bs=4096"}),
    ("shared-16", {"--iodepth=16", "--numjobs=16"}),
    ("shared-256", {"--iodepth=1", "--numjobs=256"}),
    ("depth-128", {"--iodepth=128", "--numjobs=1"}),
    ("size-read-1g", {"--blockalign=262144", "--iodepth=32"}),
    ("fill-1m-50", {"--bs=1048576", "--iodepth=4"}),
    ("block-part-2m", {"--rw=randwrite", "--bs=4096", "--blockalign=2097152", "--number_ios=256"}),
    ("block-part-4k", {"--rw=randwrite", "--blockalign=4096", "--number_ios=16384"}),
]


def row_named(name):
    return next(row for row in growth.ROWS if row.name == name)


def server_named(name):
    return next(server for server in SERVERS if server.name == name)


@pytest.mark.parametrize(("name", "told"), LOADS)
def test_the_number_of_a_row_is_what_the_client_is_told(name, told, monkeypatch):
    commands = []
    monkeypatch.setattr(clients, "run", lambda command: commands.append(set(command)) or DONE)
    row_named(name).work(TASK)
    assert told <= commands[0]


DONE = SimpleNamespace(
    output='{"jobs": [{"mixed": {"runtime": 1, "total_ios": 1, "io_bytes": 1, "clat_ns": {}}}]}', cpu_s=0.0
)
TASK = Task(SimpleNamespace(uri="URI", pid=1, helpers=()), Base(ROOT / "base", GIB), 0.5)


BLOCK_SIZES = [  # (server, what it, or what prepares it, is told)
    ("cowproof", "--cow-block-size=256K"),
    ("nbdkit", "cow-block-size=262144"),
    ("qemu-nbd", "cluster_size=262144"),
]


@pytest.mark.parametrize(("name", "option"), BLOCK_SIZES)
def test_every_server_is_told_the_unit_of_copying_in_its_own_words(name, option, monkeypatch):
    commands = []
    monkeypatch.setattr(servers, "find", lambda program: program)
    monkeypatch.setattr(
        servers.subprocess, "run", lambda told, **_: commands.append(told) or SimpleNamespace(returncode=0)
    )
    for block_bytes in (256 * KIB, 0):
        place = Place(ROOT, Base(ROOT / "base", GIB), block_bytes=block_bytes)
        server_named(name).before(place, None)
        commands.append(server_named(name).command(place))
    told, default = ([part for part in commands if option in part] for commands in halves(commands))
    assert (len(told), len(default)) == (1, 0)


def halves(items):
    return items[: len(items) // 2], items[len(items) // 2 :]


def test_a_row_with_another_unit_of_copying_has_servers_of_its_own():
    rows = [row for row in growth.ROWS if row.name.startswith("block-read")]
    assert len({row.stand for row in rows}) == len(rows)


REFUSED = ["connections-2", "block-read-64k", "size-read-8t", "fill-4k-25", "size-write-1g"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_server_cannot_do_it_is_not_asked_here_either(name):
    assert reason_against(server_named("nbd-server"), row_named(name))
    assert not reason_against(server_named("cowproof"), row_named(name))


# What is prepared, and what is no part of a request

EXTENTS = [  # (what is written of a device of 16 MiB without data, extents)
    (("fill", 0), 1),
    (("fill", 25), 128),
    (("fill", 50), 256),
    (("fill", 75), 128),
    (("fill", 100), 1),
    (("places", 1), 2),
    (("places", 4), 8),
    (("places", 256), 1),
]


@pytest.mark.parametrize(("task", "extents"), EXTENTS)
def test_a_part_of_the_device_is_written_scattered(task, extents, serve):
    server = serve("memory:16M")
    written = clients.own(server.uri, *task)
    assert written.requests == {"fill": 256 * task[1] // 100, "places": task[1]}[task[0]]
    assert written.bytes == written.requests * 64 * KIB
    assert clients.own(server.uri, "status").requests == extents


def test_a_sparse_base_has_data_at_its_places_and_nowhere_else(tmp_path):
    make_sparse(tmp_path / "base", GIB, places=4)
    with (tmp_path / "base").open("rb") as base:
        found = [any(base.read(4 * KIB)) for at in range(8) if base.seek(at * GIB // 8) >= 0]
    assert found == [True, False] * 4
    assert (tmp_path / "base").stat().st_blocks * 512 <= 64 * KIB


def test_what_connecting_costs_the_server_is_no_part_of_what_a_request_costs(monkeypatch):
    taken_s = iter([0.0, 3.0, *(3.0, 3.0), *(13.0, 13.0)])
    monkeypatch.setattr(run.measure, "cpu_s", lambda roots: next(taken_s))
    monkeypatch.setattr(run.measure, "memory_bytes", lambda root: 0)
    done = []
    row = Row(
        "row", "", "rate", lambda task: done.append("work") or Outcome(1.0, 1), aside=lambda task: done.append("aside")
    )
    assert observed(row, TASK).server_s == 7.0
    assert done == ["aside", "work"]


# What is said of it

NUMBERS = {"row-1": 1.0, "row-4": 4.0, "row-16": 16.0}
SERIES = Series("row", "reads", "connections", "", "The cost stays.", 0.0, NUMBERS)


def server(name, rate, cost_s, cannot="", remark=""):
    """With a round of so many requests a second, and processor time for 100,000."""
    sample = Sample(1.0, requests=rate, server_s=cost_s * rate / 1e5)
    return ServerResult(name, name, [] if cannot else [sample], cannot, remark)


def results(*rows, series=SERIES):
    found = [RowResult(name, "", "rate", "", list(row)) for name, row in zip(series.at, rows, strict=False)]
    return Results({"p": "2 processors"}, [], {"rounds": 1, "size": "1G", "seconds": 2.0}, found, [series], "growth")


FLAT_AND_STEEP = results(
    [server("cowproof", 1000, 2.0), server("nbdkit", 500, 1.0)],
    [server("cowproof", 2000, 2.0), server("nbdkit", 500, 4.0)],
    [server("cowproof", 4000, 2.0), server("nbdkit", 500, 16.0)],
)


def test_a_series_is_one_table_by_its_number():
    assert series_table(SERIES, FLAT_AND_STEEP) == [
        "connections  cowproof   CPU  nbdkit   CPU  ratio",
        "1               1,000  2.00     500  1.00   2.00",
        "4               2,000  2.00     500  4.00   4.00",
        "16              4,000  2.00     500  16.0   8.00",
    ]


def test_a_series_says_of_each_server_how_its_cost_grows():
    assert series_verdicts(SERIES, FLAT_AND_STEEP) == [
        "cowproof: as expected: exponent 0.00, over the last 3 points 0.00; expected at most 0",
        "nbdkit: grows faster than expected: exponent 1.00, over the last 3 points 1.00; expected at most 0",
    ]
    assert [found.is_too_fast for found in trends(SERIES, FLAT_AND_STEEP)] == [False, True]


def test_the_end_says_how_many_series_grow_as_expected_and_which_do_not():
    assert growth_summary(FLAT_AND_STEEP) == [
        "cowproof: 1 of 1 series grow as expected.",
        "nbdkit: 0 of 1 series grow as expected.",
        "  row: nbdkit: grows faster than expected: exponent 1.00, over the last 3 points 1.00; expected at most 0",
    ]
    assert conclusion(FLAT_AND_STEEP)[:3] == growth_summary(FLAT_AND_STEEP)


def test_a_series_that_was_measured_in_part_counts_as_neither():
    found = results([server("cowproof", 1000, 2.0)], [server("cowproof", 1000, 2.0)])
    assert growth_summary(found) == ["cowproof: 0 of 1 series grow as expected, 1 cannot be told."]


def test_what_was_not_measured_is_said_once_with_all_its_places():
    row = [server("cowproof", 1000, 2.0), server("nbd-server", 1, 1, cannot="it cannot")]
    noted = [server("cowproof", 1000, 2.0, remark="but"), row[1]]
    assert series_verdicts(SERIES, results(row, row, noted))[1:] == [
        "nbd-server: not measured: it cannot (at 1, 4, 16)",
        "cowproof: but",
    ]


def test_a_series_in_which_nobody_was_measured_is_said_to_be_so():
    row = [server("cowproof", 1, 1, cannot="it broke")]
    found = results(row)
    assert series_table(SERIES, found) == []
    assert "  cowproof: not measured: it broke (at 1)" in series_lines(SERIES, found)
    assert growth_summary(found) == []


UNITS = [("bytes", 65536.0, "64K"), ("%", 25.0, "25%"), ("", 256.0, "256")]


@pytest.mark.parametrize(("unit", "at", "shown"), UNITS)
def test_a_number_is_shown_in_its_unit(unit, at, shown):
    assert replace(SERIES, unit=unit, at={"row": at}).shown("row") == shown


# What is kept


def test_a_series_is_the_same_after_it_was_kept(tmp_path):
    save(FLAT_AND_STEEP, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == FLAT_AND_STEEP


def test_what_was_kept_before_there_were_series_is_still_read(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"format": "cowproof bench 1", "machine": {}, "versions": [], "settings": {}, "rows": []}')
    assert load(path) == Results({}, [], {})


BAD_ENDS = ['"kind": "other"', '"series": [1]', '"series": [{"name": "row"}]']


@pytest.mark.parametrize("end", BAD_ENDS)
def test_a_series_that_is_none_of_ours_is_refused(end, tmp_path):
    path = tmp_path / "run.json"
    head = '{"format": "cowproof bench 1", "machine": {}, "versions": [], "settings": {}, "rows": []'
    path.write_text(f"{head}, {end}}}")
    with pytest.raises(UsageError, match="is not what"):
        load(path)


# Plots


def test_equal_factors_are_equally_far_apart_on_a_logarithmic_axis():
    axis = Axis(1, 256, 0, 80)
    assert [axis.place(at) for at in (1, 2, 16, 256)] == pytest.approx([0, 10, 40, 80])


def test_equal_differences_are_on_a_linear_one():
    axis = Axis(0, 100, 200, 0, is_log=False)
    assert [axis.place(at) for at in (0, 25, 100)] == pytest.approx([200, 150, 0])


def test_an_axis_with_one_number_has_it_in_the_middle():
    assert Axis(7, 7, 0, 100).place(7) == 50


DECADES = [(1, 10, [1, 2, 5, 10]), (0.3, 3, [0.5, 1, 2]), (150, 15000, [200, 500, 1000, 2000, 5000, 10000])]


@pytest.mark.parametrize(("low", "high", "ticks"), [*DECADES, (1, 1e4, [1, 10, 100, 1000, 1e4])])
def test_a_logarithmic_axis_has_round_numbers_and_few_of_them(low, high, ticks):
    assert decades(low, high) == pytest.approx(ticks)


RANGES = [(1.0, 1.0), (0.9, 1.1), (1.0, 9.0), (1.0, 1000.0)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_plot_shows_at_least_a_power_of_ten_with_room_on_both_sides(low, high):
    below, above = widened(low, high)
    assert above / below >= 10 - 1e-9
    assert below <= low / 1.2
    assert above >= high * 1.2


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]


def test_the_page_has_two_plots_for_a_series_and_what_is_expected_and_why():
    text = page(FLAT_AND_STEEP)
    assert Elements(text).tags.count("svg") == 2
    assert Elements(text).tags.count("polyline") == 4
    assert "<h1>How the cost of a request grows</h1>" in text
    assert "<em>Expected:</em> The cost stays." in text
    assert '<li class="missed">nbdkit: grows faster than expected' in text
    assert '<li class="met">cowproof: as expected' in text


def test_the_page_runs_nothing_that_a_name_brings():
    hostile = [server(HOSTILE, 10, 1.0, remark=HOSTILE), server("b", 1, 1, cannot=HOSTILE)]
    found = results(hostile, series=replace(SERIES, name=HOSTILE, expected=HOSTILE, axis=HOSTILE, meaning=HOSTILE))
    assert not {"script", "img", "link", "iframe", "object"} & set(Elements(page(found)).tags)


def test_a_line_falls_on_the_page_where_cost_rises():
    text = curves(SERIES, FLAT_AND_STEEP, "cost", lambda row, one: row.cost(one))
    lines = [value for tag, name, value in Elements(text).attributes if (tag, name) == ("polyline", "points")]
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in lines]
    assert heights[0] == [heights[0][0]] * 3
    assert heights[1] == sorted(heights[1], reverse=True)
    assert heights[1][0] - heights[1][1] == pytest.approx(heights[1][1] - heights[1][2], abs=0.2)


def test_nothing_is_drawn_where_nothing_was_measured():
    empty = results([server("cowproof", 1, 1, cannot="it broke")])
    assert curves(SERIES, empty, "cost", lambda row, one: row.cost(one)) == ""
    assert Elements(page(empty)).tags.count("svg") == 0


# The command


def called(*arguments):
    return CliRunner().invoke(bench, arguments)


def test_the_list_names_the_rows_of_the_series_and_three_servers():
    shown = called("--growth", "--list").output
    assert f"{len(growth.ROWS)} rows:" in shown
    assert "3 servers:" in shown
    assert all(f"  {row.name} " in shown for row in growth.ROWS)


def test_other_servers_are_measured_when_they_are_asked_for():
    assert "nbd-server -c" in called("--growth", "--list", "--servers", "nbd-server").output


def test_a_series_has_the_points_that_were_chosen(tmp_path):
    job = growth_job("depth-1,depth-16,size-read-*", "cowproof", False)
    found = job.prepared(command.QUICK, tmp_path).results.series
    assert [(series.name, len(series.at)) for series in found] == [("depth", 2), ("size-read", 5)]


def test_a_series_is_printed_with_its_last_row_and_a_part_of_it_when_the_run_ends():
    part = results(*([server("cowproof", 1, 1.0)] for _ in range(2)))
    assert (command.news(part), bool(command.unfinished(part))) == ([], True)
    assert (command.news(FLAT_AND_STEEP), command.unfinished(FLAT_AND_STEEP)) == (
        series_lines(SERIES, FLAT_AND_STEEP),
        [],
    )


def test_a_run_that_was_kept_is_shown_again(tmp_path):
    kept, shown = tmp_path / "run.json", tmp_path / "run.html"
    save(FLAT_AND_STEEP, kept)
    done = called("--show", str(kept), "--html", str(shown))
    assert "\n".join(series_lines(SERIES, FLAT_AND_STEEP)) in done.output
    assert shown.read_text(encoding="utf-8") == page(FLAT_AND_STEEP)


def test_growth_and_checkers_are_two_runs():
    done = called("--growth", "--checkers")
    assert isinstance(done.exception, UsageError)
    assert "expected one of them" in str(done.exception)


# All of it

LIVE = [  # (rows, one of each series; servers)
    ("connections-2,shared-2,depth-2,size-read-1g,size-write-1g,fill-4k-25,fill-1m-50,block-read-4k", "cowproof"),
    ("block-part-16k", "cowproof,nbdkit,qemu-nbd"),
]


@pytest.mark.parametrize(("rows", "asked"), LIVE)
def test_a_point_of_every_series_can_be_measured(rows, asked, tmp_path, short_path):
    need("fio", "fio")
    kept = tmp_path / "run.json"
    told = ["--growth", "--rows", rows, "--servers", asked, "--rounds", "1", "--size", "16M", "--seconds", "0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *told, "--repeats", "0", "--json", str(kept), "--directory", str(short_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = load(kept)
    assert [row.name for row in found.rows] == rows.split(",")
    for row in found.rows:
        for one in row.servers:
            assert len(one.samples) == (not servers.absent(server_named(one.name))), one.cannot
            assert all(sample.requests > 0 for sample in one.samples)
    assert done.stdout.count("cannot be told") >= len(found.series)
    assert not list(short_path.iterdir())
