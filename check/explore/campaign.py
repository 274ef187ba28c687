"""A whole bound, on all processors, for as long as it takes: stopped and gone on with as one likes.

    python -m check.explore.campaign --shape 2,2 --state explore.jsonl

Shapes:  the state is JSON Lines: a header that says which bound of which code it is, then a line for each slice that is
         done.
Errors:  exit status 0 complete and holds, 1 violated, 3 not complete or a sample, 2 wrong usage, a state of another
         bound, or of other code, included.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import click

import check.explore
import impl
import model
import specs
from check.explore.bounds import MENUS, Bound, Slices, Tally, explore_slice, plain
from check.explore.programs import DEFAULT_BLOCK_SIZE
from check.explore.search import Verdict
from check.explore.subjects import KINDS
from impl.errors import UsageError
from impl.server.command import fail_in_one_line

SLICE_PROGRAMS = 250


@lru_cache(maxsize=1)
def digest_of_code() -> str:
    """Of all that decides what is found: the code that is explored, the explorer, and the model."""
    digest = hashlib.sha256()
    for package in (model, impl, specs, check.explore):
        [folder] = package.__path__
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Campaign:
    """What is explored: one program of `every`, on a disk of so many blocks."""

    subject: str
    shape: tuple[int, ...]
    faults: int = 0
    every: int = 1
    blocks: int = 2

    def bound(self) -> Bound:
        """All its programs."""
        menu = MENUS[self.blocks]
        kind = KINDS[self.subject]
        menu = menu if kind.knows_all else plain(menu)
        menu = menu if kind.is_device else tuple(text for text in menu if text != "flush")
        return Bound(self.shape, menu, faults=self.faults, size=self.blocks * DEFAULT_BLOCK_SIZE)

    def slices(self) -> Slices:
        """What is done at a time."""
        return Slices(self.bound(), SLICE_PROGRAMS, self.every)

    def header(self) -> dict[str, object]:
        """Whatever makes two campaigns different."""
        return {
            "campaign": 2,
            **asdict(self),
            "shape": list(self.shape),
            "slices": len(self.slices()),
            "menu": list(self.bound().menu),
            "code": digest_of_code(),
        }


def explore_numbered(work: tuple[Campaign, int]) -> tuple[int, Tally]:
    """One slice, in a process of its own."""
    campaign, number = work
    return number, explore_slice(KINDS[campaign.subject], campaign.bound(), campaign.slices()[number])


class Record:
    """The state of a campaign in a file, or in memory only."""

    def __init__(self, campaign: Campaign, path: Path | None) -> None:
        self._path = path
        self.done: dict[int, Tally] = {}
        if path is not None and path.exists():
            self._read(campaign, path)
        elif path is not None:
            self._append(campaign.header())

    def _read(self, campaign: Campaign, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None
        # A line that was being written when the campaign was stopped has no end, and is done again.
        whole = [self._parsed(path, number, line) for number, line in enumerate(lines, 1) if line.endswith("\n")]
        if not whole or whole[0] != campaign.header():
            what = "another campaign"
            if whole and {**whole[0], "code": ""} == {**campaign.header(), "code": ""}:
                what = "this campaign on other code, and says nothing of this one"
            raise UsageError(f"{path} is the state of {what}: choose another --state, or remove it")
        for number, line in enumerate(whole[1:], 2):
            self._take(campaign, line, f"{path}, line {number}")
        if len(whole) < len(lines):
            path.write_text("".join(lines[:-1]), encoding="utf-8")

    def _parsed(self, path: Path, number: int, line: str) -> dict[str, Any]:
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
        raise UsageError(
            f"{path}, line {number} is no line of a campaign's state: choose another --state, or remove it"
        )

    def _take(self, campaign: Campaign, line: dict[str, Any], where: str) -> None:
        """One slice that was done."""
        try:
            number = line.pop("slice")
            tally = Tally(**{**line, "verdict": Verdict(line["verdict"])})
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{where} is no slice: choose another --state, or remove it") from None
        if not isinstance(number, int) or not 0 <= number < len(campaign.slices()):
            raise UsageError(f"{where} is of slice {number}, which there is not: choose another --state, or remove it")
        self.done[number] = tally

    def add(self, number: int, tally: Tally) -> None:
        """A slice is done."""
        self.done[number] = tally
        self._append({"slice": number, **asdict(tally), "verdict": tally.verdict.value})

    def _append(self, line: dict[str, object]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UsageError(f"--state {self._path} cannot be written: {error.strerror}") from None

    def total(self) -> Tally:
        """All that is done, added up."""
        return sum(self.done.values(), Tally())


def run(campaign: Campaign, record: Record, jobs: int, budget_s: float | None, said: Callable[[int], None]) -> Tally:
    """Do what is left, until it is done, something is wrong, or time is up."""
    if record.total().verdict is Verdict.VIOLATED:
        return record.total()
    left = ((campaign, number) for number in range(len(campaign.slices())) if number not in record.done)
    deadline_s = None if budget_s is None else time.monotonic() + budget_s
    with closing(_results(left, jobs)) as results:
        for number, tally in results:
            record.add(number, tally)
            said(1)
            if tally.verdict is not Verdict.HOLDS or (deadline_s is not None and time.monotonic() > deadline_s):
                break
    return record.total()


def _results(left: Iterator[tuple[Campaign, int]], jobs: int) -> Generator[tuple[int, Tally], None, None]:
    if jobs == 1:
        yield from map(explore_numbered, left)
        return
    # Not forked: greenlets and threads of this process have no business there.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _leave_interrupts_to_parent) as pool:
        running = {pool.submit(explore_numbered, work) for work in islice(left, 2 * jobs)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(explore_numbered, work) for work in islice(left, len(done))}
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            click.echo("a process that explored was killed; what was done is kept: start this again", err=True)
        finally:
            for future in running:
                future.cancel()


COMPLETE = "holds, complete"


def verdict_of(campaign: Campaign, record: Record) -> str:
    """What has been found out; a sample, or a part, shows nothing but what is wrong with it."""
    total = record.total()
    if total.verdict is not Verdict.HOLDS:
        return str(total.verdict.value)
    if len(record.done) < len(campaign.slices()):
        return "not complete, nothing found so far"
    return COMPLETE if campaign.every == 1 else "a sample, nothing found"


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--subject", type=click.Choice(list(KINDS)), default="overlay", help="What is explored; default overlay.")
@click.option("--shape", default="2,2", metavar="N,N", help="How many requests each client has; default 2,2.")
@click.option("--blocks", type=click.IntRange(1, 3), default=2, help="Of the disk; default 2.")
@click.option("--faults", type=click.IntRange(0, 2), default=0, help="How many operations may fail; default 0.")
@click.option("--every", type=click.IntRange(1), default=1, help="A sample: one program of so many; default all.")
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes; default all processors.")
@click.option("--state", type=click.Path(dir_okay=False), help="Keep here what is done, and go on from there.")
@click.option("--seconds", type=float, help="Stop after about so long, when what is at hand is done.")
def main(
    subject: str, shape: str, blocks: int, faults: int, every: int, jobs: int, state: str | None, seconds: float | None
) -> None:
    """Explore a bound."""
    counts = shape.split(",")
    if not all(count.isascii() and count.isdecimal() and 1 <= int(count) <= 3 for count in counts) or len(counts) > 4:
        raise UsageError(f"--shape {shape!r}: expected one to four numbers from 1 to 3, such as 2,2")
    campaign = Campaign(subject, tuple(map(int, counts)), faults, every, blocks)
    record = Record(campaign, None if state is None else Path(state))
    count, started_s = len(campaign.slices()), time.monotonic()
    with click.progressbar(length=count, label=f"{subject} {shape}", file=sys.stderr, show_pos=True) as bar:
        bar.update(len(record.done))
        with suppress(KeyboardInterrupt):  # what is done is kept
            run(campaign, record, jobs, seconds, bar.update)
    total = record.total()
    word = verdict_of(campaign, record)
    sampled = f", one program of {every}" * (every > 1)
    click.echo(
        f"{subject}, shape {shape}, {blocks} block{'s' * (blocks > 1)}, {faults} faults{sampled}: {word}\n"
        f"{total.programs:,} programs, {total.states:,} states, {total.transitions:,} transitions, "
        f"{total.schedules:,} schedules covered, {time.monotonic() - started_s:.0f} s now"
    )
    if total.replay:
        click.echo(f"{total.why}\nreplay: cowproof explore --replay {total.replay!r}")
    sys.exit({COMPLETE: 0, Verdict.VIOLATED.value: 1}.get(word, 3))


if __name__ == "__main__":
    fail_in_one_line(main, None, "python -m check.explore.campaign")
