"""Results as a table of Markdown: who is ahead, what was missed, what is not there.

Source: bench/table.py.
"""

from bench.results import Results, RowResult, Sample, ServerResult
from bench.table import page, table


def result(name, *values, **more):
    """A server with a rate in each round."""
    return ServerResult(name, name, [Sample(1.0, requests=value, **more) for value in values])


def row_of(*results, name="row", figure="rate", asked="4k read, depth 32"):
    return RowResult(name, "a row", figure, asked, list(results))


def results_of(*rows):
    settings = {"rounds": 3, "size": "1G", "seconds": 2.0}
    return Results({"processor": "a machine"}, ["cowproof 1"], settings, list(rows))


TABLES = [  # (the servers of a row, its line)
    ([result("cowproof", 300), result("nbdkit", 100)], "| row | 300 /s (0.000) | 3.00 (0.000) |  |  |  |"),
    (
        [result("cowproof", 10**5, server_s=1.0), result("nbdkit", 5 * 10**4, server_s=2.0)],
        "| row | 100,000 /s (1.00) | 2.00 (4.00) |  |  |  |",
    ),
    (
        [result("cowproof", 100), result("nbdkit", 50), result("nbdkit-t64", 200)],
        "| row | 100 /s (0.000) | **0.50** (0.000) |  |  | 2 times nbdkit-t64 |",
    ),
    (
        [result("cowproof", 1000), result("nbd-server", 1001)],
        "| row | 1,000 /s (0.000) |  |  | **1.00** (0.000) |  |",
    ),
    (
        [result("cowproof", 100), result("qemu-nbd", 100)],
        "| row | 100 /s (0.000) |  | 1.00 (0.000) |  | 1.2 times qemu-nbd |",
    ),
]


def test_a_line_says_how_many_times_better_it_is_and_what_was_missed():
    for servers, line in TABLES:
        assert table(results_of(row_of(*servers)))[2:] == [line]


def test_a_row_that_cowproof_did_not_do_has_no_line():
    assert len(table(results_of(row_of(result("nbdkit", 1))))) == 2


def test_where_time_is_measured_processor_time_is_not_said():
    row = RowResult("start", "", "time", "", [ServerResult("cowproof", "", [Sample(0.1, server_s=9.0)])])
    assert table(results_of(row))[2] == "| start | 100 ms |  |  |  |  |"


def test_a_page_says_where_and_how_it_was_measured_and_counts():
    rows = [
        row_of(result("cowproof", 300), result("nbdkit", 100), name="one"),
        row_of(result("cowproof", 100), result("nbdkit", 200), name="other"),
    ]
    lines = page(results_of(*rows))
    assert lines[0] == "a machine; cowproof 1; 3 rounds, a base of 1G, 2 s a round."
    assert lines[-2:] == ["1 of 2 things that are asked were met.", "Ahead of nbdkit in 1 of 2 rows."]
