"""The servers that are put to the test, over bases with the same bytes and the same latency.

Each listens on a Unix socket in a folder that only we can enter, and is ended by its process number. Should we be
killed, it goes too: nbdkit and cowproof know --exit-with-parent, and qemu-nbd leaves with its last client.

nbdkit's base is a file behind its own delay filter where all reads take as long. Where they take different times, it
is the pattern that cowproof serves, reached through nbdkit's nbd plugin. qemu-nbd's is that pattern too, as the
backing file of a qcow2 image.

Units:   seconds where a name says so, else as in `programs`.
Errors:  StartError, one line, when a server is not there or does not come up.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import impl
from check.live.programs import BLOCK_BYTES, LATENCY_MS, SEED, Race
from impl.base.pattern import pattern
from impl.errors import StartError
from impl.sizes import format_size

START_LIMIT_S = 20.0
END_LIMIT_S = 5.0
POLL_S = 0.01
ROOT = Path(impl.__file__).parent.parent
COWPROOF = (sys.executable, "-m", "impl.server")

# The servers of others, as programs, each with the Debian package that has it.
PACKAGES = {
    **{program: program for program in ("nbdkit", "nbd-server", "openssl")},
    **dict.fromkeys(("qemu-nbd", "qemu-img"), "qemu-utils"),
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers at `uri`; `shown` are the commands with which somebody else would start one like it."""

    uri: str
    shown: tuple[str, ...]


def path_of(program: str) -> str | None:
    """Where it is installed, if it is."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def find(program: str) -> str:
    """Its path; StartError says what to install."""
    found = path_of(program)
    if found is None:
        raise StartError(missing([program]))
    return found


def missing(programs: Sequence[str]) -> str:
    """What to do about programs that are not there."""
    packages = dict.fromkeys(PACKAGES[program] for program in programs)
    verb = "is" if len(programs) == 1 else "are"
    return f"{' and '.join(programs)} {verb} not installed; on Debian: sudo apt-get install {' '.join(packages)}"


def version_of(program: str) -> str:
    """What it says of itself, such as `nbdkit 1.32.5`."""
    try:
        told = subprocess.run([find(program), "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise StartError(f"{program} --version failed: {error}") from None
    number = told.stdout.partition("\n")[0].partition(" ")[2]  # the name before it is as it was called, path and all
    return f"{program} {number}"


@contextmanager
def nbdkit(race: Race, block_count: int, folder: Path) -> Iterator[Server]:
    """nbdkit's cow filter, over a base of `block_count` blocks."""
    slow = _base_of_varying_latency if race.jitter_ms else _base_of_one_latency
    path = folder / "nbdkit"
    with slow(race, block_count, folder) as (base, shown):
        arguments = ["--filter=cow", *base, *race.nbdkit_options]
        with listening([find("nbdkit"), *arguments], path):
            yield Server(uri_of(path), (*shown, _shown(["nbdkit", *arguments], folder)))


@contextmanager
def _base_of_one_latency(race: Race, block_count: int, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """nbdkit's arguments for it, and what has to be started before."""
    image = folder / "base.img"
    image.write_bytes(pattern(SEED, 0, block_count * BLOCK_BYTES))
    yield ["--filter=delay", "file", str(image), f"rdelay={LATENCY_MS}ms"], []


@contextmanager
def _base_of_varying_latency(race: Race, block_count: int, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The same, where nbdkit's delay filter, which knows only one delay for all, does not do."""
    base = slow_base(race, block_count)
    with serving_base(base, folder) as path:
        yield ["nbd", f"socket={path}"], [_base_shown(base)]


@contextmanager
def serving_base(base: str, folder: Path) -> Iterator[Path]:
    """A socket where a base is served, as `cowproof serve` has it, only to be read."""
    path = folder / "base"
    with listening([*COWPROOF, "-r", base], path):
        yield path


def _base_shown(base: str) -> str:
    """How somebody else would serve it."""
    return f"{shlex.join(['cowproof', 'serve', '-U', 'base', '-r', base])} &"


# Two clients at the same time, not one; it leaves with the last.
QEMU_NBD_OPTIONS = ("-e", "2")


@contextmanager
def qemu_nbd(race: Race, block_count: int, folder: Path) -> Iterator[Server]:
    """qemu-nbd, with a qcow2 image over a base of `block_count` blocks."""
    base = slow_base(race, block_count)
    with serving_base(base, folder) as slow, listening_qemu_nbd(slow, folder, QEMU_NBD_OPTIONS) as path:
        shown = [_create_overlay(Path("base"), Path("overlay.qcow2")), ["qemu-nbd", *QEMU_NBD_OPTIONS, *OVERLAY]]
        yield Server(uri_of(path), (_base_shown(base), *map(shlex.join, shown)))


# What qemu-nbd serves.
OVERLAY = ("-f", "qcow2", "overlay.qcow2")


def _create_overlay(base: Path, overlay: Path) -> list[str]:
    """The command that makes a qcow2 image over the server at the socket `base`."""
    return ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", uri_of(base), str(overlay)]


@contextmanager
def listening_qemu_nbd(base: Path, folder: Path, options: Sequence[str]) -> Iterator[Path]:
    """The socket of a qemu-nbd that serves a new qcow2 image over the server at the socket `base`."""
    qemu_nbd, qemu_img = find("qemu-nbd"), find("qemu-img")
    path, overlay = folder / "qemu-nbd", folder / "overlay.qcow2"
    create = [qemu_img, *_create_overlay(base, overlay)[1:]]
    done = subprocess.run(create, capture_output=True, text=True, timeout=START_LIMIT_S, check=False)
    if done.returncode:
        raise StartError(f"qemu-img failed: {done.stderr.strip() or done.stdout.strip()}")
    try:
        with running([qemu_nbd, "-k", str(path), f"--pid-file={pidfile_of(path)}", *options, *OVERLAY], path):
            yield path
    finally:
        overlay.unlink(missing_ok=True)


@contextmanager
def cowproof(race: Race, block_count: int, folder: Path) -> Iterator[Server]:
    """The server of this project, over the same."""
    arguments = [*race.cowproof_options, "--cow-block-size", format_size(BLOCK_BYTES), slow_base(race, block_count)]
    path = folder / "cowproof"
    with listening([*COWPROOF, *arguments], path):
        yield Server(uri_of(path), (_shown(["cowproof", "serve", *arguments], folder),))


Open = Callable[[Race, int, Path], AbstractContextManager[Server]]
SERVERS: dict[str, Open] = {"nbdkit": nbdkit, "qemu-nbd": qemu_nbd, "cowproof": cowproof}


def slow_base(race: Race, block_count: int) -> str:
    """The base as cowproof's command line has it."""
    size = format_size(block_count * BLOCK_BYTES)
    jitter = f"&jitter={race.jitter_ms}ms" if race.jitter_ms else ""
    return f"pattern:{size}?seed={SEED}&latency={LATENCY_MS}ms{jitter}"


def uri_of(path: Path) -> str:
    """Where a server at this socket is found."""
    return f"nbd+unix:///?socket={path}"


def _shown(command: Sequence[str], folder: Path) -> str:
    """A command for people to read: the files of our private folder by their names only."""
    return shlex.join(part.replace(f"{folder}/", "") for part in command)


@contextmanager
def listening(command: Sequence[str], path: Path) -> Iterator[None]:
    """nbdkit or cowproof, from when clients can connect at the socket `path` until it has gone."""
    with running([*command, "-U", str(path), "-P", str(pidfile_of(path)), "--exit-with-parent"], path, ROOT):
        yield


def pidfile_of(path: Path) -> Path:
    """Where a server at this socket is to write its number."""
    return path.with_suffix(".pid")


@contextmanager
def running(command: Sequence[str], path: Path, cwd: Path | None = None) -> Iterator[None]:
    """A server that was told its socket `path` and its pid file, until it has gone; left out, `cwd` is its folder."""
    pidfile, errors = pidfile_of(path), path.with_suffix(".log")
    environment = {**os.environ, "TMPDIR": str(path.parent)}  # where they keep what is written
    try:
        with errors.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=cwd or path.parent, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
    except OSError as error:
        raise StartError(f"{command[0]} cannot be started: {error.strerror}") from None
    try:
        _wait_for(path.name, pidfile, process, errors)
        yield
    finally:
        end_process(process)
        pidfile.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _wait_for(name: str, pidfile: Path, process: subprocess.Popen[bytes], errors: Path) -> None:
    """All of them write their pid file once clients can connect."""
    deadline = time.monotonic() + START_LIMIT_S
    while not (pidfile.exists() and pidfile.stat().st_size):
        if process.poll() is not None or time.monotonic() > deadline:
            how = "does not come up" if process.returncode is None else f"ended with status {process.returncode}"
            said = " / ".join(errors.read_text(encoding="utf-8", errors="replace").splitlines())
            raise StartError(f"{name} {how}: {said or 'it said nothing'}")
        time.sleep(POLL_S)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """In order if it will, else at once."""
    process.terminate()
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_LIMIT_S)
