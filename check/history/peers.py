"""Servers of others, and our own, over one slow base: the level that each kept while clients raced on it.

A level is kept in a run if the history recorded is linearizable there. That a run kept one is no promise of the server;
that it did not, and the few requests that show it, is a fact.

Source:  nbdkit(1), nbdkit-cow-filter(1), qemu-nbd(8), nbd-server(1), nbd-server(5).
Units:   seconds where a name says so.
Errors:  StartError, one line, when a server is not there or does not come up.
Omits:   nbd-server's base is a file, not slow: it has no other. Its copies on write are a connection's own, so it has
         one connection only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from check.history.format import load
from check.history.record import Recipe, record
from check.history.show import conflict_lines, reason_lines
from check.live.servers import (
    COWPROOF,
    END_LIMIT_S,
    POLL_S,
    START_LIMIT_S,
    find,
    listening,
    listening_qemu_nbd,
    path_of,
    serving_base,
    uri_of,
)
from impl.base.open import open_base
from impl.client import connect
from impl.errors import StartError
from model.budget import Budget
from model.certificate import Conflict
from model.history import LEVELS, History, Level
from model.linearizability import Decision, decide
from model.wgl import Verdict

Start = Callable[[str, Path], AbstractContextManager[str]]  # of a base, in a folder; the URI


@dataclass(frozen=True)
class Peer:
    """A server, and how it is recorded.

    recipe:  what is different from other recordings
    """

    start: Start
    shown: str
    recipe: Mapping[str, object] = field(default_factory=dict)


def _cowproof(*options: str) -> Start:
    @contextmanager
    def start(base: str, folder: Path) -> Iterator[str]:
        path = folder / "peer"
        # As large as the others' blocks: requests that share none cannot get into each other's way.
        with listening([*COWPROOF, "--cow-block-size", "64K", *options, base], path):
            yield uri_of(path)

    return start


def _nbdkit(*options: str) -> Start:
    @contextmanager
    def start(base: str, folder: Path) -> Iterator[str]:
        nbdkit, path = find("nbdkit"), folder / "peer"
        with (
            serving_base(base, folder) as slow,
            listening([nbdkit, "--filter=cow", "nbd", f"socket={slow}", *options], path),
        ):
            yield uri_of(path)

    return start


@contextmanager
def _qemu_nbd(base: str, folder: Path) -> Iterator[str]:
    options = ["-e", "64", "-t", "--discard=unmap"]
    with serving_base(base, folder) as slow, listening_qemu_nbd(slow, folder, options) as path:
        yield uri_of(path)


def _nbd_server(copy_on_write: bool) -> Start:
    @contextmanager
    def start(base: str, folder: Path) -> Iterator[str]:
        program, path, image = find("nbd-server"), folder / "peer", folder / "image"
        opened = open_base(base)
        image.write_bytes(opened.pread(0, opened.size))
        opened.close()
        config = folder / "config"
        lines = ["[generic]", f"unixsock = {path}", "[disk]", f"exportname = {image}", "flush = true", "fua = true"]
        config.write_text("\n".join([*lines, "trim = true", *["copyonwrite = true"] * copy_on_write, ""]))
        try:
            with _daemon([program, "-C", str(config)], uri_of(path).replace("///", "///disk"), folder) as uri:
                yield uri
        finally:
            for left in folder.glob("image*"):
                left.unlink()

    return start


# NBD promises nothing of what was trimmed, so nothing is taken for granted.
_NO_TRIM = {"trim_reads_zero": False}
# One connection: what others have written cannot be seen there.
_ALONE = {"clients": 1, "connections": 1, "depth": 32}

PEERS: dict[str, Peer] = {
    "cowproof": Peer(_cowproof(), "cowproof serve --cow-block-size 64K BASE"),
    "cowproof cow-on-read": Peer(
        _cowproof("--cow-on-read", "on"), "cowproof serve --cow-block-size 64K --cow-on-read on BASE"
    ),
    "cowproof cow-on-cache": Peer(
        _cowproof("--cow-on-cache"), "cowproof serve --cow-block-size 64K --cow-on-cache BASE"
    ),
    "nbdkit": Peer(_nbdkit(), "nbdkit --filter=cow nbd BASE", _NO_TRIM),
    "nbdkit cow-on-read": Peer(_nbdkit("cow-on-read=true"), "nbdkit --filter=cow nbd BASE cow-on-read=true", _NO_TRIM),
    "nbdkit cow-on-cache": Peer(
        _nbdkit("cow-on-cache=true"), "nbdkit --filter=cow nbd BASE cow-on-cache=true", _NO_TRIM
    ),
    "qemu-nbd": Peer(_qemu_nbd, "qemu-nbd -f qcow2 --discard=unmap OVERLAY", _NO_TRIM),
    "nbd-server": Peer(
        _nbd_server(False), "nbd-server, no copy on write", {"trim_reads_zero": False, "block_size": 4096}
    ),
    "nbd-server -c": Peer(
        _nbd_server(True), "nbd-server -c, one connection", {"trim_reads_zero": False, "block_size": 4096, **_ALONE}
    ),
}


@contextmanager
def serving(peer: Peer, base: str, folder: Path) -> Iterator[str]:
    """The URI of a server, over a base as `cowproof serve` has it, from when it answers until it has gone."""
    with peer.start(base, folder) as uri:
        yield uri


@contextmanager
def _daemon(command: Sequence[str], uri: str, folder: Path) -> Iterator[str]:
    """A server that goes into the background, and says who it is."""
    pidfile, errors = folder / "peer.pid", folder / "peer.log"
    with errors.open("wb") as log:
        done = subprocess.run(
            [*command, "-p", str(pidfile)], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        )
    if done.returncode:
        raise StartError(f"{command[0]} ended with status {done.returncode}: {errors.read_text(errors='replace')}")
    try:
        _wait_until_it_answers(uri, errors)
        yield uri
    finally:
        _end_by_number(pidfile)


def _end_by_number(pidfile: Path) -> None:
    try:
        pid = int(pidfile.read_text())
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return  # it has gone
    deadline = time.monotonic() + END_LIMIT_S
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(POLL_S)
    pidfile.unlink(missing_ok=True)


def _wait_until_it_answers(uri: str, errors: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            connect(uri).disconnect()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                said = " / ".join(errors.read_text(encoding="utf-8", errors="replace").splitlines())
                raise StartError(f"{uri} does not answer: {said or error}") from None
        time.sleep(POLL_S)


# Levels


@dataclass(frozen=True)
class Kept:
    """What came of a server's runs. `refuted` are the levels, each with the history and the decision that show it."""

    requests: int
    kept: Level | None
    refuted: Mapping[Level, tuple[History, Decision]]
    unknown: Sequence[Level]


def kept_by(peer: Peer, base: str, recipe: Recipe, runs: int, budget: Budget, say: Callable[[str], None]) -> Kept:
    """Record some runs of a server; the strictest level at which all of them are linearizable."""
    refuted: dict[Level, tuple[History, Decision]] = {}
    unknown: dict[Level, None] = {}
    requests = 0
    for number in range(runs):
        if len(refuted) == len(LEVELS):
            break
        history = _recorded(peer, base, replace(recipe, seed=recipe.seed + number))
        requests += len(history)
        # The one that asks for least is the quickest to decide, and what breaks it breaks the others.
        for level in reversed(LEVELS):
            if level in refuted:
                break
            decision = decide(history, level, budget)
            say(f"run {number + 1}, level {level}: {decision.verdict.value}")
            if decision.verdict is Verdict.NOT_LINEARIZABLE:
                for broken in LEVELS[: LEVELS.index(level) + 1]:
                    refuted.setdefault(broken, (history, decision))
                break
            if decision.verdict is Verdict.UNKNOWN:
                unknown[level] = None
    kept = next((level for level in LEVELS if level not in refuted and level not in unknown), None)
    return Kept(requests, kept, refuted, [level for level in unknown if level not in refuted])


def _recorded(peer: Peer, base: str, recipe: Recipe) -> History:
    with tempfile.TemporaryDirectory(prefix="cowproof-") as name:
        folder = Path(name)
        path = folder / "seen.jsonl"
        with serving(peer, base, folder) as uri:
            record(replace(recipe, uri=uri, **peer.recipe), path)  # type: ignore[arg-type]
        return load(path)


PAGE = """\
# Which level each server kept

Several processes of clients read and wrote the same few blocks of a server at the same time, over a base that took 2 to
22 ms to read, and what they saw was checked: is there one order of all requests that explains it, if a whole *request*
takes effect at an instant; what of it lies in one *block*; or in one *sector* of 512 bytes? Below is the strictest
level that explains all runs. Of cowproof, trims have to read as zeroes; of the others they may read as anything. That a
server kept a level in these runs is no promise of its own; that it did not is a fact, and the requests that show it
stand below. NBD itself promises nothing about requests that overlap.

Runs of seconds meet what is frequent: a server may keep a level in one and lose it in the next. `--runs` and
`--seconds` ask for more. What nbdkit and qemu-nbd lose has pages of its own, in [races](races/README.md). nbd-server
copies a sector while another of its processes writes to the same page of the same file, which Linux allows to be seen
half done.

{versions}. {how}

Made by `python -m check.history levels -o docs/levels.md`.

| server | started as | requests | level kept |
|---|---|---|---|
"""


def page(results: Mapping[str, Kept | str], versions: Sequence[str], how: str) -> list[str]:
    """docs/levels.md."""
    lines = PAGE.format(versions=", ".join(versions), how=how).splitlines()
    for name, kept in results.items():
        if isinstance(kept, str):
            lines.append(f"| {name} | `{PEERS[name].shown}` | | not run: {kept} |")
        else:
            lines.append(f"| {name} | `{PEERS[name].shown}` | {kept.requests} | {_level_told(kept)} |")
    for name, kept in results.items():
        if isinstance(kept, Kept) and kept.refuted:
            lines += ["", f"## {name}", ""]
            for level, (history, decision) in sorted(kept.refuted.items(), key=lambda item: LEVELS.index(item[0])):
                if decision.level != level:
                    continue  # it follows from what is shown of a level that asks for less
                assert isinstance(decision.certificate, Conflict)
                lines += [f"Not at level {level}: {decision.why}.", "", "```"]
                lines += [*conflict_lines(history, decision.certificate), *reason_lines(decision), "```", ""]
    return lines


def _level_told(kept: Kept) -> str:
    level = f"**{kept.kept}**" if kept.kept else "**none**"
    return f"{level}; not decided: {', '.join(kept.unknown)}" if kept.unknown else level


def versions() -> list[str]:
    """What is installed."""
    told = [f"Python {sys.version.split()[0]}"]
    for program, argument in (("nbdkit", "--version"), ("qemu-nbd", "--version"), ("nbd-server", "-V")):
        found = path_of(program)
        if found is not None:
            done = subprocess.run([found, argument], capture_output=True, text=True, timeout=10, check=False)
            first = (done.stdout or done.stderr).strip().splitlines()[0]
            told.append(first.removeprefix("This is ").removeprefix("/usr/bin/"))
    return told
