"""What was measured: samples, what a row's figure is, medians and ratios, and how they are kept as JSON.

Shapes:  Results has a RowResult for each row, which has a ServerResult for each server, which has a Sample a round.
         A Series names rows that differ in one number.
Units:   seconds, bytes; a figure's own unit is in FIGURES.
Errors:  UsageError for a file that `save` has not written.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from impl.errors import UsageError
from impl.sizes import format_size

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FORMAT = "cowproof bench 1"
KINDS = ("servers", "growth", "checkers")
SPREAD_MAX = 0.3  # (most - least) / median; above it, a row is called noisy


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one row on one server.

    latencies: of a request, or of a connection, at the median and the 99th percentile; None where none were taken
    other_s:   processor time of all that is neither server nor client
    noisy:     other_s was too much, and still was when the round had been repeated
    """

    wall_s: float
    requests: int = 0
    bytes: int = 0
    p50_s: float | None = None
    p99_s: float | None = None
    server_s: float = 0.0
    client_s: float = 0.0
    other_s: float = 0.0
    memory_bytes: int = 0
    noisy: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """What a row is about.

    costs:  what processor time is given for, and how much of that a sample is
    whose:  processor time it is
    """

    unit: str
    more_is_better: bool
    value: Callable[[Sample], float]
    cost_unit: str
    costs: Callable[[Sample], float]
    whose: str = "server"

    def server_cost(self, sample: Sample) -> float:
        """The server's processor time for one of it."""
        return _per(sample.server_s, self.costs(sample))

    def client_cost(self, sample: Sample) -> float:
        """The client's."""
        return _per(sample.client_s, self.costs(sample))


def _per(count: float, of: float) -> float:
    return count / of if of else 0.0


FIGURES: dict[str, Figure] = {
    "throughput": Figure(
        "MiB/s",
        True,
        lambda sample: _per(sample.bytes / MIB, sample.wall_s),
        "CPU s/GiB",
        lambda sample: sample.bytes / GIB,
    ),
    "rate": Figure(
        "/s", True, lambda sample: _per(sample.requests, sample.wall_s), "CPU s/100k", lambda s: s.requests / 100_000
    ),
    "time": Figure("ms", False, lambda sample: sample.wall_s * 1000, "CPU s", lambda _: 1.0),
    "memory": Figure("MiB", False, lambda sample: sample.memory_bytes / MIB, "CPU s", lambda _: 1.0),
    # Of a program with one thread that waits for nothing, for which wall time would only add noise.
    "work": Figure(
        "/s of processor time",
        True,
        lambda sample: _per(sample.requests, sample.server_s),
        "CPU s/100k",
        lambda sample: sample.requests / 100_000,
        whose="",
    ),
}


@dataclass(frozen=True, slots=True)
class Spread:
    """Of some rounds."""

    median: float
    least: float
    most: float

    @property
    def is_wide(self) -> bool:
        """Whether the rounds differ too much for their median to say much."""
        return self.most - self.least > SPREAD_MAX * self.median


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(slots=True)
class ServerResult:
    """A server in a row. `cannot`: why it has no samples; `remark`: what has to be said beside them."""

    name: str
    shown: str
    samples: list[Sample] = field(default_factory=list)
    cannot: str = ""
    remark: str = ""

    def of(self, number: Callable[[Sample], float | None]) -> Spread | None:
        """The spread of a number of its samples, if they have it."""
        values = [value for sample in self.samples if (value := number(sample)) is not None]
        return spread(values) if values else None


@dataclass(slots=True)
class RowResult:
    """A row. `wanted`: under which name `bench.wanted` has what is asked of it."""

    name: str
    meaning: str
    figure: str
    wanted: str
    servers: list[ServerResult] = field(default_factory=list)

    @property
    def shape(self) -> Figure:
        """What the row is about."""
        return FIGURES[self.figure]

    def server(self, name: str) -> ServerResult | None:
        """By name, if it was measured here."""
        return next((server for server in self.servers if server.name == name and server.samples), None)

    def value(self, server: ServerResult) -> Spread | None:
        """The row's figure of a server."""
        return server.of(self.shape.value)

    def cost(self, server: ServerResult) -> Spread | None:
        """What it cost the server."""
        return server.of(self.shape.server_cost)

    def ratio(self, ours: ServerResult, theirs: ServerResult) -> float | None:
        """How many times better our median is: above 1, we are ahead."""
        mine, other = self.value(ours), self.value(theirs)
        if mine is None or other is None:
            return None
        return ratio(mine.median, other.median, self.shape.more_is_better)

    def noise(self) -> list[str]:
        """What makes the row doubtful, a sentence each."""
        found = {server.name: (server, value) for server in self.servers if (value := self.value(server)) is not None}
        wide = [
            f"{name} by {(value.most - value.least) / value.median:.0%} of its median"
            for name, (server, value) in found.items()
            if len(server.samples) > 1 and value.is_wide
        ]
        disturbed = [
            f"{count} of {name}'s {len(server.samples)}"
            for name, (server, _) in found.items()
            if (count := sum(sample.noisy for sample in server.samples))
        ]
        notes = [f"rounds differ: {', '.join(wide)}"] if wide else []
        return [*notes, *([f"rounds beside other work: {', '.join(disturbed)}"] if disturbed else [])]


def ratio(ours: float, theirs: float, more_is_better: bool) -> float | None:
    """How many times better ours is; None where that has no meaning."""
    above, below = (ours, theirs) if more_is_better else (theirs, ours)
    return above / below if below else None


@dataclass(frozen=True, slots=True)
class Series:
    """Rows that differ in one number.

    axis:      what that number is of
    unit:      "bytes", "%", or nothing
    expected:  how the cost of a request grows with it, and why
    bound:     the exponent that this comes to at most; see `bench.trend`
    at:        the number of each row, by the row's name, the least first
    """

    name: str
    meaning: str
    axis: str
    unit: str
    expected: str
    bound: float
    at: dict[str, float]

    def without(self, names: set[str]) -> Series:
        """The same, less some rows."""
        return replace(self, at={name: at for name, at in self.at.items() if name not in names})

    def shown(self, name: str) -> str:
        """A row's number as people write it."""
        at = self.at[name]
        return format_size(int(at)) if self.unit == "bytes" else f"{at:g}{self.unit}"


@dataclass(slots=True)
class Results:
    """A run: where and how, and what came of it. `kind`: which of the tables was measured."""

    machine: dict[str, str]
    versions: list[str]
    settings: dict[str, Any]
    rows: list[RowResult] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    kind: str = KINDS[0]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}, expected one of {KINDS}")

    def series_of(self, row: RowResult) -> Series | None:
        """The one that it belongs to, if any."""
        return next((series for series in self.series if row.name in series.at), None)

    def rows_of(self, series: Series) -> list[RowResult]:
        """Those that were measured, the least number first."""
        return sorted((row for row in self.rows if row.name in series.at), key=lambda row: series.at[row.name])


def save(results: Results, path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps({"format": FORMAT, **asdict(results)}, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """What `save` has written."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError
        rows = [_row(row) for row in data.pop("rows")]
        series = [Series(**one) for one in data.pop("series", [])]
        return Results(**data, rows=rows, series=series)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(f"{path} is not what `cowproof bench --json` writes") from None


def _row(data: dict[str, Any]) -> RowResult:
    servers = [
        ServerResult(**{**server, "samples": [Sample(**sample) for sample in server["samples"]]})
        for server in data.pop("servers")
    ]
    found = RowResult(**data, servers=servers)
    assert found.shape
    return found
