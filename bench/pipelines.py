"""The pipelines that cowproof began with, again: a disk is changed and copied through an overlay over a slow base.

The mail in which nbdkit's finer locks are reviewed has three times for such a pipeline: with one lock, with the finer
ones, and with qemu-img over qcow2. Here each is a pipeline of its own beside ours, in turn, and the mail's times stand
beside theirs as ratios.

A turn of a pipeline: a server with a fresh overlay is started; a guest's writes go through it (`bench.guest`); the disk
is copied out, whole; and what came out is compared, byte for byte, with what has to be there. For qemu, the guest's
writes go through qemu-nbd, which then ends, and qemu-img reads the image itself, as in the mail.

Source:  the mail, of 19 February 2021, for MAIL_S. Its scripts are not in it; docs/benchmarks.md says what was kept.
Shapes:  a turn is a Sample for each of STAGES; the last is the sum of the others.
Units:   seconds; milliseconds of latency.
Errors:  exit status 0: measured. 1: a program is missing, or one of ours failed, or copied other bytes than it should;
         one line says what. 2: wrong usage. 130: Ctrl-C; what was measured until then is printed, and written.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import click

from bench import clients, guest, machine, measure
from bench.clients import ClientError, Outcome
from bench.command import (
    INTERRUPTED,
    ROUNDS_MAX,
    SIZE_MIN_BYTES,
    check_writable,
    chosen,
    clear,
    duration,
    ended_by_sigterm,
    folder_of,
)
from bench.report import aligned, number
from bench.results import Sample, Spread, spread
from bench.run import CHUNK_BYTES, is_noisy, private_folder
from bench.servers import COPY_ON_READ, SERVERS, Base, Place, Running, Server, absent, started
from check.live.servers import find, path_of
from impl.base.pattern import pattern
from impl.client.uri import parse
from impl.errors import StartError, UsageError
from impl.server.command import fail_in_one_line
from impl.sizes import format_size, parse_duration, parse_size

FORMAT = "cowproof pipelines 1"
MAIL_S = {"one lock": 231.086, "finer locks": 121.091, "qemu-img": 142.368}
GLOBAL_LOCK, OURS, SERIAL = "global-lock", "cowproof", "nbdkit-serial"
SEED = 0  # of the pattern that all bases hold
CONNECTIONS = 4
END_LIMIT_S, POLL_S = 60.0, 0.001
STAGES = ("modify", "copy", "whole")
LATENCY_MAX_S = 1.0

HELP = """Time a disk that is changed and copied through an overlay over a slow base, beside four others.

The mail that cowproof began with has three times for such a pipeline: nbdkit's cow filter with one lock over
everything (3m51), with finer locks (2m01), and qemu-img over qcow2 (2m22). This measures pipelines like them, and
ours:

\b
  global-lock     our server with one lock over everything, held while the base is read: a subject, not an option
  cowproof        our server as it is: a lock on the blocks of a request, and none while the base is read
  nbdkit          its cow filter, with the finer locks
  qemu-img        qemu-img convert of a qcow2 overlay
  nbdkit-serial   nbdkit's cow filter with one request at a time, which is near to what its one lock was

All have the same disk, the same latency, the same writes of a guest, and fresh overlays on one file system; they run in
turn, A B C, and the first round is not counted. What each has copied is compared with what it should have. Ratios say
how many times as fast as global-lock a pipeline is; where the mail has a time, its ratio stands beside.

\b
Examples:
  python -m bench.pipelines
  python -m bench.pipelines --rounds 5 --json pipelines.json
  python -m bench.pipelines --latency 1ms --size 512M
  python -m bench.pipelines --copy-on-read --pipelines 'global-lock,cowproof,nbdkit*'
"""

EPILOG = """Ratios of one run are to be trusted, seconds are of one machine on one day. Let nothing else run beside it.

\b
Exit status:
  0  measured
  1  could not be measured, or one of ours failed, or copied wrong bytes; one line says why
  2  wrong usage
"""

EXPLAINED = """\
Seconds are medians. Ratio: how many times as fast as global-lock the whole is. The mail: the same ratio of its times,
the one with one lock being 1. Server and clients: processor time of the whole; a server's base is in it, with qemu the
nbdkit that serves it; clients are the guest, and nbdcopy or qemu-img."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What is copied: a base, what has to come out, and where to."""

    base: Base
    expected: Path
    output: Path


Copy = Callable[[Running, Disk], Outcome]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One way from the base to the copy.

    server:   what the guest's writes go through
    copy:     how the disk is copied
    mail_s:   the mail's time for it, if it has one
    ends:     whether the server ends before the copy is made
    """

    name: str
    server: Server
    shown: str
    copy: Copy
    mail_s: float | None = None
    ends: bool = False


@dataclass(slots=True)
class Found:
    """What came of a pipeline: for each round, a sample for each stage. `cannot`: why there are none."""

    name: str
    shown: str
    rounds: list[dict[str, Sample]] = field(default_factory=list)
    cannot: str = ""
    mail_s: float | None = None

    def of(self, stage: str, value: Callable[[Sample], float] = lambda sample: sample.wall_s) -> Spread:
        """Over all rounds; there must be one."""
        return spread([value(round_[stage]) for round_ in self.rounds])


# The pipelines.


def _nbdcopy(running: Running, disk: Disk) -> Outcome:
    return clients.copy(running.uri, str(disk.output), CONNECTIONS, disk.base.size_bytes)


def _convert(running: Running, disk: Disk) -> Outcome:
    """The image lies beside the socket of the server that has had it."""
    image = Path(parse(running.uri).path).parent / "overlay.qcow2"
    done = clients.run([find("qemu-img"), "convert", "-f", "qcow2", "-O", "raw", str(image), str(disk.output)])
    return Outcome(done.wall_s, bytes=disk.base.size_bytes, client_s=done.cpu_s)


def _global_lock(place: Place) -> list[str]:
    slow = f"pattern:{place.base.size_bytes}?latency={place.base.latency_ms}ms"
    mode = ["--cow-on-read", "on"] if place.mode == COPY_ON_READ else []
    module = [sys.executable, "-m", "bench.global_lock_server"]
    return [*module, "--exit-with-parent", "-U", str(place.socket), *mode, slow]


def _serial(server: Server) -> Server:
    """nbdkit, with one request at a time on all connections together."""

    def command(place: Place) -> list[str]:
        told = server.command(place)
        at = told.index("--filter=cow")
        parameters = ["serialize=all-requests"]
        return [*told[:at], "--filter=noparallel", *told[at:], *parameters]

    return replace(server, name=SERIAL, shown="", command=command)


def _server(name: str) -> Server:
    return next(server for server in SERVERS if server.name == name)


PIPELINES = [
    Pipeline(
        GLOBAL_LOCK,
        Server(GLOBAL_LOCK, (), "", _global_lock),
        "python -m bench.global_lock_server BASE; nbdcopy",
        _nbdcopy,
        MAIL_S["one lock"],
    ),
    Pipeline(OURS, _server("cowproof"), "cowproof serve BASE; nbdcopy", _nbdcopy),
    Pipeline(
        "nbdkit", _server("nbdkit"), "nbdkit --filter=cow --filter=delay file; nbdcopy", _nbdcopy, MAIL_S["finer locks"]
    ),
    Pipeline(
        "qemu-img",
        _server("qemu-nbd"),
        "qemu-img convert of a qcow2 whose backing file nbdkit --filter=delay serves",
        _convert,
        MAIL_S["qemu-img"],
        ends=True,
    ),
    Pipeline(
        SERIAL,
        _serial(_server("nbdkit")),
        "nbdkit --filter=noparallel --filter=cow --filter=delay file serialize=all-requests; nbdcopy",
        _nbdcopy,
        MAIL_S["one lock"],
    ),
]
OURS_ALL = frozenset({GLOBAL_LOCK, OURS})


# One turn.


def turn(pipeline: Pipeline, disk: Disk, mode: str, folder: Path) -> dict[str, Sample]:
    """From a fresh overlay to a copy that is as it should be. StartError or ClientError says why not."""
    disk.output.unlink(missing_ok=True)
    size_bytes = disk.base.size_bytes
    with started(pipeline.server, disk.base, mode, folder) as running:
        modified = watched([running.pid, *running.helpers], lambda: modify(running.uri, size_bytes))
        roots = [*running.helpers]
        if pipeline.ends:
            end(running)
        else:
            roots.append(running.pid)
        copied = watched(roots, lambda: pipeline.copy(running, disk))
    check_copy(disk)
    return {"modify": modified, "copy": copied, "whole": total(modified, copied)}


def modify(uri: str, size_bytes: int) -> Outcome:
    """The guest, as a process of its own; its own clock counts."""
    done = clients.run([sys.executable, "-m", "bench.guest", uri, str(size_bytes)])
    return Outcome(**json.loads(done.output), client_s=done.cpu_s)


def end(running: Running) -> None:
    """Have a server write out what it has, and go; nobody else may open its image before."""
    os.kill(running.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + END_LIMIT_S
    while not running.has_ended():
        if time.monotonic() > deadline_s:
            raise StartError(f"it has not ended within {END_LIMIT_S:g} s")
        time.sleep(POLL_S)


def watched(roots: Sequence[int], work: Callable[[], Outcome]) -> Sample:
    """Some work, and what everybody took for it. `roots`: the servers, each with its children."""
    busy_s, own_s, began_s = measure.busy_s(), sum(os.times()[:2]), time.monotonic()
    server_s = measure.cpu_s(roots)
    outcome = work()
    wall_s = time.monotonic() - began_s
    server_s = measure.cpu_s(roots) - server_s
    own_s = sum(os.times()[:2]) - own_s
    other_s = max(0.0, measure.busy_s() - busy_s - server_s - outcome.client_s - own_s)
    return Sample(**asdict(outcome), server_s=server_s, other_s=other_s, noisy=is_noisy(other_s, wall_s))


def total(*stages: Sample) -> Sample:
    """One after the other. Latencies are of their own stage only."""
    return Sample(
        wall_s=sum(stage.wall_s for stage in stages),
        requests=sum(stage.requests for stage in stages),
        bytes=sum(stage.bytes for stage in stages),
        server_s=sum(stage.server_s for stage in stages),
        client_s=sum(stage.client_s for stage in stages),
        other_s=sum(stage.other_s for stage in stages),
        noisy=any(stage.noisy for stage in stages),
    )


# The disk.


def make_disk(folder: Path, size_bytes: int, latency_ms: int) -> Disk:
    """A base whose bytes are the pattern that our servers compute; and the same with a guest's writes."""
    base, expected = folder / "base", folder / "expected"
    with base.open("wb") as file:
        for start in range(0, size_bytes, CHUNK_BYTES):
            file.write(pattern(SEED, start, min(CHUNK_BYTES, size_bytes - start)))
    shutil.copyfile(base, expected)
    with expected.open("r+b") as file:
        for offset, data in guest.plan(size_bytes):
            file.seek(offset)
            file.write(data)
    os.sync()  # now, rather than beside the first turn
    return Disk(Base(base, size_bytes, latency_ms), expected, folder / "copy")


def check_copy(disk: Disk) -> None:
    """ClientError for a copy that is not what it should be, with the place."""
    with disk.output.open("rb") as copied, disk.expected.open("rb") as expected:
        offset = 0
        while True:
            found, wanted = copied.read(CHUNK_BYTES), expected.read(CHUNK_BYTES)
            if found != wanted:
                least = min(len(found), len(wanted))
                at = next((at for at in range(least) if found[at] != wanted[at]), least)
                raise ClientError(f"the copy is wrong: it differs at byte {offset + at}")
            if not wanted:
                return
            offset += len(wanted)


# All turns.


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is done."""

    rounds: int
    size_bytes: int
    latency_ms: int
    copy_on_read: bool

    @property
    def mode(self) -> str:
        """As servers are told."""
        return COPY_ON_READ if self.copy_on_read else ""


Turn = Callable[[Pipeline], dict[str, Sample]]
Say = Callable[[str, int, float | None], None]


def all_turns(
    pipelines: Sequence[Pipeline], rounds: int, take: Turn, say: Say, clock: Callable[[], float] = time.monotonic
) -> Iterator[list[Found]]:
    """A B C, A B C, the first round not counted; what there is after each round that is."""
    found = {one.name: Found(one.name, one.shown, cannot=reason_against(one), mail_s=one.mail_s) for one in pipelines}
    began_s, done, turns = clock(), 0, len(pipelines) * (rounds + 1)
    for round_ in range(rounds + 1):
        for pipeline in pipelines:
            into = found[pipeline.name]
            if not into.cannot:
                say(pipeline.name, round_, (clock() - began_s) / done * (turns - done) if done else None)
                try:
                    samples = take(pipeline)
                    if round_ > 0:
                        into.rounds.append(samples)
                except (ClientError, StartError) as error:
                    into.cannot, into.rounds = str(error), []
            done += 1
        if round_ > 0:
            yield list(found.values())


def reason_against(pipeline: Pipeline) -> str:
    """What to install for it, if something is not there."""
    return absent(pipeline.server, slow=True)


def check_clients() -> None:
    """StartError names what has to be installed for all."""
    if path_of("nbdcopy") is None:
        raise StartError(f"nbdcopy not installed; on Debian: sudo apt-get install {clients.PACKAGES['nbdcopy']}")


# As text.


def ratio_to(among: Sequence[Found], name: str, one: Found) -> float | None:
    """How many times as fast as the one of that name a pipeline is."""
    other = next((found for found in among if found.name == name and found.rounds), None)
    return None if other is None or not one.rounds else other.of("whole").median / one.of("whole").median


def mail_ratio(mail_s: float | None) -> float | None:
    """The same of the mail's times."""
    return None if mail_s is None else MAIL_S["one lock"] / mail_s


HEADINGS = ("", "modify s", "copy s", "whole s", "least", "most", "ratio", "the mail", "server CPU s", "clients CPU s")


def table(among: Sequence[Found]) -> list[list[str]]:
    """A line for each pipeline that was measured, under HEADINGS."""
    return [list(HEADINGS), *(_cells(among, one) for one in among if one.rounds)]


def _cells(among: Sequence[Found], one: Found) -> list[str]:
    whole = one.of("whole")
    return [
        one.name,
        *(number(one.of(stage).median) for stage in STAGES),
        number(whole.least),
        number(whole.most),
        _ratio(ratio_to(among, GLOBAL_LOCK, one)),
        _ratio(mail_ratio(one.mail_s)),
        number(one.of("whole", lambda sample: sample.server_s).median),
        number(one.of("whole", lambda sample: sample.client_s).median),
    ]


def _ratio(found: float | None) -> str:
    return "" if found is None else f"{found:.2f}"


def lines_of(among: Sequence[Found]) -> list[str]:
    """All that is to be said of a run."""
    if not among:
        return ["Nothing was measured."]
    lines = aligned(table(among)) if any(one.rounds for one in among) else []
    lines += [f"{one.name}: not measured: {one.cannot}" for one in among if one.cannot]
    lines += noise(among)
    ours = next((one for one in among if one.name == OURS and one.rounds), None)
    if ours is not None:
        lines += [*leads(among, ours)]
    lines += [*mails_own(among)]
    return [*lines, *EXPLAINED.splitlines()]


def leads(among: Iterable[Found], ours: Found) -> Iterator[str]:
    """Ours beside each; and who is ahead, be it in one stage only."""
    for one in among:
        if one is ours or not one.rounds:
            continue
        ratios = {stage: one.of(stage).median / ours.of(stage).median for stage in STAGES}
        if ratios["whole"] >= 1:
            yield f"{OURS} is {ratios['whole']:.2f} times as fast as {one.name}"
        for stage, ratio in ratios.items():
            if ratio < 1:
                yield f"{one.name} is ahead in {stage}: {1 / ratio:.2f} times as fast as {OURS}"


def mails_own(among: Sequence[Found]) -> Iterator[str]:
    """The mail's comparison, with its own servers alone."""
    for one in among:
        then, now = mail_ratio(one.mail_s), ratio_to(among, SERIAL, one)
        if then is not None and now is not None and one.name not in (*OURS_ALL, SERIAL):
            yield f"{one.name} is {now:.2f} times as fast as {SERIAL}; in the mail, it is {then:.2f} times"


def noise(among: Iterable[Found]) -> list[str]:
    """What makes the figures doubtful, a line for each reason."""
    there = [(one, one.of("whole")) for one in among if one.rounds]
    wide = [
        f"{one.name}'s by {(whole.most - whole.least) / whole.median:.0%}"
        for one, whole in there
        if len(one.rounds) > 1 and whole.is_wide
    ]
    disturbed = [
        f"{count} of {one.name}'s {len(one.rounds)}"
        for one, _ in there
        if (count := sum(round_["whole"].noisy for round_ in one.rounds))
    ]
    lines = [f"noisy: rounds differ: {', '.join(wide)}"] if wide else []
    return [*lines, *([f"noisy: rounds beside other work: {', '.join(disturbed)}"] if disturbed else [])]


# The command.


@click.command(
    "pipelines",
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option(
    "--pipelines", "patterns", default="*", metavar="PATTERNS", help="Which: names or patterns, with commas; all."
)
@click.option("--rounds", type=click.IntRange(1, ROUNDS_MAX), default=3, show_default=True, help="That count.")
@click.option("--latency", default="5ms", show_default=True, metavar="TIME", help="Of each read of the base.")
@click.option("--size", default="256M", show_default=True, metavar="SIZE", help="Of the disk, a multiple of 16M.")
@click.option("--copy-on-read", is_flag=True, help="Keep what is read in the overlay, as in no run of the mail.")
@click.option("--json", "json_path", metavar="FILE", help="Write all samples here.")
@click.option("--directory", metavar="DIR", help="For the disk and the overlays; default $TMPDIR, or /var/tmp.")
def pipelines(
    patterns: str,
    rounds: int,
    latency: str,
    size: str,
    copy_on_read: bool,
    json_path: str | None,
    directory: str | None,
) -> None:
    """Choose, measure, print, and exit."""
    wanted = chosen_pipelines(patterns)
    if copy_on_read:
        wanted = [replace(one, mail_s=None) for one in wanted]
    settings = Settings(rounds, size_of(size), latency_of(latency), copy_on_read)
    if json_path is not None:
        check_writable(Path(json_path))
    check_clients()
    found = measured(wanted, settings, folder_of(directory), json_path)
    if failed := failures(found):
        raise StartError(failed)


def chosen_pipelines(patterns: str) -> list[Pipeline]:
    """Those that a pattern fits. UsageError for a pattern that fits none."""
    for pattern_ in patterns.split(","):
        if not any(fnmatchcase(one.name, pattern_.strip()) for one in PIPELINES):
            names = ", ".join(one.name for one in PIPELINES)
            raise UsageError(f"--pipelines: none is named {pattern_.strip()!r}: expected some of {names}")
    return chosen(PIPELINES, patterns, "pipeline")


def size_of(text: str) -> int:
    """Bytes; UsageError for what a disk cannot have here."""
    size_bytes = parse_size(text, "--size")
    if size_bytes < SIZE_MIN_BYTES or size_bytes % SIZE_MIN_BYTES:
        raise UsageError(f"--size {text}: expected a multiple of {format_size(SIZE_MIN_BYTES)}")
    return size_bytes


def latency_of(text: str) -> int:
    """Whole milliseconds, for that is what all bases can be told; UsageError for anything else."""
    seconds = parse_duration(text, "--latency")
    milliseconds = round(seconds * 1000)
    if not 1 <= milliseconds <= LATENCY_MAX_S * 1000 or abs(seconds * 1000 - milliseconds) > 1e-6:
        raise UsageError(f"--latency {text}: expected whole milliseconds, from 1ms to {LATENCY_MAX_S:g}s")
    return milliseconds


def measured(wanted: Sequence[Pipeline], settings: Settings, parent: Path, json_path: str | None) -> list[Found]:
    """All turns; printed at the end. Ctrl-C ends it early: what there is is printed, and kept."""
    told: dict[str, object] = {**asdict(settings), "size": format_size(settings.size_bytes)}
    where: dict[str, object] = {"machine": machine.described(parent), "versions": machine.versions(), "settings": told}
    click.echo("\n".join([*head(machine.described(parent), machine.versions(), settings), ""]))
    found: list[Found] = []
    status = 0
    try:
        with ended_by_sigterm(), private_folder(parent) as name:
            folder = Path(name)
            disk = make_disk(folder, settings.size_bytes, settings.latency_ms)

            def take(pipeline: Pipeline) -> dict[str, Sample]:
                return turn(pipeline, disk, settings.mode, folder)

            def say(name: str, round_: int, left_s: float | None) -> None:
                show_progress(name, round_, settings.rounds, left_s, is_first=name == wanted[0].name)

            for found in all_turns(wanted, settings.rounds, take, say):
                if json_path is not None:
                    write(Path(json_path), where, found)
    except KeyboardInterrupt:
        status = INTERRUPTED
    clear()
    click.echo("\n".join(lines_of(found)))
    if status:
        sys.exit(status)
    return found


def head(machine_: dict[str, str], versions: Sequence[str], settings: Settings) -> list[str]:
    """Where and how."""
    writes = list(guest.plan(settings.size_bytes))
    length = statistics.mean(len(data) for _, data in writes)
    return [
        ", ".join(machine_.values()),
        ", ".join(versions),
        f"{settings.rounds} rounds after one that warms up; a disk of {format_size(settings.size_bytes)}, "
        f"{settings.latency_ms} ms for each read of it{', copy-on-read' if settings.copy_on_read else ''}",
        f"{len(writes)} writes of a guest, {length / 1024:.1f} KiB on average, {guest.IN_FLIGHT} in flight; "
        f"then a copy of the whole disk",
    ]


def show_progress(name: str, round_: int, rounds: int, left_s: float | None, is_first: bool) -> None:
    """A line that is overwritten; where nobody watches, one for each round."""
    left = "" if left_s is None else f", about {duration(left_s)} left"
    which = f"round {round_} of {rounds}" if round_ else "warming up"
    if sys.stderr.isatty():
        click.echo(f"\r{f'{which}, {name}{left}':<100}", nl=False, err=True)
    elif is_first:
        click.echo(f"{which}{left}", err=True)


def write(path: Path, where: dict[str, object], found: Sequence[Found]) -> None:
    """As JSON, with every sample."""
    data = {"format": FORMAT, **where, "mail_s": MAIL_S, "pipelines": [asdict(one) for one in found]}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def failures(found: Iterable[Found]) -> str:
    """Which of ours failed, in one line."""
    return "; ".join(f"{one.name}: {one.cannot}" for one in found if one.cannot and one.name in OURS_ALL)


if __name__ == "__main__":
    fail_in_one_line(pipelines, None, "python -m bench.pipelines")
